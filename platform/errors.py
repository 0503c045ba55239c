"""The one shape of every error, and the one table from exceptions to it.

Every error body is OpenAI's: {"error": {"message", "type", "param", "code"}}, plus "details" where a report belongs to
it; but for paths that are said to have another. Knows Litestar's exceptions and our domain errors; knows no route. What
is not in the table is our own fault: a 500 that tells the client nothing and the log everything.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import msgspec
import structlog
from litestar import Request, Response
from litestar.exceptions import (
    ClientException,
    HTTPException,
    MethodNotAllowedException,
    NotFoundException,
    SerializationException,
    ValidationException,
)
from litestar.types import ExceptionHandlersMap
from sqlalchemy.exc import OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from loraplex.adapters.errors import (
    AdapterExists,
    AdapterInvalid,
    AdapterNotFound,
    AdapterUnavailable,
    AliasMoved,
    BaseModelConflict,
    BaseModelUnknown,
    ChecksumMismatch,
    ImportEnded,
    ImportNotFound,
    InvalidName,
    NothingToRestore,
    ProfileChanged,
    StorageLimitReached,
    TooManyImports,
    UploadBusy,
    UploadIncomplete,
    UploadLimitReached,
    UploadNotFound,
    VersionInUse,
    VersionNotReady,
)
from loraplex.engine.client import EngineUnavailable, GenerationFailed
from loraplex.platform.accounts import AccountExists, AccountNotFound, NoPassword, NotTheFirst, WrongCredentials
from loraplex.platform.batches.errors import (
    BatchEnded,
    FileInUse,
    FileLimitReached,
    NoSuchBatch,
    NoSuchFile,
    TooManyBatches,
)
from loraplex.platform.field_errors import field_error
from loraplex.platform.idempotency_keys import IdempotencyKeyInUse, IdempotencyKeyReused, TooManyIdempotencyKeys
from loraplex.platform.identities import NotAdmitted
from loraplex.platform.key_changes import KeyChanged, KeyEnded, RotationUnderWay
from loraplex.platform.key_terms import InvalidKeyRequest
from loraplex.platform.logging import request_id
from loraplex.platform.openai.responses.store import ConversationTooLong, ResponseNotFound
from loraplex.platform.passwords import PasswordRefused, PasswordsBusy
from loraplex.platform.tenants import (
    InvalidWeight,
    KeyNotFound,
    TenantError,
    TenantExists,
    TenantNotFound,
)

ErrorType = Literal["invalid_request_error", "server_error", "requests", "tokens", "insufficient_quota"]

MAX_MESSAGE_CHARS = 500
"""Messages quote what the client sent; this bounds the echo."""

logger = structlog.get_logger(__name__)


class ApiError(Exception):
    """An error as the client sees it. `param`: the field at fault, as a path like `messages[0].content`.

    limit: for metrics, the kind of owner whose limit was reached, and which one it was.
    """

    def __init__(
        self,
        status: int,
        code: str | None,
        message: str,
        *,
        param: str | None = None,
        type: ErrorType = "invalid_request_error",
        headers: Mapping[str, str] | None = None,
        details: Any = None,
        limit: tuple[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message if len(message) <= MAX_MESSAGE_CHARS else message[:MAX_MESSAGE_CHARS] + "..."
        self.param = param
        self.type = type
        self.headers = dict(headers or {})
        self.details = details
        self.limit = limit

    def body(self) -> dict[str, Any]:
        error = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return {"error": error if self.details is None else {**error, "details": self.details}}


def unavailable(code: str, message: str, retry_after_seconds: float) -> ApiError:
    """503 for what will pass: clients wait `retry_after_seconds` (sent as whole seconds, 1 to 60) and try again."""
    seconds = min(max(round(retry_after_seconds), 1), 60)
    return ApiError(503, code, message, type="server_error", headers={"retry-after": str(seconds)})


def unknown_url(request: Request[Any, Any, Any]) -> ApiError:
    return ApiError(404, "unknown_url", f"Unknown request URL: {request.method} {request.url.path}.")


def internal_error() -> ApiError:
    message = "The server had an error while processing your request. Give the x-request-id header when you report it."
    return ApiError(500, None, message, type="server_error")


# -- from other tellers of errors ----------------------------------------------------------------------------------


def validation_error(message: str, path: str = "") -> ApiError:
    """A 400 that names the field, from msgspec's message and, where that does not hold it, the field's path."""
    code, told, param = field_error(message, path)
    return ApiError(400, code, told, param=param)


def malformed_json(reason: str) -> ApiError:
    return ApiError(400, "invalid_json", f"The request body is not valid JSON: {reason}.")


def _from_litestar_validation(error: ValidationException) -> ApiError:
    """Litestar gives a list of {key, message, source}; the first is told. The key `data` is the body as a whole, and a
    header's key is the name of the handler's argument."""
    if not isinstance(error.extra, list) or not error.extra:
        return ApiError(400, "invalid_value", error.detail)
    first = error.extra[0]
    key, message = str(first.get("key", "")), str(first.get("message", ""))
    if first.get("source") == "header":
        key = "-".join(word.capitalize() for word in key.split("_"))
    if message == f"'{key}'":
        return ApiError(
            400,
            "missing_required_parameter",
            "The request needs a body." if key == "data" else f"Missing required parameter: '{key}'.",
            param=None if key == "data" else key,
        )
    return validation_error(message, "" if key == "data" else key)


REQUEST_ERRORS = frozenset(
    {
        "adapter_quarantined",
        "context_length_exceeded",
        "embedding_not_finite",
        "grammar_too_complex",
        "invalid_grammar",
    }
)
"""The engine's codes for what is the client's to mend."""


def _from_generation_failure(error: GenerationFailed) -> ApiError:
    """The engine's codes. One that is not known here is the engine's own fault, and its text stays in the log."""
    if error.code in REQUEST_ERRORS:
        return ApiError(400, error.code, str(error))
    if error.code == "deadline_exceeded":
        return ApiError(504, error.code, str(error), type="server_error", headers=_NO_RETRY)
    if error.code in ("adapter_load_failed", "engine_restarted", "engine_stopped", "engine_unavailable"):
        return unavailable(error.code, str(error), retry_after_seconds=5)
    return internal_error()


# -- the table -----------------------------------------------------------------------------------------------------

_NO_RETRY = {"x-should-retry": "false"}
"""OpenAI's clients retry a 409 unless told not to."""

