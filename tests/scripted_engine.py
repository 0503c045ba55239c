"""The API over an engine that says what it was told to: whole routes, no database, no model.

A token is a byte.
"""

import dataclasses
import json
from collections.abc import AsyncIterator
from types import SimpleNamespace

from litestar import Litestar
from litestar.di import Provide
from litestar.testing import TestClient

from loraplex.engine.client import EngineUnavailable
from loraplex.engine.messages import TokenChunk
from loraplex.platform.catalog import Catalog
from loraplex.platform.errors import EXCEPTION_HANDLERS
from loraplex.platform.metrics import Metrics
from loraplex.platform.openai.routes import OPENAI_ROUTES
from loraplex.platform.profile_cache import ProfileCache
from loraplex.platform.services import Services
from loraplex.platform.settings import Settings
from loraplex.platform.tenants import Principal
from loraplex.platform.text_codecs import TextCodecs
from loraplex.platform.use_log import UseLog

ACME = Principal(key_id="k", tenant_id="t", tenant="acme", scopes=frozenset({"inference"}), salt=b"salt")


class Script:
    """An engine that says what it was told to: chunks of bytes, a failure, or a refusal. A token is a byte."""

    ready = SimpleNamespace(vocab_size=256, max_model_len=4000, model_digest="ab" * 32)

    def __init__(self, *says, finish="stop"):
        self.says = says
        self.finish = finish
        self.asked = []
        self.aborted = 0

    def generate(self, request):
        self.asked.append(request)
        if isinstance(self.says[0], EngineUnavailable):
            raise self.says[0]
        return ScriptedGeneration(self)


class ScriptedGeneration:
    def __init__(self, script):
        self.script = script
        self.request = script.asked[-1]
        self.started = None
        self.rest = list(script.says)

    def __aiter__(self) -> AsyncIterator[TokenChunk]:
        return self

    async def __anext__(self):
        if not self.rest:
            raise StopAsyncIteration
        say = self.rest.pop(0)
        if isinstance(say, Exception):
            raise say
        finish = None if self.rest else self.script.finish
        return TokenChunk("r", list(say), None, finish, cached_tokens=2)

    def abort(self):
        self.script.aborted += 1
        self.rest.clear()


class ByteText:
    """A codec in which a token is a byte, and a conversation is what was said. `chat_template` is not rendered."""

    end = None

    def __init__(self, chat_template=""):
        self.chat_template = self.tool_template = chat_template
        self.rendered = []

    def encode(self, text):
        return list(text.encode())

    def render_chat(self, messages, options):
        self.rendered.append((messages, options))
        return self.encode("".join(message["content"] or "" for message in messages))

    def end_of(self, token_ids):
        return bytes(token_ids[-16:]).decode(errors="replace")

    def detokenizer(self, markers):
        return ByteDetokenizer()


class ByteDetokenizer:
    def __init__(self):
        self.held = b""

    def push(self, token_ids):
        self.held += bytes(token_ids)
        try:
            text, self.held = self.held.decode(), b""
        except UnicodeDecodeError:
            return ""
        return text

    def flush(self):
        held, self.held = self.held, b""
        return held.decode(errors="replace")


class SeenMetrics(Metrics):
    def __init__(self):
        super().__init__()
        self.finished = []

    def request_finished(self, *args):
        self.finished.append(args)
        super().request_finished(*args)


class Api:
    """The routes over a scripted engine."""

    def __init__(self, engine, text=None, **settings):
        self.engine = engine
        self.text = text or ByteText()
        self.metrics = SeenMetrics()
        unused = {field.name: None for field in dataclasses.fields(Services)}
        services = Services(
            **unused
            | {
                "engine": engine,
                "settings": Settings(**settings),
                "text": self.text,
                "codecs": TextCodecs(self.text, None),
                "catalog": Catalog(None, SimpleNamespace(subscribe=lambda listener: None), "base"),
                "profile_cache": ProfileCache(None),
                "metrics": self.metrics,
                "uses": UseLog(),
                "base_model_name": "base",
            }
        )
        self.app = Litestar(
            OPENAI_ROUTES,
            dependencies={
                "services": Provide(lambda: services, sync_to_thread=False),
                "principal": Provide(lambda: ACME, sync_to_thread=False),
            },
            guards=[lambda connection, _handler: connection.scope.update(auth=ACME)],
            exception_handlers=EXCEPTION_HANDLERS,
            openapi_config=None,
            logging_config=None,
        )

    def chat(self, **fields):
        body = {"model": "base", "messages": [{"role": "user", "content": "hello"}]} | fields
        with TestClient(self.app) as client:
            return client.post("/v1/chat/completions", json=body)

    def streamed(self, **fields):
        """The payloads of the frames, and whether [DONE] was the last."""
        response = self.chat(stream=True, **fields)
        assert response.status_code == 200
        *frames, done, rest = response.text.split("\n\n")
        return [json.loads(frame.removeprefix("data: ")) for frame in frames], (done, rest) == ("data: [DONE]", "")
