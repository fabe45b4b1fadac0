"""Data as distributions have them: numbers of successes and failures that a probability tells of,
and what lies outside of a support."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array
from jax.scipy.special import gammaln
from numpyro.distributions import constraints

NO_CATEGORY = np.iinfo(np.int32).max


def tally(fn: object, value: Array | None) -> tuple[Array, Array, Array] | None:
    """a, b and c of log p(value) = a log p + b log(1 - p) + c; None of other distributions, and of
    no value."""
    if value is None:
        return None
    if isinstance(fn, dist.BernoulliProbs):
        return value, 1 - value, 0.0 * value
    if isinstance(fn, dist.BinomialProbs):
        n = fn.total_count
        return value, n - value, gammaln(n + 1.0) - gammaln(value + 1.0) - gammaln(n - value + 1.0)
    if isinstance(fn, dist.GeometricProbs):
        return 0.0 * value + 1, value, 0.0 * value
    if isinstance(fn, dist.NegativeBinomialProbs):
        r = fn.total_count
        return value, r + 0.0 * value, gammaln(value + r) - gammaln(value + 1.0) - gammaln(r)
    return None


def bounds(fn: dist.Distribution) -> list[Array]:
    """What the support of fn is made of, where these are numbers of its author's."""
    return [] if fn.event_dim else [jnp.asarray(x) for x in jax.tree.leaves(fn.support)]


def marked(fn: dist.Distribution, value: Array) -> Array:
    """Data with NaN (of categories NO_CATEGORY) where they lie below or above the support of fn,
    whose density may say nothing of it. What lies between its values is left: gray pixels under a
    Bernoulli."""
    support = None if fn.event_dim else fn.support
    bounds = ((0, 1) if support is constraints.boolean else
              (getattr(support, "lower_bound", None), getattr(support, "upper_bound", None)))
    low, high = (None if isinstance(x, jax.core.Tracer) else x for x in bounds)
    if low is None and high is None:
        return value
    outside = jnp.zeros(value.shape, bool)
    if low is not None:
        outside |= value < low
    if high is not None:
        outside |= value > high
    category = isinstance(fn, dist.CategoricalProbs | dist.CategoricalLogits)
    return jnp.where(outside, NO_CATEGORY if category else jnp.nan, value)


def is_marked(value: Array) -> Array:
    """Where data were `marked`."""
    whole = jnp.issubdtype(value.dtype, jnp.integer)
    return value == NO_CATEGORY if whole else jnp.isnan(value)
