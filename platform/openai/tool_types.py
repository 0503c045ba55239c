"""Tools in the bodies of chat completions: those that a model may call, and its calls. Knows no message."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from loraplex.platform.errors import ApiError
from loraplex.platform.openai.generation_types import Text
from loraplex.platform.openai.structured_output import MAX_SCHEMA_DEPTH, is_deeper

MAX_TOOLS = 128
MAX_TOOLS_BYTES = 512 << 10
"""Of all tools of a request, as JSON."""

FunctionName = Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_.-]{1,128}$")]
CallId = Annotated[str, Meta(min_length=1, max_length=256)]

# -- what is read --------------------------------------------------------------------------------------------------


class FunctionDefinition(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`parameters`: a JSON schema of the arguments; without it there are none. `strict` changes nothing: calls that are
    forced follow the schema with or without it, others follow it as well as the model does."""

    name: FunctionName
    description: Annotated[str, Meta(max_length=65536)] | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class FunctionTool(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    type: Literal["function"]
    function: FunctionDefinition

    @property
    def parameters(self) -> dict[str, Any]:
        given = self.function.parameters
        return {"type": "object", "properties": {}} if given is None else given

    def for_template(self) -> dict[str, Any]:
        """As chat templates know tools: OpenAI's form, with parameters always, and no `strict`."""
        function: dict[str, Any] = {"name": self.function.name}
        if self.function.description is not None:
            function["description"] = self.function.description
        return {"type": "function", "function": {**function, "parameters": self.parameters}}


class FunctionReference(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: FunctionName


class NamedToolChoice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    type: Literal["function"]
    function: FunctionReference

    @property
    def name(self) -> str:
        return self.function.name


Tools = Annotated[list[FunctionTool], Meta(max_length=MAX_TOOLS)]
ToolChoice = Literal["none", "auto", "required"] | NamedToolChoice


def check_tools(tools: list[FunctionTool], choice: ToolChoice | None) -> None:
    """Raises ApiError for tools that are too large or share a name, and for a choice of what is not among them."""
    names = [tool.function.name for tool in tools]
    for index, name in enumerate(names):
        if name in names[:index]:
            message = f"Two tools are called '{name}'; give each function a name of its own."
            raise ApiError(400, "invalid_value", message, param=f"tools[{index}].function.name")
        if is_deeper(tools[index].parameters, MAX_SCHEMA_DEPTH):
            message = f"The parameters of '{name}' are nested deeper than {MAX_SCHEMA_DEPTH} levels; make them flatter."
            raise ApiError(400, "invalid_value", message, param=f"tools[{index}].function.parameters")
    if len(msgspec.json.encode(tools)) > MAX_TOOLS_BYTES:
        message = f"The tools take more than {MAX_TOOLS_BYTES >> 10} KiB as JSON; send fewer, or shorter ones."
        raise ApiError(400, "invalid_value", message, param="tools")
    if isinstance(choice, NamedToolChoice) and choice.name not in names:
        message = f"'tool_choice' names the function '{choice.name}', which is not among the tools; add it there."
        raise ApiError(400, "invalid_value", message, param="tool_choice")
    if choice == "required" and not tools:
        message = "'tool_choice' asks for a call, but there are no tools; send some in 'tools'."
        raise ApiError(400, "invalid_value", message, param="tool_choice")


# -- what is read and answered -------------------------------------------------------------------------------------


class FunctionCall(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`arguments`: JSON, as the model wrote it; it may make mistakes."""

    name: Annotated[str, Meta(min_length=1, max_length=256)]
    arguments: Text


class ToolCall(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    id: CallId
    function: FunctionCall
    type: Literal["function"] = "function"

    def for_template(self) -> dict[str, Any]:
        """As chat templates want it: with an object of arguments, unless a model wrote something else."""
        try:
            arguments = msgspec.json.decode(self.function.arguments or "{}")
        except (msgspec.DecodeError, RecursionError):
            arguments = None
        if not isinstance(arguments, dict) or is_deeper(arguments, MAX_SCHEMA_DEPTH):
            arguments = self.function.arguments
        return {
            "type": self.type,
            "id": self.id,
            "function": {"name": self.function.name, "arguments": arguments},
        }


# -- what is answered ----------------------------------------------------------------------------------------------


class FunctionCallDelta(msgspec.Struct, frozen=True, omit_defaults=True):
    arguments: str | UnsetType = UNSET
    name: str | UnsetType = UNSET


class ToolCallDelta(msgspec.Struct, frozen=True, omit_defaults=True):
    """The first one of a call has its id, type and name; the others add to its arguments."""

    index: int
    function: FunctionCallDelta
    id: str | UnsetType = UNSET
    type: Literal["function"] | UnsetType = UNSET
