"""The live engine as server-sent events, for whoever may see it: frames, as fast as the viewer takes them.

A stream ends after a minute, and its viewer asks again: so a key that was revoked or a session that has ended sees no
more than that. It ends at once when the server is to shut down.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import ExitStack

from loraplex.platform.live.feed import LiveFeed
from loraplex.platform.openai.sse import EventStream, Write, error_body, event_frame

STREAM_SECONDS = 60.0


def live_stream(feed: LiveFeed, tenant_id: str | None, drain: asyncio.Event) -> EventStream:
    """tenant_id: whose view; None: an operator's. Raises ApiError 503 where too many watch."""
    seat = ExitStack()
    samples = seat.enter_context(feed.watching())

    async def produce(write: Write) -> None:
        ends_at = time.monotonic() + STREAM_SECONDS
        try:
            async for sample in samples:
                await write(b"data: " + sample.frame(tenant_id) + b"\n\n", more=True)
                if drain.is_set() or time.monotonic() >= ends_at:
                    break
            rest = b"event: end\ndata: {}\n\n"
        except Exception as error:
            rest = event_frame("error", error_body(error))
        await write(rest, more=False)

    return EventStream(produce, on_close=seat.close, headers={})
