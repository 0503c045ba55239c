"""POST /v1/messages and POST /v1/messages/count_tokens, as Anthropic's clients ask.

A request is translated into a chat completion and goes its way (`openai/conversation`); only the words are others.
"""

from __future__ import annotations

import uuid
from typing import Any

from litestar import Request, Response, Router, post
from litestar.di import NamedDependency
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import JSONBody

from loraplex.platform.anthropic.content import ContentWriter
from loraplex.platform.anthropic.events import Message, TokensCount
from loraplex.platform.anthropic.message_types import CountTokensRequest, MessagesRequest
from loraplex.platform.anthropic.shape import MessageShape
from loraplex.platform.anthropic.translation import FIELD_NAMES, chat_request
from loraplex.platform.audit_rules import INFERENCE
from loraplex.platform.ledger.meter import METERED, meter_of
from loraplex.platform.logging import request_id
from loraplex.platform.openai.conversation import open_conversation, render_request
from loraplex.platform.openai.field_names import named_by
from loraplex.platform.openai.response import respond
from loraplex.platform.services import Services
from loraplex.platform.tenants import Principal

MESSAGES_PATH = "/v1/messages"


@post(
    "/",
    status_code=200,
    opt={METERED: "messages"},
    responses={200: ResponseSpec(Message, description="The answer, or events", generate_examples=False)},
)
async def create_message(
    data: JSONBody[MessagesRequest], request: Request[Any, Principal, Any], services: NamedDependency[Services]
) -> Response[Any]:
    """Answer a conversation, in one piece or, with `stream`, as the events of Anthropic's Messages API."""
    asked = chat_request(data)
    with named_by(FIELD_NAMES):
        conversation = await open_conversation(
            services,
            request.auth,
            asked,
            endpoint="messages",
            request_id=f"msg_{uuid.uuid4().hex}",
            meter=meter_of(request.scope),
            most_tokens=data.max_tokens,
        )
    reader = conversation.readers[0] if conversation.readers else None
    tells_thoughts = data.thinking is None or data.thinking.display != "omitted"
    shape = MessageShape(
        heading=conversation.heading,
        choices=conversation.choices,
        writer=ContentWriter(reader, tells_thoughts=tells_thoughts),
        stop_sequences=data.stop_sequences or (),
        max_tokens=data.max_tokens,
        request_id=request_id(request.scope),
    )
    return await respond(
        request.receive, conversation.choices, shape, stream=bool(data.stream), model=conversation.model
    )


@post("/count_tokens", status_code=200)
async def count_tokens(
    data: JSONBody[CountTokensRequest], services: NamedDependency[Services], principal: NamedDependency[Principal]
) -> TokensCount:
    """How many tokens a message would read: those of the rendered conversation, tools and system prompt."""
    asked = chat_request(data)
    with named_by(FIELD_NAMES):
        rendered = await render_request(services, principal, asked)
    return TokensCount(len(rendered.prompt))


ANTHROPIC_ROUTES = [
    Router(
        MESSAGES_PATH,
        route_handlers=[create_message, count_tokens],
        opt=INFERENCE | {"error_schema": "MessagesError"},
        tags=["anthropic"],
    )
]
