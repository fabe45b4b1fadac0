"""Each file starts with empty compilation caches: a process that keeps hundreds of compiled
programs runs out of memory maps, and XLA ends it without a word."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import jax
import pytest


@pytest.fixture(autouse=True, scope="module")
def empty_caches() -> Iterator[None]:
    yield
    from jopa_ppl.inference.vmp import _COMPILED
    _COMPILED.entries.clear()
    jax.clear_caches()
    gc.collect()
