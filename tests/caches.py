"""What is compiled stays in a process until it is forgotten."""

from __future__ import annotations

import jax

from jopa_ppl.engine.compiled import COMPILED


def forget() -> None:
    """Drop all compiled programs: a process that keeps hundreds runs out of memory maps."""
    COMPILED.entries.clear()
    jax.clear_caches()
