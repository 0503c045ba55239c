"""Scripts written for vLLM, SGLang and LoRAX, with the official client: URL, key and names are all that changes."""

from __future__ import annotations

import shutil

import openai
import pytest
from e2e.server import BASE

OPTIONS = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 16, "temperature": 0}


def answer(site, model, **fields):
    """The model that answered a caller of the tenant default, and its text."""
    client = site.server.openai(site.default)
    completion = client.chat.completions.create(model=model, extra_body=fields, **OPTIONS)
    return completion.model, completion.choices[0].message.content


def test_modules_of_the_command_line_answer_from_the_first_moment(site):
    """They are listed with parent and root, and the log says whose keys can call them."""
    models = {model.id: model for model in site.server.openai(site.default).models.list()}
    assert set(models) == {BASE, "default/chat", "default/sql"}
    assert (models["default/sql"].parent, models["default/sql"].root) == (BASE, "default/sql@1")
    texts = {answer(site, name) for name in (BASE, "sql", "chat")}
    assert {model for model, _ in texts} == {BASE, "default/sql@1", "default/chat@1"}
    assert len({text for _, text in texts}) == 3
    assert "loraplex key create --tenant default --scope inference" in site.server.log.read_text()


def test_an_adapter_is_named_as_sglang_and_lorax_name_it(site):
    """base:adapter, adapter_id and lora_path all give the answer that the name gives."""
    expected = answer(site, "sql")
    assert answer(site, f"{BASE}:sql") == expected
    assert answer(site, f"{BASE}:default/sql@1") == expected
    assert answer(site, BASE, adapter_id="sql") == expected
    assert answer(site, BASE, lora_path="sql") == expected
    for wrong in ("other:sql", f"{BASE}:tickets"):
        with pytest.raises(openai.NotFoundError) as refused:
            answer(site, wrong)
        assert refused.value.code == "model_not_found"


def test_load_replace_and_unload_while_a_stream_runs(site):
    """As vLLM's scripts do; the stream that runs ends with the text of the weights it began with."""
    path = shutil.copytree(site.loras / "c", site.loras / "changing")
    client = site.server.openai(site.default)
    options = OPTIONS | {"max_tokens": 200, "extra_body": {"ignore_eos": True}}
    assert load(site, path) == (200, "Success: LoRA adapter 'new' added successfully.")
    first = answer(site, "new")
    shutil.copytree(site.loras / "a", path, dirs_exist_ok=True)
    assert load(site, path)[0] == 400
    assert load(site, path, load_inplace=True)[0] == 200
    second = answer(site, "new")
    assert (first[0], second[0]) == ("default/new@1", "default/new@2")
    assert first[1] != second[1]

    alone = client.chat.completions.create(model="new", **options).choices[0].message.content
    with client.chat.completions.create(model="new", stream=True, **options) as stream:
        text = next(stream).choices[0].delta.content
        with site.server.http() as operator:
            unloaded = operator.post("/v1/unload_lora_adapter", json={"lora_name": "new"})
        assert (unloaded.status_code, unloaded.text) == (200, "Success: LoRA adapter 'new' removed successfully.")
        text += "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert text == alone
    with pytest.raises(openai.NotFoundError):
        answer(site, "new")


def load(site, path, **fields):
    """Status and text."""
    body = {"lora_name": "new", "lora_path": str(path), **fields}
    with site.server.http() as operator:
        response = operator.post("/v1/load_lora_adapter", json=body)
    return response.status_code, response.text
