"""One sample of the engine as the frames of those who look: operators see all of it, a tenant what is its own.

Tenants share memory, weights and steps. What another one does would show in whatever they share, token by token; so a
tenant is told its own lanes, queues and pages, and of all others one coarse and late number.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from msgspec import structs

from loraplex.engine import messages as engine
from loraplex.platform.live.frame import (
    Adapter,
    Bounds,
    Event,
    Frame,
    Lane,
    LoadMs,
    Others,
    Queue,
    Step,
    Tier,
    Totals,
)
from loraplex.platform.live.names import LiveNames, key_of

FREE, HELD = 0, 2

EVERYBODYS_EVENTS = frozenset(("restart", "down"))


def operator_view(frame: Frame, snapshot: engine.Snapshot, names: LiveNames, events: list[Event]) -> Frame:
    return structs.replace(
        frame,
        totals=_totals(snapshot),
        lanes=[_lane(lane, names) for lane in snapshot.lanes],
        queues=[_queue(queue, names) for queue in snapshot.queues],
        cells=snapshot.cells,
        pages_per_cell=snapshot.pages_per_cell,
        adapters=[_adapter(entry, names) for entry in snapshot.adapters],
        steps=[_step(step) for step in snapshot.steps],
        events=events,
    )


def tenant_view(
    frame: Frame,
    snapshot: engine.Snapshot,
    names: LiveNames,
    tenant_id: str,
    earlier: engine.Snapshot,
    events: list[Event],
) -> Frame:
    """earlier: a sample of some seconds ago, which alone tells of others. events: everybody's."""
    own = [index for index, lane in enumerate(snapshot.lanes) if lane.owner == tenant_id]
    lanes = [snapshot.lanes[index] for index in own]
    others = _others(earlier, tenant_id, frame.bounds)
    cells = -(-frame.bounds.pages // snapshot.pages_per_cell)
    return structs.replace(
        frame,
        tenant=names.tenant(tenant_id),
        bounds=structs.replace(frame.bounds, device_bytes=0, host_bytes=0),
        lanes=[_lane(lane, names) for lane in lanes],
        queues=[_queue(q._replace(counter=None), names) for q in snapshot.queues if q.owner == tenant_id],
        cells=_own_cells(snapshot.cells, own, cells, others.pages * cells // 4),
        pages_per_cell=snapshot.pages_per_cell,
        adapters=_own_adapters(lanes, names, tenant_id),
        events=events,
        others=others,
    )


def events_of(snapshot: engine.Snapshot, names: LiveNames) -> list[Event]:
    """What has happened since the last sample, for operators."""
    events = [
        Event(
            at=movement.at,
            kind=movement.kind,
            key=key_of(movement.digest),
            name=_any_name(movement.digest, names),
            ms=_load_ms(movement.load),
        )
        for movement in snapshot.movements
    ]
    events += [Event(at=s.at, kind="preemption", count=s.preemptions) for s in snapshot.steps if s.preemptions]
    return sorted(events, key=lambda event: event.at)


def _own_cells(runs: Sequence[int], own: list[int], cells: int, others: int) -> list[int]:
    """A map without places: first the tenant's own cells, then others', then the rest, free or not."""
    place = {index: new for new, index in enumerate(own)}
    counts: dict[int, int] = {}
    for cell, count in zip(runs[::2], runs[1::2], strict=True):
        index, is_shared = divmod(cell - HELD, 2)
        if cell >= HELD and index in place:
            code = HELD + 2 * place[index] + is_shared
            counts[code] = counts.get(code, 0) + count
    mine = sum(counts.values())
    others = min(others, cells - mine)
    told = [*sorted(counts.items()), (HELD + 2 * len(own), others), (FREE, cells - mine - others)]
    return [number for run in told if run[1] for number in run]


def _others(snapshot: engine.Snapshot, tenant_id: str, bounds: Bounds) -> Others:
    theirs = [lane for lane in snapshot.lanes if lane.owner != tenant_id]
    return Others(_quarters(len(theirs), bounds.sequences), _quarters(sum(t.pages for t in theirs), bounds.pages))


def _quarters(part: int, whole: int) -> int:
    """0 for nothing, 4 for more than three quarters."""
    return min(-(-4 * part // max(whole, 1)), 4)


def _own_adapters(lanes: Iterable[engine.Lane], names: LiveNames, tenant_id: str) -> list[Adapter]:
    """Those that its running sequences use, which therefore are on the device: nothing that others may have caused."""
    digests = dict.fromkeys(use.digest for lane in lanes for use in lane.adapters)
    leases = {digest: sum(any(u.digest == digest for u in lane.adapters) for lane in lanes) for digest in digests}
    return [
        Adapter(
            key=key_of(digest),
            names=[names.own_name(tenant_id, digest)],
            rank=names.rank(digest),
            tier="device",
            device_bytes=0,
            host_bytes=0,
            leases=leases[digest],
            pins=0,
            loads=0,
            load_ms=None,
            used_at=None,
        )
        for digest in digests
    ]


def _lane(lane: engine.Lane, names: LiveNames) -> Lane:
    return Lane(
        id=lane.request_id,
        tenant=names.tenant(lane.owner),
        model=names.model(lane.owner, lane.adapters),
        key=key_of(lane.adapters[0].digest) if lane.adapters else "",
        prompt=lane.prompt,
        cached=lane.cached,
        computed=lane.computed,
        generated=lane.generated,
        stepped=lane.stepped,
        pages=lane.pages,
        age=round(lane.age_seconds, 2),
    )


def _queue(queue: engine.Queue, names: LiveNames) -> Queue:
    return Queue(
        tenant=names.tenant(queue.owner),
        model=names.model(queue.owner, [engine.AdapterUse(digest) for digest in queue.adapters]),
        key=key_of(queue.adapters[0]) if queue.adapters else "",
        waiting=queue.waiting,
        oldest=round(queue.oldest_seconds, 2),
        counter=None if queue.counter is None else round(queue.counter),
    )


def _adapter(entry: engine.Whereabouts, names: LiveNames) -> Adapter:
    tier: Tier = "device" if entry.device_bytes else "loading" if entry.is_loading else "host"
    return Adapter(
        key=key_of(entry.digest),
        names=names.names(entry.digest),
        rank=names.rank(entry.digest),
        tier=tier,
        device_bytes=entry.device_bytes,
        host_bytes=entry.host_bytes,
        leases=entry.leases,
        pins=entry.pins,
        loads=entry.loads,
        load_ms=_load_ms(entry.last_load),
        used_at=entry.last_used_at,
    )


def _any_name(digest: str, names: LiveNames) -> str:
    return next(iter(names.names(digest)), key_of(digest))


def _load_ms(times: engine.LoadTimes | None) -> LoadMs | None:
    return None if times is None else LoadMs(*(round(seconds * 1e3, 2) for seconds in times))


def _step(step: engine.StepFigures) -> Step:
    return Step(
        number=step.step,
        at=round(step.at, 4),
        schedule_ms=round(step.schedule_seconds * 1e3, 3),
        execute_ms=round(step.execute_seconds * 1e3, 3),
        commit_ms=round(step.commit_seconds * 1e3, 3),
        sequences=step.sequences,
        prefill=step.prefill,
        decodes=step.decodes,
        adapters=step.adapters,
        pages_used=step.pages_used,
        preemptions=step.preemptions,
        drafted=step.drafted,
        accepted=step.accepted,
    )


def _totals(snapshot: engine.Snapshot) -> Totals:
    status = snapshot.status
    return Totals(
        running=status.running,
        waiting=status.waiting,
        pages_used=status.pages_used,
        pages_cached=status.pages_cached,
        adapters_on_device=snapshot.on_device,
        adapters_in_host=snapshot.in_host,
        device_bytes=status.adapter_device_bytes_used,
        pinned_bytes=status.adapter_pinned_bytes,
        host_bytes=status.adapter_host_bytes_used,
        loads=status.adapter_loads,
        evictions=status.adapter_evictions,
        preemptions=status.preemptions,
        prompt_tokens=status.prompt_tokens,
        cached_prompt_tokens=status.cached_prompt_tokens,
        generated_tokens=status.generated_tokens,
    )
