"""One sign-in through an OpenID provider: what ties its beginning to its end, and what comes of it.

Knows no HTTP and no library of the protocol, so that pages can speak of it where that is not installed.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

CALLBACK_PATH = "/admin/login/oidc/callback"
FLOW_SECONDS = 600
"""How long a person may take at the provider."""


class OidcError(Exception):
    """The sign-in failed. The message is for the log: it holds no token, code or secret."""


class ProviderUnreachable(OidcError):
    """The provider does not answer as it should; later it may."""


@dataclass(frozen=True, slots=True)
class Flow:
    """One attempt to sign in, all of it made from a secret that its browser alone keeps: so nothing is stored here, any
    server can finish it, and whoever sees the URLs of it knows nothing that would."""

    secret: str

    @classmethod
    def new(cls) -> Flow:
        return cls(secrets.token_urlsafe(32))

    @property
    def state(self) -> str:
        return self._derived(b"state")

    @property
    def nonce(self) -> str:
        return self._derived(b"nonce")

    @property
    def verifier(self) -> str:
        return self._derived(b"verifier")

    def _derived(self, what: bytes) -> str:
        return hmac.digest(self.secret.encode(), what, hashlib.sha256).hex()


@dataclass(frozen=True, slots=True)
class Identity:
    """Whom the provider knows as `subject`, and what it says of them."""

    issuer: str
    subject: str
    claims: Mapping[str, Any]


class SignInProvider(Protocol):
    """Somebody who vouches for people."""

    async def authorization_url(self, flow: Flow) -> str:
        """Where the person signs in. Raises OidcError."""

    async def identity(self, flow: Flow, code: str, issuer: str | None) -> Identity:
        """Who has signed in. code, issuer: with which the browser was sent back. Raises OidcError."""
