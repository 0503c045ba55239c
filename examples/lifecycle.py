"""A new version of an adapter goes live under traffic, comes back, goes live again, and the old one is deleted.

The story behind `make lifecycle`: a server on the default base model, users who stream from one model name all the
time, and an operator who pushes, canaries, promotes, rolls back and deletes meanwhile. Of every answer it is checked
which version gave it: by name, header, fingerprint and text. Ends by itself; the exit code is 1 if anything was wrong.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from demo_server import ADAPTERS, Keys, Server, bearer, ensure_tenant, prepare_model, publish, serving
from lifecycle_picture import Picture, sums
from live_traffic import Question, Traffic, Version, ask
from openai import AsyncOpenAI
from rich.console import Console

DATA_DIR = Path(__file__).parent.parent / ".demo"
TENANT, NAME = "acme", "concierge"
FOLDERS = {1: ADAPTERS / "house-style", 2: ADAPTERS / "ticket-router"}
"""What is pushed as which version: the first answers in a sentence, the second in a word."""

BEGIN_SECONDS = 30
USERS = 150
STREAMS = 12
CANARY_ANSWERS = 100
"""Of about as many users, so that it would be odd if none of them were among the tenth that version 2 is for."""
SHORT = [
    Question("When is breakfast?"),
    Question("Is there a sauna?"),
    Question("What is the capital of Italy?"),
    Question("My parcel has not arrived yet."),
    Question("I forgot my password."),
]
LONG = [Question(f"Tell me something about {topic}.", 48, runs_on=True) for topic in ("boats", "tea", "trains")]
"""Asked of version 1 alone."""

console = Console()
if not console.is_terminal:
    console = Console(width=120)


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the server is stopped then, too
    DATA_DIR.mkdir(mode=0o700, exist_ok=True)
    prepare_model(DATA_DIR)
    # In fp32 a text depends on nothing but the version, where bf16 may round two near tokens the other way round in
    # another batch.
    with serving(DATA_DIR, console, "--dtype", "float32") as server:
        story = asyncio.run(tell(server, Keys(server), FOLDERS, LONG))
    problems = story.problems()
    if story.outlived != len(LONG):
        problems.append(f"{len(LONG) - story.outlived} long answers had ended before their version was deleted")
    for problem in problems[:20]:
        console.print(problem, style="red", markup=False, highlight=False)
    return 1 if problems else 0


async def tell(server: Server, keys: Keys, folders: Mapping[int, Path], long: Sequence[Question]) -> Story:
    """Live through the story. folders: of versions 1 and 2. long: asked of version 1 alone, and to be under way still
    when it is deleted."""
    for slug in (TENANT, "globex"):
        ensure_tenant(server, keys.operator(), slug)
    async with (
        AsyncOpenAI(base_url=f"{server.url}/v1", api_key=keys.tenant(TENANT), max_retries=0, timeout=120) as client,
        httpx.AsyncClient(base_url=server.url, headers=bearer(keys.tenant(TENANT)), timeout=60) as operator,
    ):
        with console.status("Asking each version alone what it says"):
            versions = {
                1: await look_at(server, keys.tenant("globex"), 1, folders[1], [*SHORT, *long]),
                2: await look_at(server, keys.tenant("globex"), 2, folders[2], SHORT),
            }
        for number, version in versions.items():
            text = next(iter(version.texts.values()))
            console.print(f"Version {number} alone: {text!r}", markup=False, highlight=False)
        await operator.delete(f"/api/v1/adapters/{NAME}")  # of an earlier run
        traffic, picture = Traffic(client, NAME, versions), Picture(console)
        story = Story(server, keys.tenant(TENANT), operator, folders, long, traffic, picture)
        await story.live()
    console.print(sums(story.traffic))
    console.print(
        f"{len(story.traffic.records)} answers, each of one version by its name, header, fingerprint and text; "
        f"{len(story.traffic.failures)} failed requests; {story.outlived} long answers outlived their version."
    )
    return story


async def look_at(server: Server, key: str, number: int, folder: Path, questions: Sequence[Question]) -> Version:
    """What a version says when it is alone, as another tenant's adapter of the same bytes, which is gone afterwards."""
    alone = f"{NAME}-{number}-alone"
    await asyncio.to_thread(publish, server, key, alone, folder)
    async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0) as client:
        answers = [await ask(client, alone, question) for question in questions]
    async with httpx.AsyncClient(base_url=server.url, headers=bearer(key)) as operator:
        (await operator.delete(f"/api/v1/adapters/{alone}")).raise_for_status()
    texts = {answer.question: answer.text for answer in answers}
    return Version(f"{TENANT}/{NAME}@{number}", answers[0].fingerprint, texts)


