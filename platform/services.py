"""The parts that handlers work with, built once by `loraplex serve` and handed to them by dependency injection."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from loraplex.adapters.aliases import AdapterAliases
from loraplex.adapters.audit_log import AuditLog
from loraplex.adapters.blobs import BlobStore
from loraplex.adapters.changes import ChangeFeed
from loraplex.adapters.database import Database
from loraplex.adapters.import_jobs import ImportJobs
from loraplex.adapters.import_leases import ImportLeases
from loraplex.adapters.leases import Leases
from loraplex.adapters.pin_registry import PinRegistry
from loraplex.adapters.profile_store import ProfileStore
from loraplex.adapters.quarantine import Quarantine
from loraplex.adapters.registry import AdapterRegistry
from loraplex.adapters.types import BaseShape, LoraSite, LoraSlice
from loraplex.adapters.upload_files import UploadFiles
from loraplex.adapters.upload_sessions import UploadLimits, UploadSessions
from loraplex.engine.client import EngineClient
from loraplex.engine.grammar_checks import GrammarChecks
from loraplex.engine.messages import Ready
from loraplex.engine.text import TextCodec
from loraplex.engine.untrusted_templates import UntrustedTemplates
from loraplex.platform.accounts import AccountDirectory
from loraplex.platform.audit_chain import AuditChain
from loraplex.platform.batches.file_store import FileStore
from loraplex.platform.batches.files import FileLimits, Files
from loraplex.platform.batches.leases import BatchLeases
from loraplex.platform.batches.rows import Batches
from loraplex.platform.budgets.keeper import BudgetKeeper
from loraplex.platform.budgets.owners import BudgetOwners
from loraplex.platform.catalog import Catalog
from loraplex.platform.diagnostics import Diagnostics
from loraplex.platform.idempotency_keys import IdempotencyKeys
from loraplex.platform.identities import IdentityDirectory
from loraplex.platform.key_changes import KeyChanges
from loraplex.platform.ledger.ledger import Ledger
from loraplex.platform.ledger.prices import Prices
from loraplex.platform.ledger.queries import UsageQueries
from loraplex.platform.limits.limiter import Limiter
from loraplex.platform.limits.owners import LimitOwners, quotas
from loraplex.platform.limits.shared_use import SharedUse
from loraplex.platform.live.feed import LiveFeed
from loraplex.platform.live.names import LiveNames
from loraplex.platform.login_throttle import LoginThrottle
from loraplex.platform.metrics import Metrics
from loraplex.platform.observability.engine_metrics import EngineMetrics
from loraplex.platform.observability.server_metrics import LedgerMetrics, ServerMetrics
from loraplex.platform.observability.tracing import Tracing, tracing_of
from loraplex.platform.observability.vllm_metrics import VllmMetrics
from loraplex.platform.oidc_flow import SignInProvider
from loraplex.platform.openai.responses.store import ResponseLimits, ResponseStore
from loraplex.platform.passwords import Passwords
from loraplex.platform.pins import PinKeeper
from loraplex.platform.profile_cache import ProfileCache
from loraplex.platform.proof import Prover
from loraplex.platform.settings import Settings
from loraplex.platform.setup_token import SetupToken
from loraplex.platform.tenants import TenantDirectory
from loraplex.platform.text_codecs import TextCodecs
from loraplex.platform.tokenizer_checks import TokenizerChecks
from loraplex.platform.use_log import UseLog
from loraplex.platform.web_sessions import WebSessions


@dataclass(frozen=True)
class Services:
    """Lives as long as the server. `text`: the base's. `base_shape`: what an uploaded adapter has to fit."""

    settings: Settings
    engine: EngineClient
    text: TextCodec
    codecs: TextCodecs
    tokenizer_checks: TokenizerChecks
    templates: UntrustedTemplates
    grammars: GrammarChecks
    tenants: TenantDirectory
    key_changes: KeyChanges
    accounts: AccountDirectory
    identities: IdentityDirectory
    oidc: SignInProvider | None
    web_sessions: WebSessions
    logins: LoginThrottle
    setup_token: SetupToken
    limit_owners: LimitOwners
    shared_use: SharedUse
    limiter: Limiter
    ledger: Ledger
    usage: UsageQueries
    budgets: BudgetKeeper
    budget_owners: BudgetOwners
    prices: Prices
    audit: AuditLog
    audit_chain: AuditChain
    registry: AdapterRegistry
    aliases: AdapterAliases
    profiles: ProfileStore
    profile_cache: ProfileCache
    imports: ImportJobs
    import_leases: ImportLeases
    quarantine: Quarantine
    blobs: BlobStore
    uploads: UploadSessions
    upload_files: UploadFiles
    files: Files
    file_store: FileStore
    batches: Batches
    batch_leases: BatchLeases
    responses: ResponseStore
    idempotency: IdempotencyKeys
    leases: Leases
    catalog: Catalog
    changes: ChangeFeed
    prover: Prover
    pins: PinKeeper
    uses: UseLog
    live: LiveFeed
    metrics: Metrics
    tracing: Tracing
    diagnostics: Diagnostics
    base_shape: BaseShape
    base_model_name: str


