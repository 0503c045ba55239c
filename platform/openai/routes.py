"""What of OpenAI's API is mounted, and where."""

from __future__ import annotations

from litestar import Router
from litestar.types import ControllerRouterHandler

from loraplex.platform.openai.batches import BATCH_ROUTES
from loraplex.platform.openai.chat import create_chat_completion
from loraplex.platform.openai.completions import create_completion
from loraplex.platform.openai.embeddings import create_embeddings
from loraplex.platform.openai.files import FILE_ROUTES
from loraplex.platform.openai.models import delete_model, get_model, list_models
from loraplex.platform.openai.responses.handlers import RESPONSE_ROUTES
from loraplex.platform.openai.tokenize import detokenize, tokenize

OPENAI_ROUTES: list[ControllerRouterHandler] = [
    Router(
        "/v1",
        route_handlers=[
            create_chat_completion,
            create_completion,
            create_embeddings,
            list_models,
            get_model,
            delete_model,
            *FILE_ROUTES,
            *BATCH_ROUTES,
            *RESPONSE_ROUTES,
        ],
    ),
    tokenize,
    detokenize,
]
