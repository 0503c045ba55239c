"""Decode steps as recorded CUDA graphs: one launch instead of hundreds, for any mix of adapters.

Works because `BatchBuilder` puts a step of the same shape at the same addresses: a replay reads the new step there.
Knows shapes of steps and a forward pass; knows no sequences.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from loraplex.engine.batch import BatchInputs
from loraplex.engine.decode_shapes import DecodeShape, DecodeShapes
from loraplex.engine.step_plan import StepPlan

Record = Callable[[Callable[[], None]], Callable[[], None]]
"""Takes a function that launches work on the device; gives one that repeats the same work on the same memory."""

log = logging.getLogger(__name__)


class CudaRecorder:
    """Records on the current CUDA device; what recordings need in between lies in one memory pool for all of them."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, run: Callable[[], None]) -> Callable[[], None]:
        graph = torch.cuda.CUDAGraph()
        # thread_local: an adapter may be on its way to the device in another thread
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            run()
        replay: Callable[[], None] = graph.replay
        return replay


class DecodeGraphs:
    """A recording per shape of decode step, all with one output tensor.

    The first step of a shape runs as it is, which compiles its kernels; the second is recorded and replayed. A shape
    that cannot be recorded keeps running as it is.
    """

    def __init__(self, forward: Callable[[BatchInputs], Tensor], shapes: DecodeShapes, record: Record) -> None:
        self.recorded = 0
        self.replays = 0
        self._forward = forward
        self._shapes = shapes
        self._record = record
        self._replay_of: dict[DecodeShape, Callable[[], None] | None] = {}  # None: seen once
        self._logits: Tensor | None = None  # [most rows, vocab]

    def shape_of(self, plan: StepPlan) -> DecodeShape | None:
        """What the step is to be padded to; None if it is not one for a graph."""
        return self._shapes.shape_of(plan)

    def logits(self, shape: DecodeShape, inputs: BatchInputs) -> Tensor:
        """The forward pass of a step padded to this shape: [shape.rows, vocab], valid until the next call."""
        if shape not in self._replay_of:
            self._replay_of[shape] = None
            logits = self._forward(inputs)
            if self._logits is None:
                self._logits = logits.new_empty((self._shapes.max_rows, logits.shape[1]))
            return logits
        assert self._logits is not None
        target = self._logits[: shape.rows]
        replay = self._replay_of[shape]
        if replay is None:
            replay = self._replay_of[shape] = self._recording(shape, inputs, target)
        replay()
        self.replays += 1
        return target

    def _recording(self, shape: DecodeShape, inputs: BatchInputs, target: Tensor) -> Callable[[], None]:
        def run() -> None:
            target.copy_(self._forward(inputs))

        try:
            replay = self._record(run)
        except RuntimeError as error:
            log.warning("decode steps of %s run without a CUDA graph: %s", shape, error)
            return run
        self.recorded += 1
        return replay
