"""The one-time token with which the first account is made: a file that only the server's own user can read.

Knows a file. Whoever can read the server's output or its data folder is its operator; nobody else can begin.
"""

from __future__ import annotations

import hmac
import secrets
from pathlib import Path

SETUP_TOKEN_FILE = "setup-token"  # noqa: S105  a file's name


class SetupToken:
    """Below the data folder. A token that is issued takes the place of the one before it."""

    def __init__(self, data_dir: Path) -> None:
        self._path = data_dir / SETUP_TOKEN_FILE

    @property
    def path(self) -> Path:
        return self._path

    def issue(self) -> str:
        """A new token, which is in the file."""
        token = secrets.token_urlsafe(32)
        draft = self._path.with_suffix(".new")
        draft.unlink(missing_ok=True)
        draft.touch(mode=0o600, exist_ok=False)
        draft.write_text(token + "\n")
        draft.replace(self._path)
        return token

    def matches(self, token: str) -> bool:
        """Whether it is the token that was issued last and not used."""
        issued = self.read()
        return issued is not None and hmac.compare_digest(issued.encode(), token.strip().encode())

    def read(self) -> str | None:
        """The token that was issued last and not used; None: there is none."""
        try:
            return self._path.read_text().strip() or None
        except OSError:
            return None

    def withdraw(self) -> None:
        """No token opens anything from here on."""
        self._path.unlink(missing_ok=True)
