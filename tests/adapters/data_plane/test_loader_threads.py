"""What runs beside the step loop leaves it its cores."""

from __future__ import annotations

import os
import sys
import threading

import pytest
import torch

from loraplex.adapters.loader_threads import NICENESS, loader_threads


@pytest.fixture
def two_threads():
    """What the step loop computes with, whatever this machine has."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_a_loader_has_no_openmp_team(two_threads):
    """With one, every later operation of the step loop would have to wake its own up."""
    with loader_threads(1, "test") as threads:
        assert threads.submit(torch.get_num_threads).result() == 1
    assert torch.get_num_threads() == 2


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere niceness belongs to the whole process")
def test_a_loader_stands_back_where_cores_are_short():
    """Its own thread only."""

    def niceness() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    before = niceness()
    with loader_threads(1, "test") as threads:
        assert threads.submit(niceness).result() == min(before + NICENESS, 19)
    assert niceness() == before
