"""The process in which grammars of strangers are compiled for the first time.

One that takes too much time, memory or stack costs nothing but this process.
Run as `python -m loraplex.engine.grammar_process CPU_SECONDS TOKENIZER VOCAB_SIZE EOS,...` by `grammar_checks`: a
`Grammar` comes in on standard input, `Sound` or `Unsound` goes out.
"""

from __future__ import annotations

import sys
import threading
from dataclasses import replace
from pathlib import Path

import msgspec
from llguidance import LLTokenizer

from loraplex.engine.bounded_work import answer_jobs, give_up_rights
from loraplex.engine.events import Grammar
from loraplex.engine.grammars import GrammarError, as_lark, check_satisfiable, compile_grammar, load_tokenizer

MEMORY_BYTES = 2 << 30
"""Address space, most of it the tokenizer's and that of libraries."""

STACK_BYTES = 1 << 20
"""An eighth of what the engine's threads have: what compiles here does not overflow there."""


class Sound(msgspec.Struct, frozen=True, tag=True):
    """`grammar`: as the engine takes it."""

    grammar: Grammar


class Unsound(msgspec.Struct, frozen=True, tag=True):
    reason: str


Verdict = Sound | Unsound


def main() -> None:
    """Answer one job after the other, until standard input ends."""
    cpu_seconds, path, vocab_size, eos = sys.argv[1:]
    tokenizer = load_tokenizer(Path(path), int(vocab_size), [int(token) for token in eos.split(",") if token])
    check(tokenizer, Grammar("lark", 'root ::= "a"'))  # all that is loaded when it is first used
    give_up_rights(MEMORY_BYTES)
    threading.stack_size(STACK_BYTES)
    decoder = msgspec.json.Decoder(Grammar)
    answer_jobs(float(cpu_seconds), lambda job: _in_thread(tokenizer, decoder.decode(job)))


def check(tokenizer: LLTokenizer, grammar: Grammar) -> Verdict:
    try:
        if grammar.kind == "lark":
            grammar = replace(grammar, source=as_lark(grammar.source))
        check_satisfiable(compile_grammar(tokenizer, grammar))
    except GrammarError as error:
        return Unsound(str(error))
    return Sound(grammar)


def _in_thread(tokenizer: LLTokenizer, grammar: Grammar) -> bytes:
    verdicts: list[Verdict] = []
    thread = threading.Thread(target=lambda: verdicts.append(check(tokenizer, grammar)))
    thread.start()
    thread.join()
    return msgspec.msgpack.encode(verdicts[0])


if __name__ == "__main__":
    main()
