"""Chat templates that strangers wrote, rendered in processes that can be ended.

One render takes at most CPU_SECONDS of processor time, `template_process.MEMORY_BYTES` and
`bounded_processes.WALL_SECONDS`, and adds at most ADDED_CHARS to its messages. At most PROCESSES render at a time.
Knows owners as opaque names; knows no tokenizer.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from loraplex.engine.bounded_processes import BoundedProcesses, Ended
from loraplex.engine.template_process import Failed, Outcome, Render, Rendered
from loraplex.engine.templates import UP_TO_THE_ANSWER, Messages, TemplateError, TemplateOptions

CPU_SECONDS = 1.0

PROCESSES = 2

ADDED_CHARS = 256 << 10
"""How much longer than its messages a rendered conversation may be: 64 characters for each of 4096 messages."""

INDENTED = 8
"""How many times longer tools may be in a prompt, where templates write them as indented JSON or twice."""


class UntrustedTemplates:
    """Whoever has one closes it. For one event loop."""

    def __init__(self, *, processes: int = PROCESSES, cpu_seconds: float = CPU_SECONDS) -> None:
        command = ("loraplex.engine.template_process", str(cpu_seconds))
        self._processes = BoundedProcesses(command, "chat template", processes=processes, cpu_seconds=cpu_seconds)

    async def render(
        self,
        owner: str,
        template: str,
        messages: Messages,
        special_tokens: Mapping[str, str],
        options: TemplateOptions = UP_TO_THE_ANSWER,
    ) -> str:
        """The conversation up to where the assistant's answer begins, or goes on.

        Raises TemplateError; EngineUnavailable when the owner has too many renders under way.
        """
        plain = [dict(message) for message in messages]
        max_chars = options.chars_with(messages) * (INDENTED if options.tools else 1) + ADDED_CHARS
        outcome = await self._run(Render(template, plain, dict(special_tokens), options, max_chars), owner)
        if isinstance(outcome, Failed):
            raise TemplateError(outcome.reason, refused=outcome.refused)
        return outcome.text

    async def close(self) -> None:
        """End the processes that wait for work; those that have some end with it."""
        await self._processes.close()

    async def _run(self, job: Render, owner: str) -> Outcome:
        try:
            return msgspec.msgpack.decode(await self._processes.run(owner, job), type=Rendered | Failed)
        except Ended as ended:
            return Failed(f"the chat template {ended}")
