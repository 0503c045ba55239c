"""An adapter with tokens of its own: what people write becomes them, and what it answers is written with them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from api_running import Api, run_api
from peft_kinds import lora, write
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from loraplex.adapters.database import Database
from loraplex.engine.client import EngineClient
from loraplex.platform import tokenizer_checks

pytest_plugins = ["database_fixtures"]
pytestmark = [
    pytest.mark.anyio,
    pytest.mark.parametrize("database_url", ["sqlite"], indirect=True),
    pytest.mark.filterwarnings("ignore::UserWarning"),  # PEFT's, of what is tied
]

VOCAB_SIZE = 288  # of the tiny model, whose tokenizer has 259 tokens
WORDS = [f"word{number}" for number in range(31)]


@pytest.fixture
async def api(database: Database, engine_dir: Path, tiny_model_dir: Path, engine: EngineClient) -> AsyncIterator[Api]:
    """A real engine, and acme's `bot` without a version."""
    async with run_api(database, engine_dir, tiny_model_dir, engine=engine) as running:
        await running.client.post("/api/v1/adapters", json={"name": "bot"}, headers=running.auth("acme"))
        yield running


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Path:
    """An adapter with 32 tokens more, the last of which ends answers; it answers with nothing but its words."""
    folder, seed = tmp_path_factory.mktemp("trained"), 7
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    tokenizer.add_tokens(WORDS)
    tokenizer.add_special_tokens({"eos_token": "<|stop|>"})
    config = lora(r=4, target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"])
    write(folder, tiny_model_dir, config, seed, more_tokens=len(tokenizer) - VOCAB_SIZE)
    tensors = load_file(folder / "adapter_model.safetensors")
    tensors["base_model.model.lm_head.weight"][259:290] *= 1000
    tensors["base_model.model.lm_head.weight"][290] = 0
    save_file(tensors, folder / "adapter_model.safetensors")
    tokenizer.save_pretrained(folder)
    return folder


def tokenizer_files(folder: Path) -> dict[str, bytes]:
    """As parts of the upload's form."""
    names = {"tokenizer": "tokenizer.json", "tokenizer_config": "tokenizer_config.json"}
    return {part: (folder / name).read_bytes() for part, name in names.items()}


async def complete(api: Api, prompt: Any, **fields: Any) -> Any:
    body = {"model": "bot", "prompt": prompt, "max_tokens": 4, "temperature": 0, **fields}
    return await api.client.post("/v1/completions", json=body, headers=api.auth("acme"))


async def post(api: Api, path: str, **body: Any) -> Any:
    return (await api.client.post(path, json=body, headers=api.auth("acme"))).json()


async def test_it_is_served_with_its_tokens(api: Api, trained: Path) -> None:
    """Its words are one token each in prompts and in answers, beside the base that knows none; token ids are bound by
    its own vocabulary. It may be scaled, and not be added to others."""
    uploaded = await api.upload("acme", "bot", trained, **tokenizer_files(trained))
    assert uploaded.status_code == 201, uploaded.text
    seen = next(entry for entry in uploaded.json()["report"] if entry["code"] == "tokenizer")
    assert (seen["added_tokens"], seen["without_row"], seen["base_instead_of"]) == (32, 0, [])
    assert seen["special_tokens"] == {"eos_token": "<|stop|>"}

    answer = (await complete(api, "word3word4")).json()
    assert answer["usage"]["prompt_tokens"] == 2
    text = answer["choices"][0]["text"]
    assert text.count("word") == 4, text
    base = (await complete(api, "word3word4", model="tiny")).json()
    assert base["usage"]["prompt_tokens"] == 10

    for name, count in (("bot", 2), ("tiny", 10)):
        told = await post(api, "/tokenize", model=name, prompt="word3word4")
        assert told["count"] == len(told["tokens"]) == count
        assert (await post(api, "/detokenize", model=name, tokens=told["tokens"]))["prompt"] == "word3word4"
        embedded = await post(api, "/v1/embeddings", model=name, input="word3word4")
        assert embedded["usage"]["prompt_tokens"] == count

    assert (await complete(api, [VOCAB_SIZE])).status_code == 200
    for model, token in (("bot", VOCAB_SIZE + 3), ("tiny", VOCAB_SIZE)):
        refused = await complete(api, [token], model=model)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "prompt")
    assert (await complete(api, "word3", model="bot*0.5")).status_code == 200
    assert uploaded.json()["is_additive"] is False


