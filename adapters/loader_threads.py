"""Threads that bring adapters in beside the step loop and stay out of its way."""

from __future__ import annotations

import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import torch

NICENESS = 10
"""How far below the step loop's threads these stand where they compete for a core. Not SCHED_IDLE, under which nothing
is loaded while the machine is busy."""


def loader_threads(count: int, name: str) -> ThreadPoolExecutor:
    """An executor whose threads the step loop does not notice."""
    return ThreadPoolExecutor(count, name, initializer=_stand_back)


def _stand_back() -> None:
    # One OpenMP thread each: while a worker with a team of its own lives there are more threads than cores, and OpenMP
    # then puts the step loop's threads to sleep between any two operations.
    torch.set_num_threads(1)
    if sys.platform == "linux":  # where niceness belongs to a thread
        thread = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + NICENESS)
