"""One HTTP request of inference, from its arrival to its last byte, as the ledger sees it.

What is billed: completion tokens whose text was handed to the client's connection while that was open, and the prompt
of answers that had begun, once for all choices of a prompt. A client that goes away before anything was handed over
pays for the prompt that was computed for it; what failed before anything was handed over costs nothing. Knows ASGI;
knows no body.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, NamedTuple, Protocol, cast
from uuid import uuid4

import msgspec
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from loraplex.platform.auth import OWN_WORK
from loraplex.platform.budgets.account import UNBOUNDED
from loraplex.platform.budgets.keeper import BudgetKeeper
from loraplex.platform.catalog import ResolvedModel
from loraplex.platform.http_protocol import IS_CONNECTED
from loraplex.platform.ledger.ledger import Ledger
from loraplex.platform.ledger.record import (
    MAX_ADAPTER_CHARS,
    MAX_ASKED_CHARS,
    MAX_MODEL_CHARS,
    NO_TOKENS,
    Contents,
    Endpoint,
    Finish,
    Tokens,
    UsageRecord,
    shortened,
)
from loraplex.platform.limits.account import Demand
from loraplex.platform.logging import request_id
from loraplex.platform.tenants import Principal

METERED = "metered"
"""The key in a handler's `opt` of the endpoint that its requests count for."""

MAX_CONTENT_CHARS = 32 << 10
"""Of a request and of an answer, where a tenant wants them kept."""

CLIENT_GONE = 499

USED_HEADER = b"x-loraplex-budget-used"
WARNING_PERCENT = 80
"""Of a budget: from there on answers tell how much of it is used, with what they may themselves use."""

_STATE = "meter"


class Course(NamedTuple):
    """How answers went, so far. `first_token_at` as of the monotonic clock."""

    finish_reason: Finish | None
    has_failed: bool
    queue_seconds: float | None
    load_seconds: float | None
    first_token_at: float | None


class Metered(Protocol):
    """Answers, of which a part has been put into frames that are sent next."""

    def told(self) -> Tokens:
        """Of prompts that have begun, and of what is in frames."""

    def course(self) -> Course: ...

    def said(self) -> str:
        """The texts so far, where they are kept."""


class Meter:
    """asked: what the client calls the model, as soon as it is known. keeps_contents: whether the tenant wants to read
    later what was said. status: of the response, once it begins."""

    def __init__(self, ledger: Ledger, budgets: BudgetKeeper, endpoint: Endpoint, scope: Scope) -> None:
        self.asked = ""
        self.status: int | None = None
        self.keeps_contents = False
        self._ledger = ledger
        self._budgets = budgets
        self._reservation = UNBOUNDED
        self._endpoint = endpoint
        self._scope = scope
        self._started_at = datetime.now(UTC)
        self._started = time.monotonic()
        self._record: UsageRecord | None = None
        self._slot: int | None = None
        self._own_work: str | None = cast("Any", scope).get(OWN_WORK)
        self._answers: Metered | None = None
        self._request = ""
        self._noted = NO_TOKENS
        self._handed: Tokens | None = None
        self._is_whole = False

    async def open(self, principal: Principal, model: ResolvedModel, choices: int, demand: Demand) -> None:
        """It may run now, and spend so much. Raises ApiError 429 where a budget has less, 503 where it could not be
        billed; the database's errors."""
        self._record = self._identified(principal, model, choices)
        self._reservation = await self._budgets.reserve(principal, self._record.adapter, demand)
        self.keeps_contents = principal.content_days is not None
        if self._own_work is None:
            self._slot = self._ledger.open(self._record)
        else:  # nobody has what a server that dies has not kept, so there is nothing to note
            self._ledger.require_room()

    def watch(self, answers: Metered) -> None:
        """These are what it is answered with."""
        self._answers = answers

    def keep_request(self, content: Callable[[], Any]) -> None:
        """What was asked, as JSON, if contents are kept."""
        if self.keeps_contents:
            self._request = msgspec.json.encode(content()).decode(errors="replace")

    def warning(self) -> tuple[bytes, bytes] | None:
        """A header for a client whose budget is nearly used up."""
        percent = self._reservation.used_percent
        return (USED_HEADER, b"%d%%" % percent) if percent >= WARNING_PERCENT else None

    def handing(self) -> None:
        """What is in frames is about to be sent. Raises OSError, and then it must not be."""
        if self._answers is None or (self.status or 0) >= 400:
            return
        told = self._answers.told()
        if told != self._noted:
            if self._slot is not None:
                self._ledger.note(self._slot, told)
            self._noted = told

    def handed(self, *, is_last: bool) -> None:
        """The connection has taken it."""
        if self._answers is not None and (self.status or 0) < 400:
            self._handed = self._noted
            self._is_whole = is_last

    def close(self) -> None:
        """It has ended, however it did."""
        record = self._record or self._unopened()
        if record is None:
            return
        status = CLIENT_GONE if self.status is None else self.status
        total_ms = _milliseconds(time.monotonic() - self._started)
        if self._answers is None:
            finish: Finish = "client_closed" if status == CLIENT_GONE else "refused"
            refused = msgspec.structs.replace(record, finish_reason=finish, status=status, total_ms=total_ms)
            self._ledger.refuse(self._slot, refused)
            self._reservation.settle(NO_TOKENS, self._ledger.epoch)
            return
        course = self._answers.course()
        finish = self._finish(course, status)
        billed = self._billed(finish)
        ended = msgspec.structs.replace(
            record,
            id=record.id if self._own_work is None or status != 200 else _id_of(self._own_work),
            **billed._asdict(),
            queue_ms=_milliseconds(course.queue_seconds),
            load_ms=_milliseconds(course.load_seconds),
            ttft_ms=_milliseconds(course.first_token_at and course.first_token_at - self._started),
            total_ms=total_ms,
            finish_reason=finish,
            status=status,
            contents=self._contents(),
        )
        self._ledger.settle(self._slot, ended)
        self._reservation.settle(billed, self._ledger.epoch)

    def _finish(self, course: Course, status: int) -> Finish:
        if course.has_failed or (status >= 400 and status != CLIENT_GONE):
            return "error"
        return course.finish_reason if course.finish_reason and self._is_whole else "client_closed"

    def _billed(self, finish: Finish) -> Tokens:
        assert self._answers is not None
        if self._handed is not None:
            return self._handed
        return self._answers.told()._replace(completion_tokens=0) if finish == "client_closed" else NO_TOKENS

    def _contents(self) -> Contents | None:
        principal: Principal = self._scope["auth"]
        if not self.keeps_contents or principal.content_days is None or self._answers is None:
            return None
        said = self._answers.said()
        return Contents(
            principal.content_days, shortened(self._request, MAX_CONTENT_CHARS), shortened(said, MAX_CONTENT_CHARS)
        )

    def _unopened(self) -> UsageRecord | None:
        """Of a request that was refused before its model was known; of one without a valid key there is none."""
        principal = self._scope.get("auth")
        if not isinstance(principal, Principal) or principal.tenant_id is None:
            return None
        return self._identified(principal, ResolvedModel(""), 0)

    def _identified(self, principal: Principal, model: ResolvedModel, choices: int) -> UsageRecord:
        assert principal.tenant_id is not None
        adapter, version, digest = _identity(model)
        return UsageRecord(
            id=uuid4().hex,
            request_id=request_id(self._scope),
            server_id=self._ledger.server_id,
            started_at=self._started_at,
            tenant_id=principal.tenant_id,
            key_id=principal.key_id,
            endpoint=self._endpoint,
            asked=shortened(self.asked, MAX_ASKED_CHARS),
            model=shortened(model.name, MAX_MODEL_CHARS),
            adapter=adapter,
            version=version,
            digest=digest,
            choices=choices,
        )


