"""The process in which chat templates of strangers run: a template is a program, and only a process can be bounded.

Run as `python -m loraplex.engine.template_process CPU_SECONDS` by `untrusted_templates`: a `Render` comes in on
standard input, a `Rendered` or a `Failed` goes out. The kernel ends the process when one render takes more processor
time, and refuses it memory, files and sockets, whatever the template made it do. Knows no tenant and no tokenizer.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from contextlib import suppress
from typing import Any

import msgspec
from jinja2 import Template

from loraplex.engine.bounded_work import answer_jobs, give_up_rights
from loraplex.engine.templates import TemplateError, TemplateOptions, compile_template, render

MEMORY_BYTES = 384 << 20
"""Address space. A template of 64 KiB takes up to 100 MiB while it is compiled and 5 MiB from then on."""

KEPT_CHARS = 1 << 20
"""Source of the templates that are kept compiled: hundreds of usual ones, or 16 of the longest."""

LATE_IMPORTS = (
    "{{ lipsum(n=1) | striptags | wordwrap }}{{ messages | pprint }}{{ strftime_now('%c') }}{{ raise_exception('') }}"
)
"""All for which Jinja and Python open files only when it is first used, a failure included."""


class Render(msgspec.Struct, frozen=True):
    """`max_chars`: of the rendered text."""

    template: str
    messages: list[dict[str, Any]]
    special_tokens: dict[str, str]
    options: TemplateOptions
    max_chars: int


class Rendered(msgspec.Struct, frozen=True, tag=True):
    text: str


class Failed(msgspec.Struct, frozen=True, tag=True):
    """`refused`: see TemplateError."""

    reason: str
    refused: bool = False


Outcome = Rendered | Failed


class Compiled:
    """Templates by their source; least recently used ones leave first."""

    def __init__(self, max_chars: int = KEPT_CHARS) -> None:
        self._max_chars = max_chars
        self._templates: OrderedDict[str, Template] = OrderedDict()
        self._chars = 0

    def get(self, source: str) -> Template:
        """Raises TemplateError."""
        if source not in self._templates:
            self._templates[source] = compile_template(source)
            self._chars += len(source)
        self._templates.move_to_end(source)
        while self._chars > self._max_chars and len(self._templates) > 1:
            self._chars -= len(self._templates.popitem(last=False)[0])
        return self._templates[source]

    def clear(self) -> None:
        self._templates.clear()
        self._chars = 0


def main() -> None:
    """Answer one job after the other, until standard input ends."""
    with suppress(TemplateError):
        render(compile_template(LATE_IMPORTS), [], {})
    give_up_rights(MEMORY_BYTES)
    compiled = Compiled()
    decoder = msgspec.json.Decoder(Render)
    answer_jobs(float(sys.argv[1]), lambda job: _run(decoder.decode(job), compiled))


def _run(job: Render, compiled: Compiled) -> bytes:
    """The outcome, encoded: a text that is no Unicode fails here."""
    try:
        text = render(compiled.get(job.template), job.messages, job.special_tokens, job.options)
        if len(text) > job.max_chars:
            raise TemplateError(f"the chat template makes more than {job.max_chars} characters of these messages")
        return msgspec.msgpack.encode(Rendered(text))
    except TemplateError as error:
        return msgspec.msgpack.encode(Failed(str(error), error.refused))
    except UnicodeEncodeError:
        return msgspec.msgpack.encode(Failed("the chat template makes text that is not Unicode"))
    except MemoryError:
        compiled.clear()
        return msgspec.msgpack.encode(Failed(f"the chat template takes more than {MEMORY_BYTES >> 20} MiB of memory"))


if __name__ == "__main__":
    main()
