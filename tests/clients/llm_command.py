"""The `llm` command: prompts, streams, templates of its own, schemas, tools and plain completions."""

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
        llm("-m", f"chat-{model}", "-s", "Be brief.", *greedy, TICKET)
        holds(llm("-c", *greedy, "And now?"), "an answer")
    with feature("plain completion", model):
        holds(llm("-m", f"text-{model}", *greedy, "Once upon a time"), "an answer")
    with feature("schema", model, needs="response_format"):
        holds(json.loads(llm(*roomy, "--schema", json.dumps(SCHEMA), TICKET))["desk"] in DESKS, "a desk")
    with feature("tools", model, needs="tools"):
        llm(*roomy, "--functions", TOOL, "--no-stream", TICKET)


with tempfile.TemporaryDirectory() as folder:
    os.environ["LLM_USER_PATH"] = folder
    declare(Path(folder))
    for name in MODELS:
        check(name)
finish()
