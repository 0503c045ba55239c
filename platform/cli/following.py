"""Follow a job on a running server to its end. Knows no job: the command that asks for it does."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import click
from rich.progress import Progress

POLL_SECONDS = 0.5
INTERRUPTED = 130
"""Exit status of a program that was ended by Ctrl-C."""

Job = dict[str, Any]


def follow(
    job: Job, look: Callable[[], Job], progress: Progress, shown: Callable[[Job], dict[str, Any]], *,
    has_ended: Callable[[Job], bool], left: str,
) -> Job:  # fmt: skip
    """The job once it has ended, with a progress bar until then. Ctrl-C ends the command, not the job.

    shown: what the bar shows of it: description, completed, total. left: what to say of a job that goes on alone.
    """
    try:
        with progress as bar:
            task = bar.add_task("", total=None)
            while True:
                bar.update(task, **shown(job))
                if has_ended(job):
                    return job
                time.sleep(POLL_SECONDS)
                job = look()
    except KeyboardInterrupt:
        click.echo(left, err=True)
        sys.exit(INTERRUPTED)
