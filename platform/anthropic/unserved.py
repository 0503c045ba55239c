"""What Anthropic's Messages API has and this server has not: looked for before a body is read, and refused with the
reason. Knows bodies as plain JSON.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from loraplex.platform.errors import ApiError
from loraplex.platform.openai.body import drop_unserved, objects_in

UNSERVED: Mapping[str, tuple[Any, ...]] = {
    # field -> the values that ask for nothing; any other is refused
    "compaction": (None,),
    "container": (None,),
    "context_management": (
        None,
        {},
        {"edits": []},
        {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},  # agents send it: nothing is cleared
    ),
    "diagnostics": (None,),
    "fallback_credit_token": (None,),
    "fallbacks": (None, []),
    "inference_geo": (None,),
    "mcp_servers": (None, []),
    "service_tier": (None, "auto", "standard_only"),
    "speed": (None, "standard"),
    "thread": (None,),
}

INSTEAD: Mapping[str, str] = {
    "container": "No programs are run here.",
    "context_management": "Nothing is taken out of a conversation here: send what the model is to see.",
    "mcp_servers": "This server calls no other: have your client call it, and offer what it does in 'tools'.",
}
"""What to do about an unserved field, where leaving it out is not all."""

NO_THREADS = "thread_unsupported_request"
"""By this code in the details of a refusal, clients know that they have to send the whole conversation."""

SERVED_BLOCKS = frozenset({"text", "tool_use", "tool_result", "thinking", "redacted_thinking"})


def refuse_unserved(document: dict[str, Any]) -> None:
    """Takes out fields that ask for nothing. Raises ApiError for those that ask for something, for blocks that are no
    text, and for tools of Anthropic's own."""
    if document.get("thread") is not None:
        told = "Unsupported parameter: 'thread': no conversation is kept here. Leave it out, and send all messages."
        raise ApiError(400, NO_THREADS, told, param="thread", details={"error_code": NO_THREADS})
    drop_unserved(document, UNSERVED, "", instead=INSTEAD)
    for index, message in objects_in(document.get("messages")):
        _check_blocks(message.get("content"), f"messages[{index}].content")
    _check_blocks(document.get("system"), "system")
    for index, tool in objects_in(document.get("tools")):
        kind = tool.get("type")
        if isinstance(kind, str) and kind != "custom":
            param = f"tools[{index}].type"
            told = (
                f"Unsupported value for '{param}': {ascii(kind)[:64]} is a tool of Anthropic's own: it runs on their "
                "servers, or their models alone know it. Send a custom tool, with 'name' and 'input_schema'."
            )
            raise ApiError(400, "unsupported_value", told, param=param)


def _check_blocks(content: Any, path: str) -> None:
    for index, block in objects_in(content):
        kind = block.get("type")
        param = f"{path}[{index}]"
        if isinstance(kind, str) and kind not in SERVED_BLOCKS:
            message = (
                f"Unsupported value for '{param}': this server reads text alone, and no blocks of type "
                f"{ascii(kind)[:64]}. Leave it out, or send what it says as text."
            )
            raise ApiError(400, "unsupported_value", message, param=param)
        if kind == "tool_result":
            _check_blocks(block.get("content"), f"{param}.content")
