"""Where an adapter begins to act on a prompt is where PEFT has it begin."""

from __future__ import annotations

from dataclasses import replace

import torch
from api_running import VERSION
from hypothesis import given
from hypothesis import strategies as st
from peft.tuners.lora.variants import calculate_alora_offsets

from loraplex.engine.messages import AdapterUse
from loraplex.platform.catalog import WeightedVersion
from loraplex.platform.openai.invocation import last_place_of, uses_of

TOKENS = st.integers(1, 3)


@given(st.lists(TOKENS, min_size=1, max_size=4), st.lists(TOKENS, max_size=12))
def test_the_last_occurrence_is_the_one_that_peft_finds(invocation, prompt):
    """Overlapping, at either end, or nowhere."""

    class Config:
        alora_invocation_tokens = invocation

    (offset,) = calculate_alora_offsets({"a": Config}, "a", torch.tensor([prompt], dtype=torch.long))
    assert last_place_of(invocation, prompt) == (None if offset is None else len(prompt) - offset)


def test_each_version_acts_from_its_invocation_on():
    """Others act on the whole prompt; without the invocation in it, nothing but the base does."""
    whole = WeightedVersion(VERSION, 0.5)
    waiting = WeightedVersion(replace(VERSION, digest="e" * 64, invocation_tokens=(8, 9)), 1.0)

    assert uses_of((), [8, 9]) == ()
    assert uses_of((whole,), [8, 9]) == (AdapterUse("d" * 64, 0.5),)
    assert uses_of((whole, waiting), [1, 8, 9, 8, 9, 2]) == (AdapterUse("d" * 64, 0.5), AdapterUse("e" * 64, start=3))
    assert uses_of((waiting,), [1, 8, 2, 9]) == ()