def meter_of(scope: Scope) -> Meter:
    """Of a request whose handler is metered."""
    meter: Meter = scope["state"][_STATE]
    return meter


def metering(ledger: Ledger, budgets: BudgetKeeper) -> Callable[[ASGIApp], ASGIApp]:
    """Middleware: whatever ends a request, it is settled afterwards."""

    def middleware(app: ASGIApp) -> ASGIApp:
        async def handle(scope: Scope, receive: Receive, send: Send) -> None:
            endpoint = scope["route_handler"].opt.get(METERED)
            if endpoint is None:
                await app(scope, receive, send)
                return
            meter = scope["state"][_STATE] = Meter(ledger, budgets, endpoint, scope)
            try:
                await app(scope, receive, _metered(meter, cast("Any", scope).get(IS_CONNECTED, _always), send))
            finally:
                meter.close()

        return handle

    return middleware


def _metered(meter: Meter, is_connected: Callable[[], bool], send: Send) -> Send:
    async def metered_send(message: Message) -> None:
        if message["type"] != "http.response.body":
            if message["type"] == "http.response.start":
                meter.status = message["status"]
                if (warning := meter.warning()) is not None:
                    message["headers"] = [*message["headers"], warning]
            await send(message)
            return
        is_last = not message.get("more_body")
        meter.handing()
        was_connected = is_connected()
        await send(message)
        # Behind the last part the connection may be closed because all is said.
        if was_connected and (is_last or is_connected()):
            meter.handed(is_last=is_last)

    return metered_send


def _id_of(work: str) -> str:
    """The same for each time that it is done."""
    return hashlib.sha256(work.encode()).hexdigest()[:32]


def _always() -> bool:
    return True


def _identity(model: ResolvedModel) -> tuple[str, int, str]:
    """Adapter, version and digest."""
    if not model.adapters:
        return "", 0, ""
    if len(model.adapters) == 1 and model.adapters[0].weight == 1:
        version = model.adapters[0].version
        return version.name, version.number, version.digest
    names = "+".join(adapter.version.name for adapter in model.adapters)
    terms = "+".join(f"{adapter.version.digest}*{adapter.weight!r}" for adapter in model.adapters)
    return names[:MAX_ADAPTER_CHARS], 0, hashlib.sha256(terms.encode()).hexdigest()


def _milliseconds(seconds: float | None) -> int | None:
    return None if seconds is None else round(seconds * 1000)
