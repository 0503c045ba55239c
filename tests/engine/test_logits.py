"""Rules and log-probabilities are those of the written-out formulas, and draws follow the probabilities they leave."""

from __future__ import annotations

import math
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from hypothesis import example, given, settings
from hypothesis import strategies as st

from loraplex.engine.batch import uniform
from loraplex.engine.events import LogitRules
from loraplex.engine.logit_edits import LogitEdits, RowEdit
from loraplex.engine.logits import edited, scores
from loraplex.engine.prompt_scores import scored_tokens
from loraplex.kernels.ops import SamplingBatch
from loraplex.kernels.select import choose_kernels

VOCAB = 13
CPU = torch.device("cpu")

tokens = st.integers(0, VOCAB - 1)
penalties = st.sampled_from([-2.0, -0.3, 0.0, 0.7, 2.0])
rules = st.builds(
    LogitRules,
    presence_penalty=penalties,
    frequency_penalty=penalties,
    repetition_penalty=st.sampled_from([0.5, 1.0, 1.3, 4.0]),
    logit_bias=st.dictionaries(tokens, st.floats(-100, 100, width=32), max_size=4),
    allowed_token_ids=st.none() | st.lists(tokens, min_size=1, max_size=9).map(tuple),
    bad_words=st.lists(st.lists(tokens, min_size=1, max_size=3).map(tuple), max_size=4).map(tuple),
    min_tokens=st.integers(0, 5),
)
CORNERED = LogitRules(allowed_token_ids=(3,), bad_words=((4, 3),))
"""After token 4 all that is allowed is what completes a bad word."""
rows = st.tuples(rules, st.lists(tokens, min_size=1, max_size=9), st.lists(tokens, max_size=9))


def reference(logits: list[float], rules: LogitRules, prompt, output, ends) -> list[float]:
    """vLLM's formulas, one token at a time."""
    result = []
    for token, logit in enumerate(logits):
        count = output.count(token)
        value = logit + rules.logit_bias.get(token, 0)
        if token in prompt or count:
            value = value / rules.repetition_penalty if value > 0 else value * rules.repetition_penalty
        result.append(value - rules.frequency_penalty * count - rules.presence_penalty * (count > 0))
    allowed = set(range(VOCAB)) if rules.allowed_token_ids is None else set(rules.allowed_token_ids)
    banned = set(ends) if len(output) < rules.min_tokens else set()
    for *first, last in rules.bad_words:
        if not first or output[-len(first) :] == first:
            banned.add(last)
    left = allowed - banned or allowed if rules.allowed_token_ids is not None else allowed - banned
    return [value if token in left else -math.inf for token, value in enumerate(result)]


@settings(max_examples=100, deadline=None)
@given(st.lists(rows, min_size=1, max_size=4), st.integers(0, 1 << 30), st.sampled_from([torch.float64, torch.float32]))
@example([(CORNERED, [1], [4])], 0, torch.float32)
def test_edited_logits_are_those_of_the_formulas(asked, seed, dtype):
    """Any rules over any history, rows of all kinds in one batch; what is kept from token to token is never behind."""
    logits = 5 * torch.randn(len(asked), VOCAB, dtype=dtype, generator=torch.Generator().manual_seed(seed))
    before = logits.clone()
    ends = (2, 5)
    edits = []
    for one, prompt, output in asked:
        kept = LogitEdits(one, prompt, ends)
        for end in range(0, len(output) + 1, 2):
            kept.after(prompt + output[:end])
        edits.append(kept.after(prompt + output))

    found = edited(logits, torch.arange(len(asked)), edits)

    for row, (one, prompt, output) in enumerate(asked):
        expected = reference(before[row].double().tolist(), one, prompt, output, ends)
        torch.testing.assert_close(found[row].double(), torch.tensor(expected).double(), atol=2e-4, rtol=1e-5)
    assert torch.equal(logits, before), "others read the model's own"


