"""Passwords of people: what one may be, and argon2id over it, at a bounded cost to the server.

Knows hashes; knows no account.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from functools import cached_property
from typing import TypeVar, TypeVarTuple

from anyio import CapacityLimiter, to_thread
from argon2 import PasswordHasher
from argon2.exceptions import VerifyMismatchError

MIN_PASSWORD_CHARS = 12
MAX_PASSWORD_CHARS = 256

MAX_AT_ONCE = 2
"""Each takes 64 MiB and four threads for some 50 ms."""
MAX_WAITING = 32

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class PasswordRefused(Exception):
    """It is too short or too long; the message says what it has to be."""


class PasswordsBusy(Exception):
    """More passwords wait to be checked than may; it passes within seconds."""


class Passwords:
    """For the tasks of one event loop."""

    def __init__(self) -> None:
        self._hasher = PasswordHasher()
        self._turns = CapacityLimiter(MAX_AT_ONCE)
        self._in_hand = 0

    async def hash(self, password: str) -> str:
        """What is stored of a password. Raises PasswordRefused, PasswordsBusy."""
        if not MIN_PASSWORD_CHARS <= len(password) <= MAX_PASSWORD_CHARS:
            raise PasswordRefused(
                f"password: take {MIN_PASSWORD_CHARS} to {MAX_PASSWORD_CHARS} characters; a sentence is easy to keep"
            )
        return await self._in_turn(self._hasher.hash, password.encode())

    async def matches(self, stored: str | None, password: str) -> bool:
        """Whether it is the password that was stored. None, for no account, takes as long. Raises PasswordsBusy."""
        if len(password) > MAX_PASSWORD_CHARS:
            return False
        return await self._in_turn(self._matches, stored, password.encode())

    def is_outdated(self, stored: str) -> bool:
        """Whether it was hashed with other parameters than those of today."""
        return self._hasher.check_needs_rehash(stored)

    def _matches(self, stored: str | None, password: bytes) -> bool:
        try:
            self._hasher.verify(stored or self._of_nobody, password)
        except VerifyMismatchError:
            return False
        return stored is not None

    async def _in_turn(self, function: Callable[[*Ts], T], *arguments: *Ts) -> T:
        if self._in_hand >= MAX_AT_ONCE + MAX_WAITING:
            raise PasswordsBusy
        self._in_hand += 1
        try:
            return await to_thread.run_sync(function, *arguments, limiter=self._turns)
        finally:
            self._in_hand -= 1

    @cached_property
    def _of_nobody(self) -> str:
        return self._hasher.hash(secrets.token_bytes(32))
