"""Request bodies from bytes, strictly: the right types, no unknown field, and nothing asked for that is not served.

Knows which fields of OpenAI's API, and of other servers' versions of it, are not served. `*_types` have what is.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec
from litestar import Request
from litestar.exceptions import InternalServerException

from loraplex.platform.content_encoding import content_encoding, decompress
from loraplex.platform.errors import ApiError, malformed_json
from loraplex.platform.openai.generation_types import GenerationRequest

UNSERVED: Mapping[str, tuple[Any, ...]] = {
    # field of OpenAI's, vLLM's or LoRAX's API -> the values that ask for nothing; any other is refused, by an endpoint
    # whose body does not have it
    "adapter_source": (None, "local"),
    "add_special_tokens": (None,),
    "api_token": (None,),
    "audio": (None,),
    "best_of": (None, 1),
    "chat_template": (None,),
    "echo": (None, False),
    "function_call": (None, "none", "auto"),
    "functions": (None, []),
    "guided_choice": (None,),
    "guided_grammar": (None,),
    "guided_json": (None,),
    "guided_regex": (None,),
    "metadata": (None, {}),
    "modalities": (None, ["text"]),
    "moderation": (None,),
    "prediction": (None,),
    "prompt_cache_key": (None,),
    "prompt_cache_retention": (None,),
    "reasoning_effort": (None, "none"),
    "safety_identifier": (None,),
    "service_tier": (None, "auto", "default"),
    "store": (None, False),
    "suffix": (None, ""),
    "top_logprobs": (None, 0),
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
    "suffix": "Models are served that continue text, and know nothing of what comes after it: leave it out, or write "
    "prompt and suffix into 'prompt' with the fill-in-the-middle tokens of a model that has them.",
    "adapter_source": "Nothing is fetched from elsewhere for a request: publish the adapter here, then name it.",
    "api_token": "Your key goes in the header `Authorization: Bearer`, and no other is handed on.",
    "guided_choice": 'It is vLLM\'s old name: send `structured_outputs: {"choice": [...]}`.',
    "guided_grammar": 'It is vLLM\'s old name: send `structured_outputs: {"grammar": "..."}`.',
    "guided_json": 'It is vLLM\'s old name: send `structured_outputs: {"json": {...}}`, or `response_format`.',
    "guided_regex": 'It is vLLM\'s old name: send `structured_outputs: {"regex": "..."}`.',
}
"""What to do about an unserved field, where leaving it out is not all."""

T = TypeVar("T")


class PreparedBody(msgspec.Struct, frozen=True):
    """A body whose JSON is looked at as a whole before its types are."""

    @staticmethod
    def prepare(document: dict[str, Any]) -> None:
        """Leave out what says nothing. Raises ApiError for what is not served."""


def read_body(body: bytes, target: type[T]) -> T:
    """JSON to `target`, strictly: no "1" for 1. Raises ApiError or msgspec.ValidationError, which name the field."""
    try:
        document = msgspec.json.decode(body)
    except (RecursionError, UnicodeDecodeError) as error:
        nested = isinstance(error, RecursionError)
        raise malformed_json("it is nested too deeply" if nested else "it is not UTF-8") from error
    if isinstance(document, dict) and issubclass(target, GenerationRequest):
        drop_unserved(document, UNSERVED, "", served=target.__struct_fields__)
        messages = document.get("messages")
        for index, message in enumerate(messages if isinstance(messages, list) else ()):
            if isinstance(message, dict):
                drop_unserved(message, UNSERVED_IN_MESSAGES, f"messages[{index}].")
    elif isinstance(document, dict) and issubclass(target, PreparedBody):
        target.prepare(document)
    return msgspec.convert(document, target, str_keys=True)  # the keys of a JSON object are strings


def drop_unserved(
    fields: dict[str, Any],
    unserved: Mapping[str, tuple[Any, ...]],
    path: str,
    *,
    served: tuple[str, ...] = (),
    instead: Mapping[str, str] = INSTEAD,
) -> None:
    """Take out what asks for nothing. Raises ApiError for what asks for something that is not served."""
    for field in (fields.keys() & unserved.keys()).difference(served):
        if fields.pop(field) not in unserved[field]:
            param = path + field
            remedy = instead.get(param, "Leave it out.")
            message = f"Unsupported parameter: '{param}' is not supported by this server. {remedy}"
            raise ApiError(400, "unsupported_parameter", message, param=param)


class JsonRequest(Request[Any, Any, Any]):
    """Reads a handler's `data: JSONBody[...]` with `read_body`; Litestar's own way turns "1" into 1. The bound on
    bodies holds for what was sent and, where that is compressed, for what is in it."""

    async def json(self) -> Any:
        data_field = self.route_handler.parsed_data_field
        assert data_field is not None
        encoding = content_encoding(self.headers.getall("content-encoding", []))
        try:
            if encoding is None:
                body = await self.body()
            else:
                most = self.route_handler.resolve_request_max_body_size()
                body = await decompress(self.stream(), encoding, sys.maxsize if most is None else most)
        except InternalServerException as error:
            raise ApiError(499, "client_closed_request", "The client went away before its request was read.") from error
        return read_body(body, data_field.annotation)
