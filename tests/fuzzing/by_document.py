"""Cases that schemathesis makes of the OpenAPI document alone: such as the document allows, and such as it forbids.

Keys are not its business: requests without one are made elsewhere, and would here hide what is behind the key.
"""

from __future__ import annotations

from typing import Any

import requests
import schemathesis
from fuzzing.cases import Operation
from fuzzing.documented import Undocumented
from fuzzing.site import PATIENCE_SECONDS, FuzzSite, Hang
from hypothesis.strategies import SearchStrategy
from schemathesis import Case, GenerationMode
from schemathesis.core.failures import FailureGroup
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

MODES = (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
CHECKS = [status_code_conformance, content_type_conformance, response_schema_conformance]
"""Schemathesis' own reading of the document, beside ours."""


@schemathesis.serializer("application/offset+octet-stream")
def _as_bytes(_: Any, value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode(errors="surrogatepass")


class DocumentCases:
    """By operation and mode. Send them with `send`."""

    def __init__(self, site: FuzzSite) -> None:
        document = {**site.documented.document, "paths": {}}
        for path, item in site.documented.document["paths"].items():
            document["paths"][path] = {method: {**operation, "security": []} for method, operation in item.items()}
        document["components"] = {**document["components"], "securitySchemes": {}}
        self._schema = schemathesis.openapi.from_dict(document)
        self._site = site
        self._session = site.session

    def of(self, operation: Operation, mode: GenerationMode) -> SearchStrategy[Case]:
        return self._schema[operation.path][operation.method.upper()].as_strategy(generation_mode=mode)

    def send(self, operation: Operation, case: Case) -> None:
        """Raises Undocumented, Hang."""
        who = "operator" if operation.scope == "admin" else "acme"
        headers = {name: value.decode() for name, value in self._site.authorization(who).items()}
        try:
            answer = case.call(self._site.server.url, session=self._session, headers=headers, timeout=PATIENCE_SECONDS)
        except requests.Timeout as error:
            raise Hang(f"no answer within {PATIENCE_SECONDS:g} seconds") from error
        except requests.ConnectionError as error:
            raise Undocumented(f"the connection broke: {error!r}") from error
        except requests.RequestException:
            return  # it cannot be written as HTTP
        told = {name: values[0] for name, values in answer.headers.items()}
        sent = answer.request.body if isinstance(answer.request.body, bytes) else None
        self._site.look_at(operation, sent, answer.status_code, told, answer.content)
        try:
            case.validate_response(answer, checks=CHECKS)
        except FailureGroup as group:
            raise Undocumented(str(group.exceptions[0])[:1500]) from group

    @staticmethod
    def shown(case: Case) -> str:
        return str({key: value for key, value in case.as_transport_kwargs().items() if value})[:2000]