_SOON = {"retry-after": "2"}

_BY_HTTP_STATUS: dict[int, tuple[str, str]] = {
    401: ("invalid_api_key", "The API key is missing or not valid."),
    403: ("insufficient_permissions", "This API key may not do that."),
    413: ("request_too_large", "The request body is larger than this server accepts."),
    415: ("unsupported_media_type", "The Content-Type of the request is not supported here."),
}


def _from_database_outage(error: SQLAlchemyError) -> ApiError:
    logger.error("database_unavailable", error=str(error.__cause__ or error))
    return unavailable("registry_unavailable", "The registry cannot be reached now; try again shortly.", 5)


TRANSLATIONS: dict[type[Exception], Callable[[Any], ApiError]] = {
    ApiError: lambda e: e,
    # what the client sent
    msgspec.ValidationError: lambda e: validation_error(str(e)),
    msgspec.DecodeError: lambda e: malformed_json(str(e)),
    ValidationException: _from_litestar_validation,
    # adapters
    InvalidName: lambda e: ApiError(400, "invalid_value", str(e), param=e.field),
    AdapterNotFound: lambda e: ApiError(404, "adapter_not_found", str(e)),
    AdapterExists: lambda e: ApiError(409, "adapter_exists", str(e), param="name", headers=_NO_RETRY),
    AliasMoved: lambda e: ApiError(412, "alias_moved", str(e), param="If-Match", headers=_NO_RETRY),
    ProfileChanged: lambda e: ApiError(412, "profile_changed", str(e), param="If-Match", headers=_NO_RETRY),
    NothingToRestore: lambda e: ApiError(409, "nothing_to_restore", str(e), headers=_NO_RETRY),
    StorageLimitReached: lambda e: ApiError(429, "storage_limit_reached", str(e), type="requests", headers=_NO_RETRY),
    VersionNotReady: lambda e: ApiError(409, "version_not_ready", str(e), param="version", headers=_NO_RETRY),
    VersionInUse: lambda e: ApiError(409, "version_in_use", str(e), headers=_NO_RETRY),
    BaseModelConflict: lambda e: ApiError(409, "base_model_conflict", str(e), headers=_NO_RETRY),
    AdapterInvalid: lambda e: ApiError(400, "adapter_invalid", str(e), details=e.report),
    BaseModelUnknown: lambda e: ApiError(400, "base_model_unknown", str(e), param="base_model"),
    ImportNotFound: lambda e: ApiError(404, "import_not_found", str(e)),
    ImportEnded: lambda e: ApiError(409, "import_ended", str(e), headers=_NO_RETRY),
    TooManyImports: lambda e: ApiError(429, "too_many_imports", str(e), type="requests", headers={"retry-after": "30"}),
    AdapterUnavailable: lambda e: unavailable("adapter_unavailable", str(e), retry_after_seconds=5),
    # uploads in pieces
    UploadNotFound: lambda e: ApiError(404, "upload_not_found", str(e)),
    UploadLimitReached: lambda e: ApiError(429, "too_many_uploads", str(e), type="requests", headers=_NO_RETRY),
    UploadBusy: lambda e: ApiError(409, "upload_busy", str(e), headers=_SOON),
    UploadIncomplete: lambda e: ApiError(409, "upload_incomplete", str(e), headers=_NO_RETRY),
    ChecksumMismatch: lambda e: ApiError(400, "checksum_mismatch", str(e)),
    # files and batches
    NoSuchFile: lambda e: ApiError(404, "file_not_found", str(e), param=e.field),
    FileInUse: lambda e: ApiError(409, "file_in_use", str(e), param="file_id", headers=_NO_RETRY),
    FileLimitReached: lambda e: ApiError(429, "too_many_files", str(e), type="requests", headers=_NO_RETRY),
    NoSuchBatch: lambda e: ApiError(404, "batch_not_found", str(e), param="batch_id"),
    BatchEnded: lambda e: ApiError(409, "batch_ended", str(e), param="batch_id", headers=_NO_RETRY),
    TooManyBatches: lambda e: ApiError(429, "too_many_batches", str(e), type="requests", headers=_NO_RETRY),
    # stored responses
    ResponseNotFound: lambda e: ApiError(404, e.code, str(e), param=e.field),
    ConversationTooLong: lambda e: ApiError(400, "context_length_exceeded", str(e), param=e.field),
    # requests that clients named
    IdempotencyKeyInUse: lambda e: ApiError(409, "idempotency_key_in_use", str(e), headers=_SOON),
    IdempotencyKeyReused: lambda e: ApiError(422, "idempotency_key_reused", str(e)),
    TooManyIdempotencyKeys: lambda e: ApiError(
        429, "too_many_idempotency_keys", str(e), type="requests", headers=_NO_RETRY
    ),
    # the database: down, locked, or all its connections in use
    OperationalError: _from_database_outage,
    PoolTimeout: _from_database_outage,
    # tenants and keys
    TenantError: lambda e: ApiError(400, "invalid_value", str(e)),
    TenantExists: lambda e: ApiError(409, "tenant_exists", str(e), param="slug", headers=_NO_RETRY),
    TenantNotFound: lambda e: ApiError(404, "tenant_not_found", str(e)),
    KeyNotFound: lambda e: ApiError(404, "key_not_found", str(e)),
    InvalidKeyRequest: lambda e: ApiError(400, "invalid_value", str(e), param=str(e).partition(":")[0]),
    KeyChanged: lambda e: ApiError(412, "key_changed", str(e), param="If-Match", headers=_NO_RETRY),
    KeyEnded: lambda e: ApiError(409, "key_ended", str(e), headers=_NO_RETRY),
    InvalidWeight: lambda e: ApiError(400, "invalid_value", str(e), param="weight"),
    RotationUnderWay: lambda e: ApiError(409, "rotation_under_way", str(e), headers=_NO_RETRY),
    # people
    AccountExists: lambda e: ApiError(409, "account_exists", str(e), param="login"),
    AccountNotFound: lambda e: ApiError(404, "account_not_found", str(e)),
    NoPassword: lambda e: ApiError(409, "no_password", str(e), param="login"),
    NotAdmitted: lambda e: ApiError(403, "not_admitted", str(e)),
    NotTheFirst: lambda e: ApiError(409, "already_set_up", str(e), param="token"),
    WrongCredentials: lambda e: ApiError(401, "wrong_credentials", str(e), param="password"),
    PasswordRefused: lambda e: ApiError(400, "invalid_value", str(e), param="password"),
    PasswordsBusy: lambda e: unavailable("busy", "Too many people sign in now; try again in a few seconds.", 5),
    # the engine
    EngineUnavailable: lambda e: unavailable("engine_unavailable", str(e), e.retry_after_seconds),
    GenerationFailed: _from_generation_failure,
}


