"""The bodies of the management API, in and out. `/v1` has its own: OpenAI's."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType, convert, structs

from loraplex.adapters.aliases import MoveInfo
from loraplex.adapters.import_jobs import ImportInfo, ImportState
from loraplex.adapters.lookup import MAX_TARGETS, AliasInfo, VersionState
from loraplex.adapters.peft_checks import CheckedAdapter
from loraplex.adapters.profile import ChatTemplate, ProfileSettings, ServingProfile
from loraplex.adapters.quarantine import MAX_REASON_LENGTH
from loraplex.adapters.registry import AdapterInfo, VersionInfo
from loraplex.adapters.types import adapter_digest
from loraplex.engine.client import EngineClient
from loraplex.engine.messages import Inspection, Ready, ResidentAdapter, Status
from loraplex.platform.tenants import KeyInfo, TenantInfo
from loraplex.platform.use_log import Tier

Name = Annotated[str, Meta(min_length=1, max_length=63, description="a-z, 0-9, '.', '_' and '-'.")]
VersionNumber = Annotated[int, Meta(ge=1, lt=1_000_000_000)]
Weight = Annotated[int, Meta(ge=1, le=1_000_000, description="Share of the traffic, relative to the sum of all.")]
Scope = Literal["inference", "adapters", "admin"]


class CreateAdapter(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`base_model`: default, and the only one now, is the model that is served."""

    name: Name
    description: Annotated[str, Meta(max_length=2000)] = ""
    base_model: Annotated[str, Meta(min_length=1, max_length=127)] | None = None


class MoveAlias(Struct, frozen=True, forbid_unknown_fields=True):
    """Either a version, or a split: version number -> weight, relative to the sum of all."""

    version: VersionNumber | None = None
    split: Annotated[dict[VersionNumber, Weight], Meta(min_length=1, max_length=MAX_TARGETS)] | None = None

    def __post_init__(self) -> None:
        if (self.version is None) == (self.split is None):
            raise ValueError("Expected either `version` or `split`")

    def targets(self) -> dict[int, int]:
        if self.version is not None:
            return {self.version: 1}
        assert self.split is not None
        return self.split


class RollBackAlias(Struct, frozen=True, forbid_unknown_fields=True):
    """`to`: a revision of the alias's history; default is what it stood for before its last move."""

    to: Annotated[int, Meta(ge=1, lt=1_000_000_000)] | None = None


class AliasView(Struct, frozen=True, kw_only=True):
    """`split`: version number -> weight, newest first. Every move raises `revision`."""

    revision: int
    split: dict[int, int]
    updated_at: datetime

    @classmethod
    def of(cls, alias: AliasInfo) -> AliasView:
        return cls(revision=alias.revision, split=alias.split, updated_at=alias.updated_at)


class MoveView(Struct, frozen=True, kw_only=True):
    """`split` is empty where the alias was deleted. `restores`: the revision that a rollback went back to.

    `moved_by`: the id of the API key.
    """

    revision: int
    split: dict[int, int]
    restores: int | None
    moved_at: datetime
    moved_by: str | None

    @classmethod
    def of(cls, move: MoveInfo) -> MoveView:
        return cls(
            revision=move.revision,
            split=move.split,
            restores=move.restores,
            moved_at=move.moved_at,
            moved_by=move.moved_by,
        )


class AliasHistory(Struct, frozen=True):
    data: list[MoveView]


class AdapterView(Struct, frozen=True, kw_only=True):
    """`versions`: their numbers, rising. `aliases` by name."""

    tenant: str
    name: str
    base_model: str
    description: str
    created_at: datetime
    versions: list[int]
    aliases: dict[str, AliasView]

    @classmethod
    def of(cls, adapter: AdapterInfo) -> AdapterView:
        return cls(
            tenant=adapter.tenant,
            name=adapter.name,
            base_model=adapter.base_model,
            description=adapter.description,
            created_at=adapter.created_at,
            versions=[version.number for version in adapter.versions],
            aliases={name: AliasView.of(alias) for name, alias in adapter.aliases.items()},
        )


