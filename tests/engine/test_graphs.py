"""Padded and recorded decode steps give what plain ones give. Without a GPU a recording is the call itself, made again.

It is made again with the tensors of the step that was recorded: it is right only if later steps lie there too.
"""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from engine_running import collect, greedy, start_engine, store_adapter, take
from hypothesis import given, settings
from hypothesis import strategies as st

from loraplex.adapters.device_adapter import DeviceAdapter
from loraplex.adapters.layout import plan_layout
from loraplex.adapters.types import AdapterSpec, ModuleSpec
from loraplex.engine.batch import BatchBuilder, StepLimits
from loraplex.engine.decode_shapes import DecodeShape, DecodeShapes
from loraplex.engine.events import LogitRules, SamplingParams, only
from loraplex.engine.graphs import DecodeGraphs
from loraplex.engine.models.config import ModelConfig, lora_shape
from loraplex.engine.models.decoder import Decoder, KVCache
from loraplex.engine.models.weights import dummy_weights
from loraplex.engine.sequence import Sequence
from loraplex.engine.step_plan import Chunk, StepPlan
from loraplex.kernels.select import choose_kernels
from loraplex.kernels.triton_backend import TritonKernels

pytest_plugins = ["triton_fixtures"]

CPU = torch.device("cpu")
PAGE_TOKENS, NUM_PAGES, MAX_PAGES, MAX_SEQS = 16, 200, 20, 12
RANKS = (8, 3, 40)


def run_again(run):
    """A recorder for the CPU."""
    run()
    return run


@pytest.fixture(scope="module", params=["reference", "native"])
def model(request, tiny_model_dir):
    return tiny_decoder(tiny_model_dir, choose_kernels(CPU, request.param)[0])


def tiny_decoder(folder, kernels):
    """(decoder, config, pool, adapters) of the tiny base with random weights and three adapters of different ranks."""
    config = ModelConfig.from_folder(folder)
    shape = lora_shape(config)
    adapters, elements = [], 0
    for rank in RANKS:
        spec = AdapterSpec({name: ModuleSpec(rank, 1.0) for name in shape.modules()})
        layout = plan_layout(spec, shape, 16)
        table = layout.table()
        table[:, :2] += elements
        adapters.append(DeviceAdapter(f"{rank:02}", table, int(table[:, 2:5].sum(1).max()), layout.elements))
        elements += layout.elements
    with torch.inference_mode():
        weights = dummy_weights(config, kernels, torch.float32, CPU, MAX_PAGES * PAGE_TOKENS, 0)
        pool = torch.randn(elements, generator=torch.Generator().manual_seed(0)) * 0.1
    return Decoder(config, weights, kernels), config, pool, adapters


def new_builder(config, pool):
    limits = StepLimits(MAX_SEQS, 64, MAX_PAGES)
    return BatchBuilder(CPU, PAGE_TOKENS, NUM_PAGES, pool, lora_shape(config).num_sites + 1, limits)