def to_api_error(error: Exception) -> ApiError:
    """The nearest row of the table by the class of `error`; `internal_error()` where there is none."""
    for cls in type(error).__mro__:
        if cls in TRANSLATIONS:
            return TRANSLATIONS[cls](error)
    return internal_error()


def _from_http_exception(request: Request[Any, Any, Any], error: HTTPException) -> ApiError:
    if isinstance(error, MethodNotAllowedException):
        return ApiError(405, "method_not_allowed", f"{request.method} is not allowed on {request.url.path}.")
    if isinstance(error, NotFoundException):
        return unknown_url(request)
    if error.status_code in _BY_HTTP_STATUS:
        code, message = _BY_HTTP_STATUS[error.status_code]
        return ApiError(error.status_code, code, message, headers=error.headers)
    if isinstance(error, ClientException):
        if isinstance(error.__cause__, SerializationException):
            return malformed_json(error.detail)
        return ApiError(error.status_code, "invalid_request", error.detail, headers=error.headers)
    return internal_error()


def tell(request: Request[Any, Any, Any], error: Exception) -> ApiError:
    """What the client is told of any exception. A 5xx that the table does not know is logged with its traceback."""
    if isinstance(error, HTTPException) and not isinstance(error, ValidationException):
        api_error = _from_http_exception(request, error)
    else:
        api_error = to_api_error(error)
    request.scope["state"].update(error_code=api_error.code, limit=api_error.limit)
    if api_error.status == 500:
        logger.error("request_failed", request_id=request_id(request.scope), path=request.url.path, exc_info=error)
    return api_error


ErrorBody = Callable[[ApiError, str], dict[str, Any]]
"""Of an error and the id of its request."""


def respond(
    request: Request[Any, Any, Any],
    error: Exception,
    body_of: ErrorBody = lambda error, _: error.body(),
) -> Response[dict[str, Any]]:
    """Turn any exception into its response, as `tell` has it."""
    api_error = tell(request, error)
    return Response(
        body_of(api_error, request_id(request.scope)),
        status_code=api_error.status,
        headers=api_error.headers,
        media_type="application/json",
    )


def exception_handlers(bodies: Mapping[str, ErrorBody]) -> ExceptionHandlersMap:
    """For `Litestar(exception_handlers=...)`. bodies: of paths whose errors, and those below, are not OpenAI's."""

    def handle(request: Request[Any, Any, Any], error: Exception) -> Response[dict[str, Any]]:
        path = request.scope["path"]
        for place, body_of in bodies.items():
            if path == place or path.startswith(f"{place}/"):
                return respond(request, error, body_of)
        return respond(request, error)

    return {Exception: handle, HTTPException: handle}
