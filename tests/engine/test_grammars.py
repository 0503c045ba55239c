"""Whatever a model would say, its answer follows the grammar; and nobody beside it notices."""

from __future__ import annotations

import json
import re
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace

import peft_kinds
import pytest
import torch
from conftest import write_tiny_llama, write_tokenizer
from engine_running import Outcome, collect, greedy, start_engine, store_adapter
from json_schemas import SCHEMAS
from jsonschema import Draft202012Validator
from jsonschema.validators import validator_for
from peft_kinds import RESIZED
from tokenizers import Tokenizer

from loraplex.engine.build import BuiltEngine
from loraplex.engine.events import Grammar, SamplingParams, only
from loraplex.engine.grammar_masks import Grammars
from loraplex.engine.loop import Engine

PROMPT = [5, 6, 7]
ENDINGS, LEFT_OPEN = '"}]', " \n\t\r\\"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model that likes to come to an end: what closes is 20 times as likely as other characters.

    The first place of its hidden state is the same for every token, and is what the head reads the bias from.
    """
    from safetensors.torch import load_file, save_file

    folder = tmp_path_factory.mktemp("closing-llama")
    write_tokenizer(folder)
    write_tiny_llama(folder, tie_word_embeddings=False)
    weights = load_file(folder / "model.safetensors")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    weights["model.embed_tokens.weight"][:, 0] = 4.0
    for name, weight in weights.items():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            weight[0] = 0
    head = weights["lm_head.weight"]
    head.normal_(0, 0.1, generator=torch.Generator().manual_seed(1))
    head[:, 0] = 0
    for characters, bias in ((ENDINGS, 1.2), (LEFT_OPEN, -1.0)):
        for character in characters:
            head[tokenizer.encode(character).ids[0], 0] = bias
    head[2, 0] = 1.2
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def built(model: Path, tmp_path_factory: pytest.TempPathFactory) -> BuiltEngine:
    return start_engine(model, tmp_path_factory.mktemp("blobs"), max_num_seqs=128)


@pytest.fixture(scope="module")
def text_of(model: Path):
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    return lambda outcome: tokenizer.decode(outcome.tokens)


def json_grammar(schema: object) -> Grammar:
    return Grammar("json_schema", json.dumps(schema))


def test_every_completed_answer_is_valid(built, text_of):
    """235 schemas, three seeds each, all of them in the same batches."""
    assert len(SCHEMAS) >= 200
    wanted = {(name, seed): schema for name, schema in SCHEMAS.items() for seed in range(3)}
    for (name, seed), schema in wanted.items():
        sampling = SamplingParams(max_tokens=450, seed=seed)
        built.engine.submit(f"{name}/{seed}", PROMPT, sampling, grammar=json_grammar(schema))

    outcomes = collect(built.engine, [f"{name}/{seed}" for name, seed in wanted])

    completed = set()
    for (name, seed), schema in wanted.items():
        outcome = outcomes[f"{name}/{seed}"]
        assert outcome.failure is None, (name, outcome.failure)
        if outcome.finish_reason == "stop":
            completed.add(name)
            kind = validator_for(schema, default=Draft202012Validator)
            answer = json.loads(text_of(outcome))
            error = next(kind(schema, format_checker=kind.FORMAT_CHECKER).iter_errors(answer), None)
            assert error is None, (name, text_of(outcome), error)
    assert set(SCHEMAS) - completed == set()


@pytest.mark.parametrize(
    ("grammar", "pattern"),
    [
        (Grammar("regex", "[A-F]{2}-[0-9]{3}(x|yz)?"), "[A-F]{2}-[0-9]{3}(x|yz)?"),
        (Grammar("lark", 'start: "yes" | "no" | "perhaps"'), "yes|no|perhaps"),
        (
            Grammar("lark", 'start: pair ("," pair)~1..3\npair: NAME "=" /[0-9]/\nNAME: /[a-c]{1,3}/'),
            "([a-c]{1,3}=[0-9],?){2,4}",
        ),
    ],
)
def test_other_grammars(built, text_of, grammar, pattern):
    """A regular expression, a choice and a Lark grammar. An answer that can go on no further ends there, whether or not
    the end of the text would be heeded."""
    names = [f"{pattern}/{seed}" for seed in range(8)]
    for seed, name in enumerate(names):
        sampling = SamplingParams(max_tokens=100, seed=seed, ignore_eos=seed % 2 == 0)
        built.engine.submit(name, PROMPT, sampling, grammar=grammar)

    outcomes = collect(built.engine, names)

    for name in names:
        assert outcomes[name].finish_reason == "stop"
        assert re.fullmatch(pattern, text_of(outcomes[name])), text_of(outcomes[name])
    assert len({text_of(outcomes[name]) for name in names}) > 1


def test_a_last_token_of_a_grammar_is_told_once(built, text_of):
    """It ends the text and is a part of it, unlike a stop token."""
    sampling = SamplingParams(max_tokens=20, seed=1, logprobs=True, top_logprobs=1)
    built.engine.submit("scored", PROMPT, sampling, grammar=Grammar("regex", "abc"))
    outcome = collect(built.engine, ["scored"])["scored"]

    assert (text_of(outcome), outcome.finish_reason) == ("abc", "stop")
    assert [score.token for score in outcome.scores] == outcome.tokens
    assert outcome.stopped_by is None


def test_a_request_that_is_aborted_is_not_compiled():
    """Its grammar leaves the queue, in which those of others stand behind it."""
    matchers = []

    def begin(_):
        matchers.append(Future())
        return matchers[-1]

    engine = Engine(SimpleNamespace(abort=None), None, None, SimpleNamespace(begin=begin))
    for name in ("goes", "stays"):
        engine.submit(name, PROMPT, greedy(1), grammar=Grammar("regex", "a"))
    engine.abort("goes")

    assert [matcher.cancelled() for matcher in matchers] == [True, False]


def test_max_tokens_cuts_a_grammar(built, text_of):
    """As it cuts any other answer; one that is complete with its last token has come to its end."""
    for name, most in (("cut", 5), ("whole", 6)):
        built.engine.submit(name, PROMPT, greedy(most), grammar=Grammar("regex", "[a-z]{6}"))
    outcomes = collect(built.engine, ["cut", "whole"])

    assert [outcomes[name].finish_reason for name in ("cut", "whole")] == ["length", "stop"]
    assert outcomes["whole"].tokens[:5] == outcomes["cut"].tokens


def test_rows_without_a_grammar_get_what_they_get_alone(model, make_adapter, tmp_path, text_of):
    """Base and adapters, log-probabilities included, while half of the batch follows grammars, memory
    runs out and sequences are computed again; and what follows a grammar says the same as when there is room."""
    built = start_engine(model, tmp_path / "blobs", kv_cache_bytes=64 << 20)
    folders = [make_adapter(tmp_path / f"a{seed}", base=model, seed=seed) for seed in range(2)]
    adapters = [None, *(store_adapter(tmp_path / "blobs", folder, built.shape) for folder in folders)]
    schema = json_grammar({"type": "object", "properties": {"a": {"type": "string", "pattern": "^[a-z]{60,80}$"}},
                           "required": ["a"], "additionalProperties": False})  # fmt: skip
    plan = {(index, held): (adapter, schema if held else None)
            for index, adapter in enumerate(adapters) for held in (False, True)}  # fmt: skip

    def submit(to: BuiltEngine, key: tuple[int, bool]) -> None:
        adapter, grammar = plan[key]
        sampling = SamplingParams(max_tokens=200, seed=3, logprobs=True, ignore_eos=grammar is None)
        to.engine.submit(str(key), PROMPT, sampling, adapters=only(adapter), grammar=grammar)

    alone: dict[str, Outcome] = {}
    for key in plan:
        submit(built, key)
        collect(built.engine, [str(key)], alone)
    built.engine.close()
    page = 2 * 2 * 2 * 16 * 16 * 4  # keys and values, layers, heads, tokens, width, bytes
    crowded = start_engine(model, tmp_path / "blobs", kv_cache_bytes=20 * page, max_model_len=256)
    for key in plan:
        submit(crowded, key)
    together = collect(crowded.engine, map(str, plan))
    preemptions = crowded.engine.status().preemptions
    crowded.engine.close()

    assert preemptions > 0
    for key, (_, grammar) in plan.items():
        assert together[str(key)].tokens == alone[str(key)].tokens
        if grammar is not None:
            assert 60 <= len(json.loads(text_of(together[str(key)]))["a"]) <= 80
        else:
            assert together[str(key)].logprobs == pytest.approx(alone[str(key)].logprobs, abs=1e-4)


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning")
def test_tokens_of_an_adapters_own_are_not_in_any_grammar(model, tmp_path):
    """An adapter with more tokens than the base follows grammars in a batch with others; those of its own, which know
    no text that the base could vouch for, are never chosen there."""
    built = start_engine(model, tmp_path / "blobs")
    more, kind = RESIZED["new tokens, own embedding and head"]
    folder = peft_kinds.write(tmp_path / "more", model, kind(), 0, spread=3.0, more_tokens=more)
    digest = store_adapter(tmp_path / "blobs", folder, built.shape)
    for name, grammar in (("free", None), ("held", Grammar("regex", "(?s:.){60}"))):
        for seed in range(8):
            sampling = SamplingParams(max_tokens=60, seed=seed, ignore_eos=True)
            built.engine.submit(f"{name}/{seed}", PROMPT, sampling, adapters=only(digest), grammar=grammar)
    built.engine.submit("base", PROMPT, greedy(8), grammar=Grammar("regex", "[0-9]{8}"))
    outcomes = collect(built.engine, ["base", *(f"{name}/{seed}" for name in ("free", "held") for seed in range(8))])
    built.engine.close()

    tokenizer_size = 259
    assert any(token >= tokenizer_size for seed in range(8) for token in outcomes[f"free/{seed}"].tokens)
    assert all(token < tokenizer_size for seed in range(8) for token in outcomes[f"held/{seed}"].tokens)
    assert outcomes["base"].finish_reason == "stop"


def test_a_vocabulary_that_an_adapter_widens_is_refused_beyond_the_bases(model):
    """However far beyond the words of a mask it goes; what the grammar allows stays as it was."""
    grammars = Grammars(model / "tokenizer.json", 288, (2,), torch.device("cpu"))
    matcher = grammars.begin(Grammar("regex", "(?s:.)*")).result()
    plan = SimpleNamespace(chunks=[SimpleNamespace(samples=True, sequence=SimpleNamespace(matcher=matcher))])

    masked = grammars.masks.begin(plan).applied(torch.zeros(1, 288 + 50))

    assert masked[0, :259].isfinite().any()
    assert masked[0, 259:].isneginf().all()


def test_a_grammar_that_grows_without_bound_fails_alone(built):
    """Each reading of an ambiguous text is kept. When they are too many the request fails, in steps that stay short."""
    ambiguous = Grammar("lark", 'start: e "\\t"\ne: e e e | /[a-z]/')
    built.engine.submit("ambiguous", PROMPT, greedy(480), grammar=ambiguous)
    built.engine.submit("beside", PROMPT, greedy(150, ignore_eos=True))
    outcomes = collect(built.engine, ["ambiguous", "beside"])

    assert outcomes["ambiguous"].failure[0] == "grammar_too_complex"
    assert len(outcomes["beside"].tokens) == 150
    assert not built.engine.running()


def test_what_no_check_has_seen_is_refused_by_the_engine_too(built):
    """With a reason; and what is gone before its grammar is compiled leaves nothing."""
    built.engine.submit("bad", PROMPT, greedy(4), grammar=json_grammar({"type": "strin"}))
    built.engine.submit("gone", PROMPT, greedy(4), grammar=Grammar("regex", "a+"))
    built.engine.abort("gone")
    outcomes = collect(built.engine, ["bad"])

    assert outcomes["bad"].failure == ("invalid_grammar", "The grammar is not valid: Invalid type: strin.")
    assert not built.engine.has_work
    assert "gone" not in outcomes
