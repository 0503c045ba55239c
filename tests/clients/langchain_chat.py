"""langchain-openai: ChatOpenAI, OpenAI and OpenAIEmbeddings, called, streamed, batched, bound to tools and schemas."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, SystemMessage, ToolMessage
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings
from pydantic import BaseModel
from report import ADAPTER, DESK, DESKS, MODELS, TICKET, feature, finish, holds, same

loop = asyncio.new_event_loop()
"""One for all: the client keeps its connections."""

Desk = Literal["billing", "delivery", "returns", "account", "technical", "sales"]


class Routing(BaseModel):
    """Where a ticket goes."""

    desk: Desk


@tool
def route(desk: Desk) -> str:
    """Send a ticket to a desk."""
    return desk


def whole_of(chunks: Any) -> AIMessageChunk:
    first, *others = list(chunks)
    return sum(others, first)


def chats(model: str, chat: ChatOpenAI) -> None:
    with feature("invoke, with usage", model):
        message = chat.invoke(TICKET)
        holds(message.content and message.usage_metadata["output_tokens"] > 0, message)
        if model == ADAPTER:
            same(message.content.strip(), DESK)
    with feature("a chain with a system message and history", model):
        prompt = ChatPromptTemplate([("system", "Be brief."), ("placeholder", "{thread}")])
        thread = [HumanMessage(TICKET), AIMessage("billing"), HumanMessage("And now?")]
        chained = (prompt | chat).invoke({"thread": thread}).content
        same(chained, chat.invoke([SystemMessage("Be brief."), *thread]).content)
        holds(chained, "an answer")
    with feature("stream, with usage", model):
        whole = whole_of(ChatOpenAI(model=model, temperature=0, max_tokens=8, stream_usage=True).stream(TICKET))
        same(whole.content, chat.invoke(TICKET).content)
        holds(whole.usage_metadata["output_tokens"] > 0, whole)
    with feature("async batch", model):
        messages = loop.run_until_complete(chat.abatch([TICKET] * 4))
        same({message.content for message in messages}, {chat.invoke(TICKET).content})
    with feature("logprobs", model):
        metadata = chat.bind(logprobs=True, top_logprobs=2).invoke(TICKET).response_metadata
        same(len(metadata["logprobs"]["content"][0]["top_logprobs"]), 2)
    with feature("responses", model):
        answer = ChatOpenAI(model=model, temperature=0, max_tokens=16, use_responses_api=True).invoke(TICKET)
        holds(answer.text.startswith(chat.invoke(TICKET).content), answer)


def forms(model: str, roomy: ChatOpenAI) -> None:
    with feature("bind_tools and a tool's message", model):
        bound = roomy.bind_tools([route], tool_choice="route")
        message = bound.invoke(TICKET)
        (call,) = message.tool_calls
        holds(call["args"]["desk"] in DESKS, call)
        same(whole_of(bound.stream(TICKET)).tool_calls[0]["args"], call["args"])
        answer = ToolMessage(route.invoke(call["args"]), tool_call_id=call["id"])
        last = roomy.bind_tools([route]).invoke([HumanMessage(TICKET), message, answer])
        holds(last.content or last.tool_calls, last)
    for method in ("function_calling", "json_schema"):
        with feature(f"with_structured_output, {method}", model):
            holds(roomy.with_structured_output(Routing, method=method).invoke(TICKET).desk in DESKS, "a desk")


def completions(model: str) -> None:
    llm = OpenAI(model=model, temperature=0, max_tokens=8, max_retries=0)
    with feature("completions (OpenAI), batched prompts", model):
        texts = [generations[0].text for generations in llm.generate(["One", "Two"]).generations]
        same(texts, [llm.invoke("One"), llm.invoke("Two")])
    with feature("completions (OpenAI), one prompt, streamed", model):
        same("".join(llm.stream("Once upon a time")), llm.invoke("Once upon a time"))
    with feature("embeddings", model):
        # its own way counts tokens with tiktoken, which fetches a vocabulary from elsewhere
        embedder = OpenAIEmbeddings(model=model, check_embedding_ctx_length=False, max_retries=0)
        one, two = embedder.embed_documents(["one", "two"])
        alone = embedder.embed_query("two")
        holds(max(abs(a - b) for a, b in zip(two, alone, strict=True)) < 1e-4 and one != two, "vectors")


for name in MODELS:
    chats(name, ChatOpenAI(model=name, temperature=0, max_tokens=8, max_retries=0))
    forms(name, ChatOpenAI(model=name, temperature=0, max_tokens=96, max_retries=0))
    completions(name)
finish()
