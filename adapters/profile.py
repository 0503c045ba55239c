"""How a version wants to be asked: chat template, system prompt, stops, default sampling, context limit.

Plain data with a bound on everything. What a request says itself wins over the profile of its version, and that over
the server's defaults; stops are added to the request's. Knows no row and no template's meaning.
"""

from __future__ import annotations

import hashlib
from typing import Annotated

import msgspec
from msgspec import Meta

MAX_TEMPLATE_CHARS = 64 << 10
MAX_SYSTEM_PROMPT_CHARS = 32 << 10
MAX_STOPS = 8

STORABLE = "^[^\\x00]*$"
"""PostgreSQL stores no NUL in JSON."""

Temperature = Annotated[float, Meta(ge=0, le=2)]
TopP = Annotated[float, Meta(gt=0, le=1)]
TopK = Annotated[int, Meta(ge=-1, lt=1 << 31)]
MinP = Annotated[float, Meta(ge=0, le=1)]
TokenId = Annotated[int, Meta(ge=0, lt=1 << 31)]
TokenCount = Annotated[int, Meta(ge=1, le=1 << 24)]
StopString = Annotated[str, Meta(min_length=1, max_length=256)]

StorableStop = Annotated[str, Meta(min_length=1, max_length=256, pattern=STORABLE)]
SystemPrompt = Annotated[str, Meta(min_length=1, max_length=MAX_SYSTEM_PROMPT_CHARS, pattern=STORABLE)]
ChatTemplate = Annotated[str, Meta(min_length=1, max_length=MAX_TEMPLATE_CHARS, pattern=STORABLE)]


class ProfileSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """All of a profile but its chat template. The fields of sampling are those of a request; None: not set here.

    `system_prompt` begins conversations that bring no system message. `context_limit`: most tokens of a prompt and its
    completion together, where that is less than the server's.
    """

    system_prompt: SystemPrompt | None = None
    stop: Annotated[tuple[StorableStop, ...], Meta(max_length=MAX_STOPS)] = ()
    stop_token_ids: Annotated[tuple[TokenId, ...], Meta(max_length=MAX_STOPS)] = ()
    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_k: TopK | None = None
    min_p: MinP | None = None
    max_tokens: TokenCount | None = None
    context_limit: TokenCount | None = None


class ServingProfile(ProfileSettings, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """`chat_template`: Jinja; None: the base's own. The profile without any field is that of the base."""

    chat_template: ChatTemplate | None = None

    @property
    def digest(self) -> str:
        """Names the profile by its content: equal ones have the same."""
        return hashlib.sha256(msgspec.json.encode(self)).hexdigest()

    @property
    def chars(self) -> int:
        """About what it takes in memory."""
        return len(self.chat_template or "") + len(self.system_prompt or "") + sum(map(len, self.stop)) + 1024


DEFAULT_PROFILE = ServingProfile()
"""Of the base, and of a version that has none."""
