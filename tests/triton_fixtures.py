"""Triton's interpreter without what takes two thirds of its time: the tracer that measures coverage, and patching
`triton.language` at every call of a device function.

A module takes it with `pytest_plugins = ["triton_fixtures"]` and asks for `quick_interpreter`. What is computed stays
as it is, and so does what is measured: in a launch nothing of the four packages runs but functions that the coverage
report leaves out.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch


@pytest.fixture(scope="session")
def quick_interpreter() -> Iterator[None]:
    """Where kernels are compiled there is nothing to do."""
    if torch.cuda.is_available():
        yield
        return
    from triton.runtime import interpreter

    launch, patch_language = interpreter.GridExecutor.__call__, interpreter._patch_lang
    patched: set[int] = set()

    def launch_untraced(self: Any, *args: Any, **kwargs: Any) -> None:
        tracer = sys.gettrace()
        sys.settrace(None)
        patched.clear()
        try:
            launch(self, *args, **kwargs)
        finally:
            sys.settrace(tracer)

    def patch_once(function: Any) -> Any:
        """In a launch the first function of a module has patched the language for the others of that module."""
        if id(function.__globals__) in patched:
            return interpreter._LangPatchScope()
        patched.add(id(function.__globals__))
        return patch_language(function)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter.GridExecutor, "__call__", launch_untraced)
        patch.setattr(interpreter, "_patch_lang", patch_once)
        yield
