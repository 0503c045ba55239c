"""People sign in on most of the tests here: their passwords cost little."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _signing_in_costs_little(cheap_passwords: None) -> None:
    """See `cheap_passwords`."""
