"""NumPy's arrays as JAX can take them; a choice between pytrees."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def native(x: Any) -> Any:
    """An array in this machine's byte order; long doubles as float64."""
    if not isinstance(x, np.ndarray | np.generic) or x.dtype.kind not in "fiu":
        return x
    if x.dtype.isnative and x.dtype.char != "g":
        return x
    return x.astype(np.float64 if x.dtype.char == "g" else x.dtype.newbyteorder("="))


def where(condition: jax.Array, these: Any, others: Any) -> Any:
    """`jnp.where` of two pytrees of one structure, leaf by leaf."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), these, others)
