"""langchain-openai: ChatOpenAI, OpenAI and OpenAIEmbeddings, called, streamed, batched and bound to tools."""

from __future__ import annotations

import asyncio
from typing import Literal

from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
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


def check(model: str) -> None:
    chat = ChatOpenAI(model=model, temperature=0, max_tokens=8, max_retries=0)
    roomy = ChatOpenAI(model=model, temperature=0, max_tokens=64, max_retries=0)
    with feature("invoke, with usage", model):
        message = chat.invoke(TICKET)
        holds(message.content and message.usage_metadata["output_tokens"] > 0, message)
        if model == ADAPTER:
            same(message.content.strip(), DESK)
    with feature("a chain with a system message and history", model):
        prompt = ChatPromptTemplate([("system", "Be brief."), ("placeholder", "{thread}")])
        thread = [HumanMessage(TICKET), AIMessage("billing"), HumanMessage("And now?")]
        holds((prompt | chat).invoke({"thread": thread}).content, "an answer")
    with feature("stream, with usage", model):
        whole = None
        for chunk in ChatOpenAI(model=model, temperature=0, max_tokens=8, stream_usage=True).stream(TICKET):
            whole = chunk if whole is None else whole + chunk
        same(whole.content, chat.invoke(TICKET).content)
        holds(whole.usage_metadata["output_tokens"] > 0, whole)
    with feature("async batch", model):
        messages = loop.run_until_complete(chat.abatch([[SystemMessage("Be brief."), HumanMessage(TICKET)]] * 4))
        same(len({message.content for message in messages}), 1)
    with feature("completions (OpenAI), batched prompts", model, needs="n"):
        llm = OpenAI(model=model, temperature=0, max_tokens=8, max_retries=0)
        same(len(llm.generate(["One", "Two"]).generations), 2)
    with feature("completions (OpenAI), one prompt, streamed", model):
        llm = OpenAI(model=model, temperature=0, max_tokens=8, max_retries=0)
        same("".join(llm.stream("Once upon a time")), llm.invoke("Once upon a time"))
    with feature("bind_tools and a tool's message", model, needs="tools"):
        message = roomy.bind_tools([route], tool_choice="route").invoke(TICKET)
        call = message.tool_calls[0]
        holds(call["args"]["desk"] in DESKS, call)
        answer = ToolMessage("done", tool_call_id=call["id"])
        holds(roomy.bind_tools([route]).invoke([HumanMessage(TICKET), message, answer]), "an answer")
    for method, needs in (("function_calling", "tools"), ("json_schema", "response_format")):
        with feature(f"with_structured_output, {method}", model, needs=needs):
            structured = roomy.with_structured_output(Routing, method=method)
            holds(structured.invoke(TICKET).desk in DESKS, "a desk")
    with feature("logprobs", model, needs="logprobs"):
        metadata = chat.bind(logprobs=True, top_logprobs=2).invoke(TICKET).response_metadata
        same(len(metadata["logprobs"]["content"][0]["top_logprobs"]), 2)
    with feature("responses", model, needs="responses"):
        holds(ChatOpenAI(model=model, max_tokens=16, use_responses_api=True).invoke(TICKET).text, "an answer")
    with feature("embeddings", model, needs="embeddings"):
        # its own way counts tokens with tiktoken, which fetches a vocabulary from elsewhere
        embedder = OpenAIEmbeddings(model=model, check_embedding_ctx_length=False, max_retries=0)
        same(len(embedder.embed_documents(["one", "two"])), 2)


for name in MODELS:
    check(name)
finish()
