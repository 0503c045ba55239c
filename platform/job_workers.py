"""How a server works on jobs: some at a time, looking for more at intervals, each under a lease that is renewed.

Knows leases and the server's drain. Knows no job: `imports/` and `batches/` do.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

import structlog
from sqlalchemy.exc import SQLAlchemyError

LOOK_SECONDS = 1.0
RENEW_SECONDS = 2.0
"""Between signs of life. At each a job also tells how far it is, and learns whether it was cancelled."""

T = TypeVar("T")

logger = structlog.get_logger(__name__)


async def work_until(drain: asyncio.Event, workers: int, run_next: Callable[[], Awaitable[bool]]) -> None:
    """Work on that many jobs at a time until the server drains; those that run then are cancelled.

    run_next: take a job up and work on it, or say False where there is none.
    """
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(_work(run_next)) for _ in range(workers)]
        await drain.wait()
        for worker in running:
            worker.cancel()


async def _work(run_next: Callable[[], Awaitable[bool]]) -> None:
    while True:
        try:
            found = await run_next()
        except (OSError, SQLAlchemyError) as error:
            logger.warning("jobs cannot be reached; trying again", error=str(error))
            found = False
        if not found:
            await asyncio.sleep(LOOK_SECONDS)


async def while_held(work: Coroutine[Any, Any, T], renew: Callable[[], Awaitable[None]]) -> T:
    """The result of `work`, during which the lease is renewed. Raises LeaseLost as soon as that is lost."""
    ended = asyncio.Event()
    working = asyncio.create_task(work)
    renewal = asyncio.create_task(_renew(renew, ended))
    try:
        await asyncio.wait((working, renewal), return_when=asyncio.FIRST_COMPLETED)
    finally:
        ended.set()
        working.cancel()
        await asyncio.gather(working, renewal, return_exceptions=True)
    renewal.result()
    return working.result()


async def _renew(renew: Callable[[], Awaitable[None]], ended: asyncio.Event) -> None:
    """At intervals. While the database is away the work goes on: without the lease it changes nothing."""
    while not ended.is_set():
        try:
            await renew()
        except (OSError, SQLAlchemyError) as error:
            logger.warning("a job's lease cannot be renewed; trying again", error=str(error))
        with suppress(TimeoutError):
            async with asyncio.timeout(RENEW_SECONDS):
                await ended.wait()
