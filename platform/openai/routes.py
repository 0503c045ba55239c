"""What of OpenAI's API is mounted, and where."""

from __future__ import annotations

from litestar import Router

from loraplex.platform.openai.batches import BATCH_ROUTES
from loraplex.platform.openai.chat import create_chat_completion
from loraplex.platform.openai.completions import create_completion
from loraplex.platform.openai.files import FILE_ROUTES
from loraplex.platform.openai.models import get_model, list_models

OPENAI_ROUTES = [
    Router(
        "/v1",
        route_handlers=[
            create_chat_completion,
            create_completion,
            list_models,
            get_model,
            *FILE_ROUTES,
            *BATCH_ROUTES,
        ],
    )
]
