"""Jobs of imports and their leases, on SQLite and PostgreSQL: one server is at a job, and none is for ever."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from loraplex.adapters import import_jobs
from loraplex.adapters.audit import Actor
from loraplex.adapters.base_models import register_base_model
from loraplex.adapters.database import Database
from loraplex.adapters.errors import (
    AdapterNotFound,
    ImportEnded,
    ImportNotFound,
    InvalidName,
    LeaseLost,
    TooManyImports,
)
from loraplex.adapters.import_jobs import ImportInfo, ImportJobs, Progress
from loraplex.adapters.import_leases import LEASE, MAX_ATTEMPTS, ImportLeases
from loraplex.adapters.registry import AdapterRegistry
from loraplex.adapters.schema import now
from loraplex.platform.tenants import TenantDirectory

pytestmark = pytest.mark.anyio

SOURCE = "s3://bucket/bot"
ERROR = {"code": "source_unavailable", "message": "not now", "details": None}


class Clock:
    """Set apart from the clock of `ImportJobs` by what a test lets pass."""

    passed = timedelta()

    def __call__(self):
        return now() + self.passed


class Site:
    """acme's `bot` and globex's `bot` on one base, and servers that work on it by one clock."""

    def __init__(self, database: Database) -> None:
        self.database, self.clock = database, Clock()
        self.jobs, self.registry = ImportJobs(database), AdapterRegistry(database)
        self.leases, self.elsewhere = (ImportLeases(database, self.clock) for _ in range(2))

    async def create(self, tenant: str = "acme", adapter: str = "bot", max_open: int = 10) -> ImportInfo:
        return await self.jobs.create(
            getattr(self, tenant), adapter, SOURCE, max_open=max_open, by=Actor("key", "key123456789")
        )

    async def get(self, job: ImportInfo) -> ImportInfo:
        return await self.jobs.get(job.tenant_id, job.id)

    async def publish(self, lease, digest: str = "d"):
        async def record(session, version):
            await self.leases.record_version(lease, session, version)

        return await self.registry.publish(
            self.acme, "bot", digest=digest * 64, size_bytes=1, max_rank=8, targets=(), report=[],
            record=record,
        )  # fmt: skip


@pytest.fixture
async def site(database: Database) -> Site:
    site, tenants = Site(database), TenantDirectory(database)
    await register_base_model(database, "base", "0" * 64, "hub:base")
    await register_base_model(database, "other", "1" * 64, "hub:other")
    for tenant in ("acme", "globex"):
        setattr(site, tenant, (await tenants.create_tenant(tenant)).id)
        await site.registry.create_adapter(getattr(site, tenant), "bot", "base")
    return site


async def test_a_job_goes_from_queued_to_succeeded(site):
    """Who asked, how far it is, which version it published and when; the lease is what each step needs."""
    job = await site.create()
    assert (job.state, job.attempt, job.tenant, job.adapter, job.source) == ("queued", 0, "acme", "bot", SOURCE)
    assert (job.created_by, job.started_at, job.progress) == ("key123456789", None, Progress())
    lease = await site.leases.claim("base")
    assert (lease.job.id, lease.job.state, lease.job.attempt) == (job.id, "running", 1)
    await site.leases.renew(lease, Progress("adapter_config.json", 10, 99))
    assert (await site.get(job)).progress == Progress("adapter_config.json", 10, 99)
    await site.publish(lease)
    await site.leases.succeed(lease)
    ended = await site.get(job)
    assert (ended.state, ended.version, ended.version_state, ended.error) == ("succeeded", 1, "validating", None)
    assert ended.created_at <= ended.started_at <= ended.finished_at


async def test_no_two_servers_take_up_one_job(site):
    """Ten that look at once find each of three jobs once; those of another base are left to its servers."""
    await site.registry.create_adapter(site.acme, "elsewhere", "other")
    await site.create(adapter="elsewhere")
    ids = {(await site.create(tenant)).id for tenant in ("acme", "globex", "acme")}
    found = await asyncio.gather(*((site.leases, site.elsewhere)[n % 2].claim("base") for n in range(10)))
    taken = [lease.job.id for lease in found if lease]
    assert len(taken) == len(set(taken))
    while lease := await site.leases.claim("base"):
        taken.append(lease.job.id)
    assert sorted(taken) == sorted(ids)
    assert await site.leases.claim("other") is not None


async def test_the_job_that_has_been_due_longest_is_next(site):
    """Whichever was asked for first, and whether it waits for another attempt or its server has died."""
    for _ in range(3):
        await site.create()
    first, second, third = [await site.leases.claim("base") for _ in range(3)]
    await site.leases.retry(first, ERROR, 3 * LEASE)
    await site.leases.retry(third, ERROR, 2 * LEASE)
    site.clock.passed = 4 * LEASE
    taken = [(await site.elsewhere.claim("base")).job.id for _ in range(3)]
    assert taken == [second.job.id, third.job.id, first.job.id]


async def test_a_job_whose_server_died_is_taken_up_when_its_lease_ends(site):
    """Not before, not while it is renewed; the server of before can then change nothing, least of all publish."""
    job = await site.create()
    dead = await site.leases.claim("base")
    site.clock.passed = LEASE / 2
    await site.leases.renew(dead, Progress())
    site.clock.passed = LEASE * 1.4
    assert await site.elsewhere.claim("base") is None
    site.clock.passed = LEASE * 1.6
    lease = await site.elsewhere.claim("base")
    assert (lease.job.id, lease.job.attempt) == (job.id, 2)
    for action in (
        lambda: site.leases.renew(dead, Progress()),
        lambda: site.leases.pin(dead, "hf://a/b"),
        lambda: site.publish(dead),
        lambda: site.leases.succeed(dead),
        lambda: site.leases.fail(dead, ERROR),
        lambda: site.leases.retry(dead, ERROR, timedelta()),
        lambda: site.leases.release(dead),
    ):
        with pytest.raises(LeaseLost):
            await action()
    assert (await site.registry.get_adapter(site.acme, "bot")).versions == ()
    assert await site.get(job) == lease.job


async def test_errors_that_pass_are_tried_again_later_and_not_for_ever(site):
    """Due after the delay, with the error to be seen meanwhile; after the last attempt the job has failed."""
    job = await site.create()
    for attempt in range(1, MAX_ATTEMPTS):
        await site.leases.retry(await site.leases.claim("base"), ERROR, timedelta(minutes=1))
        waiting = await site.get(job)
        assert (waiting.state, waiting.attempt, waiting.error) == ("queued", attempt, ERROR)
        assert await site.leases.claim("base") is None
        site.clock.passed += timedelta(minutes=1)
    await site.leases.retry(await site.leases.claim("base"), ERROR, timedelta(minutes=1))
    failed = await site.get(job)
    assert (failed.state, failed.attempt, failed.error) == ("failed", MAX_ATTEMPTS, ERROR)
    assert failed.finished_at is not None


async def test_an_error_in_the_words_of_a_stranger_ends_the_job(site):
    """Its adapter's template, say, whatever characters it has."""
    job = await site.create()
    await site.leases.fail(await site.leases.claim("base"), ERROR | {"details": [{"message": "no\0"}]})
    failed = await site.get(job)
    assert (failed.state, failed.error["details"]) == ("failed", [{"message": "no\ufffd"}])


