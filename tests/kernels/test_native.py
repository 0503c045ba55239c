"""The compiled CPU kernels keep the contract of `ops.Kernels`, and are built once, privately and safely."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from kernels.cases import CASES, QUANTIZED_CASES, Case, RowSettings, check, exact, run, sampling_args
from kernels.test_reference import LOGITS, sampled_shares

from loraplex.kernels.native import NativeKernels
from loraplex.kernels.native_library import NativeUnavailable, supported_variants
from loraplex.kernels.reference import ReferenceKernels

CPU = torch.device("cpu")
NO_COMPILER = {"PATH": "", "HOME": "/nonexistent"}


@pytest.fixture(scope="module", autouse=True)
def two_threads() -> Iterator[None]:
    """That share out the work, as they do in a server."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=supported_variants())
def variant(request) -> NativeKernels:
    """The kernels of every instruction set that this machine can run."""
    return build(request.param)


@pytest.fixture(scope="module")
def native() -> NativeKernels:
    return build(None)


def build(variant: str | None) -> NativeKernels:
    try:
        return NativeKernels(variant=variant)
    except NativeUnavailable as error:
        pytest.skip(str(error))


def cases_and_dtypes() -> list[tuple[Case, torch.dtype]]:
    """fp16 runs the reference itself: one case of each op suffices."""
    cases = CASES + QUANTIZED_CASES
    one_of_each = {case.op: case for case in cases}.values()
    compiled = [(case, dtype) for case in cases for dtype in (torch.float32, torch.bfloat16)]
    return compiled + [(case, torch.float16) for case in one_of_each]


@pytest.mark.parametrize(("case", "dtype"), cases_and_dtypes(), ids=str)
def test_equals_the_reference(variant: NativeKernels, case: Case, dtype: torch.dtype):
    """Every shape of the table gives the fp64 reference's result within rounding, and writes nothing else, with every
    instruction set."""
    check(variant, case, CPU, dtype)


@pytest.mark.parametrize("seed", range(5))
def test_samples_what_the_reference_samples(native: NativeKernels, seed: int):
    """With many equal logits at the borders of the filters both choose the same tokens for the same draws."""
    rows = tuple(
        RowSettings(temperature, top_k, top_p, min_p)
        for temperature in (0.2, 1.0, 3.0)
        for top_k in (0, 1, 7, 400)
        for top_p in (1.0, 0.97, 0.5, 0.01)
        for min_p in (0.0, 0.05, 1.0)
    )
    logits, batch = sampling_args(CPU, torch.float32, seed, rows=rows, vocab=2051, levels=4)
    expected = ReferenceKernels().sample(exact(logits), batch)
    assert torch.equal(native.sample(logits, batch), expected)


@pytest.mark.parametrize("settings", [{}, {"top_k": 2}, {"top_p": 0.85}, {"top_p": 0.0}, {"min_p": 0.3}], ids=str)
def test_draws_follow_the_distribution(native: NativeKernels, settings):
    """Over a grid of draws each token comes as often as with the reference."""
    shares = sampled_shares(native, LOGITS, **settings)
    torch.testing.assert_close(shares, sampled_shares(ReferenceKernels(), LOGITS, **settings), rtol=0, atol=1 / 2000)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_broken_logits_stay_inside_the_vocabulary(native: NativeKernels, bad: float, temperature: float):
    """Rows of NaN or infinities give some token id of the vocabulary, never an index beyond it."""
    logits, batch = sampling_args(CPU, torch.float32, 0, rows=(RowSettings(temperature, 3, 0.9, 0.1),) * 2, vocab=37)
    logits[:] = bad
    for kernels in (native, ReferenceKernels()):
        assert all(0 <= token < 37 for token in kernels.sample(logits, batch).tolist())


def test_one_result_for_any_number_of_threads(native: NativeKernels):
    """Sharing the work out differently changes no bit of it."""
    threads = torch.get_num_threads()
    cases = [case for case in CASES if case.name in ("gqa3-mixed", "base-between-in96")]
    results = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        results.append([run(native, case.op, case.build(CPU, torch.bfloat16, 0), case.written) for case in cases])
    torch.set_num_threads(threads)
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=0, atol=0)


def test_one_openmp_runtime(native: NativeKernels):
    """torch and the library share one thread pool: two would fight over the cores."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("no /proc here")
    runtimes = {line.split()[-1] for line in maps.read_text().splitlines() if "libgomp" in line}
    assert len(runtimes) == 1


def test_without_a_compiler_the_reason_names_the_remedy():
    """Where there is no compiler the error says so and what to install."""
    with pytest.raises(NativeUnavailable, match=r"install g\+\+"):
        NativeKernels(NO_COMPILER)


def test_a_failing_compiler_is_reported(tmp_path: Path):
    """A compiler that fails gives its own words, and leaves nothing half-built behind."""
    compiler = tmp_path / "broken"
    compiler.write_text('#!/bin/sh\n[ "$1" = --version ] && exit 0\necho "no such flag" >&2\nexit 1\n')
    compiler.chmod(0o755)
    with pytest.raises(NativeUnavailable, match="no such flag"):
        NativeKernels({"CXX": str(compiler), "PATH": os.defpath, "XDG_CACHE_HOME": str(tmp_path)})
    assert list((tmp_path / "loraplex").iterdir()) == []


def test_an_instruction_set_that_is_not_there_is_refused():
    """Asking for instructions that the CPU lacks, or that nobody knows, names those that can be had."""
    with pytest.raises(NativeUnavailable, match="plain"):
        NativeKernels(variant="avx1024")


def test_a_cache_that_others_can_write_to_is_refused(tmp_path: Path, native: NativeKernels):
    """Code is never loaded from a folder in which another user could have put it."""
    folder = tmp_path / "loraplex"
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(NativeUnavailable, match="others can write"):
        NativeKernels({**os.environ, "XDG_CACHE_HOME": str(tmp_path)})


# Both have begun before either goes on. What the code does is not asked here, so it need not be quick.
RENDEZVOUS = """#!/bin/sh
[ "$1" = --version ] || touch "$0.$$"
until [ "$1" = --version ] || [ "$(ls "$0".* | wc -l)" = 2 ]; do sleep 0.01; done
exec %s "$@" -O0
"""


def test_two_processes_may_build_at_once(tmp_path: Path, native: NativeKernels):
    """Two first starts at the same time both get working kernels, and one library stays, for its owner only."""
    compiler = tmp_path / "compiler"
    compiler.write_text(RENDEZVOUS % os.environ.get("CXX", "c++"))
    compiler.chmod(0o755)
    code = "from loraplex.kernels.native import NativeKernels; import torch; k = NativeKernels();"
    code += "print(k.silu_and_mul(torch.ones(1, 2)).shape)"
    environment = {**os.environ, "CXX": str(compiler), "XDG_CACHE_HOME": str(tmp_path)}
    processes = [subprocess.Popen([sys.executable, "-c", code], env=environment) for _ in range(2)]
    assert [process.wait(timeout=240) for process in processes] == [0, 0]
    (library,) = (tmp_path / "loraplex").iterdir()
    assert library.stat().st_mode & 0o077 == 0
    assert (tmp_path / "loraplex").stat().st_mode & 0o777 == 0o700
