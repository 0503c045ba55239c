"""The engine as it runs, for operators' tools: what the live page shows, as server-sent events."""

from __future__ import annotations

import asyncio
from typing import Any

from litestar import Response, Router, get
from litestar.di import NamedDependency
from litestar.openapi.datastructures import ResponseSpec

from loraplex.platform.live.frame import Frame
from loraplex.platform.live.stream import live_stream
from loraplex.platform.services import Services

FRAMES = ResponseSpec(
    Frame, media_type="text/event-stream", description="Events: each `data` is a Frame", generate_examples=False
)


@get("/engine/live", responses={200: FRAMES})
async def watch_engine(services: NamedDependency[Services], drain: NamedDependency[asyncio.Event]) -> Response[Any]:
    """Watch the batch itself: running sequences, pages, adapters, queues and steps, four times a second.

    Whoever reads slowly misses frames; `n` tells. The stream ends after a minute: ask again. At most 8 watch at a time.
    """
    return live_stream(services.live, None, drain)


LIVE_ROUTES = [Router("/api/v1/admin", route_handlers=[watch_engine], opt={"scope": "admin"}, tags=["admin"])]