async def test_a_job_that_ends_every_server_is_given_up(site):
    """One that no server lives through fails in the end, instead of going round."""
    job = await site.create()
    for _ in range(MAX_ATTEMPTS):
        assert await site.leases.claim("base") is not None
        site.clock.passed += LEASE
    assert await site.leases.claim("base") is None
    failed = await site.get(job)
    assert (failed.state, failed.error["code"]) == ("failed", "import_abandoned")


async def test_shutdown_gives_a_job_back_uncounted(site):
    """It is queued, due at once, and no attempt was used up."""
    job = await site.create()
    await site.leases.release(await site.leases.claim("base"))
    assert ((await site.get(job)).state, (await site.get(job)).attempt) == ("queued", 0)
    assert (await site.elsewhere.claim("base")).job.attempt == 1


async def test_cancelling_ends_a_job_until_its_version_is_published(site):
    """Its server then has no lease, and publishes nothing; what is published is deleted, not cancelled."""
    queued, running = await site.create(), await site.create()
    await site.jobs.cancel(site.acme, queued.id)
    lease = await site.leases.claim("base")
    for _ in range(2):
        assert (await site.jobs.cancel(site.acme, running.id)).state == "cancelled"
    with pytest.raises(LeaseLost):
        await site.publish(lease)
    assert (await site.registry.get_adapter(site.acme, "bot")).versions == ()
    assert await site.leases.claim("base") is None

    job, lease = await site.create(), await site.leases.claim("base")
    await site.publish(lease)
    with pytest.raises(ImportEnded, match="version 1"):
        await site.jobs.cancel(site.acme, job.id)
    await site.leases.fail(lease, ERROR)
    with pytest.raises(ImportEnded):
        await site.jobs.cancel(site.acme, job.id)


async def test_a_deleted_adapter_takes_its_jobs_along(site):
    """And one of the same name that is made afterwards gets nothing of what was meant for it."""
    job = await site.create()
    lease = await site.leases.claim("base")
    await site.registry.delete_adapter(site.acme, "bot")
    await site.registry.create_adapter(site.acme, "bot", "base")
    with pytest.raises(LeaseLost):
        await site.publish(lease)
    with pytest.raises(ImportNotFound):
        await site.get(job)


async def test_jobs_of_other_tenants_are_not_there(site):
    """Neither to look at, to cancel, nor in a list; strange ids are no ids."""
    job = await site.create()
    for look in (site.jobs.get, site.jobs.cancel):
        for import_id in (job.id, "0" * 32, "", "\x00", "é", "x" * 5000):
            with pytest.raises(ImportNotFound):
                await look(site.globex, import_id)
    assert await site.jobs.list(site.globex, 10) == []
    with pytest.raises(InvalidName):
        await site.jobs.list(site.globex, 10, after=job.id)
    with pytest.raises(AdapterNotFound):
        await site.create(adapter="bat")


async def test_pages_go_from_new_to_old(site):
    """Each job once, whatever the size of the page."""
    created = [await site.create() for _ in range(5)]
    seen, after = [], None
    while page := await site.jobs.list(site.acme, 2, after):
        seen += page
        after = page[-1].id
    assert [job.id for job in seen] == [job.id for job in reversed(created)]


async def test_open_jobs_of_a_tenant_are_bounded_and_old_ones_forgotten(site, monkeypatch):
    """However many ask at once; another tenant's do not count, and ended ones only as history."""
    asked = await asyncio.gather(*(site.create(max_open=3) for _ in range(6)), return_exceptions=True)
    created = [job for job in asked if isinstance(job, ImportInfo)]
    assert (len(created), {type(refused) for refused in asked} - {ImportInfo}) == (3, {TooManyImports})
    await site.create("globex", max_open=1)
    monkeypatch.setattr(import_jobs, "MAX_ENDED", 2)
    for job in created:
        await site.jobs.cancel(site.acme, job.id)
    newest = await site.create(max_open=1)
    kept = [job.id for job in await site.jobs.list(site.acme, 10)]
    assert kept[0] == newest.id
    assert len(kept) == 3
