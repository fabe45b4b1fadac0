"""Beliefs of precisions: Gamma and Wishart blocks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array, random

from jopa_ppl.beliefs.base import Belief
from jopa_ppl.beliefs.gaussian import in_spreads
from jopa_ppl.linalg.families import (
    Gamma,
    Wishart,
    factored,
    gamma,
    symmetric,
    unfactored,
    wishart,
    wishart_variance,
)


class PrecisionBelief(Belief):
    """A belief about one site, one of its family for every element of the site's batch."""

    rank, extrapolates = 3, True

    @property
    def shape(self) -> tuple[int, ...]:
        return self.latents[self.name].site.shape


class GammaBelief(PrecisionBelief):
    """Independent Gamma beliefs, one for every element of the site."""

    kind, family, label, parts = "gamma", "gamma", "Gamma", ("a", "b")

    def zero(self) -> Gamma:
        one = jnp.ones(self.shape)
        return gamma(one, one)

    def stats(self, q: Gamma, mask: None) -> tuple[Array, Array]:
        return q.mean, q.log

    def update(self, q: Gamma, message: tuple[Array, Array], mask: None) -> Gamma:
        return gamma(1 + message[1], -message[0])

    def message(self, q: Gamma, mask: None) -> tuple[Array, Array]:
        return -q.b, q.a - 1

    def moved(self, old: Gamma, new: Gamma) -> Array:
        return in_spreads(new.mean - old.mean, new.a / new.b**2)

    def scattered(self, q: Gamma, key: Array, size: Array | float) -> Gamma:
        noise = random.normal(key, q.b.shape, q.b.dtype)
        return gamma(q.a, q.b * jnp.exp(size * noise * q.a**-0.5))

    def coordinates(self, q: Gamma) -> tuple[Array, Array]:
        return jnp.log(q.b).ravel(), q.a.ravel()**-0.5

    def at_coordinates(self, q: Gamma, at: Array) -> Gamma:
        return gamma(q.a, jnp.exp(at).reshape(q.b.shape))

    def harmonic(self, q: Gamma) -> Array:
        """1 / E[1 / tau] over E[tau], (a - 1) / a; 1 where it does not exist."""
        return jnp.where(q.a > 1, (q.a - 1) / q.a, 1.0)

    def at_log(self, log: Array) -> Array:
        """Values whose log is given."""
        return jnp.exp(log)

    def draw(self, q: Gamma, key: Array, mask: Any) -> tuple[Gamma, dict[str, Array]]:
        t = random.gamma(key, q.a) / q.b
        return Gamma(t, jnp.log(t), jnp.full_like(q.a, -1.0), q.b), {self.name: t}

    def log_prob(self, q: Gamma, mask: None, values: Mapping[str, Array]) -> Array:
        return dist.Gamma(q.a, q.b).log_prob(values[self.name]).sum()

    def marginal(self, q: Gamma, steps: None = None) -> dict[str, dict[str, Array]]:
        return {self.name: {"a": q.a, "b": q.b}}

    def shaped(self, name: str, parts: Mapping[str, Array]
               ) -> tuple[Array, Array, dict[str, Array]]:
        return parts["a"] / parts["b"], parts["a"] / parts["b"]**2, dict(parts)

    def distribution(self, name: str, parts: Mapping[str, Array], certain: bool
                     ) -> dist.Distribution:
        return dist.Gamma(parts["a"], parts["b"])

    def temper(self, q: Gamma, power: float, mask: None) -> Gamma:
        return gamma(1 + power * (q.a - 1), power * q.b)


class WishartBelief(PrecisionBelief):
    """Wishart beliefs, one for every element of the site's batch."""

    kind, family, label = "wishart", "wishart", "Wishart"
    parts = ("dof", "rate", "mean", "variance")

    def zero(self) -> Wishart:
        n = self.shape[-1]
        eye = jnp.broadcast_to(jnp.eye(n), self.shape)
        return wishart(jnp.full(self.shape[:-2], n + 1.0), eye * (n + 1.0))

    def stats(self, q: Wishart, mask: None) -> tuple[Array, Array]:
        return q.mean, q.log

    def update(self, q: Wishart, message: tuple[Array, Array], mask: None) -> Wishart:
        n = self.shape[-1]
        return wishart(n + 1 + 2 * message[1], -2 * symmetric(message[0]))

    def message(self, q: Wishart, mask: None) -> tuple[Array, Array]:
        return -0.5 * q.rate, 0.5 * (q.dof - self.shape[-1] - 1)

    def moved(self, old: Wishart, new: Wishart) -> Array:
        return in_spreads(new.mean - old.mean, wishart_variance(new))

    def coordinates(self, q: Wishart) -> tuple[Array, Array]:
        form, spread = factored(q.rate)
        return form, spread * q.dof.max()**-0.5

    def at_coordinates(self, q: Wishart, at: Array) -> Wishart:
        return wishart(q.dof, unfactored(at, q.rate.shape)[0])

    def harmonic(self, q: Wishart) -> Array:
        """E[W^-1]^-1 over E[W], (nu - n - 1) / nu; 1 where it does not exist."""
        less = q.rate.shape[-1] + 1
        return jnp.where(q.dof > less, (q.dof - less) / q.dof, 1.0)[..., None, None]

    def at_log(self, log: Array) -> Array:
        """Matrices, multiples of I, whose log determinant is given."""
        n = self.shape[-1]
        return jnp.exp(log / n)[..., None, None] * jnp.eye(n)

    def draw(self, q: Wishart, key: Array, mask: Any) -> tuple[Wishart, dict[str, Array]]:
        W = dist.Wishart(q.dof, rate_matrix=q.rate, validate_args=False).sample(key)
        logdet = jnp.linalg.slogdet(W)[1]
        return Wishart(W, logdet, jnp.full_like(q.dof, -1.0), q.rate), {self.name: W}

    def log_prob(self, q: Wishart, mask: None, values: Mapping[str, Array]) -> Array:
        return dist.Wishart(q.dof, rate_matrix=q.rate).log_prob(values[self.name]).sum()

    def marginal(self, q: Wishart, steps: None = None) -> dict[str, dict[str, Array]]:
        return {self.name: {"dof": q.dof, "rate": q.rate, "mean": q.mean,
                            "variance": wishart_variance(q)}}

    def shaped(self, name: str, parts: Mapping[str, Array]
               ) -> tuple[Array, Array, dict[str, Array]]:
        scale = jnp.linalg.cholesky(parts["mean"] / parts["dof"][..., None, None])
        return parts["mean"], parts["variance"], {"dof": parts["dof"], "rate": parts["rate"],
                                                  "scale_tril": scale}

    def distribution(self, name: str, parts: Mapping[str, Array], certain: bool
                     ) -> dist.Distribution:
        return dist.Wishart(parts["dof"], scale_tril=parts["scale_tril"], validate_args=False)

    def temper(self, q: Wishart, power: float, mask: None) -> Wishart:
        n = q.rate.shape[-1]
        return wishart(n + 1 + power * (q.dof - n - 1), power * q.rate)
