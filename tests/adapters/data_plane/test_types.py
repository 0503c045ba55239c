"""A spec's bytes are the identity of a version: they stay what they were, and say all there is to say."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from loraplex.adapters.errors import AdapterUnavailable
from loraplex.adapters.types import EMBEDDING, HEAD, AdapterSpec, ModuleSpec, adapter_digest

Q, DOWN = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"
PLAIN = AdapterSpec({Q: ModuleSpec(2, 2.0), DOWN: ModuleSpec(16, 8 / 3)})


def test_what_was_served_before_keeps_its_digest(base_shape):
    """Blobs, packed files and the registry name versions by these numbers."""
    json_bytes = b'{"format":1,"modules":{"%s":[2,2.0],"%s":[16,2.6666666666666665]}}' % (Q.encode(), DOWN.encode())

    assert PLAIN.to_json() == json_bytes
    assert adapter_digest(PLAIN, "ab" * 32) == "94acd55863fcd7e9e6eeead6174ad73e8fce97c4b919941201ac84af471a91be"
    assert base_shape.digest == "0e2f1ece1b0810e9a9bd658c8a76f94e6375d2d172204a259d62f2abeb9f8e65"


SPECS = [
    PLAIN,
    AdapterSpec({Q: ModuleSpec(4, 1.0, "loha")}),
    AdapterSpec({Q: ModuleSpec(4, 1.0, parts=frozenset({"magnitude", "bias"}))}),
    replace(PLAIN, invocation_tokens=(5, 6, 5)),
    replace(PLAIN, replaced=frozenset({HEAD}), copies=frozenset({EMBEDDING})),
    AdapterSpec({}, token_rows={EMBEDDING: (3, 1)}),
]


@pytest.mark.parametrize("spec", SPECS)
def test_a_spec_comes_back_from_its_bytes(spec):
    """Every field is in them, so that no two specs share a digest."""
    assert AdapterSpec.from_json(spec.to_json()) == spec
    assert sum(spec.to_json() == other.to_json() for other in SPECS) == 1


@pytest.mark.parametrize(
    "change",
    [{"format": 2}, {"later": 1}, {"modules": {Q: [2, 2.0, "later", []]}}, {"modules": {Q: [2, 2.0, "lora", ["x"]]}}],
)
def test_what_a_later_release_wrote_is_unavailable(change):
    """Nothing that is not understood is skipped."""
    with pytest.raises(AdapterUnavailable, match="later release"):
        AdapterSpec.from_json(json.dumps(json.loads(PLAIN.to_json()) | change).encode())
