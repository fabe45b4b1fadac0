"""Distributions that NumPyro lacks and beliefs need."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array, random
from jax.scipy.linalg import solve_triangular
from numpyro.distributions import Distribution, biject_to, constraints, transforms
from numpyro.distributions.util import lazy_property

from jopa_ppl.linalg.matrix import variances


class ArrayNormal(Distribution):
    """A multivariate normal over an array of any shape: vec(X) ~ N(vec(loc), covariance).

        log N = -1/2 (vec x - vec m)' C^-1 (vec x - vec m) - 1/2 log|C| - (n/2) log 2 pi

    Elements without variance are known: they are always at their mean (the density is that of the
    others, and zero elsewhere).

    Args:
        loc: (*batch, *event); vec is row-major over the event axes.
        covariance: (*batch, n, n), n the number of elements of an event.
        event_dim: number of event axes.
    """

    arg_constraints: dict = {}  # noqa: RUF012
    pytree_data_fields = ("loc", "covariance")

    def __init__(self, loc: Array, covariance: Array, event_dim: int) -> None:
        self.loc, self.covariance = loc, covariance
        split = jnp.ndim(loc) - event_dim
        super().__init__(jnp.shape(loc)[:split], jnp.shape(loc)[split:], validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        return constraints.independent(constraints.real, self.event_dim)

    @property
    def mean(self) -> Array:
        return self.loc

    @property
    def variance(self) -> Array:
        return _diagonal(self.covariance).reshape(self.loc.shape)

    @lazy_property
    def scale_tril(self) -> Array:
        known = self._known[..., None] * jnp.eye(self.covariance.shape[-1], dtype=bool)
        return jnp.linalg.cholesky(self.covariance + known.astype(self.covariance.dtype))

    @property
    def _known(self) -> Array:
        return _diagonal(self.covariance) == 0

    def _vec(self, array: Array) -> Array:
        return array.reshape((*array.shape[:array.ndim - self.event_dim], -1))

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        eps = random.normal(key, (*sample_shape, *self._vec(self.loc).shape), self.loc.dtype)
        draw = jnp.einsum("...ij,...j->...i", self.scale_tril, jnp.where(self._known, 0.0, eps))
        return self.loc + draw.reshape((*sample_shape, *self.loc.shape))

    def log_prob(self, value: Array) -> Array:
        gap = self._vec(value - self.loc)
        tril = jnp.broadcast_to(self.scale_tril, (*gap.shape, gap.shape[-1]))
        white = solve_triangular(tril, gap[..., None], lower=True)[..., 0]
        logdet = jnp.log(_diagonal(tril)).sum(-1)
        free = (~self._known).sum(-1).astype(white.dtype)
        density = -0.5 * (white**2).sum(-1) - logdet - 0.5 * free * jnp.log(2 * jnp.pi)
        return jnp.where((self._known & (gap != 0)).any(-1), -jnp.inf, density)


class MatrixSpread(ArrayNormal):
    """A normal over an array whose covariance has the eigenvectors of a Kronecker product,

        X = loc + R (sqrt(D) * Z) T',  Z_ij ~ N(0, 1),   Cov(vec X) = (R (x) T) diag(D) (R (x) T)'

    with X seen as (n, p). Only `log_prob` and `covariance` form all (n p)^2 numbers of it.

    Args:
        loc: (n, p); left R (n, n); right T (p, m); spread D (n, m).
        shape: that of the array, (n, p) or (n,).
    """

    pytree_data_fields = ("loc", "left", "right", "spread")

    def __init__(self, loc: Array, left: Array, right: Array, spread: Array,
                 shape: tuple[int, ...]) -> None:
        self.loc, self.left, self.right, self.spread = loc.reshape(shape), left, right, spread
        Distribution.__init__(self, (), shape, validate_args=False)

    @lazy_property
    def covariance(self) -> Array:
        root = jnp.einsum("ia,jb,ab->ijab", self.left, self.right, jnp.sqrt(self.spread))
        root = root.reshape((self.loc.size, -1))
        return root @ root.T

    @property
    def variance(self) -> Array:
        return variances(self.left, self.right, self.spread).reshape(self.loc.shape)

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        eps = random.normal(key, (*sample_shape, *self.spread.shape), self.loc.dtype)
        draw = self.left @ (jnp.sqrt(self.spread) * eps) @ self.right.T
        return self.loc + draw.reshape((*sample_shape, *self.loc.shape))


class Unconstrained(Distribution):
    """The density of u on the real line where T(u) ~ base, T NumPyro's transform to its support:

        log p(u) = log p_base(T(u)) + log|dT/du|
    """

    arg_constraints: dict = {}  # noqa: RUF012
    pytree_data_fields = ("base",)

    def __init__(self, base: Distribution) -> None:
        self.base = base
        own = self.transform.inverse_shape(base.shape())
        super().__init__(base.batch_shape, own[len(base.batch_shape):], validate_args=False)

    @property
    def transform(self) -> transforms.Transform:
        return biject_to(self.base.support)

    @property
    def support(self) -> constraints.Constraint:
        return constraints.independent(constraints.real, self.event_dim)

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        return self.transform.inv(self.base.sample(key, sample_shape))

    def log_prob(self, value: Array) -> Array:
        return self.inside(value) + self.change(value)

    def inside(self, value: Array) -> Array:
        """log p_base(T(u))."""
        return self.base.log_prob(self.transform(value))

    def change(self, value: Array) -> Array:
        """log|dT/du|, which no mask and no power on the site bends."""
        return self.transform.log_abs_det_jacobian(value, self.transform(value))


def _diagonal(matrix: Array) -> Array:
    """The diagonals of matrices (.., n, n), also of float64 ones where the default is float32."""
    n = matrix.shape[-1]
    return matrix.reshape((*matrix.shape[:-2], n * n))[..., ::n + 1]
