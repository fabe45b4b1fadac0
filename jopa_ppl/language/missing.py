"""What is missing in data: NaN, and the masked entries of NumPy's masked arrays."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array
from jax.typing import ArrayLike
from numpyro.distributions import constraints


class _Gaps(dist.MaskedDistribution):
    """Masked where data are missing: a mask that goes when other data take their place."""


def from_list(value: Any) -> Any:
    """A list of numbers as an array, None and NumPy's `masked` in it as NaN; anything else as it
    is."""
    if not isinstance(value, list | tuple):
        return value
    gone = lambda x: x is None or x is np.ma.masked
    return jnp.asarray(jax.tree.map(lambda x: np.nan if gone(x) else x, value, is_leaf=gone))


def from_masked(tree: Any) -> Any:
    """A pytree with NaN where its NumPy masked arrays are masked, whole numbers and booleans as
    floats then; one without such arrays is returned as it is."""
    if not any(isinstance(x, np.ma.MaskedArray) for x in jax.tree.leaves(tree)):
        return tree
    return jax.tree.map(unmasked, tree)


def unmasked(x: Any) -> Any:
    """As `from_masked`, of one leaf."""
    if not isinstance(x, np.ma.MaskedArray):
        return x
    if not np.ma.getmaskarray(x).any():
        return np.asarray(x.data)
    return x.astype(np.result_type(x.dtype, np.float32)).filled(np.nan)


def filled(value: Array, other: Array) -> Array:
    """`value`, and `other` where that is missing."""
    return jnp.where(jnp.isnan(value), other, value)


def mask_missing(fn: dist.Distribution, obs: ArrayLike) -> tuple[dist.Distribution, Array]:
    """Mask the NaNs of `obs` out of `fn`: elementwise where the elements are independent.

    Returns the masked distribution and `obs` with its NaNs replaced by feasible values.
    """
    obs = from_masked(obs)
    if not isinstance(obs, jax.core.Tracer):
        array = np.asarray(obs)
        if array.dtype.kind != "f" or not np.isnan(array).any():
            return fn, jnp.asarray(obs)
    obs = jnp.asarray(obs)
    if not jnp.issubdtype(obs.dtype, jnp.floating):
        return fn, obs
    missing = jnp.isnan(obs)
    clean = jnp.where(missing, 0.0 if _holds_zero(fn.support) else 1.0, obs).astype(obs.dtype)
    return _mask(fn, ~missing), clean


def _holds_zero(support: Any) -> bool:
    base = getattr(support, "base_constraint", support)
    return not (base is constraints.positive or base is constraints.positive_definite
                or base is constraints.open_interval)


def _mask(fn: dist.Distribution, present: Array) -> dist.Distribution:
    if isinstance(fn, dist.Independent):
        # Elements of a `to_event` distribution are independent, so each can be missing alone.
        return dist.Independent(_mask(fn.base_dist, present), fn.reinterpreted_batch_ndims)
    if isinstance(fn, dist.MaskedDistribution):              # so they are under the caller's mask
        return type(fn)(_mask(fn.base_dist, present), fn._mask)
    if isinstance(fn, dist.ExpandedDistribution) and fn.event_dim:
        inner = _expanded(fn.base_dist, fn.batch_shape)
        if not isinstance(inner, dist.ExpandedDistribution):
            return _mask(inner, present)
    event = tuple(range(present.ndim - fn.event_dim, present.ndim))
    return _Gaps(fn, present.all(axis=event) if event else present)


def _expanded(fn: dist.Distribution, shape: tuple[int, ...]) -> dist.Distribution:
    """`fn` expanded to a batch shape, inside what is wrapped around it."""
    if isinstance(fn, dist.MaskedDistribution):
        inner, mask = _expanded(fn.base_dist, shape), fn._mask
        return type(fn)(inner, mask if isinstance(mask, bool) else jnp.broadcast_to(mask, shape))
    if isinstance(fn, dist.ExpandedDistribution):
        return _expanded(fn.base_dist, shape)
    return fn.expand(shape)            # an Independent takes it inside by itself


def data_of(msg: dict) -> ArrayLike | None:
    """The data of a site's message, NaN where missing: `observe` fills its own gaps."""
    clean, given = msg["infer"].get("jopa_given", (None, None))
    return given if clean is not None and msg["value"] is clean else msg["value"]


def without_gaps(fn: dist.Distribution) -> dist.Distribution:
    """`fn` without what `mask_missing` masked."""
    if isinstance(fn, _Gaps):
        return fn.base_dist
    if isinstance(fn, dist.Independent):
        return dist.Independent(without_gaps(fn.base_dist), fn.reinterpreted_batch_ndims)
    if isinstance(fn, dist.MaskedDistribution):
        return without_gaps(fn.base_dist).mask(fn._mask)
    if isinstance(fn, dist.ExpandedDistribution):
        return without_gaps(fn.base_dist).expand(fn.batch_shape)
    return fn
