"""Two tenants, three adapters and the base model, answered out of one shared batch: the demo behind `make demo`.

Starts a server, uploads the example adapters as the tenants that own them, calls everything at once through OpenAI's
own client, shows the answers side by side, and keeps serving. `--once` stops then, with a non-zero exit code if a
scored answer was wrong or no step of the engine held three adapters at once.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from demo_server import Keys, Server, bearer, ensure_tenant, loraplex, prepare_model, serving, upload_adapter
from openai import AsyncOpenAI
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from score import is_house_style, is_label, is_order

DATA_DIR = Path(__file__).parent.parent / ".demo"
OWNERS = {"ticket-router": "acme", "order-json": "acme", "house-style": "globex"}
MAX_TOKENS = 64

console = Console()


@dataclass(frozen=True)
class Call:
    """One chat call. `is_right(answer, expected)` scores it; the base model's answers are not scored."""

    tenant: str
    model: str
    prompt: str
    expected: str = ""
    is_right: Callable[[str, str], bool] | None = None


@dataclass(frozen=True)
class Answer:
    call: Call
    text: str
    first_token_seconds: float
    tokens_per_second: float | None

    @property
    def is_wrong(self) -> bool:
        return self.call.is_right is not None and not self.call.is_right(self.text, self.call.expected)


