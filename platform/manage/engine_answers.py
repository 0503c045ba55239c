"""What the engine answers to a request that waits for it: soon, or not at all."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from loraplex.engine.client import EngineUnavailable

ENGINE_SECONDS = 5.0

T = TypeVar("T")


async def answered(question: Awaitable[T]) -> T:
    """Its answer. Raises EngineUnavailable, also where the engine is up and does not answer."""
    try:
        async with asyncio.timeout(ENGINE_SECONDS):
            return await question
    except TimeoutError:
        raise EngineUnavailable("the engine does not answer", retry_after_seconds=5) from None
