"""The inside of a process that does work for strangers: one job after the other, each within its processor time.

The other end is `bounded_processes`. Knows frames and limits; what a job is, the caller knows.
"""

from __future__ import annotations

import os
import resource
import signal
import struct
import sys
from collections.abc import Callable

LENGTH = struct.Struct("<I")
"""What goes before every job and every answer."""


def give_up_rights(memory_bytes: int) -> None:
    """For good: no more address space than this, no file, no socket. What is open stays open."""
    for what, limit in (
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_NOFILE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(what, (limit, limit))


def answer_jobs(cpu_seconds: float, run: Callable[[bytes], bytes]) -> None:
    """Jobs from standard input to `run`, answers to standard output, until the input ends. Does not return.

    The kernel ends the process when one job takes more processor time, whatever it does.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the API process decides
    while len(header := sys.stdin.buffer.read(LENGTH.size)) == LENGTH.size:
        (length,) = LENGTH.unpack(header)
        job = sys.stdin.buffer.read(length)
        signal.setitimer(signal.ITIMER_PROF, cpu_seconds)  # SIGPROF, which nobody handles, ends the process
        answer = run(job)
        signal.setitimer(signal.ITIMER_PROF, 0)
        sys.stdout.buffer.write(LENGTH.pack(len(answer)) + answer)
        sys.stdout.buffer.flush()
    os._exit(0)  # nothing that runs at an exit could write what it has
