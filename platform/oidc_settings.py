"""Settings of signing in through an OpenID provider: who vouches for people, and what its claims make of them.

Knows names, bounds and which belong together. Knows no protocol.
"""

from __future__ import annotations

import importlib.util
import ipaddress
import json
from pathlib import Path
from typing import Annotated, Self
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode

from loraplex.platform.schema import MAX_ISSUER_CHARS
from loraplex.platform.setting_types import Endpoint, Words

OPERATOR = "operator"
TENANT = "tenant:"


def _parse_roles(value: object) -> object:
    """`value=role,...`, or JSON where values hold commas. The order is kept: the first role that fits is taken."""
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("{"):
        return json.loads(value)
    pairs = [word.strip().rpartition("=") for word in value.split(",") if word.strip()]
    if len({name for name, _, _ in pairs}) < len(pairs):
        raise ValueError("a value is there twice")
    return {name: role for name, _, role in pairs}


Roles = Annotated[
    dict[
        Annotated[str, Field(min_length=1, max_length=255)],
        Annotated[str, Field(pattern=r"^(operator|tenant:[a-z0-9][a-z0-9._-]{0,62})$")],
    ],
    NoDecode,
    BeforeValidator(_parse_roles),
    Field(max_length=1000),
]


class OidcSettings(BaseSettings):
    """A part of `Settings`."""

    public_url: Endpoint | None = Field(
        None,
        description="Where people reach this server: https://models.example.com. A provider sends them back there.",
    )
    password_login: bool = Field(True, description="Let people sign in with passwords of this server's own.")
    oidc_issuer: Endpoint | None = Field(
        None, description="URL of an OpenID provider, exactly as its tokens name it; default: none. Needs public_url."
    )
    oidc_client_id: str | None = Field(None, min_length=1, max_length=255, description="This server's id there.")
    oidc_client_secret: SecretStr | None = Field(None, description="Its secret there; none for a public client.")
    oidc_client_secret_file: Path | None = Field(None, description="A file that holds it instead, read at the start.")
    oidc_name: str = Field(
        "single sign-on", min_length=1, max_length=40, description='What the button says: "Sign in with ...".'
    )
    oidc_scopes: Words = Field(("openid", "profile", "email"), description="What is asked for; openid is a must.")
    oidc_role_claim: str = Field(
        "groups",
        min_length=1,
        max_length=255,
        description="The claim that oidc_roles is about; dots lead into objects: realm_access.roles.",
    )
    oidc_roles: Roles = Field(
        {},
        description="What its values make of people: platform-team=operator,acme-admins=tenant:acme. The first that "
        "fits is taken; whoever has none of them does not get in.",
    )
    oidc_email_domains: Words = Field(
        (), description="Domains of which people must have a verified address besides; default: any or none."
    )

    @field_validator("oidc_issuer", "public_url")
    @classmethod
    def _require_confidential(cls, value: str | None) -> str | None:
        if value is not None and not is_confidential(value):
            raise ValueError("write https://; plain http is for this machine alone, as http://127.0.0.1:8000")
        return value

    @field_validator("oidc_scopes")
    @classmethod
    def _require_openid(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if "openid" not in value:
            raise ValueError("openid has to be among them")
        return value

    @model_validator(mode="after")
    def _check_oidc(self) -> Self:
        if self.oidc_issuer is None:
            if not self.password_login:
                raise ValueError("password_login: without it nobody gets in unless oidc_issuer is set")
            return self
        missing = [name for name in ("oidc_client_id", "public_url", "oidc_roles") if not getattr(self, name)]
        if missing:
            raise ValueError(f"oidc_issuer: it needs {' and '.join(missing)} as well")
        if len(self.oidc_issuer) > MAX_ISSUER_CHARS:
            raise ValueError(f"oidc_issuer: at most {MAX_ISSUER_CHARS} characters")
        if self.oidc_client_secret and self.oidc_client_secret_file:
            raise ValueError("oidc_client_secret: set it or oidc_client_secret_file, not both")
        try:
            self.read_oidc_secret()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"oidc_client_secret_file: it cannot be read: {type(error).__name__}") from error
        if importlib.util.find_spec("authlib") is None:
            raise ValueError("oidc_issuer: it needs the package authlib; install it with: pip install 'loraplex[oidc]'")
        return self

    def read_oidc_secret(self) -> str | None:
        """Raises OSError, UnicodeDecodeError."""
        if self.oidc_client_secret_file is not None:
            return self.oidc_client_secret_file.read_text().strip() or None
        return self.oidc_client_secret.get_secret_value() if self.oidc_client_secret else None


def is_confidential(url: str) -> bool:
    """Whether nobody on the way can read along: https, or this machine."""
    parts = urlsplit(url)
    if parts.scheme == "https":
        return True
    try:
        return parts.scheme == "http" and ipaddress.ip_address(parts.hostname or "").is_loopback
    except ValueError:
        return parts.scheme == "http" and parts.hostname == "localhost"
