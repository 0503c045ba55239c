"""What `bench_peers` runs: a function per measurement that starts its processes, ends them, and gives its figures."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from http_servers import Endpoint, loraplex_server, stop, tail, vllm_server
from offline_shapes import CONTEXT_2048, DECODE_16_128, DECODE_64_64, PREFILL, Shape

HERE = Path(__file__).parent
ADAPTER_STORE = HERE.parent / ".bench" / "scale-adapters"
COMMAND_SECONDS = 900
LOAD_SECONDS = 240
LEVEL = "c32"
OFFLINE_REPEATS = 2
ONE_STREAM_REPEATS = 6
QUICK_SCALE = (
    "--adapters=24",
    "--pool=12",
    "--rounds=1",
    "--requests=16",
    "--cold=2",
    "--loads=2",
    "--streams=2",
    "--mixed=4",
    "--crowd=4",
)
SCALE_PARTS = ("zipf", "cold", "loading", "memory", "waste")  # what the table has rows of
Figures = dict[str, float]


class MeasurementFailed(RuntimeError):
    """A measurement gave no figures, or not all of them; the message says why."""


@dataclass(frozen=True)
class Workplace:
    """The peers' folder, and a folder for logs and figures. quick: tiny sizes, and vLLM does not compile.

    wanted: full names of the figures that are asked for; none: all.
    """

    peers: Path
    scratch: Path
    quick: bool
    wanted: frozenset[str] = frozenset()

    def wants(self, case: str) -> bool:
        return not self.wanted or any(name.startswith(f"{case}.") for name in self.wanted)

    @property
    def base(self) -> Path:
        return self.peers / "base"

    @property
    def vllm(self) -> Path:
        return self.peers / "vllm/bin/vllm"

    def adapters(self, count: int) -> list[Path]:
        return [self.peers / "adapters" / f"r16_{number}" for number in range(count)]

    def sized(self, shape: Shape) -> Shape:
        return shape.quick if self.quick else shape

    def repeats(self, count: int) -> int:
        return 1 if self.quick else count


def loraplex(place: Workplace) -> Figures:
    workloads = ("decode_16_128", "decode_64_64", "prefill", "context_2048", "resident")
    command = [sys.executable, HERE / "offline_engine.py", "--model", place.base, "--level", 32]
    command += [
        f"--rounds={place.repeats(OFFLINE_REPEATS)}",
        *(f"--only={name}" for name in workloads if place.wants(f"loraplex.{name}")),
    ]
    command += [f"--adapter={folder}" for folder in place.adapters(32)] + ["--quick"] * place.quick
    return _command(place, "loraplex", command)


def vllm(place: Workplace) -> Figures:
    runs = {
        f"decode_16_128.{LEVEL}.base": DECODE_16_128,
        f"decode_64_64.{LEVEL}.base": DECODE_64_64,
        "prefill.base": PREFILL,
        "context_2048.base": CONTEXT_2048,
    }
    command = [place.peers / "vllm/bin/python", HERE / "peers/vllm_offline.py", "--max-model-len", 2304]
    command += ["--eager"] * place.quick
    return _peer(place, "vllm", command, 0, runs, OFFLINE_REPEATS)


def vllm_lora(place: Workplace) -> Figures:
    command = [place.peers / "vllm/bin/python", HERE / "peers/vllm_offline.py", *["--eager"] * place.quick]
    return _peer(place, "vllm_lora", command, 8, {f"decode_64_64.{LEVEL}.8_adapters": DECODE_64_64}, 1)


def peft(place: Workplace) -> Figures:
    command = [place.peers / "hf/bin/python", HERE / "peers/peft_offline.py"]
    return _peer(place, "peft", command, 8, {f"decode_64_64.{LEVEL}.8_adapters": DECODE_64_64}, 1)


def loraplex_http(place: Workplace) -> Figures:
    """The one-stream runs alternate between the base and an adapter; of each figure the median counts."""
    with loraplex_server(place.base, place.adapters(8), place.scratch / "loraplex_http.log") as server:
        figures = _base_loads(place, server)
        figures |= _load(place, server, server.adapters, 32, 32, f"{LEVEL}.8_adapters")
        pairs = [
            _load(place, server, (server.base,), 1, 8, "c1.base")
            | _load(place, server, server.adapters[:1], 1, 8, "c1.1_adapter")
            for _ in range(place.repeats(ONE_STREAM_REPEATS))
        ]
        return figures | {name: statistics.median(pair[name] for pair in pairs) for name in pairs[0]}


def vllm_http(place: Workplace) -> Figures:
    with vllm_server(place.vllm, place.base, [], place.scratch / "vllm_http.log", eager=place.quick) as server:
        return _base_loads(place, server) | _load(place, server, (server.base,), 1, 8, "c1.base")


def vllm_http_lora(place: Workplace) -> Figures:
    log = place.scratch / "vllm_http_lora.log"
    with vllm_server(place.vllm, place.base, place.adapters(8), log, eager=place.quick) as server:
        return _load(place, server, server.adapters, 32, 32, f"{LEVEL}.8_adapters")


def scale(place: Workplace) -> Figures:
    parts = [f"--only={part}" for part in SCALE_PARTS]
    command = [sys.executable, HERE / "scale.py", "--model", place.base, *parts, *(QUICK_SCALE if place.quick else ())]
    return _command(place, "scale", command + ([] if place.quick else ["--store", ADAPTER_STORE]))


MEASUREMENTS: Mapping[str, Callable[[Workplace], Figures]] = {
    "loraplex": loraplex,
    "vllm": vllm,
    "loraplex_http": loraplex_http,
    "vllm_http": vllm_http,
    "peft": peft,
    "vllm_lora": vllm_lora,
    "vllm_http_lora": vllm_http_lora,
    "scale": scale,
}
"""In the order in which a round runs them. Each name is the first part of its figures' names."""

