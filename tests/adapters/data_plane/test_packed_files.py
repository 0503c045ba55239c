"""A packed file saves the packing and changes nothing else, whatever state it is found in."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch

from loraplex.adapters.errors import AdapterUnavailable
from loraplex.adapters.packed_files import PAUSE_SECONDS, PackedFiles
from loraplex.adapters.types import BaseShape
from loraplex.adapters.weights import load_packed


@pytest.fixture
def make_files(base_shape):
    made = []

    def make(dtype=torch.float32, *, shape=base_shape, **options):
        made.append(PackedFiles(shape, dtype, **options))
        return made[-1]

    yield make
    for files in made:
        files.close()


@pytest.fixture
def load(make_files, blobs):
    files = make_files()
    return lambda digest: load_and_write(files, digest, blobs)


def load_and_write(files, digest, blobs):
    packed = files.load(digest, blobs.open(digest))
    files.flush()
    return packed


def packed_paths(blobs, digest):
    return sorted(blobs.open(digest).weights_path.parent.glob("packed-*"))


def assert_same(packed, expected):
    assert torch.equal(packed.weights, expected.weights)
    assert torch.equal(packed.table, expected.table)
    assert packed.size_bytes == expected.size_bytes


def hide_weights(stored):
    stored.weights_path.rename(stored.weights_path.with_name("hidden"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_second_load_is_the_first_ones_bytes_without_the_original(
    dtype, blobs, make_stored, base_shape, make_files
):
    """Packed once, kept read-only beside the blob, and read from there, by another process life as well."""
    digest = make_stored(rank=3)
    expected = load_packed(blobs.open(digest), base_shape, dtype)
    assert_same(load_and_write(make_files(dtype), digest, blobs), expected)
    (path,) = packed_paths(blobs, digest)
    assert path.stat().st_mode & 0o777 == 0o444
    stored = blobs.open(digest)
    hide_weights(stored)

    assert_same(make_files(dtype).load(digest, stored), expected)


def test_a_file_of_another_adapter_is_not_trusted(load, blobs, make_stored, base_shape, make_files):
    """Put in the place of this adapter's, it is packed over."""
    first, second = make_stored(seed=1), make_stored(seed=2)
    load(first), load(second)
    (foreign,), (own,) = packed_paths(blobs, first), packed_paths(blobs, second)
    foreign.replace(own)

    expected = load_packed(blobs.open(second), base_shape, torch.float32)
    assert_same(load(second), expected)
    hide_weights(stored := blobs.open(second))
    assert_same(make_files().load(second, stored), expected)


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-1], lambda data: data[:40], lambda data: b"", lambda data: data + b"x"]
)
def test_a_file_that_is_not_whole_is_made_again(damage, load, blobs, make_stored, base_shape, caplog):
    """Cut off anywhere, or longer than it says: packed from the original, and logged."""
    digest = make_stored()
    load(digest)
    (path,) = packed_paths(blobs, digest)
    whole = path.read_bytes()
    path.chmod(0o644)
    path.write_bytes(damage(whole))

    with caplog.at_level(logging.WARNING):
        assert_same(load(digest), load_packed(blobs.open(digest), base_shape, torch.float32))
    assert "made again" in caplog.text
    assert path.read_bytes() == whole


def test_bases_and_dtypes_have_files_of_their_own(blobs, make_stored, base_shape, make_files):
    """Two engines on one store do not undo each other's files."""
    digest = make_stored()
    other_base = BaseShape("other", 32, base_shape.num_layers, base_shape.sites)
    for shape, dtype in ((base_shape, torch.float32), (base_shape, torch.bfloat16), (other_base, torch.float32)):
        load_and_write(make_files(dtype, shape=shape), digest, blobs)
    assert len(packed_paths(blobs, digest)) == 3


def test_an_adapter_loads_where_nothing_can_be_written(load, blobs, make_stored, base_shape, monkeypatch, caplog):
    """A full or read-only disk costs the packing every time, and leaves no part of a file."""
    digest = make_stored()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("loraplex.adapters.packed_files.os.fsync", full)
    for _ in range(2):
        assert_same(load(digest), load_packed(blobs.open(digest), base_shape, torch.float32))
    assert packed_paths(blobs, digest) == []
    assert "cannot be written" in caplog.text


def test_an_adapter_that_cannot_be_served_leaves_no_file(load, blobs, make_stored):
    """What is refused is refused again at the next load."""
    digest = make_stored()
    stored = blobs.open(digest)
    stored.weights_path.chmod(0o644)
    stored.weights_path.write_bytes(stored.weights_path.read_bytes()[:-4])
    for _ in range(2):
        with pytest.raises(AdapterUnavailable, match="damaged"):
            load(digest)
    assert packed_paths(blobs, digest) == []


