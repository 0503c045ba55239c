"""`loraplex serve`: options to settings, the model to a local folder, the database up to date, then the server."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import uvloop
from pydantic import ValidationError

from loraplex.adapters.database import InvalidDatabaseUrl
from loraplex.adapters.errors import AdapterError
from loraplex.engine.client import EngineStartFailed
from loraplex.platform.cli.vllm_options import ServeCommand
from loraplex.platform.limits.rules import TenantLimits
from loraplex.platform.logging import configure_logging
from loraplex.platform.lora_modules import LoraModuleRefused, check_lora_modules
from loraplex.platform.migrate import MigrationError, upgrade_database
from loraplex.platform.server import bind, run_server
from loraplex.platform.services import Services
from loraplex.platform.settings import Settings

OPTIONS = (
    "model",
    "served_model_name",
    "host",
    "port",
    "metrics_port",
    "metrics_host",
    "data_dir",
    "database_url",
    "device",
    "dtype",
    "quantization",
    "kernels",
    "load_format",
    "tool_call_format",
    "reasoning_format",
    "max_model_len",
    "max_num_seqs",
    "max_step_tokens",
    "speculative_tokens",
    "memory_bytes",
    "kv_cache_bytes",
    "adapter_device_bytes",
    "adapter_host_bytes",
    "max_adapter_bytes",
    "max_adapter_rank",
    "pinned_share",
    "pinned_share_per_tenant",
    "tenant_limits",
    "lora_modules",
    "lora_modules_tenant",
    "lora_dirs",
    "import_sources",
    "hf_endpoint",
    "s3_endpoint",
    "s3_region",
    "drain_seconds",
    "log_level",
    "log_format",
)
"""Settings that have an option of their own; every setting has a variable LORAPLEX_<NAME>."""

LISTS = ("lora_modules", "lora_dirs")
"""Those of them that take one or more values."""


def _setting_options(command: click.Command) -> click.Command:
    for name in OPTIONS:
        field = Settings.model_fields[name]
        default = "" if field.default in (None, (), TenantLimits()) else f" [default: {field.default}]"
        metavar = "VALUE..." if name in LISTS else "VALUE"
        option = [f"--{name.replace('_', '-')}", name]
        text = f"{field.description}{default}"
        command.params.append(click.Option(option, metavar=metavar, multiple=name in LISTS, help=text))
    return command


@_setting_options
@click.command(cls=ServeCommand)
def serve(**options: str | tuple[str, ...] | None) -> None:
    """Run the server: the API process, and the engine process that owns the device.

    Every option can be set as a variable too: LORAPLEX_PORT=9000.
    """
    settings = load_settings({name: value for name, value in options.items() if value not in (None, ())})
    configure_logging(settings.log_level, settings.log_format)
    settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Bound before the model loads: a port that is taken is told at once.
    listener = _bound(settings.host, settings.port)
    metrics = None if settings.metrics_port is None else _bound(settings.metrics_host, settings.metrics_port)
    try:
        check_lora_modules(settings)
        model_path = prepare_model(settings)
        upgrade_database(settings.resolved_database_url)
        running = run_server(
            settings, model_path, listener, lambda services: announce(services, listener, metrics), metrics
        )
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            sys.exit(runner.run(running))
    except (EngineStartFailed, AdapterError, LoraModuleRefused, MigrationError, InvalidDatabaseUrl) as error:
        raise click.ClickException(str(error)) from error


def _bound(host: str, port: int) -> socket.socket:
    try:
        return bind(host, port)
    except OSError as error:
        raise click.ClickException(f"cannot listen on {host}:{port}: {error.strerror}") from error


def load_settings(options: dict[str, Any]) -> Settings:
    """Raises click.UsageError that names every wrong setting."""
    try:
        return Settings(**options)
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, wrong['loc']))}: {wrong['msg']}" for wrong in error.errors()]
        raise click.UsageError(
            "these settings are wrong (option or LORAPLEX_ variable):\n  " + "\n  ".join(lines)
        ) from error


def prepare_model(settings: Settings) -> Path:
    """The model's local folder, fetched and converted if need be, by a child process that may import anything."""
    program = [sys.executable, "-m", "loraplex.engine.models.source"]
    command = [*program, settings.model, "--data-dir", str(settings.data_dir)]
    if settings.load_format == "dummy":
        command.append("--config-only")
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    except subprocess.CalledProcessError as error:
        raise click.ClickException(f"the model {settings.model} could not be prepared; see above") from error
    return Path(done.stdout.strip().splitlines()[-1])


def announce(services: Services, listener: socket.socket, metrics: socket.socket | None) -> None:
    """Say where the server listens and what to type next. metrics: where these are, if not there."""
    url = _url_of(listener)
    ready = services.engine.ready
    default_dir = Settings.model_fields["data_dir"].default.expanduser()
    data_dir = "" if services.settings.data_dir == default_dir else f" --data-dir {services.settings.data_dir}"
    click.echo(
        f"""
Loraplex serves {services.base_model_name} at {url} ({ready.device}, {ready.dtype}; {ready.kernels})

  loraplex tenant create acme{data_dir}
  loraplex key create --tenant acme --scope inference --scope adapters{data_dir}
  curl {url}/v1/chat/completions -H "Authorization: Bearer $KEY" -H "Content-Type: application/json" \\
    -d '{{"model": "{services.base_model_name}", "messages": [{{"role": "user", "content": "Hello"}}]}}'

{_pages(services, url)}Metrics: {url if metrics is None else _url_of(metrics)}/metrics
"""
    )


def _url_of(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def _pages(services: Services, url: str) -> str:
    """Where people sign in, or make the first account."""
    token = services.setup_token.read()
    if token is None:
        return f"Admin pages: {url}/admin\n"
    text = f"Nobody can sign in yet. Make the first account at {url}/admin/setup with this token, which works once:"
    return f"{text}\n\n  {token}\n"
