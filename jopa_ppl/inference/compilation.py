"""How hard XLA should optimise: what runs once should compile fast."""

from __future__ import annotations

import jax


def once() -> dict[str, int]:
    """Options for `jax.jit` of what runs once or seldom: half the time to compile on a CPU."""
    return _level(0)


def often() -> dict[str, int]:
    """Options for what runs again and again: as fast as XLA's default at these sizes."""
    return _level(1)


def _level(level: int) -> dict[str, int]:
    on_cpu = jax.default_backend() == "cpu"
    return {"xla_backend_optimization_level": level} if on_cpu else {}
