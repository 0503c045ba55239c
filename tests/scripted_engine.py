"""The routes of OpenAI's API over an engine that says what it was told to. A token is a byte."""

import dataclasses
import json
from collections.abc import AsyncIterator
from types import SimpleNamespace

from litestar import Litestar
from litestar.di import Provide
from litestar.testing import TestClient

from loraplex.adapters.audit import SERVER
from loraplex.adapters.profile import DEFAULT_PROFILE
from loraplex.engine.client import EngineUnavailable
from loraplex.engine.messages import TokenChunk
from loraplex.platform.anthropic.errors import error_body
from loraplex.platform.anthropic.routes import ANTHROPIC_ROUTES, MESSAGES_PATH
from loraplex.platform.budgets.keeper import BudgetKeeper
from loraplex.platform.catalog import Catalog
from loraplex.platform.errors import exception_handlers
from loraplex.platform.ledger.meter import metering
from loraplex.platform.limits.limiter import Limiter
from loraplex.platform.limits.shared_use import SharedUse
from loraplex.platform.metrics import Metrics
from loraplex.platform.observability.tracing import NoTracing
from loraplex.platform.openai.body import JsonRequest
from loraplex.platform.openai.routes import OPENAI_ROUTES
from loraplex.platform.services import Services
from loraplex.platform.settings import Settings
from loraplex.platform.tenants import Principal
from loraplex.platform.text_codecs import TextCodecs
from loraplex.platform.use_log import UseLog

ACME = Principal(key_id="k", tenant_id="t", tenant="acme", scopes=frozenset({"inference"}), salt=b"salt")


class Script:
    """An engine that says what it was told to: chunks of bytes, a failure, or a refusal. A token is a byte.

    logprob: of each token, where they are asked for."""

    ready = SimpleNamespace(vocab_size=256, max_model_len=4000, model_digest="ab" * 32)

    def __init__(self, *says, finish="stop", logprob=-1.0):
        self.says = says
        self.logprob = logprob
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
        self.has_news = True
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
        logprobs = [self.script.logprob] * len(say) if self.request.sampling.logprobs else None
        return TokenChunk("r", list(say), logprobs, finish, cached_tokens=2)

    def abort(self):
        self.script.aborted += 1
        self.rest.clear()


class Scripts(Script):
    """An engine that says to each sequence what is its own."""

    def __init__(self, *scripts):
        super().__init__()
        self.scripts = scripts

    def generate(self, request):
        self.asked.append(request)
        return self.scripts[len(self.asked) - 1].generate(request)


class ByteText:
    """A codec in which a token is a byte."""

    end = None

    def encode(self, text):
        return list(text.encode())

    def __init__(self, chat_template=""):
        """chat_template: is not rendered; a conversation is what was said."""
        self.chat_template = self.tool_template = chat_template
        self.rendered = []  # (messages, options) of each conversation

    def render_chat(self, messages, options):
        self.rendered.append((messages, options))
        return self.encode("".join(message["content"] or "" for message in messages))

    def token_id(self, token):
        return None

    def end_of(self, token_ids):
        return bytes(token_ids[-16:]).decode(errors="replace")

    def encode_rendered(self, text):
        return self.encode(text)

    def token_bytes(self, token):
        return bytes([token])

    def decode(self, token_ids):
        return bytes(token_ids).decode()

    def detokenizer(self, *, special_tokens=False, markers=()):
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


class Trusting:
    """Grammars are what they seem."""

    async def take(self, owner, grammar):
        return grammar


class SeenLedger:
    """What would be written into the usage ledger."""

    server_id = "here"
    epoch = epochs_written = 0

    def __init__(self):
        self.settled = []
        self.refused = []

    def open(self, record):
        return 0

    def require_room(self):
        pass

    def note(self, slot, tokens):
        pass

    def settle(self, slot, record):
        self.settled.append(record)

    def refuse(self, slot, record):
        self.refused.append(record)


class OneProfile:
    def __init__(self, profile):
        self.profile = profile

    async def of(self, version):
        return self.profile


class Api:
    """The routes over a scripted engine. profile: of all models."""

    def __init__(self, engine, text=None, profile=DEFAULT_PROFILE, **settings):
        self.engine = engine
        self.text = text or ByteText()
        self.metrics = SeenMetrics()
        self.ledger = SeenLedger()
        unused = {field.name: None for field in dataclasses.fields(Services)}
        services = Services(
            **unused
            | {
                "engine": engine,
                "text": self.text,
                "codecs": TextCodecs(self.text, None),
                "catalog": Catalog(None, SimpleNamespace(subscribe=lambda listener: None), "base"),
                "profile_cache": OneProfile(profile),
                "metrics": self.metrics,
                "tracing": NoTracing(),
                "uses": UseLog(),
                "limiter": Limiter(SharedUse(None)),
                "grammars": Trusting(),
                "base_model_name": "base",
                "settings": Settings(max_choices_per_request=8, **settings),
            }
        )
        self.app = Litestar(
            [*OPENAI_ROUTES, *ANTHROPIC_ROUTES],
            dependencies={
                "services": Provide(lambda: services, sync_to_thread=False),
                "principal": Provide(lambda: ACME, sync_to_thread=False),
                "tenant_id": Provide(lambda: ACME.tenant_id, sync_to_thread=False),
                "upload_slots": Provide(lambda: None, sync_to_thread=False),
                "by": Provide(lambda: SERVER, sync_to_thread=False),
            },
            guards=[lambda connection, _handler: connection.scope.update(auth=ACME)],
            exception_handlers=exception_handlers({MESSAGES_PATH: error_body}),
            request_class=JsonRequest,
            middleware=[metering(self.ledger, BudgetKeeper(None, self.ledger))],
            openapi_config=None,
            logging_config=None,
        )

    def chat(self, **fields):
        return self._post("chat/completions", {"messages": [{"role": "user", "content": "hello"}]} | fields)

    def complete(self, **fields):
        return self._post("completions", {"prompt": "hello"} | fields)

    def respond(self, **fields):
        """There is no store."""
        return self._post("responses", {"input": "hello", "store": False} | fields)

    def _post(self, path, fields):
        with TestClient(self.app) as client:
            return client.post(f"/v1/{path}", json={"model": "base"} | fields)

    def streamed(self, **fields):
        """The payloads of the frames, and whether [DONE] was the last."""
        response = self.chat(stream=True, **fields)
        assert response.status_code == 200
        *frames, done, rest = response.text.split("\n\n")
        return [json.loads(frame.removeprefix("data: ")) for frame in frames], (done, rest) == ("data: [DONE]", "")


def content(payloads):
    choices = [choice for payload in payloads for choice in payload.get("choices", ())]
    return [choice["delta"]["content"] for choice in choices if choice["delta"].get("content")]
