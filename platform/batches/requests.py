"""Requests that the server makes itself, as a tenant's key, through the whole application: what a line of a batch is
answered is what the same request over HTTP would have been, if later: they stand behind all others in the engine's
queue. Knows ASGI; knows no batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from types import TracebackType
from typing import cast

import httpx
from litestar import Litestar
from litestar.types import Receive, Scope, Send

from loraplex.platform.auth import ON_BEHALF_OF, OWN_WORK
from loraplex.platform.openai.generation_types import MAX_PRIORITY
from loraplex.platform.tenants import Principal

WORK_HEADER = b"x-loraplex-work"
"""From here to the application, whose scope the client cannot set. Nobody reads it of a request that came by HTTP."""


@dataclass(frozen=True, slots=True)
class Response:
    """`retry_after_seconds`: after which the same request may be answered otherwise; None where it would not."""

    status: int
    request_id: str
    body: bytes
    retry_after_seconds: float | None


class OwnRequests:
    """Makes requests as one key. To be closed, as a context manager. asking: as whom; looked at for each request, since
    what a key may do can change."""

    def __init__(self, app: Litestar, asking: Callable[[], Principal]) -> None:
        async def as_principal(scope: Scope, receive: Receive, send: Send) -> None:
            in_background = replace(asking(), priority=MAX_PRIORITY)
            work = dict(scope["headers"])[WORK_HEADER].decode()
            await app(cast("Scope", {**scope, ON_BEHALF_OF: in_background, OWN_WORK: work}), receive, send)

        transport = httpx.ASGITransport(as_principal, raise_app_exceptions=False)  # type: ignore[arg-type]  # untyped
        self._client = httpx.AsyncClient(transport=transport, base_url="http://batches")

    async def __aenter__(self) -> OwnRequests:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.aclose()

    async def post(self, path: str, body: bytes, work: str) -> Response:
        """work: names what it is for, among all there is."""
        headers = {"content-type": "application/json", WORK_HEADER.decode(): work}
        response = await self._client.post(path, content=body, headers=headers)
        passing = response.status_code in (429, 503) and response.headers.get("x-should-retry") != "false"
        return Response(
            response.status_code,
            response.headers["x-request-id"],
            response.content,
            float(response.headers.get("retry-after", 1)) if passing else None,
        )
