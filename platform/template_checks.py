"""The chat template that an adapter brings among its files, and whether a profile's template can serve.

Knows the files' forms and the conversations that a template is tried on. Knows no request and no row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from loraplex.adapters.blobs import TEMPLATE_FILE, TOKENIZER_CONFIG_FILE, Staging
from loraplex.adapters.errors import AdapterInvalid
from loraplex.adapters.profile import ChatTemplate, ServingProfile
from loraplex.engine.templates import TemplateError, TokenizerConfig
from loraplex.engine.text import TextCodec
from loraplex.engine.untrusted_templates import UntrustedTemplates
from loraplex.platform.prompts import chat_prompt

TEMPLATE_BYTES = 64 << 10
TOKENIZER_CONFIG_BYTES = 4 << 20
"""Most of a large one is its list of special tokens."""

USER = {"role": "user", "content": "Hello"}
TURNS = (USER, {"role": "assistant", "content": "Hello. How can I help?"}, {"role": "user", "content": "Tell me more."})


@dataclass(frozen=True, slots=True)
class BroughtPrompting:
    """How an adapter's files say it is asked. special_tokens: name -> text."""

    chat_template: str | None
    special_tokens: Mapping[str, str]


def take_prompting(staging: Staging) -> BroughtPrompting:
    """The chat template among staged files, as Transformers would choose it, and the names of special tokens.

    Their files are removed: a blob holds what its digest names, and no template is part of that. Raises AdapterInvalid.
    """
    template_file, config_file = staging.path(TEMPLATE_FILE), staging.path(TOKENIZER_CONFIG_FILE)
    config, template, where = TokenizerConfig(), None, "tokenizer_config"
    try:
        if config_file.exists():
            config = msgspec.json.decode(config_file.read_bytes(), type=TokenizerConfig)
            template = config.default_template
        if template_file.exists():
            where = "chat_template"
            template = template_file.read_bytes().decode()
        return BroughtPrompting(msgspec.convert(template, ChatTemplate | None), config.special_tokens)
    except (UnicodeDecodeError, msgspec.DecodeError) as error:
        raise AdapterInvalid([_failure(where, str(error))]) from error
    finally:
        template_file.unlink(missing_ok=True)
        config_file.unlink(missing_ok=True)


async def check_brought_template(text: TextCodec, templates: UntrustedTemplates, owner: str, template: str) -> None:
    """Raises AdapterInvalid when a template that came with an adapter cannot serve; EngineUnavailable."""
    try:
        await check_profile(text, templates, owner, ServingProfile(chat_template=template))
    except TemplateError as error:
        raise AdapterInvalid([_failure("chat_template", str(error))]) from error


async def check_profile(text: TextCodec, templates: UntrustedTemplates, owner: str, profile: ServingProfile) -> None:
    """Try the profile's template on a question, on turns, and with a system message, which it may refuse to have unless
    the profile brings one. Raises TemplateError; EngineUnavailable."""

    async def try_on(*messages: dict[str, str]) -> None:
        if not await chat_prompt(text, templates, messages, template=profile.chat_template, owner=owner):
            raise TemplateError("the chat template makes nothing of a conversation")

    if profile.chat_template is not None:
        await try_on(USER)
        await try_on(*TURNS)
    if profile.chat_template is not None or profile.system_prompt is not None:
        try:
            await try_on({"role": "system", "content": profile.system_prompt or "Be brief."}, USER)
        except TemplateError as error:
            if profile.system_prompt is not None or not error.refused:
                raise


def _failure(where: str, reason: str) -> dict[str, str]:
    message = f"{reason}; mend it, or leave it out to have the base's chat template"
    return {"code": "chat_template_invalid", "where": where, "message": message}