def assemble(settings: Settings, database: Database, engine: EngineClient, model_path: Path) -> Services:
    """The parts over a database, whose tables are there, and a running engine. Whoever asks for them closes
    `templates`, `grammars`, `ledger` and `tracing`. Raises OSError where the data folder cannot be written."""
    registry = AdapterRegistry(database, quotas(settings.tenant_limits))
    tenants = TenantDirectory(database, settings.tenant_limits)
    changes, shared_use = ChangeFeed(database), SharedUse(database)
    text, templates, profiles = TextCodec(model_path), UntrustedTemplates(), ProfileStore(database)
    blobs, audit = BlobStore(settings.adapters_dir), AuditLog(database)
    ledger = Ledger(settings.ledger_dir, database, max_bytes=settings.max_ledger_bytes)
    metrics = metrics_of(settings, database, engine, ledger)
    return Services(
        settings=settings,
        engine=engine,
        text=text,
        codecs=TextCodecs(text, blobs),
        tokenizer_checks=TokenizerChecks(text),
        templates=templates,
        grammars=GrammarChecks(text.tokenizer_path, engine.ready.vocab_size, engine.ready.eos_token_ids),
        accounts=AccountDirectory(database, Passwords()),
        identities=IdentityDirectory(database, settings),
        oidc=_oidc_provider(settings),
        web_sessions=WebSessions(
            database,
            idle=timedelta(seconds=settings.session_idle_seconds),
            longest=timedelta(seconds=settings.session_max_seconds),
        ),
        logins=LoginThrottle(),
        setup_token=SetupToken(settings.data_dir),
        tenants=tenants,
        key_changes=KeyChanges(database),
        limit_owners=LimitOwners(database),
        shared_use=shared_use,
        limiter=Limiter(shared_use),
        ledger=ledger,
        usage=UsageQueries(database),
        budgets=BudgetKeeper(database, ledger),
        budget_owners=BudgetOwners(database),
        prices=Prices(database),
        audit=audit,
        audit_chain=AuditChain(audit),
        registry=registry,
        aliases=AdapterAliases(database),
        profiles=profiles,
        profile_cache=ProfileCache(profiles),
        imports=ImportJobs(database),
        import_leases=ImportLeases(database),
        quarantine=Quarantine(database),
        blobs=blobs,
        uploads=UploadSessions(database, _upload_limits(settings)),
        upload_files=UploadFiles(settings.adapters_dir),
        files=Files(database, FileLimits(settings.max_files_per_tenant, settings.max_file_bytes_per_tenant)),
        file_store=FileStore(settings.files_dir),
        batches=Batches(database),
        batch_leases=BatchLeases(database),
        responses=ResponseStore(database, _response_limits(settings)),
        idempotency=IdempotencyKeys(database),
        leases=Leases(database),
        catalog=Catalog(registry, changes, settings.base_model_name),
        changes=changes,
        prover=Prover(engine, text, templates),
        pins=PinKeeper(PinRegistry(database), engine, changes, settings.base_model_name),
        uses=UseLog(),
        live=_live_feed(settings, engine, registry, tenants),
        metrics=metrics,
        tracing=tracing_of(settings),
        diagnostics=Diagnostics(database, settings, engine, blobs),
        base_shape=_base_shape(engine.ready),
        base_model_name=settings.base_model_name,
    )


def metrics_of(settings: Settings, database: Database, engine: EngineClient, ledger: Ledger) -> Metrics:
    """Only a port of their own has series of tenants and adapters."""
    has_port = settings.metrics_port is not None
    metrics = Metrics(
        owner_series=settings.metrics_owner_series if has_port else 0, owner_labels=settings.metrics_owner_labels
    )
    metrics.registry.register(EngineMetrics(engine, settings.adapter_host_bytes))
    ServerMetrics(database, settings.data_dir).register(metrics.registry)
    metrics.registry.register(LedgerMetrics(ledger))
    if settings.vllm_metrics:
        metrics.registry.register(VllmMetrics(metrics, engine, settings.base_model_name, settings.max_num_seqs))
    return metrics


def _oidc_provider(settings: Settings) -> SignInProvider | None:
    """Raises OSError where the file of its secret cannot be read."""
    if settings.oidc_issuer is None:
        return None
    from loraplex.platform.oidc import OidcProvider  # of an extra, which the settings have asked for by now

    return OidcProvider(settings)


def _live_feed(
    settings: Settings, engine: EngineClient, registry: AdapterRegistry, tenants: TenantDirectory
) -> LiveFeed:
    return LiveFeed(
        engine,
        LiveNames(registry, tenants, settings.base_model_name),
        settings.base_model_name,
        max_sequences=settings.max_num_seqs,
        max_step_tokens=settings.max_step_tokens,
        host_bytes=settings.adapter_host_bytes,
    )


def _base_shape(ready: Ready) -> BaseShape:
    """The shape that the loaded model announces."""
    sites = tuple(
        LoraSite(site.name, site.in_features, tuple(LoraSlice(module, width) for module, width in site.slices))
        for site in ready.sites
    )
    return BaseShape(ready.architecture, ready.vocab_size, ready.num_layers, sites)


def _upload_limits(settings: Settings) -> UploadLimits:
    """What each tenant may have under way in pieces: there is always room for two of the largest adapters."""
    return UploadLimits(
        max_open=settings.max_open_uploads,
        max_bytes=max(settings.max_open_upload_bytes, 2 * settings.max_adapter_bytes),
        lifetime=timedelta(seconds=settings.upload_expiry_seconds),
    )


def _response_limits(settings: Settings) -> ResponseLimits:
    """A conversation that is stored may be as large as one that is sent."""
    return ResponseLimits(
        max_responses=settings.max_responses_per_tenant,
        max_bytes=settings.max_response_bytes_per_tenant,
        lifetime=timedelta(days=settings.response_days),
        conversation_bytes=settings.max_body_bytes,
    )
