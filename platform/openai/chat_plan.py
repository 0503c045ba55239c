"""What a chat request asks of its model: messages and options for the template, and how the answer is to be read.

Both follow from the chat template that the model is served with, unless the server's settings say otherwise. Knows no
engine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loraplex.adapters.profile import ServingProfile
from loraplex.engine.messages import Grammar
from loraplex.engine.templates import Scalar, TemplateOptions
from loraplex.engine.text import TextCodec
from loraplex.platform.openai import tool_grammar
from loraplex.platform.openai.answer_parts import Chain, PartReader
from loraplex.platform.openai.chat_types import ChatCompletionRequest, ChatMessage
from loraplex.platform.openai.reasoning import MARKERS, OPENING, ReasoningFormat, ThoughtReader, opens_thought
from loraplex.platform.openai.tool_calls import ToolCallReader
from loraplex.platform.openai.tool_formats import FORMATS, HERMES, LIST, ToolCallFormat, ToolCallFormatName, traits_of
from loraplex.platform.openai.tool_prompts import written_out
from loraplex.platform.openai.tool_types import FunctionTool, NamedToolChoice


@dataclass(frozen=True, slots=True)
class ChatPlan:
    """messages, options: for the chat template. in_user: the messages again, for a template that has no system message.

    form: of calls in the answer, None where there are none to read. must_call: the answer may be nothing else.
    grammar: what the answer must be or, where the request asks for a form of answers and not for calls, its calls.
    """

    messages: list[dict[str, Any]]
    options: TemplateOptions
    in_user: list[dict[str, Any]] | None
    form: ToolCallFormat | None
    tool_names: frozenset[str]
    max_calls: int | None
    must_call: bool
    grammar: Grammar | None
    thinks: bool

    @property
    def markers(self) -> tuple[str, ...]:
        """Texts that are looked for in the answer, and may be special tokens."""
        return (*(MARKERS if self.thinks else ()), *(self.form.markers if self.form else ()))

    def reader(self, text: TextCodec, prompt: list[int]) -> PartReader | None:
        """Reads the answer to this prompt; None: all of it is text."""
        calls = ToolCallReader(self.form, self.tool_names, self.max_calls) if self.form else None
        if not self.thinks:
            return calls
        is_thinking = text.end_of(prompt).rstrip().endswith(OPENING) or (
            self.options.continue_final_message and opens_thought(self.messages[-1]["content"])
        )
        thoughts = ThoughtReader(is_thinking=is_thinking)
        return Chain(thoughts, calls) if calls else thoughts


def plan_chat(
    request: ChatCompletionRequest,
    profile: ServingProfile,
    text: TextCodec,
    *,
    base: TextCodec,
    tool_call_format: ToolCallFormatName,
    reasoning_format: ReasoningFormat,
) -> ChatPlan:
    """profile, text: of the version that is asked. The formats are those of the base's template, for versions that have
    no other. An answer in a form that the request asks for has no thoughts in it: it has that form from its beginning.
    """
    messages = _messages(request.messages, profile)
    calling = _Calling.of(request)
    is_base = profile.chat_template in (None, text.chat_template)
    template = (text.tool_template if calling.tools else text.chat_template) if is_base else profile.chat_template
    traits = traits_of(template or "")
    thinks = traits.thinks if reasoning_format == "auto" or not is_base else reasoning_format == "think"
    taught = FORMATS.get(tool_call_format, traits.format) if is_base and traits.knows_tools else traits.format
    tools = [tool.for_template() for tool in calling.tools] or None
    in_user = None
    if taught is None and (tools or _has_tool_messages(messages)):
        messages, in_user = written_out(messages, tools), written_out(messages, tools, in_system=False)
    form = (LIST if calling.is_forced else taught or HERMES) if tools else None
    grammar: Grammar | None
    if form is not None and request.asks_for_a_form and not calling.is_forced:
        grammar = tool_grammar.calls_alone(form, calling.tools, is_one=calling.is_one, token_id=base.token_id)
    else:
        grammar = calling.grammar(is_taught=taught is not None)
    return ChatPlan(
        messages=messages,
        options=_options(request, None if taught is None else tools),
        in_user=in_user,
        form=form,
        tool_names=frozenset(tool.function.name for tool in calling.tools),
        max_calls=1 if calling.is_one else None,
        must_call=calling.is_forced,
        grammar=grammar,
        thinks=thinks and not calling.is_forced and not request.asks_for_a_form,
    )


@dataclass(frozen=True, slots=True)
class _Calling:
    """tools: that the model is told of. allowed: those of them that it may call. is_forced: whether it has to."""

    tools: list[FunctionTool]
    allowed: list[FunctionTool]
    is_forced: bool
    is_one: bool

    @classmethod
    def of(cls, request: ChatCompletionRequest) -> _Calling:
        choice = request.tool_choice
        tools = request.tools if request.tools and choice != "none" else []
        if isinstance(choice, NamedToolChoice):
            allowed = [tool for tool in tools if tool.function.name == choice.name]
            return cls(tools, allowed, is_forced=True, is_one=True)
        return cls(tools, tools, is_forced=choice == "required", is_one=request.parallel_tool_calls is False)

    def grammar(self, *, is_taught: bool) -> Grammar | None:
        """is_taught: whether the model's template has a form for calls; without one it is held to ours."""
        if self.is_forced:
            return tool_grammar.forced_calls(self.allowed, is_one=self.is_one)
        if self.tools and not is_taught:
            return tool_grammar.tagged_calls(self.allowed)
        return None


def _messages(asked: Sequence[ChatMessage], profile: ServingProfile) -> list[dict[str, Any]]:
    """Begun with the profile's system prompt where the conversation has no system message."""
    messages = [message.for_template() for message in asked]
    if profile.system_prompt is not None and all(message["role"] != "system" for message in messages):
        messages.insert(0, {"role": "system", "content": profile.system_prompt})
    return messages


def _has_tool_messages(messages: list[dict[str, Any]]) -> bool:
    return any(message["role"] == "tool" or "tool_calls" in message for message in messages)


def _options(request: ChatCompletionRequest, tools: list[dict[str, Any]] | None) -> TemplateOptions:
    is_continued = bool(request.continue_final_message)
    begins = request.add_generation_prompt
    variables: Mapping[str, Scalar] = request.chat_template_kwargs or {}
    return TemplateOptions(
        tools=tools,
        add_generation_prompt=not is_continued if begins is None else begins,
        continue_final_message=is_continued,
        variables=dict(variables),
    )
