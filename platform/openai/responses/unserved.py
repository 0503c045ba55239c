"""What clients send to the Responses API that is not served: refused with the reason, or left out if it says nothing.

Looks at the JSON as it came, before its types are read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from loraplex.platform.errors import ApiError
from loraplex.platform.openai.body import drop_unserved, objects_in

UNSERVED: Mapping[str, tuple[Any, ...]] = {
    # field -> the values that ask for nothing; any other is refused
    "access_programs": (None, {}),
    "background": (None, False),
    "background_options": (None, {}),
    "context_management": (None, []),
    "conversation": (None,),
    "image": (None, {}),
    "max_completion_tokens": (),
    "max_tokens": (),
    "messages": (),
    "moderation": (None,),
    "n": (None, 1),
    "prompt": (None,),
    "prompt_cache_options": (None, {}),
    "prompt_cache_retention": (None, "in_memory"),
    "response_format": (),
    "service_tier": (None, "auto", "default"),
    "truncation": (None, "disabled"),
}

UNSERVED_IN_ITEMS: Mapping[str, tuple[Any, ...]] = {
    "async": (None, False),
    "caller": (None,),
    "created_by": (None,),
    "encrypted_content": (None,),
    "namespace": (None,),
    "phase": (None, "commentary", "final_answer"),
}
UNSERVED_IN_PARTS: Mapping[str, tuple[Any, ...]] = {"prompt_cache_breakpoint": (None,)}
UNSERVED_IN_TOOLS: Mapping[str, tuple[Any, ...]] = {
    "allowed_callers": (None, ["direct"]),
    "async": (None, False),
    "defer_loading": (None, False),
    "output_schema": (None,),
}
UNSERVED_IN_TEXT: Mapping[str, tuple[Any, ...]] = {"verbosity": (None, "medium")}
UNSERVED_IN_REASONING: Mapping[str, tuple[Any, ...]] = {
    "context": (None, "auto"),
    "effort": (None, "none"),
    "generate_summary": (None, "auto"),
    "mode": (None, "standard"),
    "summary": (None, "auto"),
}

INSTEAD: Mapping[str, str] = {
    "background": "Responses are made while their client waits: leave it out, or send the request in a batch.",
    "conversation": "Conversations are no objects here: name the response to go on from in 'previous_response_id'.",
    "max_completion_tokens": "In this API it is 'max_output_tokens'.",
    "max_tokens": "In this API it is 'max_output_tokens'.",
    "messages": "In this API it is 'input'.",
    "n": "A response is one answer: send several requests.",
    "prompt": "No prompts are kept here: send the text in 'instructions' and 'input'.",
    "response_format": "In this API it is 'text.format'.",
    "truncation": "Nothing of a conversation is left out on its own: send less, and 'disabled' or nothing here.",
}

ITEMS = ("message", "function_call", "function_call_output", "reasoning", "item_reference")
PARTS = ("input_text", "output_text", "refusal", "reasoning_text", "summary_text")


def prepare(document: dict[str, Any]) -> None:
    """Leave out what says nothing, and give items the type that they imply. Raises ApiError for what is not served."""
    drop_unserved(document, UNSERVED, "", instead=INSTEAD)
    for field, unserved in (("text", UNSERVED_IN_TEXT), ("reasoning", UNSERVED_IN_REASONING)):
        if isinstance(options := document.get(field), dict):
            drop_unserved(options, unserved, f"{field}.")
    for index, tool in objects_in(document.get("tools")):
        _check_tool(tool, f"tools[{index}]")
    if isinstance(choice := document.get("tool_choice"), dict):
        _check_choice(choice)
    for index, item in objects_in(document.get("input")):
        _prepare_item(item, f"input[{index}]")


def _check_tool(tool: dict[str, Any], path: str) -> None:
    if isinstance(kind := tool.get("type"), str) and kind != "function":
        reason = "The server has no tools of its own: give the model functions, and run what it calls."
        raise _unsupported(f"{path}.type", kind, reason)
    drop_unserved(tool, UNSERVED_IN_TOOLS, f"{path}.")


def _check_choice(choice: dict[str, Any]) -> None:
    kind = choice.get("type")
    if isinstance(kind, str) and kind not in ("function", "allowed_tools"):
        raise _unsupported("tool_choice.type", kind, "Choose a function, or 'allowed_tools'.")


def _prepare_item(item: dict[str, Any], path: str) -> None:
    if item.get("type") is None and ("role" in item or item.keys() <= {"id", "type"}):
        item["type"] = "message" if "role" in item else "item_reference"
    if isinstance(kind := item.get("type"), str) and kind not in ITEMS:
        raise _unsupported(f"{path}.type", kind, f"Items are of type {', '.join(ITEMS)}.")
    drop_unserved(item, UNSERVED_IN_ITEMS, f"{path}.")
    for field in ("content", "output", "summary"):
        for index, part in objects_in(item.get(field)):
            if isinstance(kind := part.get("type"), str) and kind not in PARTS:
                raise _unsupported(f"{path}.{field}[{index}].type", kind, "Only text is served.")
            drop_unserved(part, UNSERVED_IN_PARTS, f"{path}.{field}[{index}].")


def _unsupported(param: str, value: str, reason: str) -> ApiError:
    message = f"Unsupported value: '{param}' is {ascii(value)[:60]}, which is not supported by this server. {reason}"
    return ApiError(400, "unsupported_value", message, param=param)
