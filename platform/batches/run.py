"""One batch in this server's hands: its lines are read, run, answered in the database, and then in files.

Lines that name the same adapters run one after the other, so that few adapters are in use at a time. Whatever stops it
half way, the same steps again go on from the answers that are written down.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence

import structlog
from anyio import to_thread
from litestar import Litestar
from sqlalchemy.exc import SQLAlchemyError

from loraplex.platform.batches.file_store import StagedFile
from loraplex.platform.batches.leases import Answered, BatchLease
from loraplex.platform.batches.lines import (
    InputRefused,
    Line,
    LineError,
    answer,
    not_answered,
    read_bodies,
    read_lines,
)
from loraplex.platform.batches.requests import OwnRequests
from loraplex.platform.batches.room import Room
from loraplex.platform.services import Services
from loraplex.platform.tenants import InvalidKey, Principal

MAX_ATTEMPTS = 5
"""How often a batch is taken up without a line being answered before its rest is given up."""

LINE_ATTEMPTS = 4
"""Of a line that is answered with an error that may pass."""

MAX_UNWRITTEN = 64
"""Answers that wait to be written down; beyond them lines wait."""

RETRY_SECONDS = 1.0
PAGE_LINES = 200

CANCELLED = LineError("batch_cancelled", "The batch was cancelled before this request was run.")
EXPIRED = LineError("batch_expired", "The completion window of the batch ended before this request was run.")
KEY_GONE = LineError("invalid_api_key", "The API key that the batch was made with is not valid any more.")
ABANDONED = LineError("batch_abandoned", "Servers stopped again and again at this batch; ask the operator for the log.")
INPUT_GONE = {"code": "input_file_missing", "line": None, "message": "The input file cannot be read.", "param": None}

logger = structlog.get_logger(__name__)


class BatchRun:
    def __init__(self, services: Services, app: Litestar, room: Room, lease: BatchLease) -> None:
        self._services = services
        self._leases = services.batch_leases
        self._app = app
        self._room = room
        self._lease = lease
        self._input = services.file_store.path(lease.batch.input_file_id)
        self._stopped_by: LineError | None = None
        self._principal: Principal | None = None
        self._runners: list[asyncio.Task[None]] = []

    async def renew(self) -> None:
        """Hold the lease, and see whether there is a reason to stop. Raises LeaseLost and the database's errors."""
        batch = self._lease.batch
        status = await self._leases.renew(self._lease)
        try:
            self._principal = await self._services.tenants.principal_of(batch.api_key_id)
        except InvalidKey:
            self._stop(KEY_GONE)
        if status == "cancelling":
            self._stop(CANCELLED)
        elif self._leases.now() >= batch.expires_at:
            self._stop(EXPIRED)
        elif batch.attempt > MAX_ATTEMPTS:
            self._stop(ABANDONED)

    async def work(self) -> None:
        """All that is left to do. Raises LeaseLost, OSError and the database's errors."""
        batch, settings = self._lease.batch, self._services.settings
        try:
            lines = await to_thread.run_sync(read_lines, self._input, batch.endpoint, settings.max_body_bytes)
        except OSError as error:
            if not isinstance(error, FileNotFoundError) and batch.attempt <= MAX_ATTEMPTS:
                raise
            await self._leases.fail(self._lease, [INPUT_GONE])
            return
        except InputRefused as refused:
            await self._leases.fail(self._lease, refused.errors)
            return
        await self._leases.begin(self._lease, len(lines))
        await self.renew()
        answered = await self._leases.answered_lines(self._lease)
        rest = [line for line in lines if line.number not in answered]
        if rest and self._stopped_by is None:
            await self._answer(rest)
        await self._finish(lines)

    def _stop(self, reason: LineError) -> None:
        """Have no more lines answered. Those that run are given up: they count as not run."""
        if self._stopped_by is None:
            self._stopped_by = reason
            for runner in self._runners:
                runner.cancel()

    def _asking(self) -> Principal:
        """Whom the batch's key speaks for, as of the last renewal."""
        assert self._principal is not None
        return self._principal

    async def _answer(self, lines: Sequence[Line]) -> None:
        answers: asyncio.Queue[Answered | None] = asyncio.Queue(MAX_UNWRITTEN)
        by_adapters = sorted(lines, key=lambda line: (line.weights, line.number))
        todo = read_bodies(self._input, by_adapters)
        async with OwnRequests(self._app, self._asking) as requests:
            count = min(self._services.settings.batch_concurrency, len(lines))
            self._runners = [asyncio.create_task(self._run_lines(todo, requests, answers)) for _ in range(count)]
            ending = asyncio.create_task(_put_end(self._runners, answers))
            try:
                await self._record(answers)
            finally:
                for task in (*self._runners, ending):
                    task.cancel()
                await asyncio.gather(*self._runners, ending, return_exceptions=True)
        for runner in self._runners:
            if not runner.cancelled():
                runner.result()

    async def _run_lines(
        self, todo: Iterator[tuple[Line, bytes]], requests: OwnRequests, answers: asyncio.Queue[Answered | None]
    ) -> None:
        for line, body in todo:
            await answers.put(await self._run(requests, line, body))

    async def _run(self, requests: OwnRequests, line: Line, body: bytes) -> Answered:
        attempt = 1
        while True:
            async with self._room.enter(self._lease.batch.id):
                batch = self._lease.batch
                response = await requests.post(batch.endpoint, body, f"{batch.id}/{line.number}")
            if response.retry_after_seconds is None or attempt == LINE_ATTEMPTS:
                return answer(line, response.status, response.request_id, response.body)
            attempt += 1
            await asyncio.sleep(response.retry_after_seconds)

    async def _record(self, answers: asyncio.Queue[Answered | None]) -> None:
        """Write answers down until the end, those that wait together: each write waits for the disk."""
        is_end = False
        while not is_end:
            waiting = [await answers.get(), *(answers.get_nowait() for _ in range(answers.qsize()))]
            is_end = None in waiting
            await self._write([answered for answered in waiting if answered is not None])

    async def _write(self, group: Sequence[Answered]) -> None:
        """While the database is away, again and again: until the lease is lost, the answers are worth it."""
        may_be_written = False
        while group:
            try:
                if may_be_written:  # a commit that failed for us may have been one
                    written = await self._leases.answered_lines(self._lease)
                    group = [answered for answered in group if answered.line not in written]
                if group:
                    await self._leases.record(self._lease, group)
                return
            except (OSError, SQLAlchemyError) as error:
                logger.warning("answers cannot be written; trying again", batch=self._lease.batch.id, error=str(error))
                may_be_written = True
                await asyncio.sleep(RETRY_SECONDS)

    async def _finish(self, lines: Sequence[Line]) -> None:
        """Write the files, and end it with them."""
        store = self._services.file_store
        status = await self._leases.finalize(self._lease)
        reason = CANCELLED if status == "cancelling" else self._stopped_by
        missing = 0
        with store.stage() as folder, StagedFile(folder / "output") as output, StagedFile(folder / "errors") as errors:
            for start in range(0, len(lines), PAGE_LINES):
                page = lines[start : start + PAGE_LINES]
                answers = await self._leases.answers(self._lease, page[0].number, page[-1].number)
                missing += await to_thread.run_sync(_write_page, page, answers, reason, output, errors)
            kept = [await to_thread.run_sync(file.keep, store) for file in (output, errors)]
        if status == "cancelling":
            await self._leases.finish(self._lease, "cancelled", len(lines), *kept)
        elif missing and reason is EXPIRED:
            await self._leases.finish(self._lease, "expired", len(lines), *kept)
        else:
            await self._leases.finish(self._lease, "completed", len(lines), *kept)


async def _put_end(runners: Sequence[asyncio.Task[None]], answers: asyncio.Queue[Answered | None]) -> None:
    await asyncio.wait(runners)
    await answers.put(None)


def _write_page(
    page: Sequence[Line],
    answers: Mapping[int, Answered],
    reason: LineError | None,
    output: StagedFile,
    errors: StagedFile,
) -> int:
    """How many of these lines have no answer."""
    for line in page:
        if answered := answers.get(line.number):
            (errors if answered.is_error else output).write(answered.content)
        else:
            assert reason is not None, "lines are left out for a reason only"
            errors.write(not_answered(line, reason))
    return len(page) - len(answers)
