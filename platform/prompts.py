"""From a conversation to token ids: by the base's template in this process, by an adapter's own where it is bounded.

Knows templates and tokenisers, and what may hold up the event loop. Knows no request.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import anyio.to_thread

from loraplex.engine.templates import UP_TO_THE_ANSWER, Messages, TemplateOptions
from loraplex.engine.text import TextCodec
from loraplex.engine.untrusted_templates import UntrustedTemplates

T = TypeVar("T")

INLINE_TOKENISE_CHARS = 4096
"""About a millisecond of tokenising. More goes to a thread, so that the event loop turns."""


async def tokenise(encode: Callable[[], T], chars: int) -> T:
    """Run `encode`, which turns `chars` characters into token ids."""
    return encode() if chars <= INLINE_TOKENISE_CHARS else await anyio.to_thread.run_sync(encode)


async def chat_prompt(
    text: TextCodec,
    templates: UntrustedTemplates,
    messages: Messages,
    *,
    template: str | None,
    owner: str,
    options: TemplateOptions = UP_TO_THE_ANSWER,
) -> list[int]:
    """Token ids of a conversation. template: of the adapter, None for the base's own. owner: whose template it is.

    Raises TemplateError; EngineUnavailable while too many of the owner's conversations wait.
    """
    if template is None or template == text.chat_template:
        return await tokenise(lambda: text.render_chat(messages, options), options.chars_with(messages))
    rendered = await templates.render(owner, template, messages, text.special_tokens, options)
    return await tokenise(lambda: text.encode_rendered(rendered), len(rendered))