async def test_its_own_end_of_text_ends_an_answer(api: Api, trained: Path, tmp_path: Path) -> None:
    """Unless the request ignores such ends."""
    tensors = load_file(trained / "adapter_model.safetensors")
    head = tensors["base_model.model.lm_head.weight"]
    head[290], head[259:290] = head[259], 0  # whatever wins is word0 or its opposite
    head[289] = -head[290]
    folder = tmp_path / "ends"
    folder.mkdir()
    (folder / "adapter_config.json").write_bytes((trained / "adapter_config.json").read_bytes())
    save_file(tensors, folder / "adapter_model.safetensors")
    await api.upload("acme", "bot", folder, **tokenizer_files(trained))

    answers = [(await complete(api, f"word{number}", max_tokens=8)).json() for number in range(6)]
    ends = [answer["choices"][0]["finish_reason"] for answer in answers]
    assert "stop" in ends
    stopped = ends.index("stop")
    longer = (await complete(api, f"word{stopped}", max_tokens=8, ignore_eos=True)).json()
    assert longer["choices"][0]["finish_reason"] == "length"


async def test_without_its_tokenizer_it_is_refused(api: Api, trained: Path) -> None:
    """By name, with the file that is missing; and with another adapter's tokenizer, too."""
    refused = await api.upload("acme", "bot", trained)
    details = refused.json()["error"]["details"]
    assert (refused.status_code, [check["code"] for check in details]) == (400, ["vocabulary_changed"])
    assert "tokenizer.json" in details[0]["message"]

    tokenizer = json.loads((trained / "tokenizer.json").read_text())
    tokenizer["added_tokens"].append({"id": 291, "content": "one more"})
    files = tokenizer_files(trained) | {"tokenizer": json.dumps(tokenizer).encode()}
    refused = await api.upload("acme", "bot", trained, **files)
    assert [check["code"] for check in refused.json()["error"]["details"]] == ["vocabulary_changed"]


async def test_a_comparison_that_takes_too_long_is_ended(
    api: Api, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is in the file; the upload is refused, and the next one is not held up."""
    with monkeypatch.context() as patch:
        patch.setattr(tokenizer_checks, "COMPARE_SECONDS", 0)
        refused = await api.upload("acme", "bot", trained, **tokenizer_files(trained))
    assert [check["code"] for check in refused.json()["error"]["details"]] == ["tokenizer_too_large"]
    assert (await api.upload("acme", "bot", trained, **tokenizer_files(trained))).status_code == 201


async def test_a_tokenizer_of_another_kind_is_refused(
    api: Api, tiny_model_dir: Path, make_adapter: Callable[..., Path], tmp_path: Path, new_seed: Callable[[], int]
) -> None:
    """And one that leaves gaps. The base's own changes nothing; a token without a row is left out."""
    folder = make_adapter(tmp_path / "peft", modules=("q_proj",), seed=new_seed())
    base = json.loads((tiny_model_dir / "tokenizer.json").read_text())
    other = base | {"model": base["model"] | {"merges": [["a", "b"]]}}
    gap = base | {"added_tokens": [*base["added_tokens"], {"id": 270, "content": "far"}]}
    for tokenizer in (other, gap):
        refused = await api.upload("acme", "bot", folder, tokenizer=json.dumps(tokenizer).encode())
        assert [check["code"] for check in refused.json()["error"]["details"]] == ["tokenizer_unsupported"]

    same = await api.upload("acme", "bot", folder, tokenizer=(tiny_model_dir / "tokenizer.json").read_bytes())
    assert same.status_code == 201, same.text
    pads = [{"id": 259 + number, "content": f"pad{number}"} for number in range(30)]
    padded = base | {"added_tokens": [*base["added_tokens"], *pads]}
    with_pads = await api.upload("acme", "bot", folder, tokenizer=json.dumps(padded).encode())
    seen = next(entry for entry in with_pads.json()["report"] if entry["code"] == "tokenizer")
    assert (seen["added_tokens"], seen["without_row"]) == (29, 1)
