"""JAX's settings around this library's own work: what it computes does not depend on the caller's.

Missing data are NaN, precisions need float64 next to the caller's float32, and what is compiled
here is compiled whatever is traced around it; so checks that refuse these are off inside, and on
again outside. Programs are traced inside, too.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any

import jax

from jopa_ppl.errors import JopaError

try:
    from jax._src.core import trace_state_clean as _outermost
except ImportError:
    def _outermost() -> bool:
        return not isinstance(jax.numpy.zeros(()), jax.core.Tracer)

_at_once = getattr(jax.core, "eval_context", jax.ensure_compile_time_eval)
_process: list[int] = []       # the one in which JAX was first used here


@contextmanager
def ours(*traced: Any, double: bool = True) -> Iterator[None]:
    """This library's settings: no check of NaN, promotion, leaks or transfers, jit on, float64.

    What is computed inside `jax.jit`, `vmap` or `grad` of the caller is computed at once, unless
    some of the arguments `traced` is traced by them.

    Args:
        double: whether floats are of 64 bits; False leaves that to the caller.

    Raises:
        JopaError: the process was forked after JAX had been used.
    """
    if not _process:
        _process.append(os.getpid())
    refuse_forked()
    with ExitStack() as stack:
        enter = stack.enter_context
        if double:
            enter(jax.enable_x64(True))
        for name, context, value in _SETTINGS:
            if getattr(jax.config, name) not in (value, None):
                enter(context(value))
        if not _outermost() and not is_traced(traced):
            enter(_at_once())
        yield


def under_ours(fn: Callable) -> Callable:
    """A function under `ours` of what it is called with; floats as the caller has them."""
    @wraps(fn)
    def inner(*args: Any, **kwargs: Any) -> Any:
        with ours(args, kwargs, double=False):
            return fn(*args, **kwargs)

    return inner


def refuse_forked() -> None:
    """Refuse a process that was forked after JAX had been used here.

    Raises:
        JopaError: it was.
    """
    if _process and _process[0] != os.getpid():
        raise JopaError("JAX does not work in a forked process",
                        found="a process that was forked after JAX had been used",
                        expected="a process that starts afresh",
                        fix="multiprocessing.get_context('spawn'), or fork before the first run")


_SETTINGS = (
    *((f"jax_{name}", getattr(jax, name), value) for name, value in (
        ("debug_nans", False), ("debug_infs", False), ("check_tracer_leaks", False),
        ("debug_key_reuse", False), ("disable_jit", False),
        ("numpy_dtype_promotion", "standard"), ("numpy_rank_promotion", "allow"))),
    *((f"jax_transfer_guard_{way}", getattr(jax, f"transfer_guard_{way}"), "allow")
      for way in ("host_to_device", "device_to_host", "device_to_device")))


def is_traced(tree: Any) -> bool:
    """Whether an array in it is traced by JAX."""
    return any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(tree))