def decode_plan(rows, adapters, seed):
    """One new token of each (context, adapter or None); pages in random order, none shared."""
    choose = random.Random(seed)
    free = choose.sample(range(NUM_PAGES), NUM_PAGES)
    chunks = []
    for index, (context, adapter) in enumerate(sorted(rows, key=lambda row: -1 if row[1] is None else row[1])):
        tokens = [choose.randrange(3, 200) for _ in range(context)]
        sequence = Sequence(str(index), tokens, SamplingParams(max_tokens=9, temperature=0.0), (), b"", 0)
        sequence.pages = [free.pop() for _ in range(-(-context // PAGE_TOKENS))]
        if adapter is not None:
            sequence.adapters, sequence.leases = only(str(adapter)), (adapters[adapter],)
        chunks.append(Chunk(sequence, context - 1, 1, samples=True))
    return StepPlan(tuple(chunks))


def random_cache(config):
    cache = KVCache.allocate(config, NUM_PAGES + 1, PAGE_TOKENS, torch.float32, CPU)
    for pages in (cache.keys, cache.values):
        pages.copy_(torch.randn(pages.shape, generator=torch.Generator().manual_seed(1)))
    return cache


ROWS = st.lists(
    st.tuples(st.integers(1, MAX_PAGES * PAGE_TOKENS), st.sampled_from([None, 0, 1, 2])), min_size=1, max_size=9
)


@settings(max_examples=40, deadline=None)
@given(rows=ROWS, extra_rows=st.integers(0, 3), seed=st.integers(0, 99))
def test_padding_changes_nothing_but_the_spare_page(model, rows, extra_rows, seed):
    """Logits of the true rows, and every page of keys and values but the spare one, are those of the unpadded step."""
    check_padding(model, rows, extra_rows, seed)


@pytest.mark.parametrize(
    "rows",
    [
        [(300, None)],
        [(1, None), (257, 0), (40, 2)],
        [(320, 1), (5, 1), (128, 2), (129, None), (16, 0)],
    ],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter's tensors lie on the CPU")
@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION:UserWarning")
@pytest.mark.usefixtures("quick_interpreter")
def test_triton_kernels_read_padded_steps(tiny_model_dir, rows):
    """The same of the kernels that graphs record, in the interpreter: contexts that are split, adapters, padding."""
    check_padding(tiny_decoder(tiny_model_dir, TritonKernels()), rows, 2, 0)


def check_padding(model, rows, extra_rows, seed):
    decoder, config, pool, adapters = model
    plan = decode_plan(rows, adapters, seed)
    rank = max((adapters[adapter].max_rank for _, adapter in rows if adapter is not None), default=0)
    shape = DecodeShape(len(rows) + extra_rows, MAX_PAGES, 2 * rank)
    caches = random_cache(config), random_cache(config)

    with torch.inference_mode():
        plain = decoder.forward(new_builder(config, pool).build(plan), caches[0])
        padded = decoder.forward(new_builder(config, pool).build(plan, shape), caches[1])

    assert padded.shape[0] == shape.rows
    torch.testing.assert_close(padded[: len(rows)], plain, rtol=1e-4, atol=1e-4)
    for one, other in zip((caches[0].keys, caches[0].values), (caches[1].keys, caches[1].values), strict=True):
        torch.testing.assert_close(one[:, :NUM_PAGES], other[:, :NUM_PAGES], rtol=1e-4, atol=1e-4)


@settings(max_examples=15, deadline=None)
@given(steps=st.lists(ROWS, min_size=2, max_size=8), seed=st.integers(0, 99))
def test_replays_see_every_later_step(model, steps, seed):
    """Whatever steps follow one another, replays of a shape give what a fresh unpadded forward pass gives."""
    decoder, config, pool, adapters = model
    cache, other_cache = random_cache(config), random_cache(config)
    builder, shapes = new_builder(config, pool), DecodeShapes(MAX_SEQS, MAX_PAGES)
    graphs = DecodeGraphs(lambda inputs: decoder.forward(inputs, cache), shapes, run_again)
    for number, rows in enumerate(steps * 2):
        plan = decode_plan(rows, adapters, seed + number)
        shape = graphs.shape_of(plan)
        with torch.inference_mode():
            expected = decoder.forward(new_builder(config, pool).build(plan), other_cache)
            actual = graphs.logits(shape, builder.build(plan, shape))
        torch.testing.assert_close(actual[: len(rows)], expected, rtol=1e-4, atol=1e-4)
    assert graphs.replays >= len(steps)


def test_an_engine_with_recordings_tells_the_same_text(tiny_model_dir, make_adapter, tmp_path):
    """Requests that come and go, greedy and random, with and without adapters and log-probabilities."""
    outcomes = {}
    for recorded in (False, True):
        built = start_engine(tiny_model_dir, tmp_path / "blobs", max_num_seqs=10, max_step_tokens=48, seed=7)
        if recorded:
            shapes = DecodeShapes(10, 512 // built.page_tokens)
            built.runner.graphs = DecodeGraphs(built.runner.forward, shapes, run_again)
        digests = [None] + [
            store_adapter(tmp_path / "blobs", make_adapter(tmp_path / f"{recorded}-{rank}", rank=rank), built.shape)
            for rank in (4, 8, 33)
        ]
        answers, names = {}, [str(index) for index in range(16)]
        for index, name in enumerate(names):
            rules = LogitRules(frequency_penalty=0.5, logit_bias={7: 2.0}) if index % 4 == 1 else None
            options = {"ignore_eos": True, "logprobs": index % 3 == 0, "rules": rules}
            sampling = greedy(6 + 5 * (index % 4), **options)
            if index % 2:
                sampling = SamplingParams(max_tokens=9, temperature=0.9, top_k=30, seed=index, **options)
            prompt = [3 + (7 * index + j) % 200 for j in range(1 + 11 * (index % 5))]
            built.engine.submit(name, prompt, sampling, adapters=only(digests[index % 4]))
            take(built.engine, answers)
        outcomes[recorded] = collect(built.engine, names, answers)
        built.engine.close()
    assert built.runner.graphs.recorded > 3
    for name, plain in outcomes[False].items():
        assert outcomes[True][name].tokens == plain.tokens
        np.testing.assert_allclose(outcomes[True][name].logprobs, plain.logprobs, atol=1e-4)


def test_what_cannot_be_recorded_runs_as_it_is(model):
    """A recorder that fails is asked once per shape, and every step still gives its logits."""
    decoder, config, pool, adapters = model
    cache, asked = random_cache(config), []

    def refuse(run):
        asked.append(run)
        raise RuntimeError("operation not permitted when stream is capturing")

    graphs = DecodeGraphs(lambda inputs: decoder.forward(inputs, cache), DecodeShapes(MAX_SEQS, MAX_PAGES), refuse)
    builder = new_builder(config, pool)
    plan = decode_plan([(9, None), (3, 1)], adapters, 0)
    results = []
    for _ in range(4):
        shape = graphs.shape_of(plan)
        with torch.inference_mode():
            results.append(graphs.logits(shape, builder.build(plan, shape)).clone())
    assert len(asked) == 1
    assert all(torch.equal(result, results[0]) for result in results)


@pytest.mark.parametrize(
    ("max_num_seqs", "rows", "expected"),
    [(64, 1, 1), (64, 3, 4), (64, 9, 16), (64, 57, 64), (10, 9, 10), (3, 3, 3), (1, 1, 1)],
)
def test_rows_are_padded_to_the_next_size(max_num_seqs, rows, expected):
    """1, 2, 4, then multiples of 8, and never more than the engine runs at once."""
    plan = decode_plan([(5, None)] * rows, [], 0)
    assert DecodeShapes(max_num_seqs, 700).shape_of(plan) == DecodeShape(expected, 64, 0)


def test_prefill_is_not_for_graphs(model):
    """A step in which any sequence runs more than its one new token has no shape."""
    _, _, _, adapters = model
    decoding = decode_plan([(9, None), (3, 1)], adapters, 0).chunks
    prefilling = Chunk(decoding[0].sequence, 4, 5, samples=True)
    partial_prefill = Chunk(decoding[0].sequence, 4, 1, samples=False)
    shapes = DecodeShapes(MAX_SEQS, MAX_PAGES)
    assert shapes.shape_of(StepPlan(decoding)) is not None
    for chunk in (prefilling, partial_prefill):
        assert shapes.shape_of(StepPlan((chunk, decoding[1]))) is None


@pytest.mark.parametrize("more", [{"has_vectors": True}, {"head_rank": 8}, {"head_has_vectors": True}])
def test_what_is_more_than_a_and_b_is_not_for_graphs(model, more):
    """A step that scales, shifts, or changes an end of the model for any of its rows is launched as it is."""
    _, _, _, adapters = model
    plan = decode_plan([(9, None), (3, 1)], adapters, 0)
    assert DecodeShapes(MAX_SEQS, MAX_PAGES).shape_of(plan) is not None
    sequence = plan.chunks[1].sequence
    sequence.leases = (replace(sequence.leases[0], **more),)
    assert DecodeShapes(MAX_SEQS, MAX_PAGES).shape_of(plan) is None
