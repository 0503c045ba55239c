"""What viewers of the live engine are sent, four times a second: one frame, whole, that needs no other to be read.

The JSON of a frame is also what recordings hold, so a field that changes its meaning changes VERSION. docs/live.md
tells the same to people.
"""

from __future__ import annotations

from typing import Literal

import msgspec

VERSION = 1

Tier = Literal["device", "host", "loading", "disk"]


class Lane(msgspec.Struct, frozen=True, kw_only=True):
    """A running sequence. `id`: to know it again in the next frame. `tenant`: "" for the server itself. `model`: as the
    tenant names it. `key`: of its first adapter, "" for the base. The rest: engine.snapshot.Lane."""

    id: str
    tenant: str
    model: str
    key: str
    prompt: int
    cached: int
    computed: int
    generated: int
    stepped: int
    pages: int
    age: float


class Queue(msgspec.Struct, frozen=True, kw_only=True):
    """Sequences of one tenant that wait for the same model. `oldest`: seconds. `counter`: what the
    tenant was charged over its weight, above the least of those that wait; operators are told."""

    tenant: str
    model: str
    key: str
    waiting: int
    oldest: float
    counter: float | None = None


class LoadMs(msgspec.Struct, frozen=True):
    read: float
    copy: float
    total: float


class Adapter(msgspec.Struct, frozen=True, kw_only=True):
    """An adapter in memory or on its way there. `key`: the beginning of its digest, by which colours are chosen."""

    key: str
    names: list[str]
    rank: int | None
    tier: Tier
    device_bytes: int
    host_bytes: int
    leases: int
    pins: int
    loads: int
    load_ms: LoadMs | None
    used_at: float | None


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """`at`: Unix time. `ms`: what a load took. `count`: of sequences that were preempted."""

    at: float
    kind: Literal["load", "eviction", "preemption", "restart", "down"]
    key: str = ""
    name: str = ""
    ms: LoadMs | None = None
    count: int | None = None


class Step(msgspec.Struct, frozen=True, array_like=True):
    """An array. `at`: Unix time of its end; `prefill`, `decodes`: tokens; `adapters`: how many different ones."""

    number: int
    at: float
    schedule_ms: float
    execute_ms: float
    commit_ms: float
    sequences: int
    prefill: int
    decodes: int
    adapters: int
    pages_used: int
    preemptions: int
    drafted: int
    accepted: int


class Bounds(msgspec.Struct, frozen=True, kw_only=True):
    """What the engine has room for. A tenant is not told of adapters' memory: 0."""

    sequences: int
    step_tokens: int
    pages: int
    page_tokens: int
    device_bytes: int = 0
    host_bytes: int = 0


class Totals(msgspec.Struct, frozen=True, kw_only=True):
    """Of the moment; counters since the engine's start."""

    running: int
    waiting: int
    pages_used: int
    pages_cached: int
    adapters_on_device: int
    adapters_in_host: int
    device_bytes: int
    pinned_bytes: int
    host_bytes: int
    loads: int
    evictions: int
    preemptions: int
    prompt_tokens: int
    cached_prompt_tokens: int
    generated_tokens: int


class Others(msgspec.Struct, frozen=True):
    """All that a tenant is told of the others: which quarter of the sequences and of the pages they fill, 0 to 4, as it
    was some seconds ago."""

    sequences: int
    pages: int


class Frame(msgspec.Struct, frozen=True, kw_only=True):
    """`n` rises by one with every sample: a viewer that is too slow misses some. `tenant`: who looks; null: operators.

    `engine`: "down" while it does not answer; then there is nothing below `bounds`. `cells`: the page map as runs,
    [cell, how many, ...]: 0 free, 1 free with a prefix that can be used again, 2 + 2 * lane held by that lane, 3 + 2 *
    lane held by several of which that is the first; a lane that is not there: others. `totals`, `steps`, and of
    `adapters` what no lane of its own uses, are told to operators alone; `others` to tenants alone.
    """

    version: int = VERSION
    n: int
    at: float
    base_model: str
    tenant: str | None
    engine: Literal["up", "down"]
    bounds: Bounds
    totals: Totals | None = None
    lanes: list[Lane] = []
    queues: list[Queue] = []
    cells: list[int] = []
    pages_per_cell: int = 1
    adapters: list[Adapter] = []
    steps: list[Step] = []
    events: list[Event] = []
    others: Others | None = None
