"""What is traced and compiled stays in a process until it is forgotten."""

from __future__ import annotations

import jax

from jopa_ppl.engine.compiled import COMPILED
from jopa_ppl.engine.signature import TRACED
from jopa_ppl.tools.hindcast import HINDCASTS


def forget() -> None:
    """Drop all programs: a process that keeps hundreds runs out of memory maps."""
    for cache in (TRACED, COMPILED, HINDCASTS):
        cache.entries.clear()
    jax.clear_caches()
