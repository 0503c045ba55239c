"""Tools for models whose chat template knows none: a text of ours that explains them, and calls and results as text.

The form of the calls is that of Hermes and Qwen (`tool_formats.HERMES`), which most models have seen. Knows plain
messages only.
"""

from __future__ import annotations

import json
from typing import Any

INSTRUCTIONS = """\
You can call functions. These are their definitions, one on each line:
<tools>
{tools}
</tools>
To call a function, write its name and an object of its arguments as JSON between tags, once for each call:
<tool_call>
{{"name": "the name", "arguments": {{"an argument": "its value"}}}}
</tool_call>
The result of each call comes back between <tool_response> and </tool_response>. Where no function helps, answer in \
plain text."""

Message = dict[str, Any]


def written_out(
    messages: list[Message], tools: list[dict[str, Any]] | None, *, in_system: bool = True
) -> list[Message]:
    """The conversation without anything that only templates for tools know.

    in_system: explain the tools in the system message, which is there or is made; otherwise in the user's first.
    """
    plain: list[Message] = []
    for message in messages:
        is_result = message["role"] == "tool"
        written = _result(message) if is_result else _without_calls(message)
        if is_result and plain and plain[-1].get("of_tools"):
            plain[-1] = {**plain[-1], "content": f"{plain[-1]['content']}\n{written['content']}"}
        else:
            plain.append({**written, "of_tools": is_result})
    plain = [{key: value for key, value in message.items() if key != "of_tools"} for message in plain]
    if not tools:
        return plain
    lines = "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in tools)
    return _explained(plain, INSTRUCTIONS.format(tools=lines), in_system)


def _result(message: Message) -> Message:
    return {"role": "user", "content": f"<tool_response>\n{message['content']}\n</tool_response>"}


def _without_calls(message: Message) -> Message:
    calls = [
        f"<tool_call>\n{json.dumps(call['function'], ensure_ascii=False)}\n</tool_call>"
        for call in message.get("tool_calls", ())
    ]
    text = message["content"]
    content = "\n".join([text, *calls] if text else calls) if calls else text or ""
    return {key: value for key, value in message.items() if key != "tool_calls"} | {"content": content}


def _explained(messages: list[Message], instructions: str, in_system: bool) -> list[Message]:
    role = "system" if in_system else "user"
    place = next((index for index, message in enumerate(messages) if message["role"] == role), None)
    if place is None:
        return [{"role": role, "content": instructions}, *messages]
    content = messages[place]["content"]
    both = f"{content}\n\n{instructions}" if in_system else f"{instructions}\n\n{content}"
    return [*messages[:place], {**messages[place], "content": both}, *messages[place + 1 :]]
