"""Which kernels run is decided once, from the device and the operator's wish, and said in one sentence."""

import pytest
import torch

from loraplex.kernels.select import KernelsUnavailable, choose_kernels

CPU = torch.device("cpu")
NO_COMPILER = {"PATH": "", "HOME": "/nonexistent"}


def test_a_cpu_without_a_compiler_falls_back_to_the_reference():
    """No compiler means plain torch, and the sentence says why and how to be faster."""
    kernels, reason = choose_kernels(CPU, environment=NO_COMPILER)
    assert kernels.name == "reference"
    assert "install g++" in reason


def test_a_wish_that_cannot_be_met_is_an_error():
    """Kernels asked for by name are never replaced in silence."""
    with pytest.raises(KernelsUnavailable, match=r"install g\+\+"):
        choose_kernels(CPU, "native", environment=NO_COMPILER)
    with pytest.raises(KernelsUnavailable, match="GPU"):
        choose_kernels(CPU, "triton")
    with pytest.raises(KernelsUnavailable, match="CPU"):
        choose_kernels(torch.device("cuda"), "native")


def test_an_unknown_name_lists_the_known_ones():
    """A misspelt preference is answered with what may be chosen."""
    with pytest.raises(KernelsUnavailable, match="auto, reference, native, triton"):
        choose_kernels(CPU, "nativ")


def test_the_reference_can_be_asked_for():
    """The reference runs anywhere, if somebody wants it."""
    kernels, reason = choose_kernels(CPU, "reference")
    assert kernels.name == "reference"
    assert reason.startswith("reference: ")


def test_a_cpu_with_a_compiler_gets_the_native_kernels():
    """On a machine that can compile, `auto` means the native kernels and names their instructions."""
    kernels, reason = choose_kernels(CPU)
    if kernels.name == "reference":
        pytest.skip(reason)
    assert kernels.name == "native"
    assert reason.startswith("native: compiled for this CPU with ")
