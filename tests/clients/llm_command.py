"""The `llm` command: prompts, streams, conversations, aliases, schemas, tools and plain completions."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from report import ADAPTER, DESK, DESKS, KEY, MODELS, TICKET, URL, feature, finish, holds, same

LLM = Path(sys.executable).parent / "llm"
SECONDS = 120
TOOL = 'def version_of(name: str) -> str:\n    "The version of a thing."\n    return "7"\n'
SCHEMA = {"type": "object", "properties": {"desk": {"enum": list(DESKS)}}, "required": ["desk"]}


def llm(*arguments: str) -> str:
    """Its output; its error as an exception."""
    done = subprocess.run(
        [LLM, *arguments], capture_output=True, text=True, timeout=SECONDS, stdin=subprocess.DEVNULL, check=False
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-1500:])
    return done.stdout.strip()


def declare(folder: Path) -> None:
    """The server's models in the command's own configuration: no yaml is needed to write JSON, which is yaml."""
    entries = []
    for model in MODELS:
        entry = {"model_name": model, "api_base": URL, "api_key_name": "loraplex"}
        served = {"supports_schema": True, "supports_tools": True}
        entries.append(entry | served | {"model_id": f"chat-{model}"})
        entries.append(entry | {"model_id": f"text-{model}", "completion": True})
    (folder / "extra-openai-models.yaml").write_text(json.dumps(entries))
    (folder / "keys.json").write_text(json.dumps({"loraplex": KEY}))


def check(model: str) -> None:
    greedy = ["-o", "temperature", "0", "-o", "max_tokens", "8"]
    roomy = ["-m", f"chat-{model}", "-o", "temperature", "0", "-o", "max_tokens", "64"]
    with feature("prompt, whole and streamed", model):
        whole = llm("-m", f"chat-{model}", "--no-stream", *greedy, TICKET)
        same(llm("-m", f"chat-{model}", *greedy, TICKET), whole)
        if model == ADAPTER:
            same(whole, DESK)
    with feature("system prompt and continued conversation", model):
        first = llm("-m", f"chat-{model}", "-s", "Be brief.", *greedy, TICKET)
        second = llm("-c", *greedy, "And now?")
        logged = json.loads(llm("logs", "list", "--json", "-n", "2"))
        said = [(entry["prompt"], entry["response"].strip()) for entry in logged]
        same(said, [(TICKET, first), ("And now?", second)])
        same(len({entry["conversation_id"] for entry in logged}), 1)
    with feature("an alias of the command's own, with default options", model):
        llm("aliases", "set", "router", f"chat-{model}")
        llm("models", "options", "set", f"chat-{model}", "max_tokens", "4")
        counts = json.loads(llm("-m", "router", "-o", "temperature", "0", TICKET) and llm("logs", "--json", "-n", "1"))
        holds(counts[0]["output_tokens"] in range(1, 5), counts)
        llm("models", "options", "clear", f"chat-{model}")
    with feature("plain completion", model):
        whole = llm("-m", f"text-{model}", "--no-stream", *greedy, "Once upon a time")
        holds(whole and llm("-m", f"text-{model}", *greedy, "Once upon a time") == whole, whole)
    with feature("schema", model):
        holds(json.loads(llm(*roomy, "--schema", json.dumps(SCHEMA), TICKET))["desk"] in DESKS, "a desk")
    with feature("tools", model):
        llm(*roomy, "--functions", TOOL, "--no-stream", TICKET)
        (entry,) = json.loads(llm("logs", "--json", "-n", "1"))
        same([known["name"] for known in entry["tools"]], ["version_of"])


with tempfile.TemporaryDirectory() as folder:
    os.environ["LLM_USER_PATH"] = folder
    declare(Path(folder))
    for name in MODELS:
        check(name)
finish()
