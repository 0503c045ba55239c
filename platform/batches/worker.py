"""The server's work on batches: take them up, some at a time, and give them back when it stops or fails."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from datetime import timedelta
from functools import partial

import structlog
from litestar import Litestar
from sqlalchemy.exc import SQLAlchemyError

from loraplex.adapters.errors import LeaseLost
from loraplex.platform.batches.leases import BatchLease
from loraplex.platform.batches.room import Room
from loraplex.platform.batches.run import BatchRun
from loraplex.platform.job_workers import while_held, work_until
from loraplex.platform.services import Services

BACKOFF = timedelta(seconds=10)

logger = structlog.get_logger(__name__)


async def run_batches(services: Services, app: Litestar, drain: asyncio.Event) -> None:
    """Work on batches until the server drains. app: which answers their lines."""
    engine, settings = services.engine, services.settings
    room = Room(settings.batch_concurrency, settings.max_num_seqs, lambda: engine.pending)
    await work_until(drain, settings.max_running_batches, partial(run_next, services, app, room))


async def run_next(services: Services, app: Litestar, room: Room) -> bool:
    """Take up the batch that is due, if there is one, and work on it to its end. False: there is none.

    Raises the database's errors. A caller that is cancelled gives the batch back.
    """
    lease = await services.batch_leases.claim(services.base_model_name)
    if lease is None:
        return False
    log = logger.bind(batch=lease.batch.id, attempt=lease.batch.attempt)
    log.info("batch_taken_up", status=lease.batch.status)
    run = BatchRun(services, app, room, lease)
    try:
        await while_held(run.work(), run.renew)
        log.info("batch_ended")
    except LeaseLost as lost:
        log.info("batch_lost", reason=str(lost))
    except asyncio.CancelledError:
        await _give_back(services, lease)
        log.info("batch_given_back")
        raise
    except Exception as error:
        log.error("batch_failed; trying again later", exc_info=error)
        await _give_back(services, lease, BACKOFF)
    return True


async def _give_back(services: Services, lease: BatchLease, delay: timedelta | None = None) -> None:
    """Where the database is away too, the end of the lease does the same."""
    with suppress(LeaseLost, OSError, SQLAlchemyError):
        await services.batch_leases.release(lease, delay)
