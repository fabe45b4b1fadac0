"""Which line of the user's program made an equation: the one place that reads JAX's private record
of tracebacks."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import TracebackType
from typing import Any


def _library_folders() -> tuple[str, ...]:
    modules = (sys.modules.get(name) for name in ("jax", "numpyro", "flax"))
    files = [os.path.dirname(__file__)]
    files += [module.__file__ for module in modules if module and module.__file__]
    return tuple(os.path.dirname(file) + os.sep for file in files)


def source_of(eqn: Any) -> str | None:
    """The "file:line (function)" of the innermost frame of the user's code that made the equation.

    None where it has no such frame: inside a jitted library function, whose trace starts afresh and
    may be an older, cached one.
    """
    try:
        from jax._src.source_info_util import user_frames

        libraries = _library_folders()
        for frame in user_frames(eqn.source_info.traceback):
            if not frame.file_name.startswith(libraries):
                return f"{frame.file_name}:{frame.start_line} ({frame.function_name})"
    except (ImportError, AttributeError, TypeError):
        pass
    return None


@contextmanager
def as_made_by(eqn: Any) -> Iterator[None]:
    """Equations that are traced inside are said to come from where `eqn` came from."""
    try:
        from jax._src.source_info_util import user_context
        context = user_context(eqn.source_info.traceback)
    except (ImportError, AttributeError, TypeError):
        context = nullcontext()
    with context:
        yield


def raised_at(trace: TracebackType | None) -> str:
    """The "file:line (function)" of the innermost frame of the user's code in a traceback."""
    libraries = _library_folders()
    frames = [f for f in traceback.extract_tb(trace) if not f.filename.startswith(libraries)]
    return f"{frames[-1].filename}:{frames[-1].lineno} ({frames[-1].name})" if frames else "unknown"
