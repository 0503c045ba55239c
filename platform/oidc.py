"""An OpenID provider vouches for people: the authorization code flow with PKCE, and all that its tokens must hold.

Knows HTTP to one provider, whose address is the operator's setting. Knows no account, no cookie and no page. Every
answer is bounded, and no redirect is followed. Needs the extra `oidc`, so only what has a provider imports it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any, TypeVar

import httpx
import msgspec
from authlib.common.urls import add_params_to_uri, url_encode
from authlib.oauth2.auth import ClientAuth
from authlib.oauth2.rfc7636 import create_s256_code_challenge
from authlib.oidc.core import CodeIDToken
from joserfc import jwt
from joserfc.errors import InvalidKeyIdError, JoseError
from joserfc.jwk import Key, KeySet, import_key

from loraplex.platform.oidc_flow import CALLBACK_PATH, Flow, Identity, OidcError, ProviderUnreachable
from loraplex.platform.oidc_settings import OidcSettings, is_confidential

T = TypeVar("T")

MAX_ANSWER_BYTES = 1 << 20
ANSWER_SECONDS = 10
METADATA_SECONDS = 3600
RETRY_SECONDS = 5
"""Between two looks for a provider that did not answer as it should: nobody can have us ask again and again."""

KEYS_SECONDS = 3600
MIN_KEYS_SECONDS = 10
"""Between two looks for a key that is not among those we know."""

MAX_KEYS = 100
LEEWAY_SECONDS = 60
"""How far the provider's clock may be from ours."""

ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA", "Ed25519")
"""Of signatures, by keys that the provider alone has."""


class _Metadata(msgspec.Struct, frozen=True):
    issuer: str
    authorization_endpoint: str
    token_endpoint: str
    jwks_uri: str
    userinfo_endpoint: str | None = None
    id_token_signing_alg_values_supported: tuple[str, ...] = ("RS256",)
    token_endpoint_auth_methods_supported: tuple[str, ...] = ("client_secret_basic",)
    authorization_response_iss_parameter_supported: bool = False


class _Tokens(msgspec.Struct, frozen=True):
    id_token: str
    access_token: str | None = None


class _Keys(msgspec.Struct, frozen=True):
    keys: list[dict[str, Any]]


