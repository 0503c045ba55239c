"""What a model takes: how many tokens, and which. Knows the version that is asked and its profile; knows no request."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from loraplex.adapters.profile import ServingProfile
from loraplex.adapters.registry import VersionInfo
from loraplex.engine.messages import Ready
from loraplex.platform.errors import ApiError


@dataclass(frozen=True, slots=True)
class ModelBounds:
    """max_tokens: of prompt and answer together. vocab_size: token ids are below it."""

    max_tokens: int
    vocab_size: int

    @classmethod
    def of(cls, ready: Ready, version: VersionInfo | None, profile: ServingProfile) -> ModelBounds:
        """version: None is the base."""
        own_size = None if version is None else version.vocab_size
        most = min(ready.max_model_len, profile.context_limit or ready.max_model_len)
        return cls(most, own_size or ready.vocab_size)

    def check_prompt(self, token_ids: Collection[int], field: str) -> None:
        """Raises ApiError where it is empty or has an id that is no token's. Its length is for the caller to check."""
        if not token_ids:
            raise ApiError(400, "invalid_value", f"'{field}' has no tokens; send some text.", param=field)
        self.check_ids(token_ids, field)

    def check_ids(self, token_ids: Collection[int], field: str) -> None:
        """Raises ApiError for an id that is no token's."""
        if token_ids and (largest := max(token_ids)) >= self.vocab_size:
            message = f"'{field}' has the token id {largest}, outside of the vocabulary of {self.vocab_size}."
            raise ApiError(400, "invalid_value", message, param=field)
