"""POST /v1/chat/completions: the shapes of chat. The way of the request is in `conversation`."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec
from litestar import Request, Response, post
from litestar.di import NamedDependency
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import JSONBody

from loraplex.platform.audit_rules import INFERENCE
from loraplex.platform.ledger.meter import METERED, meter_of
from loraplex.platform.openai.answer import Answer
from loraplex.platform.openai.chat_reading import ChatReading
from loraplex.platform.openai.chat_types import (
    AssistantMessage,
    ChatChoice,
    ChatChunkChoice,
    ChatCompletion,
    ChatCompletionChunk,
    ChatCompletionRequest,
    ChatDelta,
)
from loraplex.platform.openai.conversation import open_conversation
from loraplex.platform.openai.generation_types import FinishReason, Heading, Usage
from loraplex.platform.openai.logprobs import ChatLogprobs, ScoredToken, Wording, chat_logprobs
from loraplex.platform.openai.response import Frames, respond
from loraplex.platform.openai.sse import DONE, ChangingFrame, TextFrame, error_body, frame, framed
from loraplex.platform.services import Services
from loraplex.platform.tenants import Principal


@post(
    "/chat/completions",
    status_code=200,
    opt=INFERENCE | {METERED: "chat"},
    tags=["openai"],
    responses={200: ResponseSpec(ChatCompletion, description="The answer, or events", generate_examples=False)},
)
async def create_chat_completion(
    data: JSONBody[ChatCompletionRequest],
    request: Request[Any, Principal, Any],
    services: NamedDependency[Services],
) -> Response[Any]:
    """Answer a conversation, in one piece or, with `stream`, as server-sent events of `chat.completion.chunk`."""
    conversation = await open_conversation(
        services,
        request.auth,
        data,
        endpoint="chat",
        request_id=f"chatcmpl-{uuid.uuid4().hex}",
        meter=meter_of(request.scope),
    )
    readings = [ChatReading(reader) for reader in conversation.readers]
    shape = ChatShape(
        conversation.heading,
        data.include_usage,
        conversation.wording,
        data.choices,
        readings,
        conversation.choices.usage_of if data.tells_usage_so_far else None,
    )
    return await respond(
        request.receive, conversation.choices, shape, stream=bool(data.stream), model=conversation.model
    )


@dataclass(frozen=True, slots=True)
class ChatShape:
    """Answers as chat completions. `include_usage`: a stream tells its usage in a last chunk of its own.

    `readings` find thoughts and tool calls in the text of each choice; none: it is all text. `usage_of`: what a choice
    has used so far, where every chunk tells it.
    """

    heading: Heading
    include_usage: bool
    wording: Wording
    num_choices: int
    readings: Sequence[ChatReading] = ()
    usage_of: Callable[[int], Usage] | None = None

    def whole(self, choices: Sequence[tuple[Answer, str]], usage: Usage) -> ChatCompletion:
        return ChatCompletion(
            **msgspec.structs.asdict(self.heading),
            choices=[self._choice(index, *choice) for index, choice in enumerate(choices)],
            usage=usage,
            prompt_logprobs=self.wording.prompt(choices[0][0].prompt_scores),
        )

    def opening(self) -> bytes:
        return framed(self._chunk(index, ChatDelta(role="assistant", content="")) for index in range(self.num_choices))

    def frames(self, index: int) -> Frames:
        if not self.readings:
            of_text = TextFrame if self.usage_of is None else ChangingFrame
            return of_text(lambda text: self._chunk(index, ChatDelta(content=text)))
        return _DeltaFrames(self.readings[index], partial(self._chunk, index))

    def scored(self, index: int, text: str, scores: Sequence[ScoredToken]) -> bytes:
        deltas = self.readings[index].push(text) if self.readings else [ChatDelta(content=text)]
        first, *others = deltas or [ChatDelta(content="")]
        told = chat_logprobs(scores, self.wording.text)
        return framed([self._chunk(index, first, logprobs=told), *(self._chunk(index, delta) for delta in others)])

    def finish(self, index: int, answer: Answer) -> bytes:
        assert answer.finish_reason is not None
        held = self.readings[index].finish() if self.readings else []
        end = self._chunk(index, ChatDelta(), self._finish_reason(index, answer.finish_reason))
        return framed([*(self._chunk(index, delta) for delta in held), end])

    def closing(self, usage: Usage) -> bytes:
        last = ChatCompletionChunk(**msgspec.structs.asdict(self.heading), choices=[], usage=usage)
        return (frame(last) if self.include_usage else b"") + DONE

    def failure(self, error: Exception) -> bytes:
        return frame(error_body(error)) + DONE

    def _finish_reason(self, index: int, reason: FinishReason) -> FinishReason:
        return self.readings[index].finish_reason(reason) if self.readings else reason

    def _choice(self, index: int, answer: Answer, text: str) -> ChatChoice:
        assert answer.finish_reason is not None
        told = chat_logprobs(answer.take_scores(), self.wording.text) if self.wording.of_answer else None
        message = self.readings[index].message(text) if self.readings else AssistantMessage(text)
        return ChatChoice(message, self._finish_reason(index, answer.finish_reason), index, logprobs=told)

    def _chunk(
        self,
        index: int,
        delta: ChatDelta,
        finish_reason: FinishReason | None = None,
        logprobs: ChatLogprobs | None = None,
    ) -> ChatCompletionChunk:
        return ChatCompletionChunk(
            **msgspec.structs.asdict(self.heading),
            choices=[ChatChunkChoice(delta, finish_reason, index, logprobs=logprobs)],
            usage=self.usage_of(index) if self.usage_of else None if self.include_usage else msgspec.UNSET,
        )


@dataclass(frozen=True, slots=True)
class _DeltaFrames:
    """Frames of what a reading finds in the text."""

    reading: ChatReading
    chunk_of: Callable[[ChatDelta], ChatCompletionChunk]

    def of(self, text: str) -> bytes:
        return framed(self.chunk_of(delta) for delta in self.reading.push(text))
