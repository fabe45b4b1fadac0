"""The keys of random numbers that public methods take."""

from __future__ import annotations

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, random

from jopa_ppl.errors import JopaError
from jopa_ppl.settings import ours


def as_key(rng_key: Any) -> Array:
    """A PRNG key: as it is, `random.key` of a whole number, or key 0 for None.

    Raises:
        JopaError: it is neither, or more than one key, or a seed of more than 64 bits.
    """
    if rng_key is None:
        return _default()
    found = type(rng_key).__name__
    if isinstance(rng_key, int | np.integer) and not isinstance(rng_key, bool):
        if -2**63 <= rng_key < 2**63:
            with ours(double=False):
                return random.key(int(rng_key))
        found = f"the seed {rng_key}"
    if isinstance(rng_key, jax.Array | np.ndarray):
        typed = is_key(rng_key)
        if rng_key.ndim == (0 if typed else 1) and (typed or rng_key.dtype == np.uint32):
            return jnp.asarray(rng_key)
        found = f"an array of shape {rng_key.shape} and dtype {rng_key.dtype}"
    raise JopaError("rng_key is not a PRNG key", found=found,
                    expected="one key, jax.random.key(seed), or a whole number of 64 bits as its "
                    "seed",
                    fix="pass jax.random.key(0); of several keys pass one at a time")


@cache
def _default() -> Array:
    """Key 0, made once."""
    with ours(double=False):
        return random.key(0)


def is_key(leaf: Any) -> bool:
    """Whether it holds typed keys, as of `jax.random.key`."""
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def key_data(leaf: Any) -> Any:
    """The numbers of typed keys; anything else as it is."""
    return random.key_data(leaf) if is_key(leaf) else leaf
