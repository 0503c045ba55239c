"""`loraplex chat`: talk to a base model or an adapter of a running server, once or in turns, streamed."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import click
import httpx

from loraplex.platform.cli.database import print_json
from loraplex.platform.cli.remote import decode, refusal, server_options, told


@dataclass
class Answer:
    """What came of one turn; times in seconds since the request was sent."""

    model: str = ""
    text: str = ""
    finish_reason: str | None = None
    usage: dict[str, Any] = field(default_factory=dict)
    first_token_seconds: float | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class Request:
    """What stays the same in all turns of a conversation."""

    model: str
    temperature: float
    max_tokens: int | None

    def body(self, messages: list[dict[str, str]]) -> dict[str, Any]:
        limit = {} if self.max_tokens is None else {"max_tokens": self.max_tokens}
        return {
            "model": self.model, "messages": messages, "temperature": self.temperature, **limit,
            "stream": True, "stream_options": {"include_usage": True},
        }  # fmt: skip


@click.command()
@click.argument("model")
@click.argument("prompt", required=False)
@click.option("--system", help="System message that goes before the conversation.")
@click.option("--max-tokens", type=click.IntRange(min=1), help="Longest answer.  [default: what the context allows]")
@click.option("--temperature", type=click.FloatRange(0, 2), default=0.0, show_default=True, help="0: always the same.")
@click.option("--json", "as_json", is_flag=True, help="Print the whole answer as JSON; needs PROMPT.")
@server_options
def chat(
    client: httpx.Client,
    model: str,
    prompt: str | None,
    system: str | None,
    max_tokens: int | None,
    temperature: float,
    as_json: bool,
) -> None:
    """Chat with MODEL: the base model, or an adapter as [TENANT/]ADAPTER[@ALIAS|@VERSION].

    With PROMPT (or text on standard input) one answer is printed; without, a conversation begins.
    """
    request = Request(model, temperature, max_tokens)
    messages = [{"role": "system", "content": system}] if system else []
    if prompt is None and not sys.stdin.isatty():
        prompt = sys.stdin.read().strip()
    if prompt:
        say_once(client, request, [*messages, {"role": "user", "content": prompt}], as_json=as_json)
    elif as_json:
        raise click.UsageError("--json needs a PROMPT")
    else:
        converse(client, request, messages)


def say_once(client: httpx.Client, request: Request, messages: list[dict[str, str]], *, as_json: bool) -> None:
    answer = Answer()
    for piece in stream(client, request.body(messages), answer):
        if not as_json:
            click.echo(piece, nl=False)
    if as_json:
        print_json(answer)
    else:
        click.echo()


def converse(client: httpx.Client, request: Request, messages: list[dict[str, str]]) -> None:
    """Turns until end of input. A refused turn is told and left out of the conversation."""
    click.echo(f"Chatting with {request.model}. /clear forgets the conversation, Ctrl-D ends it.")
    beginning = len(messages)
    while True:
        try:
            text = click.prompt(click.style("you", bold=True), prompt_suffix=" › ").strip()
        except click.Abort:
            click.echo()
            return
        if text == "/clear":
            del messages[beginning:]
            continue
        turn = [*messages, {"role": "user", "content": text}]
        answer = Answer()
        try:
            for piece in stream(client, request.body(turn), answer):
                click.echo(piece, nl=False)
        except click.ClickException as error:
            error.show()
            continue
        click.echo(click.style(f"\n{_speed(answer)}", dim=True))
        messages[:] = [*turn, {"role": "assistant", "content": answer.text}]


def stream(client: httpx.Client, body: dict[str, Any], answer: Answer) -> Iterator[str]:
    """Pieces of text as they come; `answer` is filled on the way. Errors are told in the server's words."""
    started = time.monotonic()
    with client.stream("POST", "/v1/chat/completions", json=body) as response:
        if response.is_error:
            response.read()
            raise refusal(response)
        for event in _events(response):
            if "error" in event:
                raise click.ClickException(told(event["error"]))
            answer.model = event.get("model", answer.model)
            answer.usage = event.get("usage") or answer.usage
            for choice in event.get("choices", []):
                answer.finish_reason = choice.get("finish_reason") or answer.finish_reason
                if piece := choice["delta"].get("content"):
                    if answer.first_token_seconds is None:
                        answer.first_token_seconds = time.monotonic() - started
                    answer.text += piece
                    yield piece
    answer.seconds = time.monotonic() - started


def _events(response: httpx.Response) -> Iterator[dict[str, Any]]:
    """The JSON objects of a server-sent event stream, up to its [DONE]; one without is an answer cut short."""
    for line in response.iter_lines():
        data = line.removeprefix("data:").strip()
        if data == "[DONE]":
            return
        if line.startswith("data:"):
            yield decode(data)
    raise click.ClickException("the connection ended before the answer did")


def _speed(answer: Answer) -> str:
    tokens = answer.usage.get("completion_tokens", 0)
    if answer.first_token_seconds is None:
        return "(no text)"
    return f"({tokens} tokens in {answer.seconds:.1f} s, the first after {answer.first_token_seconds * 1000:.0f} ms)"
