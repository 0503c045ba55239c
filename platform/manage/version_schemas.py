"""The bodies of the versions API: what a version is, and what is told of files that were only checked."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from msgspec import Meta, Struct, structs

from loraplex.adapters.lookup import VersionInfo, VersionState
from loraplex.adapters.peft_checks import CheckedAdapter
from loraplex.adapters.profile import ServingProfile
from loraplex.adapters.types import adapter_digest

InvocationTokens = Annotated[
    list[int],
    Meta(description="Of an aLoRA: it acts from their last occurrence in the prompt on. Empty: it acts on all of it."),
]
VocabSize = Annotated[
    int | None, Meta(description="How many tokens its own tokenizer knows; null: it is served with the base's.")
]
IsAdditive = Annotated[bool, Meta(description="Whether it can be added to other adapters in one request.")]


class WeightsView(Struct, frozen=True, kw_only=True):
    """What an adapter's weights are, whether they are a version or not."""

    digest: str
    size_bytes: int
    rank: int
    targets: list[str]
    invocation_tokens: InvocationTokens
    is_additive: IsAdditive
    vocab_size: VocabSize


class VersionView(WeightsView, frozen=True, kw_only=True):
    """`model` is the name to call it by, once `state` is ready; `state_reason` says why it does not serve."""

    tenant: str
    adapter: str
    version: int
    model: str
    base_model: str
    state: VersionState
    state_reason: str
    created_at: datetime

    @classmethod
    def of(cls, version: VersionInfo) -> VersionView:
        return cls(
            tenant=version.tenant,
            adapter=version.name,
            version=version.number,
            model=version.canonical_name,
            base_model=version.base_model,
            digest=version.digest,
            size_bytes=version.size_bytes,
            rank=version.max_rank,
            targets=list(version.targets),
            invocation_tokens=list(version.invocation_tokens),
            is_additive=version.is_additive,
            vocab_size=version.vocab_size,
            state=version.state,
            state_reason=version.state_reason,
            created_at=version.created_at,
        )


class VersionDetail(VersionView, frozen=True, kw_only=True):
    """`report`: what the checks found out about the weights, and the engine about the version. `profile`: null where it
    is served with the defaults of the base."""

    report: list[dict[str, Any]]
    profile: ServingProfile | None

    @classmethod
    def told(cls, version: VersionInfo, report: list[dict[str, Any]], profile: ServingProfile | None) -> VersionDetail:
        return cls(**structs.asdict(VersionView.of(version)), report=report, profile=profile)


class CheckedView(WeightsView, frozen=True, kw_only=True):
    """The version that files would be, which were checked and not kept. `report`: what the checks found out."""

    report: list[dict[str, Any]]

    @classmethod
    def of(
        cls, checked: CheckedAdapter, size_bytes: int, vocab_size: int | None, report: list[dict[str, Any]]
    ) -> CheckedView:
        return cls(
            digest=adapter_digest(checked.spec, checked.weights_sha256),
            size_bytes=size_bytes,
            rank=checked.spec.max_rank,
            targets=checked.targets,
            invocation_tokens=list(checked.spec.invocation_tokens),
            is_additive=checked.spec.is_additive,
            vocab_size=vocab_size,
            report=report,
        )


class VersionList(Struct, frozen=True):
    data: list[VersionView]