def test_tokens_that_a_step_does_not_know_are_left_out():
    """An adapter with more tokens than the base is not in every step: no other row is touched in their place."""
    kept = LogitEdits(
        LogitRules(logit_bias={3: 1.0, 20: 5.0}, repetition_penalty=2.0, bad_words=((21,),)), [22, 1], ends=()
    )
    logits = torch.ones(2, VOCAB)

    found = edited(
        logits, torch.arange(2), [kept.after([22, 1]), LogitEdits(LogitRules(min_tokens=1), [1], ends=(20,)).after([1])]
    )

    expected = torch.ones(2, VOCAB)
    expected[0, 3], expected[0, 1] = 2.0, 0.5
    assert torch.equal(found, expected)


def test_a_wider_step_reaches_an_adapters_own_tokens():
    """Logits as adapters with more tokens widen them: -inf where a row's adapter has no such token."""
    logits = torch.zeros(2, VOCAB + 4, dtype=torch.bfloat16)
    logits[1, VOCAB:] = -torch.inf
    own = LogitEdits(LogitRules(allowed_token_ids=(VOCAB + 3, 0), logit_bias={VOCAB + 3: 0.001}), [1], ends=())
    other = LogitEdits(LogitRules(presence_penalty=1.0), [1], ends=())

    found = edited(logits, torch.arange(2), [own.after([1]), other.after([1, 4])])

    assert found[0].isfinite().nonzero().flatten().tolist() == [0, VOCAB + 3]
    assert found[0].argmax() == VOCAB + 3, "a bias that bf16 would round away next to a large logit is kept"
    assert found[1, 4] == -1
    assert found[1, VOCAB:].isneginf().all()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1 << 30), st.integers(1, 5))
def test_scores_are_those_of_the_model(seed, num_rows):
    """log softmax in fp64, ranks by counting, the most likely in order."""
    generator = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn(num_rows, VOCAB, generator=generator)
    chosen = torch.randint(VOCAB, (num_rows,), generator=generator)
    most = [(row * 7) % 4 for row in range(num_rows)] if num_rows > 1 else [20]

    found = scores(logits, chosen, most)

    exact = logits.double().log_softmax(-1)
    for row, score in enumerate(found):
        order = exact[row].argsort(descending=True).tolist()
        assert score.token == chosen[row]
        assert score.logprob == pytest.approx(float(exact[row, chosen[row]]), abs=1e-5)
        assert score.rank == order.index(score.token) + 1
        assert [token for token, _ in score.top] == order[: most[row]]
        assert [value for _, value in score.top] == pytest.approx(exact[row, order[: most[row]]].tolist(), abs=1e-5)


def test_a_prompt_that_is_computed_again_is_scored_once():
    """A sequence that gave its pages back keeps the scores that it has; the last token of a prompt scores none."""
    sequence = SimpleNamespace(
        prompt=list(range(9)), prompt_scores=[None] * 3, sampling=SimpleNamespace(prompt_logprobs=0)
    )
    chunks = [SimpleNamespace(sequence=sequence, start=start, count=count) for start, count in ((0, 2), (2, 4), (6, 3))]

    [portion] = scored_tokens(chunks, [0, 2, 6])

    assert [(scored.start, scored.row, scored.next_tokens) for scored in portion] == [(3, 3, [4, 5, 6]), (6, 6, [7, 8])]


PROMPT, OUTPUT = [1, 4, 4], [6, 7, 6]
EVERYTHING = LogitRules(
    presence_penalty=0.4,
    frequency_penalty=0.3,
    repetition_penalty=1.4,
    logit_bias={0: 1.5, 9: -1.0},
    allowed_token_ids=(0, 1, 2, 4, 5, 6, 7, 8, 9, 11),
    bad_words=((8,), (7, 6, 11), (3, 3)),
    min_tokens=7,
)


@pytest.mark.parametrize(
    ("sampled", "one"),
    [
        ({"temperature": 1.0}, LogitRules(presence_penalty=1.0)),
        ({"temperature": 1.0}, LogitRules(frequency_penalty=-0.5)),
        ({"temperature": 1.0}, LogitRules(repetition_penalty=1.8)),
        ({"temperature": 1.0}, LogitRules(logit_bias={2: 2.0})),
        ({"temperature": 1.0}, LogitRules(allowed_token_ids=(1, 2, 3, 6))),
        ({"temperature": 1.0}, LogitRules(bad_words=((2,), (7, 6, 3)))),
        ({"temperature": 1.0}, LogitRules(min_tokens=9)),
        ({"temperature": 0.7, "top_k": 6, "top_p": 0.9, "min_p": 0.02}, EVERYTHING),
    ],
)
def test_draws_follow_the_probabilities(sampled, one):
    """Chi-square at fixed logits: with each rule, and with all beside all filters."""
    logits = fixed_logits()
    expected = probabilities(reference(logits.double().tolist(), one, PROMPT, OUTPUT, (5,)), **sampled)

    check_draws(logits, one, expected, **sampled)


