"""Passwords that cost little: argon2id as it is, with the parameters that its library has for tests."""

from __future__ import annotations

import pytest
from argon2 import PasswordHasher
from argon2.profiles import CHEAPEST


@pytest.fixture(autouse=True)
def cheap_passwords(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loraplex.platform.passwords.PasswordHasher", lambda: PasswordHasher.from_parameters(CHEAPEST))
