"""The engine process: messages from the socket into the engine, what its steps tell back into the socket.

Run as `python -m loraplex.engine.server FD` by EngineClient. When the socket closes, the process ends: it never
outlives the API process.
"""

from __future__ import annotations

import os
import queue
import signal
import socket
import sys
import threading
import time

import msgspec

from loraplex.engine.build import USER_ERRORS, BuiltEngine, build_engine
from loraplex.engine.loop import Engine
from loraplex.engine.messages import (
    FRAME_HEADER,
    HEARTBEAT_SECONDS,
    Abort,
    Decision,
    Embed,
    Evict,
    Fatal,
    FromEngine,
    Generate,
    Heartbeat,
    Inspect,
    Inspection,
    Locate,
    Located,
    Look,
    Pin,
    Ready,
    Seen,
    Shutdown,
    Site,
    Start,
    StepOutput,
    ToEngine,
    Unpin,
    Warm,
    frame,
)


class Wake:
    """Put into the inbox by a worker thread: an adapter load has made progress or a grammar is compiled, look again."""


Inbox = queue.SimpleQueue[ToEngine | Wake]


def main() -> None:
    """Serve until told to stop. Exit code 0 after `Shutdown`, 1 after `Fatal`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the API process decides
    connection = socket.socket(fileno=int(sys.argv[1]))
    inbox: Inbox = queue.SimpleQueue()
    threading.Thread(target=_read, args=(connection, inbox), daemon=True).start()
    try:
        built = _start(connection, inbox)
        serve(built.engine, connection, inbox)
    except Exception as error:
        _send(connection, Fatal(f"{type(error).__name__}: {error}"))
        raise
    built.engine.close()


def _start(connection: socket.socket, inbox: Inbox) -> BuiltEngine:
    """Build the engine that the first message asks for. A wrong setting ends the process without a traceback."""
    first = inbox.get()
    assert isinstance(first, Start), "the first message is Start"
    try:
        built = build_engine(first.settings, on_progress=lambda: inbox.put(Wake()))
    except USER_ERRORS as error:
        _send(connection, Fatal(str(error)))
        sys.exit(1)
    _send(connection, _ready(built))
    return built


def serve(engine: Engine, connection: socket.socket, inbox: Inbox) -> None:
    """Steps while there is work, sleeps on the inbox while there is none, and beats in both cases."""
    next_beat = 0.0
    ran = False
    while True:
        if not _take_messages(engine, connection, inbox, wait=not ran):
            return
        result = engine.step()
        ran = result.ran
        if result.chunks or result.failures or result.started:
            _send(connection, StepOutput(result.chunks, result.failures, result.started))
        for question_id, refusal in engine.take_pin_answers():
            _send(connection, Decision(question_id, refusal))
        if time.monotonic() >= next_beat:
            next_beat = time.monotonic() + HEARTBEAT_SECONDS
            _send(connection, Heartbeat(engine.status()))


def _take_messages(engine: Engine, connection: socket.socket, inbox: Inbox, *, wait: bool) -> bool:
    """Handle all that has come; with `wait`, sleep for the first up to a heartbeat. False after Shutdown."""
    try:
        message = inbox.get(timeout=HEARTBEAT_SECONDS) if wait else inbox.get_nowait()
        while True:
            if isinstance(message, Shutdown):
                return False
            _handle(engine, connection, message)
            message = inbox.get_nowait()
    except queue.Empty:
        return True


def _handle(engine: Engine, connection: socket.socket, message: ToEngine | Wake) -> None:
    match message:
        case Generate():
            engine.submit(
                message.request_id,
                message.prompt,
                message.sampling,
                adapters=message.adapters,
                salt=message.salt,
                after=message.after,
                grammar=message.grammar,
                priority=message.priority,
                share=message.share,
            )
        case Embed():
            engine.embed(
                message.request_id,
                message.prompt,
                adapters=message.adapters,
                priority=message.priority,
                share=message.share,
            )
        case Abort(request_id):
            engine.abort(request_id)
        case Warm(digest):
            engine.warm(digest)
        case Pin(question_id, digest, owner, seconds):
            engine.pin(question_id, digest, owner, seconds)
        case Unpin(digest, owner):
            engine.unpin(digest, owner)
        case Evict(question_id, digest):
            _send(connection, Decision(question_id, engine.evict(digest)))
        case Locate(question_id, digests):
            _send(connection, Located(question_id, engine.locate(digests)))
        case Inspect(question_id):
            _send(connection, _inspection(engine, question_id))
        case Look(question_id, after_step, after_movement):
            _send(connection, Seen(question_id, engine.look(after_step, after_movement)))


def _read(connection: socket.socket, inbox: Inbox) -> None:
    """Thread: frames into the inbox. The end of the stream is the end of the process."""
    decoder = msgspec.msgpack.Decoder(ToEngine)
    with connection.makefile("rb") as stream:
        while len(header := stream.read(FRAME_HEADER.size)) == FRAME_HEADER.size:
            (length,) = FRAME_HEADER.unpack(header)
            inbox.put(decoder.decode(stream.read(length)))
    os._exit(1)


def _send(connection: socket.socket, message: FromEngine) -> None:
    connection.sendall(frame(message))


def _ready(built: BuiltEngine) -> Ready:
    shape = built.shape
    return Ready(
        model_digest=built.model_digest,
        architecture=shape.architecture,
        vocab_size=shape.vocab_size,
        hidden_size=built.config.hidden_size,
        num_layers=shape.num_layers,
        sites=tuple(
            Site(s.name, s.in_features, tuple((p.module, p.out_features) for p in s.slices)) for s in shape.sites
        ),
        max_model_len=built.max_model_len,
        eos_token_ids=built.config.eos_token_ids,
        device=str(built.device),
        dtype=str(built.dtype).removeprefix("torch."),
        kernels=built.kernels,
        num_pages=built.num_pages,
        page_tokens=built.page_tokens,
        kv_cache_bytes=built.memory.kv_cache_bytes,
        adapter_device_bytes=built.memory.adapter_bytes,
    )


def _inspection(engine: Engine, question_id: int) -> Inspection:
    return Inspection(
        question_id=question_id,
        status=engine.status(),
        host=engine.host_adapters(),
        device=engine.device_adapters(),
        running=engine.running(),
        recent_steps=list(engine.recent_steps),
        shares=engine.shares(),
    )


if __name__ == "__main__":
    main()
