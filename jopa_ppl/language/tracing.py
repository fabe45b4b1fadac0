"""One program is traced at a time: NumPyro's stack of handlers is one for the whole process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from threading import RLock

import numpyro

from jopa_ppl.language.watch import LIVE

try:
    from jax.experimental.xla_metadata import set_xla_metadata
except ImportError:
    set_xla_metadata = None

LOCK = RLock()
_changes = 0        # how often a program that was traced before had changed


@contextmanager
def _handlers() -> Iterator[list]:
    """NumPyro's stack of handlers, held by this thread and afterwards as it was found."""
    with LOCK:
        stack = numpyro.primitives._PYRO_STACK
        found = list(stack)
        try:
            yield stack
        finally:
            stack[:] = found


@contextmanager
def tracing() -> Iterator[None]:
    """Around whatever runs a program: other threads wait, and however it ends, NumPyro's stack of
    handlers is left as it was found.

    JAX keeps the traces of jitted functions and of loops' bodies by the function alone, whatever
    they close over. Once a program has changed, what is traced carries a mark that tells it from
    all that was traced before.
    """
    global _changes
    with _handlers():
        for watch in list(LIVE):
            if not watch.unchanged():
                LIVE.discard(watch)
                _changes += 1
        mark = _changes and set_xla_metadata
        with set_xla_metadata(jopa_ppl=str(_changes)) if mark else nullcontext():
            yield


@contextmanager
def apart() -> Iterator[None]:
    """With none of NumPyro's handlers that are around: for a program run inside of another."""
    with _handlers() as stack:
        stack.clear()
        yield
