"""Work for a client, for as long as it is there to be answered. Knows ASGI; knows no request and no answer."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from litestar.types import Receive

from loraplex.platform.errors import ApiError

T = TypeVar("T")


class ClientGone(ApiError):
    """The client closed the connection before it had its answer."""

    def __init__(self) -> None:
        super().__init__(499, "client_closed_request", "The client closed the connection.")


async def while_connected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled when the client goes away: then it raises ClientGone.

    The request's body must have been read. `work` runs in the caller's own task, as under `asyncio.timeout`.
    """
    task = asyncio.current_task()
    assert task is not None
    leaving = asyncio.ensure_future(_disconnect(receive))
    is_gone = False

    def cancel_work(done: asyncio.Future[None]) -> None:
        nonlocal is_gone
        if not done.cancelled():
            is_gone = True
            task.cancel()

    leaving.add_done_callback(cancel_work)
    try:
        return await work
    except asyncio.CancelledError:
        if is_gone and task.uncancel() == 0:
            raise ClientGone from None
        raise
    finally:
        leaving.remove_done_callback(cancel_work)
        leaving.cancel()


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
