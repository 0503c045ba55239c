"""Every refusal has one shape, names the field at fault, and tells nothing of our insides."""

import msgspec
import pytest
from litestar import Litestar, get, post
from litestar.params import JSONBody
from litestar.testing import TestClient
from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from loraplex.adapters.errors import (
    AdapterExists,
    AdapterInvalid,
    AdapterNotFound,
    ImportEnded,
    ImportNotFound,
    InvalidName,
    TooManyImports,
    VersionNotFound,
)
from loraplex.engine.client import EngineUnavailable, GenerationFailed
from loraplex.platform.errors import MAX_MESSAGE_CHARS, ApiError, exception_handlers, to_api_error, validation_error
from loraplex.platform.tenants import TenantExists


class Inner(msgspec.Struct, forbid_unknown_fields=True):
    name: str


class Body(msgspec.Struct, forbid_unknown_fields=True):
    items: list[Inner]


@post("/body")
async def take_body(data: JSONBody[Body]) -> str:
    return "taken"


@get("/fail")
async def fail() -> str:
    raise RuntimeError("the secret of /home")


@get("/refuse")
async def refuse() -> str:
    raise AdapterExists('name: you have an adapter "bot" already')


@pytest.fixture(scope="module")
def client():
    app = Litestar(
        [take_body, fail, refuse],
        exception_handlers=exception_handlers({}),
        request_max_body_size=1000,
        openapi_config=None,
        logging_config=None,
    )
    with TestClient(app) as client:
        yield client


def error_of(response):
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    return response.status_code, body["error"]["code"], body["error"]["param"]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"", (400, "missing_required_parameter", None)),
        (b"{", (400, "invalid_json", None)),
        (b"[]", (400, "invalid_type", None)),
        (b"{}", (400, "missing_required_parameter", "items")),
        (b'{"items": "x"}', (400, "invalid_type", "items")),
        (b'{"items": [{}]}', (400, "missing_required_parameter", "items[0].name")),
        (b'{"items": [{"name": 1}]}', (400, "invalid_type", "items[0].name")),
        (b'{"items": [], "x": 1}', (400, "unknown_parameter", "x")),
        (b'{"items": [{"name": "a", "x": 1}]}', (400, "unknown_parameter", "items[0].x")),
        (b" " * 2000, (413, "request_too_large", None)),
    ],
)
def test_a_malformed_body_is_a_400_that_names_the_field(client, body, expected):
    """Whatever is wrong with a body, the status, the code and the path of the field are told."""
    assert error_of(client.post("/body", content=body, headers={"content-type": "application/json"})) == expected


def test_an_unknown_path_and_a_wrong_method_have_the_same_shape(client):
    """What Litestar refuses by itself is told in our shape."""
    assert error_of(client.get("/nope")) == (404, "unknown_url", None)
    assert error_of(client.get("/body")) == (405, "method_not_allowed", None)


def test_our_own_faults_tell_nothing(client):
    """An exception that the table does not know is a 500 without a word of it."""
    response = client.get("/fail")

    assert error_of(response) == (500, None, None)
    assert response.json()["error"]["type"] == "server_error"
    assert "secret" not in response.text


def test_a_conflict_tells_clients_not_to_retry(client):
    """OpenAI's clients retry a 409 unless a header says no."""
    response = client.get("/refuse")

    assert error_of(response) == (409, "adapter_exists", "name")
    assert response.headers["x-should-retry"] == "false"


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (InvalidName("name", "no"), 400, "invalid_value"),
        (AdapterNotFound("no"), 404, "adapter_not_found"),
        (VersionNotFound("no"), 404, "adapter_not_found"),
        (ImportNotFound("no"), 404, "import_not_found"),
        (ImportEnded("no"), 409, "import_ended"),
        (TooManyImports("no"), 429, "too_many_imports"),
        (TenantExists("no"), 409, "tenant_exists"),
        (EngineUnavailable("no", 3), 503, "engine_unavailable"),
        (GenerationFailed("adapter_load_failed", "no"), 503, "adapter_load_failed"),
        (GenerationFailed("adapter_quarantined", "no"), 400, "adapter_quarantined"),
        (GenerationFailed("something_new", "no"), 500, None),
        (KeyError("no"), 500, None),
    ],
)
def test_domain_errors_have_their_status(error, status, code):
    """The nearest class in the table decides."""
    api_error = to_api_error(error)

    assert (api_error.status, api_error.code) == (status, code)


def test_unavailability_says_when_to_come_back():
    """Retry-After is in whole seconds, 1 to 60."""
    assert to_api_error(EngineUnavailable("no", 3)).headers == {"retry-after": "3"}
    assert to_api_error(EngineUnavailable("no", 0)).headers == {"retry-after": "1"}
    assert to_api_error(EngineUnavailable("no", 900)).headers == {"retry-after": "60"}


def test_a_report_of_failed_checks_stands_in_the_details():
    """An adapter that fails its checks is refused with all of them."""
    report = [{"code": "rank_too_large", "message": "rank 512 > 256"}]

    body = to_api_error(AdapterInvalid(report)).body()

    assert body["error"]["code"] == "adapter_invalid"
    assert body["error"]["details"] == report


def test_messages_echo_a_bounded_part_of_what_was_sent():
    """A long name or value does not come back whole."""
    assert len(ApiError(400, "invalid_value", "x" * 10_000).message) < MAX_MESSAGE_CHARS + 10
    unknown = validation_error(f"Object contains unknown field `{'x' * 10_000}`")
    assert unknown.param is not None
    assert len(unknown.param) <= 100


@pytest.mark.parametrize("error", [OperationalError("select secret", {}, OSError("host db.internal")), PoolTimeout()])
def test_a_database_outage_is_a_503_that_says_when_to_return(error):
    """What passes by itself is no 500, and neither statement nor host is told."""
    refusal = to_api_error(error)

    assert (refusal.status, refusal.code) == (503, "registry_unavailable")
    assert refusal.headers == {"retry-after": "5"}
    assert "secret" not in str(refusal.body())
    assert "internal" not in str(refusal.body())
