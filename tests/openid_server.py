"""An OpenID provider on this machine that says what a test has it say: also what no honest one would."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from authlib.oauth2.rfc7636 import create_s256_code_challenge
from joserfc import jwt
from joserfc.jwk import ECKey, KeySet, RSAKey

CLIENT_ID, CLIENT_SECRET = "loraplex", "s3cret-of-the-client"


@dataclass
class Provider:
    """`claims`, `userinfo`: of whoever signs in next. `spoil`: what is changed in the ID token's claims, `header` in
    its header, `metadata` in the discovery document. `asked`: paths, in order."""

    issuer: str
    key: Any = field(default_factory=lambda: RSAKey.generate_key(2048, {"kid": "one", "use": "sig"}))
    published: list[Any] = field(default_factory=list)
    claims: dict[str, Any] = field(default_factory=lambda: {"sub": "u-1", "groups": ["platform"]})
    userinfo: dict[str, Any] = field(default_factory=dict)
    spoil: dict[str, Any] = field(default_factory=dict)
    header: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    codes: dict[str, dict[str, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.published = self.published or [self.key]

    def authorize(self, url: str) -> dict[str, str]:
        """What the browser brings back after signing in there."""
        asked = {name: values[0] for name, values in parse_qs(urlsplit(url).query).items()}
        assert (asked["response_type"], asked["code_challenge_method"]) == ("code", "S256")
        code = f"code-{len(self.codes)}"
        self.codes[code] = asked
        return {"code": code, "state": asked["state"], "iss": self.issuer}

    def rotate(self) -> None:
        self.key = ECKey.generate_key("P-256", {"kid": "two", "use": "sig"})
        self.published = [self.key]

    def answer(self, path: str, body: dict[str, str], authorization: str) -> tuple[int, Any]:
        self.asked.append(path)
        match path:
            case "/.well-known/openid-configuration":
                return 200, self._discovery()
            case "/jwks":
                published = KeySet(self.published).as_dict(private=False)["keys"]
                return 200, {"keys": [{"kty": "future", "kid": "x"}, *published]}
            case "/token":
                return self._token(body, authorization)
            case "/me":
                return 200, self.userinfo
        return 404, {}

    def _discovery(self) -> dict[str, Any]:
        return {
            "issuer": self.issuer,
            "authorization_endpoint": f"{self.issuer}/authorize",
            "token_endpoint": f"{self.issuer}/token",
            "jwks_uri": f"{self.issuer}/jwks",
            "userinfo_endpoint": f"{self.issuer}/me",
            "id_token_signing_alg_values_supported": ["RS256", "ES256", "HS256", "none"],
            "authorization_response_iss_parameter_supported": True,
        } | self.metadata

    def _token(self, body: dict[str, str], authorization: str) -> tuple[int, Any]:
        asked = self.codes.pop(body["code"], None)
        is_client = authorization.startswith("Basic ")
        if (
            asked is None
            or not is_client
            or create_s256_code_challenge(body["code_verifier"]) != asked["code_challenge"]
        ):
            return 400, {"error": "invalid_grant"}
        moment = int(time.time())
        claims = {"iss": self.issuer, "aud": CLIENT_ID, "iat": moment, "exp": moment + 300, "nonce": asked["nonce"]}
        claims |= self.claims | self.spoil
        header = {"alg": "RS256" if self.key.key_type == "RSA" else "ES256", "kid": self.key.kid} | self.header
        signed = jwt.encode(header, {k: v for k, v in claims.items() if v is not None}, self.key, [header["alg"]])
        return 200, {"id_token": signed, "access_token": "at", "token_type": "Bearer"}


@contextmanager
def running_provider() -> Iterator[Provider]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._respond({})

        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers["content-length"])).decode()
            self._respond({name: values[0] for name, values in parse_qs(content).items()})

        def _respond(self, body: dict[str, str]) -> None:
            status, answer = provider.answer(urlsplit(self.path).path, body, self.headers.get("authorization", ""))
            content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        provider = Provider(f"http://127.0.0.1:{server.server_address[1]}")
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield provider
        server.shutdown()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