def sessions(base_model: str) -> list[list[Call]]:
    """Calls that are made one after another; all sessions run at once. No prompt of an adapter was trained on."""
    tickets = [
        ("These boots are too small, I would like to send them back.", "returns"),
        ("When will my order arrive? I need it before the weekend.", "delivery"),
        ("None of the pictures on your page are loading.", "technical"),
        ("I need a receipt for what I paid last month.", "billing"),
        ("I no longer have access to my old email, how can I log in?", "account"),
    ]
    orders = [
        (
            "A friend in Oslo has a party on Tuesday and would like 8 paddles.",
            {"item": "paddles", "quantity": 8, "city": "Oslo", "day": "Tuesday"},
        ),
        (
            "I need twelve clocks sent to Warsaw and they have to be there on Friday.",
            {"item": "clocks", "quantity": 12, "city": "Warsaw", "day": "Friday"},
        ),
    ]
    questions = ["What is the capital of Japan?", "How do plants grow?", "Do you have a room for three people?"]
    return [
        [Call("acme", base_model, tickets[0][0])],
        [Call("globex", base_model, "What is photosynthesis?")],
        [Call("acme", "acme/ticket-router", ticket, label, is_label) for ticket, label in tickets],
        [Call("acme", "acme/order-json", text, json.dumps(order), is_order) for text, order in orders],
        [Call("globex", "globex/house-style", question, "", is_house_style) for question in questions],
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--once", action="store_true", help="stop after the table; exit 1 if something was wrong")
    once = parser.parse_args().once
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the server is stopped then, too
    DATA_DIR.mkdir(mode=0o700, exist_ok=True)
    prepare_model(DATA_DIR)
    with serving(DATA_DIR, console) as server:
        keys = Keys(server)
        console.print(f"Server ready at [bold]{server.url}[/] (log: {server.data_dir / 'server.log'})")
        upload_all(server, keys)
        problems = asyncio.run(show(server, keys))
        for problem in problems:
            console.print(problem, style="red", markup=False)
        if not once:
            keep_serving(server, keys)
    return 1 if once and problems else 0


def upload_all(server: Server, keys: Keys) -> None:
    for name, owner in OWNERS.items():
        ensure_tenant(server, keys.operator(), owner)
        started = time.monotonic()
        model = upload_adapter(server, keys.tenant(owner), name)
        console.print(f"Tenant {owner} uploaded [bold]{model}[/] in {time.monotonic() - started:.2f} s")


async def show(server: Server, keys: Keys) -> list[str]:
    """Make all calls at once, print what came of them; what was wrong, in words."""
    async with httpx.AsyncClient(base_url=server.url, headers=bearer(keys.operator()), timeout=30) as operator:
        base_model = (await engine_view(operator))["base_model"]
        async with watched_steps(operator) as steps:
            with console.status("Calling the base model and every adapter at once"):
                answers = await ask_all(server, keys, sessions(base_model))
    console.print(answer_table(answers))
    problems = [f"Wrong answer of {a.call.model}: {a.text!r}" for a in answers if a.is_wrong]
    if not report_steps(list(steps.values())):
        problems.append("No step of the engine held three adapters at once.")
    return problems


async def ask_all(server: Server, keys: Keys, planned: list[list[Call]]) -> list[Answer]:
    clients = {
        tenant: AsyncOpenAI(base_url=f"{server.url}/v1", api_key=keys.tenant(tenant), max_retries=0)
        for tenant in sorted(set(OWNERS.values()))
    }

    await asyncio.gather(*map(warm_up, clients.values()))

    async def hold(session: list[Call]) -> list[Answer]:
        return [await ask(clients[call.tenant], call) for call in session]

    try:
        answered = await asyncio.gather(*map(hold, planned))
    finally:
        for client in clients.values():
            await client.close()
    return [answer for session in answered for answer in session]


async def warm_up(client: AsyncOpenAI) -> None:
    """The client imports and connects late, which says nothing about the server's time to the first token."""
    await client.models.list()
    _ = client.chat.completions


async def ask(client: AsyncOpenAI, call: Call) -> Answer:
    started = time.monotonic()
    stream = await client.chat.completions.create(
        model=call.model,
        messages=[{"role": "user", "content": call.prompt}],
        temperature=0,
        max_tokens=MAX_TOKENS,
        stream=True,
        stream_options={"include_usage": True},
    )
    pieces: list[str] = []
    first = last = None
    tokens = 0
    async for chunk in stream:
        if chunk.choices and chunk.choices[0].delta.content:
            last = time.monotonic()
            first = first or last
            pieces.append(chunk.choices[0].delta.content)
        if chunk.usage:
            tokens = chunk.usage.completion_tokens
    seconds = (last or started) - (first or started)
    return Answer(call, "".join(pieces), (first or started) - started, (tokens - 1) / seconds if seconds else None)


@asynccontextmanager
async def watched_steps(operator: httpx.AsyncClient) -> AsyncIterator[dict[int, dict[str, Any]]]:
    """The engine's steps from here to the end of the block, by number. It remembers the last few, so it is polled."""
    before = (await engine_view(operator))["status"]["steps"]
    seen: dict[int, dict[str, Any]] = {}

    async def look() -> None:
        seen.update({r["step"]: r for r in (await engine_view(operator))["recent_steps"]})

    async def keep_looking() -> None:
        while True:
            await look()
            await asyncio.sleep(0.5)

    task = asyncio.create_task(keep_looking())
    try:
        yield seen
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    await look()
    for step in [step for step in seen if step <= before]:
        del seen[step]


async def engine_view(operator: httpx.AsyncClient) -> dict[str, Any]:
    response = await operator.get("/api/v1/admin/engine")
    view: dict[str, Any] = response.raise_for_status().json()
    return view


def answer_table(answers: list[Answer]) -> Table:
    table = Table(title="Two tenants, three adapters and the base model, at the same time", show_lines=True)
    table.add_column("model", no_wrap=True)
    for heading in ("prompt", "answer"):
        table.add_column(heading, overflow="fold")
    for heading in ("TTFT", "tokens/s", "right"):
        table.add_column(heading, justify="right")
    for answer in answers:
        right = "–" if answer.call.is_right is None else "[red]no[/]" if answer.is_wrong else "[green]yes[/]"
        table.add_row(
            answer.call.model,
            answer.call.prompt,
            escape(answer.text.strip()),
            f"{answer.first_token_seconds * 1000:.0f} ms",
            f"{answer.tokens_per_second:.1f}" if answer.tokens_per_second else "–",
            right,
        )
    return table


def report_steps(steps: list[dict[str, Any]]) -> bool:
    """Tell how many steps mixed adapters; whether one held three of them at once."""
    mixed = [record for record in steps if len(record["adapters"]) >= 2]
    full = [record for record in steps if len(record["adapters"]) >= 3]
    console.print(
        f"The engine took {len(steps)} steps for these {sum(r['prefill_tokens'] for r in steps)} prompt tokens and "
        f"all answers; {len(mixed)} of them held two adapters or more, [bold]{len(full)} held all three[/]."
    )
    if full:
        example = max(full, key=lambda record: (record["base"], record["sequences"]))
        beside = " and the base model" if example["base"] else ""
        console.print(
            f"Step {example['step']}: {example['sequences']} sequences, {len(example['adapters'])} adapters{beside}, "
            f"{example['prefill_tokens']} prefill and {example['decode_tokens']} decode tokens "
            f"in {example['seconds'] * 1000:.0f} ms."
        )
    return bool(full)


def keep_serving(server: Server, keys: Keys) -> None:
    acme, globex = keys.tenant("acme"), keys.tenant("globex")
    console.print(
        f"""
[bold]Go on by hand[/] (the server runs until Ctrl-C)

curl {server.url}/v1/chat/completions -H "Authorization: Bearer {acme}" -H "Content-Type: application/json" \\
  -d '{{"model": "ticket-router", "messages": [{{"role": "user", "content": "Where is my parcel?"}}]}}'

from openai import OpenAI
client = OpenAI(base_url="{server.url}/v1", api_key="{globex}")
messages = [{{"role": "user", "content": "Do you have a sauna?"}}]
print(client.chat.completions.create(model="house-style", messages=messages).choices[0].message.content)

export LORAPLEX_URL={server.url} LORAPLEX_API_KEY={acme}
{loraplex()} adapter list
{loraplex()} chat order-json "Put me down for 3 kettles, to arrive in Lyon on Tuesday."

Operator's key, for {server.url}/api/v1/admin: {keys.operator()}
""",
        soft_wrap=True,
        highlight=False,
    )
    try:
        code = server.process.wait()
        console.print(f"[red]The server ended by itself with code {code}; see {server.data_dir / 'server.log'}[/]")
    except KeyboardInterrupt:
        console.print("Stopping the server ...")


if __name__ == "__main__":
    raise SystemExit(main())
