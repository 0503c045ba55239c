"""Whether a grammar that a stranger sent can be followed, found out in bounded time before the engine hears of it.

One check takes at most CPU_SECONDS of processor time and the memory of `grammar_process`. Runs in the API process.
Knows owners as opaque names; knows no request.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

import msgspec

from loraplex.engine.bounded_processes import BoundedProcesses, Ended
from loraplex.engine.events import Grammar
from loraplex.engine.grammar_process import Sound, Unsound, Verdict
from loraplex.engine.grammars import GrammarError

CPU_SECONDS = 0.5
"""A schema of a hundred kilobytes takes a tenth of it."""

PROCESSES = 1

KEPT_BYTES = 16 << 20
"""Of grammars that were checked."""


class GrammarChecks:
    """Whoever has one closes it. For one event loop. Verdicts are kept, those that were used last."""

    def __init__(
        self, tokenizer: Path, vocab_size: int, eos_token_ids: Sequence[int], *, cpu_seconds: float = CPU_SECONDS
    ) -> None:
        eos = ",".join(map(str, eos_token_ids))
        command = ("loraplex.engine.grammar_process", str(cpu_seconds), str(tokenizer), str(vocab_size), eos)
        self._processes = BoundedProcesses(command, "grammar", processes=PROCESSES, cpu_seconds=cpu_seconds)
        self._verdicts: OrderedDict[bytes, tuple[Verdict, int]] = OrderedDict()
        self._kept_bytes = 0

    async def take(self, owner: str, grammar: Grammar) -> Grammar:
        """The grammar as the engine takes it. Raises GrammarError; EngineUnavailable when the owner has too many
        checks under way."""
        key = sha256(msgspec.msgpack.encode(grammar)).digest()
        if key not in self._verdicts:
            self._keep(key, await self._check(owner, grammar))
        self._verdicts.move_to_end(key)
        verdict = self._verdicts[key][0]
        if isinstance(verdict, Unsound):
            raise GrammarError(verdict.reason)
        return verdict.grammar

    async def close(self) -> None:
        """End the processes that wait for work."""
        await self._processes.close()

    async def _check(self, owner: str, grammar: Grammar) -> Verdict:
        try:
            return msgspec.msgpack.decode(await self._processes.run(owner, grammar), type=Sound | Unsound)
        except Ended as ended:
            return Unsound(f"it {ended}")

    def _keep(self, key: bytes, verdict: Verdict) -> None:
        if key in self._verdicts:
            return
        size = (verdict.grammar.chars if isinstance(verdict, Sound) else len(verdict.reason)) + 256
        self._verdicts[key] = verdict, size
        self._kept_bytes += size
        while self._kept_bytes > KEPT_BYTES:
            self._kept_bytes -= self._verdicts.popitem(last=False)[1][1]
