"""Chat templates as Transformers runs them: what they may use, what they are given, and how one says no.

Knows Jinja, sandboxed. Bounds neither time nor memory: the base's own template runs here as it is, those of strangers
run in `template_process`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cache
from typing import Any, NoReturn

import msgspec
from jinja2 import Template, nodes
from jinja2 import TemplateError as JinjaError
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

MAX_REASON_CHARS = 300
"""A template writes a part of its error messages itself."""

Messages = Sequence[Mapping[str, Any]]
"""As chat templates want them: `role` and `content`, and what else a message of a role has."""

Scalar = str | int | float | bool | None


class TemplateOptions(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a template is given beside the messages. tools: in OpenAI's form. variables: names of the template's own.

    continue_final_message: end in the middle of the last message, for the model to go on with it.
    """

    tools: list[dict[str, Any]] | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    variables: dict[str, Scalar] = {}

    def chars_with(self, messages: Messages) -> int:
        """About how long the rendered conversation is at least."""
        chars = sum(len(message["content"] or "") for message in messages)
        called = [message["tool_calls"] for message in messages if "tool_calls" in message]
        return chars + (len(msgspec.json.encode((self.tools, called))) if self.tools or called else 0)


UP_TO_THE_ANSWER = TemplateOptions()


class NamedTemplate(msgspec.Struct, frozen=True):
    name: str
    template: str


class NamedToken(msgspec.Struct, frozen=True):
    content: str


class TokenizerConfig(msgspec.Struct, frozen=True):
    """What a tokenizer_config.json has for chat templates, of which there may be none, one, or several by name."""

    chat_template: str | list[NamedTemplate] | None = None
    bos_token: str | NamedToken | None = None
    eos_token: str | NamedToken | None = None
    unk_token: str | NamedToken | None = None
    pad_token: str | NamedToken | None = None

    @property
    def default_template(self) -> str | None:
        return self.chat_template if isinstance(self.chat_template, str) else self.template_named("default")

    def template_named(self, name: str) -> str | None:
        """Of several."""
        named = self.chat_template if isinstance(self.chat_template, list) else ()
        return next((each.template for each in named if each.name == name), None)

    @property
    def special_tokens(self) -> dict[str, str]:
        """Name -> text; "" where there is none."""
        tokens = {name: getattr(self, name) for name in ("bos_token", "eos_token", "unk_token", "pad_token")}
        return {name: token.content if isinstance(token, NamedToken) else token or "" for name, token in tokens.items()}


class TemplateError(ValueError):
    """A chat template fails on these messages, or there is none. `refused`: the template itself says that it will not
    have them, with raise_exception."""

    def __init__(self, message: str, *, refused: bool = False) -> None:
        super().__init__(message)
        self.refused = refused


def compile_template(source: str) -> Template:
    """Raises TemplateError when it is no template."""
    try:
        return _environment().from_string(source)
    except MemoryError:
        raise
    except Exception as error:  # Jinja's own, and what Python says to the code that Jinja makes
        raise TemplateError(f"the chat template is not valid: {_told(error)}") from error


def render(
    template: Template,
    messages: Messages,
    special_tokens: Mapping[str, str],
    options: TemplateOptions = UP_TO_THE_ANSWER,
) -> str:
    """The conversation up to where the assistant's answer begins, or goes on. Raises TemplateError."""
    try:
        # What a template need not find defined, it finds as None: some ask for `tools` by `is not none`.
        rendered = template.render(
            messages=_marked(messages) if options.continue_final_message else messages,
            tools=options.tools,
            documents=None,
            add_generation_prompt=options.add_generation_prompt,
            **{**special_tokens, **options.variables},
        )
    except _Refusal as error:
        raise TemplateError(f"the chat template refuses these messages: {_told(error)}", refused=True) from error
    except MemoryError:
        raise
    except Exception as error:  # a template is a program: it may fail in any way
        raise TemplateError(f"the chat template fails on these messages: {_told(error)}") from error
    return _up_to_mark(rendered) if options.continue_final_message else rendered


_MARK = "CONTINUE_FINAL_MESSAGE_TAG "
"""Transformers' own; its last space shows whether the template trims messages."""


def _marked(messages: Messages) -> Messages:
    final = messages[-1]
    return [*messages[:-1], {**final, "content": final["content"] + _MARK}]


def _up_to_mark(rendered: str) -> str:
    """Without the mark and what follows it, as Transformers cuts. Raises TemplateError."""
    place = rendered.rfind(_MARK.rstrip())
    if place < 0:
        raise TemplateError("the chat template leaves the final message out, so it cannot be continued")
    return rendered[:place] if rendered.startswith(_MARK, place) else rendered[:place].rstrip()


class _Refusal(JinjaError):
    """raise_exception."""


class _Generation(Extension):
    """`{% generation %}` marks what the assistant said, for training; what it marks is rendered as it is."""

    tags = {"generation"}  # noqa: RUF012  Jinja declares it so

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class _Namespace(Namespace):
    """A namespace without names that could pass for Python's internals."""

    def __init__(*args: Any, **names: Any) -> None:
        self, positional = args[0], args[1:]  # `namespace(self=...)` is allowed
        _refuse_internals(dict(*positional, **names))
        Namespace.__init__(self, *positional, **names)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_internals((name,))
        super().__setitem__(name, value)


def _refuse_internals(names: Any) -> None:
    if any(str(name).startswith("_") for name in names):
        raise SecurityError("a namespace takes no name that begins with an underscore")


@cache
def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    environment.globals["dict"] = lambda *items, **named: dict(*items, **named)
    environment.globals["namespace"] = _Namespace
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    return environment


def _raise(message: str) -> NoReturn:
    raise _Refusal(str(message))


def _told(error: Exception) -> str:
    """In its own words, in one line, without the names of files."""
    words = " ".join(str(error.strerror if isinstance(error, OSError) else error).split())
    return "".join(filter(str.isprintable, words or type(error).__name__))[:MAX_REASON_CHARS]