class VersionView(Struct, frozen=True, kw_only=True):
    """`model` is the name to call it by, once `state` is ready; `state_reason` says why it does not serve."""

    tenant: str
    adapter: str
    version: int
    model: str
    base_model: str
    digest: str
    size_bytes: int
    rank: int
    targets: list[str]
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


class SetProfile(ProfileSettings, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """`chat_template`: left out, the version keeps the one it has, which may have come with its weights."""

    chat_template: ChatTemplate | UnsetType | None = UNSET

    def onto(self, old: ServingProfile | None) -> ServingProfile:
        settings = structs.asdict(self)
        if self.chat_template is UNSET:
            settings["chat_template"] = None if old is None else old.chat_template
        return ServingProfile(**settings)


class CheckedView(Struct, frozen=True, kw_only=True):
    """The version that files would be, which were checked and not kept. `report`: what the checks found out."""

    digest: str
    size_bytes: int
    rank: int
    targets: list[str]
    report: list[dict[str, Any]]

    @classmethod
    def of(cls, checked: CheckedAdapter, size_bytes: int, report: list[dict[str, Any]]) -> CheckedView:
        return cls(
            digest=adapter_digest(checked.spec, checked.weights_sha256),
            size_bytes=size_bytes,
            rank=checked.spec.max_rank,
            targets=checked.targets,
            report=report,
        )


class AdapterPage(Struct, frozen=True):
    """`next`: give it as `after` to get the next page; null on the last one."""

    data: list[AdapterView]
    next: str | None


class VersionList(Struct, frozen=True):
    data: list[VersionView]


class CreateImport(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`source`: hf://org/repo@COMMIT, hf://org/repo@BRANCH, whose commit is looked up once, or s3://bucket/prefix."""

    adapter: Name
    source: Annotated[str, Meta(min_length=1, max_length=500)]


class ImportFailure(Struct, frozen=True, kw_only=True):
    """Why the last attempt did not succeed. `details`: of code `adapter_invalid`, every failed check."""

    code: str
    message: str
    details: Any = None


class ImportView(Struct, frozen=True, kw_only=True):
    """An error that may pass queues the job again, until its 5th attempt. A branch in `source` becomes its commit.

    `file`: the one being fetched; the bytes are those of both files. `version` is set once it is published, and
    `version_state` is the state of that version now. `created_by`: the id of the API key.
    """

    id: str
    adapter: str
    source: str
    state: ImportState
    attempt: int
    file: str | None
    bytes_done: int
    bytes_total: int | None
    version: int | None
    version_state: VersionState | None
    error: ImportFailure | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    created_by: str | None

    @classmethod
    def of(cls, job: ImportInfo) -> ImportView:
        return cls(
            id=job.id,
            adapter=job.adapter,
            source=job.source,
            state=job.state,
            attempt=job.attempt,
            file=job.progress.file,
            bytes_done=job.progress.bytes_done,
            bytes_total=job.progress.bytes_total,
            version=job.version,
            version_state=job.version_state,
            error=None if job.error is None else convert(job.error, ImportFailure),
            created_at=job.created_at,
            started_at=job.started_at,
            finished_at=job.finished_at,
            created_by=job.created_by,
        )


class ImportPage(Struct, frozen=True):
    """`next`: give it as `after` to get the next page; null on the last one."""

    data: list[ImportView]
    next: str | None


class CreateTenant(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    slug: Name
    name: Annotated[str, Meta(max_length=200)] = ""


class ChangeTenant(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    suspended: bool


class TenantView(Struct, frozen=True, kw_only=True):
    slug: str
    name: str
    suspended: bool
    created_at: datetime

    @classmethod
    def of(cls, tenant: TenantInfo) -> TenantView:
        return cls(
            slug=tenant.slug,
            name=tenant.name,
            suspended=tenant.suspended_at is not None,
            created_at=tenant.created_at,
        )


class TenantList(Struct, frozen=True):
    data: list[TenantView]


class CreateKey(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A tenant's key has the scopes inference, adapters or both; an operator's (tenant null) has admin."""

    tenant: Name | None
    name: Annotated[str, Meta(min_length=1, max_length=100)]
    scopes: Annotated[list[Scope], Meta(min_length=1, max_length=3)]
    expires_at: Annotated[datetime, Meta(tz=True)] | None = None


class KeyView(Struct, frozen=True, kw_only=True):
    id: str
    tenant: str | None
    name: str
    scopes: list[str]
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None
    secret: str | None = None
    """Only in the answer to the key's creation; it cannot be had again."""

    @classmethod
    def of(cls, key: KeyInfo, secret: str | None = None) -> KeyView:
        return cls(
            id=key.id,
            tenant=key.tenant,
            name=key.name,
            scopes=sorted(key.scopes),
            created_at=key.created_at,
            expires_at=key.expires_at,
            revoked_at=key.revoked_at,
            last_used_at=key.last_used_at,
            secret=secret,
        )


class KeyList(Struct, frozen=True):
    data: list[KeyView]


class Quarantine(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`reason`: the tenant sees it."""

    reason: Annotated[str, Meta(min_length=1, max_length=MAX_REASON_LENGTH)]


class ResidentVersion(Struct, frozen=True, kw_only=True):
    """`leases`: running sequences that hold it on the device."""

    version: int
    digest: str
    size_bytes: int
    rank: int
    residency: list[Tier]
    leases: int


class ResidentAdapterView(Struct, frozen=True, kw_only=True):
    tenant: str
    name: str
    base_model: str
    aliases: dict[str, AliasView]
    versions: list[ResidentVersion]

    @classmethod
    def of(cls, adapter: AdapterInfo, inspection: Inspection | None) -> ResidentAdapterView:
        host = _by_digest(inspection.host if inspection else [])
        device = _by_digest(inspection.device if inspection else [])
        return cls(
            tenant=adapter.tenant,
            name=adapter.name,
            base_model=adapter.base_model,
            aliases={name: AliasView.of(alias) for name, alias in adapter.aliases.items()},
            versions=[_resident(version, host, device) for version in adapter.versions],
        )


class ResidentAdapterPage(Struct, frozen=True):
    """`next`: give it as `after` to get the next page; null on the last one."""

    data: list[ResidentAdapterView]
    next: str | None


class SequenceView(Struct, frozen=True, kw_only=True):
    """A sequence in the batch. `adapters`: the digests of its versions, none for the base."""

    request_id: str
    adapters: list[str]
    prompt_tokens: int
    generated_tokens: int
    pages: int


class StepView(Struct, frozen=True, kw_only=True):
    """One step as it ran. `adapters`: digests in the batch; `base`: sequences of the base model stood beside them."""

    step: int
    seconds: float
    prefill_tokens: int
    decode_tokens: int
    sequences: int
    adapters: list[str]
    base: bool


class EngineView(Struct, frozen=True, kw_only=True):
    """`adapters_in_batch`: digests of the adapters that running sequences use. `recent_steps`: oldest first."""

    base_model: str
    model: Ready
    status: Status
    seconds_since_progress: float
    adapters_in_batch: list[str]
    running: list[SequenceView]
    recent_steps: list[StepView]

    @classmethod
    def of(cls, base_model: str, engine: EngineClient, inspection: Inspection) -> EngineView:
        return cls(
            base_model=base_model,
            model=engine.ready,
            status=inspection.status,
            seconds_since_progress=engine.seconds_since_progress(),
            adapters_in_batch=sorted({digest for row in inspection.running for digest in row.adapters}),
            running=[SequenceView(**row._asdict()) for row in inspection.running],
            recent_steps=[StepView(**record._asdict()) for record in inspection.recent_steps],
        )


def _by_digest(residents: list[ResidentAdapter]) -> dict[str, ResidentAdapter]:
    return {resident.digest: resident for resident in residents}


def _resident(
    version: VersionInfo, host: dict[str, ResidentAdapter], device: dict[str, ResidentAdapter]
) -> ResidentVersion:
    residency: list[Tier] = ["disk"]
    if version.digest in host:
        residency.append("host")
    if version.digest in device:
        residency.append("device")
    return ResidentVersion(
        version=version.number,
        digest=version.digest,
        size_bytes=version.size_bytes,
        rank=version.max_rank,
        residency=residency,
        leases=device[version.digest].leases if version.digest in device else 0,
    )
