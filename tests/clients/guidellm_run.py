"""guidellm: a short load of streamed requests on each endpoint, of which none may fail."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from report import KEY, MODEL_FOLDER, MODELS, URL, feature, finish, same

SECONDS = 300
REQUESTS = 6
OUTPUT_TOKENS = 8


def check(model: str, request_format: str) -> None:
    with feature(f"benchmark of {request_format}", model), tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [
            Path(sys.executable).parent / "guidellm", "run", "--disable-console",
            "--backend", f"kind=openai_http,target={URL.removesuffix('/v1')},model={model},api_key={KEY},"
            f"request_format={request_format}",
            "--tokenizer", f"kind=huggingface_auto,model={MODEL_FOLDER}",
            "--data", f"kind=synthetic_text,prompt_tokens=32,output_tokens={OUTPUT_TOKENS}",
            "--profile", "kind=throughput,max_concurrency=3",
            "--constraint", f"kind=max_requests,count={REQUESTS}",
            "--output", f"kind=json,path={report}",
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
        if done.returncode:
            raise RuntimeError((done.stdout + done.stderr)[-1800:])
        requests = json.loads(report.read_text())["benchmarks"][0]["requests"]
        if requests["errored"]:
            raise RuntimeError(json.dumps(requests["errored"][0])[:1800])
        same(len(requests["successful"]), REQUESTS)
        same({request["output_tokens"] for request in requests["successful"]}, {OUTPUT_TOKENS})


for name in MODELS:
    for kind in ("/v1/completions", "/v1/chat/completions"):
        check(name, kind)
finish()
