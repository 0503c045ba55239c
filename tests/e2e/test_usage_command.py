"""`loraplex usage` as people type it, against a running server."""

from __future__ import annotations

import csv
import io
import json

import pytest
from e2e.server import eventually, loraplex


@pytest.fixture
def key(site):
    """Of a tenant that has asked once."""
    key = site.server.create_tenant("meter")
    site.server.openai(key).completions.create(
        model="tiny", prompt="Hello", max_tokens=4, extra_body={"ignore_eos": True}
    )
    return key


def test_usage_is_shown_and_exported(site, key):
    """A tenant's own, and with an operator's key any tenant's: as a table, as JSON, and as CSV."""
    own = f"--url={site.server.url}", f"--key={key}"
    operators = f"--url={site.server.url}", f"--key={site.server.admin_key}", "--tenant=meter"

    [summed] = eventually(lambda: json.loads(loraplex("usage", "--json", *own)), bool)
    assert (summed["requests"], summed["completion_tokens"], summed["adapter"]) == (1, 4, "")
    [entry] = csv.DictReader(io.StringIO(loraplex("usage", "--requests", "--csv", *operators)))
    assert (entry["tenant"], entry["completion_tokens"], entry["finish_reason"]) == ("meter", "4", "length")
    assert "(base)" in loraplex("usage", "--by=adapter", "--step=hour", *operators)