@dataclass
class Story:
    """What the operator does, in order, and what is to be seen of it."""

    server: Server
    key: str
    operator: httpx.AsyncClient
    folders: Mapping[int, Path]
    long: Sequence[Question]
    traffic: Traffic
    picture: Picture
    outlived: int = 0
    wrong: list[str] = field(default_factory=list)

    async def live(self) -> None:
        await self.push(1)
        await self.move({"version": 1}, "version 1", "alias prod := version 1")
        async with self.picture.following(self.traffic), self.traffic.streaming(SHORT, USERS, STREAMS):
            self.picture.tell(f"{STREAMS} streams of {USERS} users begin")
            await self.traffic.ended(20)
            await self.push(2)
            await self.traffic.ended(40)
            await self.move({"split": {"1": 90, "2": 10}}, "canary", "prod := 90% version 1, 10% version 2")
            await self.traffic.ended(CANARY_ANSWERS)
            await self.move({"version": 2}, "promoted", "prod := version 2")
            await self.traffic.ended(60)
            await self.roll_back(to=1)
            await self.expect("DELETE", "/versions/1", 409, "version_in_use", "delete version 1: no, prod is on it")
            await self.traffic.ended(30)
            await self.delete_in_use()

    async def push(self, number: int) -> None:
        version = await asyncio.to_thread(publish, self.server, self.key, NAME, self.folders[number])
        if (version["version"], version["state"]) != (number, "ready"):
            self.wrong.append(f"the push became version {version['version']}, {version['state']}, not {number}, ready")
        self.picture.tell(f"push: version {number}, proved and ready")

    async def move(self, target: dict[str, Any], phase: str, words: str) -> None:
        versions = {int(number) for number in target.get("split", [target.get("version")])}
        with self.traffic.changing(versions, phase):
            await self.expect("PUT", "/aliases/prod", 200, None, words, target)

    async def roll_back(self, to: int) -> None:
        with self.traffic.changing({1}, "rolled back"):
            words = f"roll back to revision {to}: prod := version 1"
            await self.expect("POST", "/aliases/prod/rollback", 200, None, words, {"to": to})

    async def delete_in_use(self) -> None:
        """Long requests begin on version 1; prod moves on; version 1 is deleted; they go on as if nothing had been."""
        begun = asyncio.Semaphore(0)
        ask = self.traffic.request
        long = [asyncio.create_task(ask(f"long-{i}", q, begun.release)) for i, q in enumerate(self.long)]
        async with asyncio.timeout(BEGIN_SECONDS):
            for _ in long:
                await begun.acquire()
        self.picture.tell(f"{len(long)} long answers begin on version 1")
        await self.move({"version": 2}, "promoted again", "prod := version 2")
        await self.expect("DELETE", "/versions/1", 204, None, "delete version 1, while they run")
        running = [task for task in long if not task.done()]
        gone = await self.operator.post("/v1/completions", json={"model": f"{NAME}@1", "prompt": "Hello"})
        self.check("a new request for version 1", gone, 404, "model_not_found")
        await asyncio.gather(*long)
        self.outlived = len(running)
        self.picture.tell(f"{self.outlived} long answers end, of a version that is gone")

    async def expect(
        self, method: str, path: str, status: int, code: str | None, words: str, body: dict[str, Any] | None = None
    ) -> None:
        response = await self.operator.request(method, f"/api/v1/adapters/{NAME}{path}", json=body)
        self.check(words, response, status, code)
        self.picture.tell(words)

    def check(self, what: str, response: httpx.Response, status: int, code: str | None) -> None:
        found = response.json()["error"]["code"] if response.is_error else None
        if (response.status_code, found) != (status, code):
            self.wrong.append(f"{what}: {response.status_code} {response.text}")

    def problems(self) -> list[str]:
        """What was wrong, in words."""
        sides: defaultdict[str, set[int]] = defaultdict(set)
        for record in self.traffic.records:
            if record.phase == "canary":
                sides[record.user].add(record.version)
        both = [user for user, versions in sides.items() if len(versions) > 1]
        share = sum(2 in versions for versions in sides.values()) / max(len(sides), 1)
        wrong = [*self.wrong, *self.traffic.failures]
        if both:
            wrong.append(f"{len(both)} users had answers of both versions while prod was split: {both[:5]}")
        if not 0 < share < 0.3:
            wrong.append(f"{share:.0%} of {len(sides)} users got version 2, which had 10% of prod")
        return wrong


if __name__ == "__main__":
    raise SystemExit(main())
