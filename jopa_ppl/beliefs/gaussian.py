"""What all Gaussian beliefs share: statistics with data in their place, and named distributions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array
from jax.flatten_util import ravel_pytree

from jopa_ppl.beliefs.base import Belief, Clamp
from jopa_ppl.language.distributions import ArrayNormal
from jopa_ppl.linalg.families import diagonal, gaussian_entropy

NARROW = 0.01        # of a prior's spread: how wide a belief is that starts off its prior


def restrict(matrix: Array, free: Array) -> Array:
    """A matrix (*batch, n, n) without the rows and columns where `free` (*batch, n) is 0."""
    return matrix * free[..., :, None] * free[..., None, :]


def clamped(mean: Array, cov: Array, clamp: Clamp) -> tuple[Array, Array]:
    """Moments with the elements that are data at their values, without spread.

    Args:
        mean, cov: (*batch, n) and (*batch, n, n); clamp: of the same elements.
    """
    return jnp.where(clamp.free > 0, mean, clamp.value), restrict(cov, clamp.free)


def unit_where_fixed(free: Array) -> Array:
    """Unit precision on what is not inferred keeps J positive definite and adds nothing to F."""
    return (1 - free)[..., None] * jnp.eye(free.shape[-1], dtype=free.dtype)


def free_dims(clamp: Clamp | Mapping[str, Clamp]) -> Array:
    """How many numbers of a Gaussian block are inferred."""
    parts = jax.tree.leaves(clamp, is_leaf=lambda x: isinstance(x, Clamp))
    return sum(jnp.sum(c.free) for c in parts)


def in_spreads(change: Array, variance: Array) -> Array:
    """Root mean square of a change of means, in standard deviations."""
    return jnp.sqrt(jnp.mean(change**2 / jnp.where(variance > 0, variance, 1.0)))


def square_root(cov: Array) -> Array:
    """A square root that also serves covariances with zero rows (elements that are data)."""
    values, vectors = jnp.linalg.eigh(cov)
    return vectors * jnp.sqrt(jnp.maximum(values, 0.0))[..., None, :]


def log_density(square: Array, logdet: Array, free: Array) -> Array:
    """log N from (z - m)' J (z - m), log|J| and how many elements are inferred.

    Args:
        square: (z - m)' J (z - m), a scalar.
        logdet: log|J|, of any shape, which is added up.
        free: how many elements are inferred, a scalar.
    """
    return 0.5 * (jnp.sum(logdet) - square - free * jnp.log(2 * jnp.pi))


class GaussianBelief(Belief):
    """A Gaussian: q has a `mean`, a `cov` of the pairs that its form keeps, and `logdet` of J."""

    family, gaussian, extrapolates = "gaussian", True, True
    parts = ("mean", "cov")

    def at_mean(self, stats: tuple) -> tuple:
        """The expected statistics without the spread."""
        return stats[0], *jax.tree.map(jnp.zeros_like, stats[1:])

    def entropy(self, q: Any, mask: Any) -> Array:
        return gaussian_entropy(jnp.sum(q.logdet), self.free_dims(mask))

    def once_solved(self, stats: Any, mask: Any) -> tuple[Any, Array]:
        """Of U, linear in the covariance C, the part <dU/dC, C> = -1/2 <J, C> is -n/2: no product
        of large precisions and small covariances is formed."""
        return self.at_mean(stats), -0.5 * self.free_dims(mask)

    def free_dims(self, mask: Any) -> Array | int:
        """How many numbers are inferred."""
        return free_dims(mask)

    def completed(self, q: Any, mask: Any) -> Any:
        return q._replace(**dict(zip(("mean", "cov", "cross"), self.stats(q, mask))))

    def means(self, q: Any) -> Any:
        return q.mean

    def precisions(self, message: Any, mask: Any) -> Any:
        return diagonal(-2 * message[1]) * mask.free

    def variances(self, q: Any) -> Any:
        return diagonal(q.cov)

    def moved(self, old: Any, new: Any) -> Array:
        return in_spreads(new.mean - old.mean, self.variances(new))

    def coordinates(self, q: Any) -> tuple[Array, Array]:
        return ravel_pytree(q.mean)[0], ravel_pytree(jax.tree.map(jnp.sqrt, self.variances(q)))[0]

    def at_coordinates(self, q: Any, at: Array) -> Any:
        return q._replace(mean=ravel_pytree(q.mean)[1](at))

    def site(self, q: Any, name: str) -> tuple[Array, Array]:
        """Mean (*plates, dims) and covariance (*plates, dims, dims) of a member, time in front."""
        raise NotImplementedError

    def marginal(self, q: Any, steps: tuple[Array, Array] | None = None
                 ) -> dict[str, dict[str, Array]]:
        return {n: dict(zip(self.parts, self.site(q, n))) for n in self.members}

    def shaped(self, name: str, parts: Mapping[str, Array]
               ) -> tuple[Array, Array, dict[str, Array]]:
        v = self.latents[name]
        local, lead = v.local, int(v.is_series)
        mean, variance = v.values(parts["mean"]), v.values(diagonal(parts["cov"]))
        cov = v.site.in_window(parts["cov"])
        if sorted(p.axis for p in local) == list(range(len(local))):
            cov = jnp.moveaxis(cov, [lead + i for i in range(len(local))],
                               [lead + p.axis for p in local])
        return mean, variance, {"mean": mean, "cov": cov}

    def event_dim(self, name: str) -> int:
        """Elements that are not local to a plate are one event."""
        v = self.latents[name]
        return len(v.site.shape) - len(v.local)

    def distribution(self, name: str, parts: Mapping[str, Array], certain: bool
                     ) -> dist.Distribution:
        mean, cov, event_dim = parts["mean"], parts["cov"], self.event_dim(name)
        if certain:                                               # conditioned in part
            return ArrayNormal(mean, cov.reshape((*mean.shape, 1, 1)) if event_dim == 0 else cov,
                               event_dim)
        if event_dim == 0:
            return dist.Normal(mean, jnp.sqrt(cov[..., 0, 0]).reshape(mean.shape))
        if event_dim == 1:
            return dist.MultivariateNormal(mean, covariance_matrix=cov)
        return ArrayNormal(mean, cov, event_dim)
