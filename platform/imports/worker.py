"""The server's work on imports: take jobs up, fetch, publish, and say how it ended.

Knows services, leases and sources. Knows no request.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from functools import partial

import structlog
from sqlalchemy.exc import SQLAlchemyError

from loraplex.adapters.audit import Actor
from loraplex.adapters.blobs import ADAPTER_FILES, PROMPT_FILES, WEIGHTS_FILE, Staging
from loraplex.adapters.errors import LeaseLost
from loraplex.adapters.import_jobs import Progress
from loraplex.adapters.import_leases import Lease
from loraplex.adapters.registry import VersionInfo
from loraplex.platform.errors import ApiError, to_api_error, unavailable
from loraplex.platform.imports.bucket import open_bucket
from loraplex.platform.imports.download import Download, Source
from loraplex.platform.imports.hub import open_hub
from loraplex.platform.imports.source_names import HubRepo, SourceName, parse_source, require_allowed
from loraplex.platform.job_workers import while_held, work_until
from loraplex.platform.publishing import max_file_bytes, publish_staged, require_served, validate_now
from loraplex.platform.services import Services
from loraplex.platform.settings import Settings

ATTEMPT_SECONDS = 3600
BACKOFF_SECONDS = 5
"""Before the second attempt; doubled before each further one."""

logger = structlog.get_logger(__name__)


async def run_imports(services: Services, drain: asyncio.Event) -> None:
    """Work on jobs, some at a time, until the server drains; those that run then go back to the queue."""
    if not services.settings.import_sources:
        return
    await work_until(drain, services.settings.max_running_imports, partial(run_next, services))


async def run_next(services: Services) -> bool:
    """Take up the job that is due, if there is one, and work on it for one attempt. False: there is none.

    Raises the database's errors. A caller that is cancelled gives the job back.
    """
    lease = await services.import_leases.claim(services.base_model_name)
    if lease is None:
        return False
    log = logger.bind(import_id=lease.job.id, source=lease.job.source, attempt=lease.job.attempt)
    log.info("import_begun", adapter=f"{lease.job.tenant}/{lease.job.adapter}")
    try:
        error = await _attempt_held(services, lease)
        await _settle(services, lease, error)
        log.info("import_attempted", error=error and error.code, reason=error and error.message)
    except LeaseLost as lost:
        log.info("import_lost", reason=str(lost))
    except asyncio.CancelledError:
        # Where the database is away too, the end of the lease does the same.
        with suppress(LeaseLost, OSError, SQLAlchemyError):
            await services.import_leases.release(lease)
        log.info("import_given_back")
        raise
    return True


async def _attempt_held(services: Services, lease: Lease) -> ApiError | None:
    """Work while the lease is renewed, which also tells how far it is. Raises LeaseLost as soon as that is lost."""
    downloads: list[Download] = []

    async def renew() -> None:
        await services.import_leases.renew(lease, _progress(downloads))

    return await while_held(_attempt(services, lease, downloads), renew)


async def _attempt(services: Services, lease: Lease, downloads: list[Download]) -> ApiError | None:
    """What went wrong; None: the version is published, and has been run where the engine had time."""
    try:
        async with asyncio.timeout(ATTEMPT_SECONDS):
            published = await _published(services, lease, downloads)
        await validate_now(services, published)
    except LeaseLost:
        raise
    except TimeoutError:
        return unavailable("source_unavailable", f"It took longer than {ATTEMPT_SECONDS} seconds.", BACKOFF_SECONDS)
    except Exception as error:
        failure = to_api_error(error)
        if failure.status == 500:
            logger.error("import_failed", import_id=lease.job.id, exc_info=error)
        return failure
    return None


async def _published(services: Services, lease: Lease, downloads: list[Download]) -> VersionInfo:
    """The version of the job: the one that an earlier attempt published, else what the source has."""
    job = lease.job
    if job.version is not None:
        return await services.registry.get_version(job.tenant_id, job.adapter, job.version)
    await require_served(services, job.tenant_id, job.adapter)
    name = await _pinned_name(services, lease)
    limits = max_file_bytes(services)
    with services.blobs.stage() as staging:
        async with _open_source(services.settings, name) as source:
            await _fetch_prompt_files(source, staging, limits)
            for file in ADAPTER_FILES:
                with Download(staging.path(file), limits[file]) as download:
                    downloads.append(download)
                    await source.fetch(file, download)
        await services.import_leases.renew(lease, _progress(downloads))
        record = partial(services.import_leases.record_version, lease)
        sha256, by = downloads[-1].sha256, Actor("server", job.created_by)
        return await publish_staged(services, staging, job.tenant_id, job.adapter, sha256, by, record)


async def _fetch_prompt_files(source: Source, staging: Staging, limits: Mapping[str, int]) -> None:
    """Chat template and tokenizer, where the source has them."""
    for file in PROMPT_FILES:
        try:
            with Download(staging.path(file), limits[file]) as download:
                await source.fetch(file, download)
        except ApiError as error:
            staging.path(file).unlink()
            if error.status not in (403, 404):
                raise
            if error.status == 403:
                # S3's answer for what is not there to who may read but not list. Where nothing may be read, the next
                # file says so.
                logger.info("import_without_file", file=file, reason=error.message)


async def _pinned_name(services: Services, lease: Lease) -> SourceName:
    """What the job is about. A branch is looked up once: from then on it is about that commit."""
    name = parse_source(lease.job.source)
    require_allowed(name, services.settings.import_sources, lease.job.tenant)
    if isinstance(name, HubRepo) and not name.is_pinned:
        async with open_hub(services.settings, name) as hub:
            name = await hub.pinned()
        await services.import_leases.pin(lease, str(name))
    return name


@asynccontextmanager
async def _open_source(settings: Settings, name: SourceName) -> AsyncIterator[Source]:
    if isinstance(name, HubRepo):
        async with open_hub(settings, name) as hub:
            yield hub
    else:
        yield open_bucket(settings, name)


def _progress(downloads: Sequence[Download]) -> Progress:
    """The weights come last: before they are announced the total is not known."""
    if not downloads:
        return Progress()
    sizes = [download.total_bytes for download in downloads]
    total = sum(filter(None, sizes)) if downloads[-1].name == WEIGHTS_FILE and None not in sizes else None
    return Progress(downloads[-1].name, sum(download.received_bytes for download in downloads), total)


async def _settle(services: Services, lease: Lease, error: ApiError | None) -> None:
    """Write down how the attempt ended. What may pass by itself, 5xx, is tried again, ever later."""
    if error is None:
        await services.import_leases.succeed(lease)
        return
    told = {"code": error.code, "message": error.message, "details": error.details}
    if error.code is None:
        told |= {"code": "internal_error", "message": "The server failed; ask the operator what the log says."}
    if error.status < 500:
        await services.import_leases.fail(lease, told)
    else:
        backoff = BACKOFF_SECONDS * 2 ** (lease.job.attempt - 1)
        wait_seconds = max(backoff, int(error.headers.get("retry-after", 0)))
        await services.import_leases.retry(lease, told, timedelta(seconds=wait_seconds))