class OidcProvider:
    """settings: with `oidc_issuer`. Raises OSError where the file of the secret cannot be read."""

    def __init__(self, settings: OidcSettings, clock: Callable[[], float] = time.monotonic) -> None:
        assert settings.oidc_issuer is not None
        assert settings.oidc_client_id is not None
        self._settings = settings
        self._issuer = settings.oidc_issuer
        self._client_id = settings.oidc_client_id
        self._client_secret = settings.read_oidc_secret()
        self._redirect_uri = f"{(settings.public_url or '').rstrip('/')}{CALLBACK_PATH}"
        self._clock = clock
        self._discovering = asyncio.Lock()
        self._metadata: tuple[float, _Metadata] | None = None
        self._retry_at = 0.0
        self._keys: tuple[float, Any] | None = None

    async def authorization_url(self, flow: Flow) -> str:
        """Where the person signs in. Raises ProviderUnreachable."""
        metadata = await self._discover()
        asked = {
            "response_type": "code",
            "client_id": self._client_id,
            "redirect_uri": self._redirect_uri,
            "scope": " ".join(self._settings.oidc_scopes),
            "state": flow.state,
            "nonce": flow.nonce,
            "code_challenge": create_s256_code_challenge(flow.verifier),
            "code_challenge_method": "S256",
        }
        return str(add_params_to_uri(metadata.authorization_endpoint, list(asked.items())))

    async def identity(self, flow: Flow, code: str, issuer: str | None) -> Identity:
        """Who has signed in. code, issuer: with which the provider sent the browser back. Raises OidcError."""
        metadata = await self._discover()
        if issuer != self._issuer and (issuer is not None or metadata.authorization_response_iss_parameter_supported):
            raise OidcError("the answer is not the configured provider's")
        tokens = await self._exchange(metadata, code, flow.verifier)
        claims = await self._checked(metadata, tokens, flow.nonce)
        if tokens.access_token and metadata.userinfo_endpoint and not self._has_all(claims):
            claims = await self._completed(metadata.userinfo_endpoint, tokens.access_token, claims)
        return Identity(self._issuer, str(claims["sub"]), claims)

    async def _discover(self) -> _Metadata:
        async with self._discovering:
            if self._metadata is None or self._metadata[0] <= self._clock():
                if self._clock() < self._retry_at:
                    raise ProviderUnreachable("the provider did not answer as it should a moment ago")
                self._retry_at = self._clock() + RETRY_SECONDS
                self._metadata = self._clock() + METADATA_SECONDS, await self._read_metadata()
                self._retry_at = 0.0
            return self._metadata[1]

    async def _read_metadata(self) -> _Metadata:
        url = f"{self._issuer.rstrip('/')}/.well-known/openid-configuration"
        metadata = _decode(await self._fetch("GET", url), _Metadata)
        if metadata.issuer != self._issuer:
            raise ProviderUnreachable("the provider has another issuer than oidc_issuer says")
        endpoints = [metadata.authorization_endpoint, metadata.token_endpoint, metadata.jwks_uri]
        endpoints += [metadata.userinfo_endpoint] if metadata.userinfo_endpoint else []
        is_local = not self._issuer.startswith("https:")
        if not all(url.startswith("https:") or (is_local and is_confidential(url)) for url in endpoints):
            raise ProviderUnreachable("an endpoint of the provider is not https")
        if not set(ALGORITHMS) & set(metadata.id_token_signing_alg_values_supported):
            raise ProviderUnreachable("the provider signs by no algorithm that is taken here")
        return metadata

    async def _exchange(self, metadata: _Metadata, code: str, verifier: str) -> _Tokens:
        body = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": self._redirect_uri,
            "code_verifier": verifier,
        }
        method = "none" if self._client_secret is None else "client_secret_basic"
        if method != "none" and method not in metadata.token_endpoint_auth_methods_supported:
            method = "client_secret_post"
        signed = ClientAuth(self._client_id, self._client_secret, method)
        headers = {"content-type": "application/x-www-form-urlencoded"}
        url, headers, content = signed.prepare("POST", metadata.token_endpoint, headers, url_encode(body.items()))
        return _decode(await self._fetch("POST", url, headers, content), _Tokens)

    async def _checked(self, metadata: _Metadata, tokens: _Tokens, nonce: str) -> dict[str, Any]:
        """The claims of the ID token. Raises OidcError for one by somebody else, for somebody else, of another time."""
        algorithms = [name for name in metadata.id_token_signing_alg_values_supported if name in ALGORITHMS]
        try:
            try:
                token = jwt.decode(tokens.id_token, await self._key_set(metadata), algorithms)
            except InvalidKeyIdError:
                token = jwt.decode(tokens.id_token, await self._key_set(metadata, is_unknown=True), algorithms)
            wanted = {"iss": self._issuer, "aud": self._client_id}
            options = {name: {"essential": True, "value": value} for name, value in wanted.items()}
            about = {"nonce": nonce, "client_id": self._client_id, "access_token": tokens.access_token}
            claims = CodeIDToken(token.claims, token.header, options, about)
            claims.validate(leeway=LEEWAY_SECONDS)
        except (JoseError, ValueError, TypeError, KeyError) as error:
            raise OidcError(f"the ID token is refused: {type(error).__name__} {getattr(error, 'claim', '')}") from error
        return dict(claims)

    async def _key_set(self, metadata: _Metadata, *, is_unknown: bool = False) -> Any:
        """is_unknown: a token names a key that is not among those we know, since keys change."""
        seconds = MIN_KEYS_SECONDS if is_unknown else KEYS_SECONDS
        if self._keys is None or self._keys[0] + seconds <= self._clock():
            published = _decode(await self._fetch("GET", metadata.jwks_uri), _Keys)
            self._keys = self._clock(), KeySet(_usable(published.keys[:MAX_KEYS]))
        return self._keys[1]

    def _has_all(self, claims: Mapping[str, Any]) -> bool:
        needed = ["email"] if self._settings.oidc_email_domains else []
        return all(name in claims for name in [*needed, self._settings.oidc_role_claim.partition(".")[0]])

    async def _completed(self, url: str, access_token: str, claims: dict[str, Any]) -> dict[str, Any]:
        """With what the provider says elsewhere, where that is about the same person."""
        more = _decode(await self._fetch("GET", url, {"authorization": f"Bearer {access_token}"}), dict[str, Any])
        if more.get("sub") != claims["sub"]:
            raise OidcError("userinfo is about somebody else")
        return more | claims

    async def _fetch(self, method: str, url: str, headers: Mapping[str, str] | None = None, body: str = "") -> bytes:
        """Raises ProviderUnreachable for all but a bounded 200."""
        received = bytearray()
        headers = {"accept": "application/json", **(headers or {})}
        try:
            async with (
                asyncio.timeout(ANSWER_SECONDS),
                httpx.AsyncClient(timeout=ANSWER_SECONDS) as client,
                client.stream(method, url, headers=headers, content=body or None) as answer,
            ):
                async for part in answer.aiter_bytes():
                    received += part
                    if len(received) > MAX_ANSWER_BYTES:
                        raise ProviderUnreachable("the provider's answer is too large")
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
            raise ProviderUnreachable(f"the provider does not answer: {type(error).__name__}") from error
        if answer.status_code != httpx.codes.OK:
            kind = OidcError if answer.is_client_error else ProviderUnreachable
            raise kind(f"the provider answers {answer.status_code}")
        return bytes(received)


def _decode(body: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.MsgspecError as error:
        raise ProviderUnreachable("the provider's answer is not what OpenID Connect says") from error


def _usable(published: Iterable[dict[str, Any]]) -> list[Key]:
    """Those that can check a signature of ALGORITHMS: a provider may have others besides."""
    keys = []
    for key in published:
        if key.get("kty") in ("RSA", "EC", "OKP") and key.get("use", "sig") == "sig":
            with suppress(JoseError, ValueError, TypeError, KeyError):
                keys.append(import_key(key))
    return keys
