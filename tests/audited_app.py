"""An application that is watched from outside: after each request, what the audit log has of it must be what its
handler says, no more and no less."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from litestar import Litestar

from loraplex.adapters.audit_log import AuditLog, Entry, Wanted
from loraplex.platform.audit_rules import READS


class AuditedApp:
    """An ASGI application around another. `seen`: by method and path, the actions that entries of its requests named.

    Requests come one after the other. Those that fail, and those that change nothing, may have no entry.
    """

    def __init__(self, app: Litestar, log: AuditLog) -> None:
        self.app = app
        self.seen: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
        self.newest: list[Entry] = []
        self._log = log

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        before = (await self._log.head()).number
        answered: dict[str, Any] = {}

        async def note(message: Any) -> None:
            if message["type"] == "http.response.start":
                answered.update(status=message["status"], headers=dict(message["headers"]))
            await send(message)

        await self.app(scope, receive, note)
        entries = [entry for entry in await self._log.list(Wanted(), 1000) if entry.number > before]
        self.newest = [entry for entry in entries if entry.actor.kind != "server"]
        self._check(scope, answered)

    def _check(self, scope: Any, answered: dict[str, Any]) -> None:
        method, path, handler = scope["method"], scope.get("path_template", ""), scope.get("route_handler")
        declared = set() if handler is None or method in READS else set(handler.opt.get("audited", ()))
        named = {entry.action for entry in self.newest}
        assert named <= declared, f"{method} {path} declares {declared or 'nothing'}, and its entries say {named}"
        key = dict(scope["headers"]).get(b"authorization", b"").decode()
        for entry in self.newest:
            if key:
                assert entry.actor.kind == "key"
                assert f" lk_{entry.actor.id}_" in key
            else:
                assert entry.actor.kind in ("account", "visitor")
            assert entry.actor.request_id == answered["headers"][b"x-request-id"].decode()
            assert entry.actor.address == scope["client"][0]
        if answered["status"] < 400:
            self.seen[method, path] |= named
        elif named:  # a sign-in that fails is one that is written down
            assert {name.partition(".")[0] for name in named} == {"account"}
            self.seen[method, path] |= named
