"""One sampler of the engine for all who watch. It runs only while somebody does; then it asks four times a second.

Knows the engine and viewers; what each of them may see knows `views`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import msgspec
import structlog

from loraplex.engine.client import EngineClient, EngineUnavailable
from loraplex.engine.messages import Snapshot
from loraplex.platform.errors import unavailable
from loraplex.platform.live.frame import Bounds, Event, Frame
from loraplex.platform.live.names import LiveNames
from loraplex.platform.live.views import EVERYBODYS_EVENTS, events_of, operator_view, tenant_view
from loraplex.platform.manage.engine_answers import answered

PERIOD_SECONDS = 0.25
DOWN_PERIOD_SECONDS = 1.0
MAX_VIEWERS = 8
RETRY_SECONDS = 10
LATE_SECONDS = 5.0
"""What a tenant is told of others is up to so old, and changes no sooner."""

REMEMBERED_SECONDS = 10.0
"""A viewer that comes back so soon, as each does after a minute, is told what is new; others all that is remembered."""

_encoder = msgspec.json.Encoder()
logger = structlog.get_logger(__name__)


@dataclass(slots=True)
class Sample:
    """What the engine told at one moment. Frames are made when they are asked for, once for all who see the same."""

    empty: Frame
    snapshot: Snapshot | None
    earlier: Snapshot | None
    events: list[Event]
    names: LiveNames
    _encoded: dict[str | None, bytes] = field(default_factory=dict)

    def frame(self, tenant_id: str | None) -> bytes:
        """As JSON; None: for operators."""
        if tenant_id not in self._encoded:
            self._encoded[tenant_id] = _encoder.encode(self._view(tenant_id))
        return self._encoded[tenant_id]

    def _view(self, tenant_id: str | None) -> Frame:
        if self.snapshot is None or self.earlier is None:
            tenant = None if tenant_id is None else self.names.tenant(tenant_id)
            return msgspec.structs.replace(self.empty, tenant=tenant, events=self.events)
        if tenant_id is None:
            return operator_view(self.empty, self.snapshot, self.names, self.events)
        events = [event for event in self.events if event.kind in EVERYBODYS_EVENTS]
        return tenant_view(self.empty, self.snapshot, self.names, tenant_id, self.earlier, events)


class LiveFeed:
    """For the tasks of one event loop. max_sequences, host_bytes: the engine's settings."""

    def __init__(
        self, engine: EngineClient, names: LiveNames, base_model: str, *, max_sequences: int, max_step_tokens: int,
        host_bytes: int,
    ) -> None:  # fmt: skip
        self._engine = engine
        self._names = names
        self._base_model = base_model
        self._max_sequences = max_sequences
        self._max_step_tokens = max_step_tokens
        self._host_bytes = host_bytes
        self._viewers = 0
        self._n = 0
        self._sampling: asyncio.Task[None] | None = None
        self._next: asyncio.Future[Sample] | None = None
        self._last: Snapshot | None = None
        self._was_down = False
        self._sampled_at = 0.0
        self._earlier: tuple[float, Snapshot] | None = None

    @property
    def viewers(self) -> int:
        return self._viewers

    @contextmanager
    def watching(self) -> Iterator[AsyncIterator[Sample]]:
        """Samples as they are taken; whoever is slow misses those between. Raises ApiError 503 for one viewer too many.

        What goes wrong with a sample is raised where it was waited for."""
        if self._viewers >= MAX_VIEWERS:
            message = f"{MAX_VIEWERS} viewers watch this engine already. Close one of them, or try again later."
            raise unavailable("too_many_viewers", message, RETRY_SECONDS)
        self._viewers += 1
        try:
            yield self._samples()
        finally:
            self._viewers -= 1
            if not self._viewers and self._sampling is not None:
                self._sampling.cancel()
                self._sampling = None

    async def _samples(self) -> AsyncIterator[Sample]:
        while True:
            if self._sampling is None or self._sampling.done():
                if time.monotonic() >= self._sampled_at + REMEMBERED_SECONDS:
                    self._last = self._earlier = None
                self._next = asyncio.get_running_loop().create_future()
                self._sampling = asyncio.create_task(self._sample_forever())
            assert self._next is not None
            yield await asyncio.shield(self._next)

    async def _sample_forever(self) -> None:
        while True:
            assert self._next is not None
            began, waiting = time.monotonic(), self._next
            try:
                sample = await self._sample()
            except Exception as error:
                logger.exception("live_sample_failed")
                waiting.set_exception(error)
                waiting.exception()  # where nobody waits, it is no news to the event loop
                return
            self._next = asyncio.get_running_loop().create_future()
            waiting.set_result(sample)
            period = DOWN_PERIOD_SECONDS if sample.snapshot is None else PERIOD_SECONDS
            await asyncio.sleep(max(began + period - time.monotonic(), period / 4))

    async def _sample(self) -> Sample:
        snapshot = await self._look()
        events = [] if self._was_down == (snapshot is None) else [_turn(is_up=snapshot is not None)]
        self._was_down = snapshot is None
        if snapshot is not None:
            await self._learn(snapshot)
            events += events_of(snapshot, self._names)
            self._last = snapshot
            self._sampled_at = now = time.monotonic()
            if self._earlier is None or now - self._earlier[0] >= LATE_SECONDS:
                self._earlier = now, snapshot
        self._n += 1
        empty = Frame(
            n=self._n,
            at=round(time.time(), 3),
            base_model=self._base_model,
            tenant=None,
            engine="down" if snapshot is None else "up",
            bounds=self._bounds(),
        )
        earlier = None if self._earlier is None else self._earlier[1]
        return Sample(empty, snapshot, earlier, events, self._names)

    async def _look(self) -> Snapshot | None:
        """What happened before the first look is told with it, as far as the engine remembers."""
        steps = movements = 0
        if self._last is not None:
            steps = self._last.status.steps
            movements = self._last.status.adapter_loads + self._last.status.adapter_evictions
        try:
            snapshot = await answered(self._engine.look(steps, movements))
        except EngineUnavailable:
            self._last = None  # the next engine counts from 0
            return None
        if snapshot.status.steps < steps:  # and is up already
            self._last, self._was_down = None, True
            return await self._look()
        return snapshot

    async def _learn(self, snapshot: Snapshot) -> None:
        owners = {lane.owner for lane in snapshot.lanes} | {queue.owner for queue in snapshot.queues}
        digests = {use.digest for lane in snapshot.lanes for use in lane.adapters}
        digests |= {digest for queue in snapshot.queues for digest in queue.adapters}
        digests |= {entry.digest for entry in snapshot.adapters} | {entry.digest for entry in snapshot.movements}
        await self._names.learn(owners, digests)

    def _bounds(self) -> Bounds:
        ready = self._engine.ready
        return Bounds(
            sequences=self._max_sequences,
            step_tokens=self._max_step_tokens,
            pages=ready.num_pages,
            page_tokens=ready.page_tokens,
            device_bytes=ready.adapter_device_bytes,
            host_bytes=self._host_bytes,
        )


def _turn(*, is_up: bool) -> Event:
    return Event(at=time.time(), kind="restart" if is_up else "down")
