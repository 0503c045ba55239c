"""The header Idempotency-Key, as the IETF's draft has it, for handlers that make something.

The same request again gets its first answer. Another one under its name is 422, and one that comes while the first is
at work 409. Only what was made is remembered: an error made nothing, so the request may be mended and sent again.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any, TypeVar

import msgspec
from litestar import Request, Response
from litestar.di import NamedDependency
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import HeaderParameter

from loraplex.platform.idempotency_keys import IdempotencyKeys, KeptAnswer, NamedRequest
from loraplex.platform.services import Services
from loraplex.platform.tenants import Principal

JSON = "application/json"

REUSED = {422: ResponseSpec(None, description="The Idempotency-Key was sent with another request")}
"""For the `responses` of a handler that takes `once`."""

Answer = TypeVar("Answer", bound=Response[Any])


class Attempt:
    """A request that is to be done, unless there is an `answer` from before."""

    def __init__(self, answer: Response[Any] | None = None) -> None:
        self.answer = answer
        self.kept: KeptAnswer | None = None

    def keep(self, answer: Answer) -> Answer:
        """It is done, and answered with this from now on."""
        assert answer.status_code is not None
        self.kept = KeptAnswer(answer.status_code, msgspec.json.encode(answer.content))
        return answer


class Once:
    """A handler that takes it does what it does in `async with once.attempt(...)`."""

    def __init__(self, keys: IdempotencyKeys, api_key_id: str, name: str | None, target: str) -> None:
        self._keys = keys
        self._api_key_id = api_key_id
        self._name = name
        self._target = target

    @asynccontextmanager
    async def attempt(self, *asked: bytes) -> AsyncIterator[Attempt]:
        """asked: what makes two requests the same, beside method and path. Without the header, none are.

        Raises the errors of `IdempotencyKeys.claim`.
        """
        if self._name is None:
            yield Attempt()
            return
        sha256 = hashlib.sha256(b"\0".join([self._target.encode(), *asked])).hexdigest()
        request = NamedRequest(self._api_key_id, self._name, sha256)
        if known := await self._keys.claim(request):
            replayed = {"idempotency-replayed": "true"}
            yield Attempt(Response(known.body, status_code=known.status, media_type=JSON, headers=replayed))
            return
        attempt = Attempt()
        try:
            yield attempt
        finally:
            if attempt.kept is not None:
                await self._keys.keep(request, attempt.kept)
            else:
                await self._keys.release(request)


def provide_once(
    request: Request[Any, Any, Any],
    services: NamedDependency[Services],
    principal: NamedDependency[Principal],
    idempotency_key: Annotated[
        str | None,
        HeaderParameter(
            name="Idempotency-Key",
            pattern=r'^("[!#-\[\]-~]{1,64}"|[!#-\[\]-~]{1,64})$',
            description="A name of your own for this request, of at most 64 characters, with or without quotes. "
            "Sent again within 24 hours, the request gets its first answer, and nothing is made twice.",
        ),
    ] = None,
) -> Once:
    """For the app's dependencies, under the name `once`."""
    name = None if idempotency_key is None else idempotency_key.strip('"')
    return Once(services.idempotency, principal.key_id, name, f"{request.method} {request.url.path}")
