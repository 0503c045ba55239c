"""/v1/responses: OpenAI's Responses API. What a request asks of the model goes the way of a chat (`conversation`)."""

from __future__ import annotations

from typing import Annotated, Any
from uuid import uuid4

from litestar import Request, Response, delete, get, post
from litestar.di import NamedDependency
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import FromPath, JSONBody, QueryParameter

from loraplex.adapters.audit import Actor
from loraplex.platform.audit_rules import INFERENCE, audited, unaudited
from loraplex.platform.batches.files import Order
from loraplex.platform.errors import ApiError
from loraplex.platform.ledger.meter import METERED, meter_of
from loraplex.platform.openai.conversation import open_conversation
from loraplex.platform.openai.field_names import named_by
from loraplex.platform.openai.generation_types import Usage
from loraplex.platform.openai.response import respond
from loraplex.platform.openai.responses.chat_request import FIELD_NAMES, chat_request
from loraplex.platform.openai.responses.items import completed, responses_referred_to
from loraplex.platform.openai.responses.request_types import LOGPROBS, CreateResponse
from loraplex.platform.openai.responses.response_types import ItemList, ResponseDeleted, ResponseObject
from loraplex.platform.openai.responses.shape import ResponseShape
from loraplex.platform.openai.responses.stored import body_of, keep, read_context, read_input, read_referred
from loraplex.platform.services import Services


@post(
    "/responses",
    status_code=200,
    opt=INFERENCE | {METERED: "responses"},
    tags=["openai"],
    responses={200: ResponseSpec(ResponseObject, description="The response, or events", generate_examples=False)},
)
async def create_response(
    data: JSONBody[CreateResponse],
    request: Request[Any, Any, Any],
    services: NamedDependency[Services],
    tenant_id: NamedDependency[str],
) -> Response[Any]:
    """Answer a conversation, in one piece or, with `stream`, as server-sent events.

    It is stored unless `store` is false, or the server stores none; then `previous_response_id` goes on from it. A
    client hears that it has ended once it is stored. Log-probabilities are told and not stored.
    """
    is_stored = _is_to_be_stored(data, services)
    response_id = f"resp_{uuid4().hex}"
    store = services.responses
    context = await read_context(store, tenant_id, data.previous_response_id)
    referred = await read_referred(store, tenant_id, responses_referred_to(data.input))
    items = completed(data.input, response_id, referred, {item.id for item in context.items})
    asked = chat_request(data, [*context.items, *items])
    with named_by(FIELD_NAMES):
        conversation = await open_conversation(
            services,
            request.auth,
            asked,
            endpoint="responses",
            request_id=response_id,
            meter=meter_of(request.scope),
        )
    begun = ResponseObject.begun(data, conversation.heading, conversation.sampling, is_stored=is_stored)
    shape = ResponseShape(begun, len(items), conversation.wording, next(iter(conversation.readers), None))

    async def settle(usage: Usage) -> None:
        await keep(store, tenant_id, shape.ended(usage), items, context.response_ids)

    return await respond(
        request.receive,
        conversation.choices,
        shape,
        stream=bool(data.stream),
        model=conversation.model,
        settle=settle if is_stored else None,
    )


def _is_to_be_stored(data: CreateResponse, services: Services) -> bool:
    if data.store and not services.settings.store_responses:
        message = "This server stores no responses: send false in 'store' or leave it out."
        raise ApiError(400, "unsupported_value", message, param="store")
    return services.settings.store_responses and data.store is not False


@get(
    "/responses/{response_id:str}",
    opt={"scope": "inference"},
    tags=["openai"],
    responses={200: ResponseSpec(ResponseObject, description="The response", generate_examples=False)},
)
async def get_response(
    response_id: FromPath[str],
    request: Request[Any, Any, Any],
    services: NamedDependency[Services],
    tenant_id: NamedDependency[str],
    stream: Annotated[bool | None, QueryParameter()] = None,
) -> Response[Any]:
    """A stored response."""
    if stream:
        message = "Stored responses are told in one piece: leave out 'stream'."
        raise ApiError(400, "unsupported_parameter", message, param="stream")
    _check_include(request)
    stored = await services.responses.get(tenant_id, response_id)
    return Response(body_of(stored), media_type="application/json")


@delete(
    "/responses/{response_id:str}",
    status_code=200,
    opt={"scope": "inference"} | audited("response.delete"),
    tags=["openai"],
)
async def delete_response(
    response_id: FromPath[str],
    services: NamedDependency[Services],
    tenant_id: NamedDependency[str],
    by: NamedDependency[Actor],
) -> ResponseDeleted:
    """Delete a stored response, with its input. What has gone on from it stays, and cannot be gone on from any more."""
    await services.responses.delete(tenant_id, response_id, by=by)
    return ResponseDeleted(id=response_id)


@post(
    "/responses/{response_id:str}/cancel",
    status_code=200,
    opt={"scope": "inference"} | unaudited("it is always refused"),
    tags=["openai"],
)
async def cancel_response(
    response_id: FromPath[str], services: NamedDependency[Services], tenant_id: NamedDependency[str]
) -> ResponseObject:
    """Refused: only what runs in the background could be cancelled. A client that goes away ends what it waits for."""
    await services.responses.get(tenant_id, response_id)
    message = "Cannot cancel a synchronous response: this one has ended. One that runs ends when its client goes away."
    raise ApiError(400, "invalid_request", message, param="response_id")


@get("/responses/{response_id:str}/input_items", opt={"scope": "inference"}, tags=["openai"])
async def list_input_items(
    response_id: FromPath[str],
    request: Request[Any, Any, Any],
    services: NamedDependency[Services],
    tenant_id: NamedDependency[str],
    limit: Annotated[int, QueryParameter(ge=1, le=100)] = 20,
    after: Annotated[str | None, QueryParameter(max_length=128)] = None,
    order: Annotated[Order, QueryParameter()] = "desc",
) -> ItemList:
    """The items that a stored response was made from, the last first unless `order` is asc.

    They are those of its own input and of the responses that it goes on from; without what was deleted of these.
    """
    _check_include(request)
    items = await read_input(services.responses, tenant_id, response_id)
    if order == "desc":
        items.reverse()
    start = 0
    if after is not None:
        start = next((place for place, item in enumerate(items, 1) if item.id == after), 0)
        if start == 0:
            message = "'after' is no item of this response's input; send the last id of the page before."
            raise ApiError(400, "invalid_value", message, param="after")
    page = items[start : start + limit]
    ends = (page[0].id or "", page[-1].id or "") if page else ("", "")
    return ItemList(data=page, first_id=ends[0], last_id=ends[1], has_more=len(items) > start + limit)


def _check_include(request: Request[Any, Any, Any]) -> None:
    """What else could be included no response here has."""
    asked = [value for key in ("include", "include[]") for value in request.query_params.getall(key, [])]
    if LOGPROBS in asked:
        message = "Log-probabilities are told with a new response and not stored: leave them out of 'include'."
        raise ApiError(400, "unsupported_parameter", message, param="include")


RESPONSE_ROUTES = [create_response, get_response, delete_response, cancel_response, list_input_items]