RUN_ONCE = frozenset({"scale"})
"""What alternates its own cases often enough to be run in the first round only."""


def _base_loads(place: Workplace, server: Endpoint) -> Figures:
    """The server is warmed up at its full concurrency, then loaded at 32 and at 8."""
    _load(place, server, (server.base,), 32, 32, "warm-up")
    return _load(place, server, (server.base,), 32, 64, f"{LEVEL}.base") | _load(
        place, server, (server.base,), 8, 16, "c8.base"
    )


def _load(
    place: Workplace, server: Endpoint, models: Sequence[str], concurrency: int, requests: int, name: str
) -> Figures:
    """One run of http_load.py, 64 tokens in and 64 out; every answer has to be complete."""
    shape = place.sized(Shape(concurrency, 64, 64))
    command = [sys.executable, HERE / "http_load.py", "--url", server.url, f"--max-seconds={LOAD_SECONDS}"]
    command += [f"--model={model}" for model in models]
    command += [f"--concurrency={shape.in_flight}", f"--requests={4 if place.quick else requests}"]
    command += [f"--prompt-len={shape.prompt_len}", f"--output-len={shape.output_len}"]
    command += [f"--warmup={min(len(models), shape.in_flight)}"]
    found = _command(place, f"load-{name}", command, {"OPENAI_API_KEY": server.api_key})
    return {f"{name}.{figure}": value for figure, value in found.items()}


def _peer(
    place: Workplace, name: str, command: list[object], adapters: int, runs: Mapping[str, Shape], repeats: int
) -> Figures:
    """One process of a peer: the base, or that many adapters, through the runs."""
    options = ["--base", place.base, *(f"--adapter={folder}" for folder in place.adapters(adapters))]
    options += [f"--run={key}:{place.sized(shape)}" for key, shape in runs.items() if place.wants(f"{name}.{key}")]
    return _command(place, name, [*command, *options, f"--repeats={place.repeats(repeats)}"])


def _command(place: Workplace, name: str, command: Sequence[object], environment: Mapping[str, str] = {}) -> Figures:
    """Run a command that writes its figures to the file after --json; its output goes to <name>.log."""
    log, json_path = place.scratch / f"{name}.log", place.scratch / f"{name}.json"
    json_path.unlink(missing_ok=True)
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*map(str, command), "--json", str(json_path)],
            env=os.environ | environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code: int | None = process.wait(COMMAND_SECONDS)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            stop(process)
    if code != 0 or not json_path.exists():
        ending = f"ended with code {code}" if code is not None else f"ran longer than {COMMAND_SECONDS} seconds"
        raise MeasurementFailed(f"{Path(str(command[1])).name} {ending}: {tail(log)}")
    figures: Figures = json.loads(json_path.read_text())["figures"]
    return figures
