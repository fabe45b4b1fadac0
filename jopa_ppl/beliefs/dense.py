"""A dense joint Gaussian over the members of a block, one for every element of its plates."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, random
from jax.scipy.linalg import solve_triangular

from jopa_ppl.beliefs.base import Clamp, Factor, Variable
from jopa_ppl.beliefs.gaussian import (
    NARROW,
    GaussianBelief,
    clamped,
    log_density,
    restrict,
    square_root,
    unit_where_fixed,
)
from jopa_ppl.beliefs.layout import align, take
from jopa_ppl.linalg.factors import Moments
from jopa_ppl.linalg.families import (
    Gaussian,
    diagonal,
    factored,
    gaussian_update,
    inverse_and_logdet,
    symmetric,
    unfactored,
)


class DenseBelief(GaussianBelief):
    """One joint Gaussian over all members, per element of the block's plates."""

    kind, label, rank = "dense", "joint Gaussian", 2

    def __init__(self, latents: Mapping[str, Variable], **about: Any) -> None:
        super().__init__(latents, **about)
        self.pieces: dict[str, tuple[int, int]] = {}
        self.dims = 0
        for name, v in latents.items():
            self.pieces[name] = (self.dims, v.dims)
            self.dims += v.dims

    def zero(self) -> Gaussian:
        shape = (*self.batch, self.dims)
        return Gaussian(jnp.zeros(shape), jnp.zeros((*shape, self.dims)), jnp.zeros(self.batch))

    def mask(self, one: Callable[[str], Clamp]) -> Clamp:
        return Clamp(*(jnp.concatenate(part, -1) for part in zip(*map(one, self.members))))

    def stats(self, q: Gaussian, mask: Clamp) -> tuple[Array, Array]:
        return clamped(q.mean, q.cov, mask)

    def view(self, stats: tuple[Array, Array], factor: Factor) -> Moments:
        pieces = [self.pieces[r.site] for r in factor.instances_of(self)]
        want = [p.name for p in factor.plates]
        mean = align(take(stats[0], pieces, [-1]), 0, self.plates, want, 1)
        cov = align(take(stats[1], pieces, [-2, -1]), 0, self.plates, want, 2)
        if factor.in_time:
            mean, cov = mean[None], cov[None]
        return Moments(mean, cov)

    def update(self, q: Gaussian, message: tuple[Array, Array], mask: Clamp) -> Gaussian:
        precision = restrict(-2 * symmetric(message[1]), mask.free) + unit_where_fixed(mask.free)
        mean = jnp.where(mask.free > 0, q.mean, mask.value)
        return gaussian_update(mean, message[0] * mask.free, precision)

    def message(self, q: Gaussian, mask: Clamp) -> tuple[Array, Array]:
        precision, _ = inverse_and_logdet(q.cov)
        return jnp.zeros_like(q.mean), -0.5 * (precision - unit_where_fixed(mask.free))

    def coordinates(self, q: Gaussian) -> tuple[Array, Array]:
        """The mean, and its covariance as logarithms and ratios of its Cholesky factor."""
        form, spread = factored(q.cov)
        mean, spreads = super().coordinates(q)
        return jnp.concatenate([mean, form]), jnp.concatenate([spreads, spread])

    def at_coordinates(self, q: Gaussian, at: Array) -> Gaussian:
        mean, form = at[:q.mean.size].reshape(q.mean.shape), at[q.mean.size:]
        cov, logdet = unfactored(form, q.cov.shape)
        return Gaussian(mean, cov, -logdet)

    @property
    def turns(self) -> dict[str, set[str]]:
        return {n: {n} for n, v in self.latents.items() if not v.site.partial}

    def turned(self, q: Gaussian, by: Mapping[str, Array], mask: Clamp) -> Gaussian:
        M, logdet = jnp.eye(self.dims), q.logdet
        for name, R in by.items():
            start, size = self.pieces[name]
            M = M.at[start:start + size, start:start + size].set(R)
            logdet -= 2 * jnp.linalg.slogdet(R)[1] * mask.free[..., start]
        cov = restrict(M @ q.cov @ M.T, mask.free) + unit_where_fixed(mask.free)
        return Gaussian(q.mean @ M.T, cov, logdet)

    def break_symmetry(self, q: Gaussian, key: Array, size: Array | float) -> Gaussian:
        noise = jnp.sqrt(diagonal(q.cov)) * random.normal(key, q.mean.shape, q.mean.dtype)
        return q._replace(mean=q.mean + size * noise, cov=NARROW * q.cov)

    def draw(self, q: Gaussian, key: Array, mask: Any) -> tuple[Gaussian, dict[str, Array]]:
        noise = random.normal(key, q.mean.shape, q.mean.dtype)
        z = q.mean + jnp.einsum("...ij,...j->...i", square_root(q.cov), noise)
        return Gaussian(z, jnp.zeros_like(q.cov), q.logdet), {
            n: v.values(take(z, [self.pieces[n]], [-1])) for n, v in self.latents.items()}

    def log_prob(self, q: Gaussian, mask: Clamp, values: Mapping[str, Array]) -> Array:
        z = jnp.concatenate([v.vectors(values[n]) for n, v in self.latents.items()], -1)
        gap = (z - q.mean) * mask.free
        white = solve_triangular(jnp.linalg.cholesky(q.cov), gap[..., None], lower=True)
        return log_density(jnp.sum(white**2), q.logdet, jnp.sum(mask.free))

    def site(self, q: Gaussian, name: str) -> tuple[Array, Array]:
        piece = [self.pieces[name]]
        return take(q.mean, piece, [-1]), take(q.cov, piece, [-2, -1])

    def jointly(self, chosen: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(n for n in self.members if n in chosen)

    def joint(self, q: Gaussian, names: tuple[str, ...]) -> tuple[Array, Array]:
        index = np.concatenate([np.arange(start, start + size)
                                for start, size in map(self.pieces.get, names)])
        mean, cov = jax.device_get((q.mean, q.cov))             # NumPy: nothing to compile
        return tuple(map(jnp.asarray, (mean[..., index],
                                       cov[..., index[:, None], index[None, :]])))

    def temper(self, q: Gaussian, power: float, mask: Clamp) -> Gaussian:
        wider = jnp.where(mask.free > 0, power**-0.5, 1.0)
        cov = q.cov * wider[..., :, None] * wider[..., None, :]
        return Gaussian(q.mean, cov, q.logdet + mask.free.sum(-1) * jnp.log(power))
