"""Request bodies from bytes, strictly: the right types, no unknown field, and nothing asked for that is not served.

Knows which fields of OpenAI's API, and of other servers' versions of it, are not served. `*_types` have what is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec
from litestar import Request
from litestar.exceptions import InternalServerException

from loraplex.platform.errors import ApiError, malformed_json
from loraplex.platform.openai.generation_types import GenerationRequest

UNSERVED: Mapping[str, tuple[Any, ...]] = {
    # field of OpenAI's, vLLM's or LoRAX's API -> the values that ask for nothing; any other is refused
    "adapter_source": (None, "local"),
    "add_special_tokens": (None,),
    "allowed_token_ids": (None,),
    "api_token": (None,),
    "audio": (None,),
    "bad_words": (None, []),
    "best_of": (None, 1),
    "chat_template": (None,),
    "echo": (None, False),
    "frequency_penalty": (None, 0),
    "function_call": (None, "none", "auto"),
    "functions": (None, []),
    "include_stop_str_in_output": (None, False),
    "logit_bias": (None, {}),
    "logprobs": (None, False),
    "metadata": (None, {}),
    "min_tokens": (None, 0),
    "modalities": (None, ["text"]),
    "moderation": (None,),
    "prediction": (None,),
    "presence_penalty": (None, 0),
    "priority": (None, 0),
    "prompt_cache_key": (None,),
    "prompt_cache_retention": (None,),
    "prompt_logprobs": (None,),
    "reasoning_effort": (None, "none"),
    "repetition_penalty": (None, 1),
    "response_format": (None, {"type": "text"}),
    "safety_identifier": (None,),
    "service_tier": (None, "auto", "default"),
    "skip_special_tokens": (None, True),
    "store": (None, False),
    "suffix": (None, ""),
    "top_logprobs": (None, 0),
    "truncate_prompt_tokens": (None,),
    "verbosity": (None, "medium"),
    "web_search_options": (None,),
}

UNSERVED_IN_MESSAGES: Mapping[str, tuple[Any, ...]] = {
    # an answer of these clients is sent back as a message with all its empty fields
    "annotations": (None, []),
    "audio": (None,),
    "function_call": (None,),
}

INSTEAD: Mapping[str, str] = {
    "adapter_source": "Nothing is fetched from elsewhere for a request: publish the adapter here, then name it.",
    "api_token": "Your key goes in the header `Authorization: Bearer`, and no other is handed on.",
}
"""What to do about an unserved field, where leaving it out is not all."""

T = TypeVar("T")


def read_body(body: bytes, target: type[T]) -> T:
    """JSON to `target`, strictly: no "1" for 1. Raises ApiError or msgspec.ValidationError, which name the field."""
    try:
        document = msgspec.json.decode(body)
    except (RecursionError, UnicodeDecodeError) as error:
        nested = isinstance(error, RecursionError)
        raise malformed_json("it is nested too deeply" if nested else "it is not UTF-8") from error
    if isinstance(document, dict) and issubclass(target, GenerationRequest):
        _drop_unserved(document, UNSERVED, "")
        messages = document.get("messages")
        for index, message in enumerate(messages if isinstance(messages, list) else ()):
            if isinstance(message, dict):
                _drop_unserved(message, UNSERVED_IN_MESSAGES, f"messages[{index}].")
    return msgspec.convert(document, target, str_keys=True)  # the keys of a JSON object are strings


def _drop_unserved(fields: dict[str, Any], unserved: Mapping[str, tuple[Any, ...]], path: str) -> None:
    for field in fields.keys() & unserved.keys():
        if fields.pop(field) not in unserved[field]:
            param = path + field
            remedy = INSTEAD.get(param, "Leave it out.")
            message = f"Unsupported parameter: '{param}' is not supported by this server. {remedy}"
            raise ApiError(400, "unsupported_parameter", message, param=param)


class JsonRequest(Request[Any, Any, Any]):
    """Reads a handler's `data: JSONBody[...]` with `read_body`; Litestar's own way turns "1" into 1."""

    async def json(self) -> Any:
        data_field = self.route_handler.parsed_data_field
        assert data_field is not None
        try:
            body = await self.body()
        except InternalServerException as error:
            raise ApiError(499, "client_closed_request", "The client went away before its request was read.") from error
        return read_body(body, data_field.annotation)