@pytest.mark.parametrize(
    "sampled",
    [
        {"temperature": 1.0},
        {"temperature": 0.6},
        {"temperature": 1.3, "top_k": 5},
        {"temperature": 1.0, "top_p": 0.8},
        {"temperature": 1.0, "min_p": 0.08},
        {"temperature": 1.2, "top_k": 8, "top_p": 0.9, "min_p": 0.05},
    ],
)
def test_draws_follow_transformers_probabilities(sampled):
    """Chi-square at fixed logits, beside repetition penalty, biases and bad words, which Transformers has too."""
    logits = fixed_logits()
    rules = LogitRules(repetition_penalty=1.4, logit_bias={0: 1.5, 9: -1.0}, bad_words=((8,), (7, 6, 11)))
    processors = transformers.LogitsProcessorList(
        [
            transformers.SequenceBiasLogitsProcessor([[[token], bias] for token, bias in rules.logit_bias.items()]),
            transformers.RepetitionPenaltyLogitsProcessor(rules.repetition_penalty),
            transformers.NoBadWordsLogitsProcessor([list(word) for word in rules.bad_words]),
            transformers.TemperatureLogitsWarper(sampled["temperature"]),
            transformers.TopKLogitsWarper(sampled.get("top_k", VOCAB)),
            transformers.TopPLogitsWarper(sampled.get("top_p", 1.0)),
            transformers.MinPLogitsWarper(sampled.get("min_p", 0.0)),
        ]
    )
    scores = processors(torch.tensor([PROMPT + OUTPUT]), logits.double().unsqueeze(0))

    check_draws(logits, rules, scores[0].softmax(0).numpy(), **sampled)


def fixed_logits() -> torch.Tensor:
    return 1.5 * torch.randn(VOCAB, generator=torch.Generator().manual_seed(3))


def check_draws(logits, rules, expected, *, temperature, top_k=0, top_p=1.0, min_p=0.0):
    """6,000 positions of one seed draw as often as these probabilities say."""
    draws = 6000
    edit: RowEdit = LogitEdits(rules, PROMPT, ends=(5,)).after(PROMPT + OUTPUT)
    batch = SamplingBatch(
        temperature=torch.full((draws,), temperature),
        top_k=torch.full((draws,), top_k, dtype=torch.int32),
        top_p=torch.full((draws,), top_p),
        min_p=torch.full((draws,), min_p),
        uniform=torch.tensor([uniform(11, position) for position in range(draws)]),
        all_greedy=False,
    )
    kernels, _ = choose_kernels(CPU, "auto")

    found = Counter(
        kernels.sample(
            edited(logits.unsqueeze(0), torch.zeros(draws, dtype=torch.int64), [edit] * draws), batch
        ).tolist()
    )

    possible = np.flatnonzero(expected)
    assert found.keys() <= set(possible.tolist())
    counts = np.array([found[token] for token in possible])
    means = draws * expected[possible]
    statistic, freedom = ((counts - means) ** 2 / means).sum(), len(possible) - 1
    p_value = torch.special.gammaincc(torch.tensor(freedom / 2), torch.tensor(statistic / 2))
    assert p_value > 1e-3


def probabilities(logits: list[float], temperature: float, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0):
    """As `Kernels.sample` defines them, in fp64."""
    weights = np.exp((np.array(logits) - max(logits)) / temperature)
    order = np.argsort(-weights, kind="stable")
    if top_k:
        weights[order[top_k:]] = 0
    larger = np.cumsum(weights[order]) - weights[order]
    weights[order[larger >= top_p * weights.sum()]] = 0
    weights[weights < min_p] = 0
    return weights / weights.sum()
