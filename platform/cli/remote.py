"""What commands that talk to a running server share: where it is, the key, how its errors are told, what to type next.

Knows HTTP and the error envelope. Knows no endpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

import click
import httpx
import msgspec

P = ParamSpec("P")
T = TypeVar("T")

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")

TIMEOUT = httpx.Timeout(300, connect=10)


def server_options(command: Callable[Concatenate[httpx.Client, P], T]) -> Callable[..., T]:
    """Give a command `--url` and `--key`; its first argument becomes a client for that server."""

    @click.option(
        "--url", default="http://127.0.0.1:8000", envvar="LORAPLEX_URL", show_envvar=True, show_default=True,
        help="Where the server listens.",
    )  # fmt: skip
    @click.option("--key", envvar="LORAPLEX_API_KEY", show_envvar=True, metavar="KEY", help="API key, lk_...")
    @wraps(command)
    def with_client(url: str, key: str | None, *args: P.args, **kwargs: P.kwargs) -> T:
        if not key:
            raise click.UsageError("no API key; give --key or set LORAPLEX_API_KEY (loraplex key create makes one)")
        with server_errors(url), connect(url, key) as client:
            return command(client, *args, **kwargs)

    return with_client


def connect(url: str, key: str) -> httpx.Client:
    try:
        return httpx.Client(base_url=url, headers={"authorization": f"Bearer {key}"}, timeout=TIMEOUT)
    except (UnicodeEncodeError, httpx.InvalidURL) as error:
        raise click.UsageError(f"this URL or key cannot be used: {error}") from error


@contextmanager
def server_errors(url: str) -> Iterator[None]:
    """A server that cannot be reached is told in one line."""
    try:
        yield
    except httpx.ConnectError as error:
        raise click.ClickException(f"no server answers at {url}; start one with: loraplex serve") from error
    except (httpx.HTTPError, httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
        raise click.ClickException(f"{url}: {str(error) or type(error).__name__}") from error


def call(client: httpx.Client, method: str, path: str, **options: Any) -> Any:
    """The decoded answer (None where it is empty), or click.ClickException with the server's message."""
    response = client.request(method, path, **options)
    if response.is_error:
        raise refusal(response)
    return decode(response.content) if response.content else None


def refusal(response: httpx.Response) -> click.ClickException:
    """The server's own words, as `refused` tells them. The body has been read."""
    error = _error(response)
    if error is None:
        return click.ClickException(f"the server answered {response.status_code} {response.reason_phrase}")
    return refused(error)


def refused(error: dict[str, Any]) -> click.ClickException:
    """An error object, and every entry of the report that came with it."""
    failed = error.get("details") or []
    if not failed:
        return click.ClickException(told(error))
    return click.ClickException("\n  ".join([f"refused ({error.get('code')}):", *map(_detail, failed)]))


def error_code(response: httpx.Response) -> str | None:
    """The code of an error, if it has one. The body has been read."""
    code = (_error(response) or {}).get("code")
    return code if isinstance(code, str) else None


def _error(response: httpx.Response) -> dict[str, Any] | None:
    try:
        return dict(msgspec.json.decode(response.content)["error"])
    except (msgspec.DecodeError, KeyError, TypeError, ValueError):
        return None


def told(error: dict[str, Any]) -> str:
    """`message (code)` of an OpenAI error object."""
    return f"{error.get('message')}" + (f" ({error['code']})" if error.get("code") else "")


def tell_ready(client: httpx.Client, done: str, model: str) -> None:
    """What is done, and the command that talks to the model on the same server."""
    click.echo(f'{done}. Try it:\n\n  loraplex chat {model} --url {str(client.base_url).rstrip("/")} "Hello"')


def decode(content: bytes | str) -> Any:
    try:
        return msgspec.json.decode(content)
    except msgspec.DecodeError as error:
        raise click.ClickException(f"the server's answer is not JSON; is this a Loraplex server? {error}") from error


def _detail(check: Any) -> str:
    """One failed check of an upload: its code, then what is wrong and what to do."""
    return f"{check.get('code')}: {check.get('message')}" if isinstance(check, dict) else str(check)