def test_the_file_goes_with_its_blob(load, blobs, make_stored):
    """The sweep removes both, and weights that are in use stay readable."""
    digest = make_stored()
    packed = load(digest)
    before = packed.weights.clone()
    directory = blobs.open(digest).weights_path.parent

    assert blobs.sweep(set(), grace_seconds=-60) == [digest]

    assert not directory.exists()
    assert torch.equal(packed.weights, before)


def test_packing_beside_steps_stands_back_after_each_site(make_files, blobs, make_stored, base_shape, monkeypatch):
    """A pause for every site while steps run, none while the engine is idle."""
    pauses = []
    monkeypatch.setattr("loraplex.adapters.packed_files.time.sleep", pauses.append)
    busy = [False]
    files = make_files(is_busy=lambda: busy[0])
    files.load(digest := make_stored(seed=1), blobs.open(digest))
    assert pauses == []
    files.flush()

    busy[0] = True
    files.load(digest := make_stored(seed=2), blobs.open(digest))
    assert pauses == [PAUSE_SECONDS] * (base_shape.num_sites + 1)


def test_a_rush_leaves_files_to_later_loads(make_files, blobs, make_stored, monkeypatch):
    """What waits to be written is bounded; closing drops it, and it can be packed again."""
    monkeypatch.setattr("loraplex.adapters.packed_files.MAX_UNWRITTEN", 2)
    monkeypatch.setattr("loraplex.adapters.packed_files.PAUSE_SECONDS", 0)
    files = make_files(is_busy=lambda: True)
    digests = [make_stored(seed=seed) for seed in range(4)]
    for digest in digests:
        files.load(digest, blobs.open(digest))
    files.flush()
    assert [bool(packed_paths(blobs, digest)) for digest in digests] == [True, True, False, False]

    files.load(digests[2], blobs.open(digests[2]))
    files.close()
    assert packed_paths(blobs, digests[2]) == []
    assert make_files().load(digests[2], blobs.open(digests[2])).table[:, 2:5].sum(1).max() == 2


MODULE = "base_model.model.model.layers.0.self_attn.q_proj"
A_AND_B = {
    f"{MODULE}.lora_A.weight": np.ones((2, 8), np.float32),
    f"{MODULE}.lora_B.weight": np.ones((8, 2), np.float32),
}


def test_what_the_base_has_a_say_in_is_packed_for_each_base(make_files, make_base, blobs, store, write_files):
    """DoRA's norms are the base's: with other weights of that shape the adapter is packed anew, beside the first."""
    magnitude = {f"{MODULE}.lora_magnitude_vector": np.full(8, 3, np.float32)}
    files = write_files({"use_dora": True}, A_AND_B | magnitude)
    digest = store(files.config, files.weights)
    first = load_and_write(make_files(base=make_base(1)), digest, blobs)
    second = load_and_write(make_files(base=make_base(2)), digest, blobs)
    assert not torch.equal(first.weights, second.weights)
    assert len(packed_paths(blobs, digest)) == 2
    stored = blobs.open(digest)
    hide_weights(stored)

    assert_same(make_files(base=make_base(1)).load(digest, stored), first)


@pytest.mark.parametrize("ties", [True, False])
def test_rows_of_the_vocabulary_come_back_in_their_places(ties, make_files, make_base, blobs, store, write_files):
    """Sorted by token; where the base has one matrix for both ends, the head's are the embedding's."""
    rows = {"base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta": np.eye(3, 8, dtype=np.float32)}
    files = write_files({"trainable_token_indices": [9, 4, 30]}, A_AND_B | rows)
    digest = store(files.config, files.weights)
    packed = load_and_write(make_files(base=make_base(1, ties_embeddings=ties)), digest, blobs)
    again = make_files(base=make_base(1, ties_embeddings=ties)).load(digest, blobs.open(digest))

    assert_same(again, packed)
    assert again.vocabulary == packed.vocabulary
    views = again.vocabulary.views(again.weights)
    assert views.embedding.tokens.tolist() == [4, 9, 30]
    assert torch.equal(views.embedding.rows, torch.eye(3, 8)[[1, 0, 2]])
    assert (views.head is not None) == ties


def test_a_copy_of_the_base_that_is_none_is_refused(make_files, make_base, blobs, store, write_files):
    """PEFT saves the matrix below a LoRA of the head; one that differs was trained on another base."""
    head = "base_model.model.lm_head"
    lora = {f"{head}.lora_A.weight": np.ones((2, 8), np.float32), f"{head}.lora_B.weight": np.ones((32, 2), np.float32)}
    own = make_base(1).weight("lm_head").bfloat16()
    for copy in (own.float().numpy(), own.float().numpy() + 0.01):
        files = write_files({"target_modules": ["lm_head"]}, lora | {f"{head}.base_layer.weight": copy})
        digest = store(files.config, files.weights)
        if copy[0, 0] == own[0, 0]:
            assert make_files(base=make_base(1)).load(digest, blobs.open(digest)).table[-1, 2] == 2
        else:
            with pytest.raises(AdapterUnavailable, match="differs from this base"):
                make_files(base=make_base(1)).load(digest, blobs.open(digest))
