"""Beliefs of precisions: Gamma and Wishart blocks."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from jopa_ppl.engine.beliefs import in_spreads
from jopa_ppl.graph.factor import Block, Graph
from jopa_ppl.linalg.families import (
    Gamma,
    Wishart,
    gamma,
    symmetric,
    wishart,
    wishart_variance,
)


class GammaBelief:
    """Independent Gamma beliefs, one for every element of the site."""

    def __init__(self, block: Block, graph: Graph) -> None:
        self.block = block
        self.shape = graph.variables[block.variables[0]].site.shape

    def zero(self) -> Gamma:
        one = jnp.ones(self.shape)
        return gamma(one, one)

    def stats(self, moments: Gamma, clamp: None) -> tuple[Array, Array]:
        return moments.mean, moments.log

    def update(self, moments: Gamma, gradient: tuple[Array, Array], clamp: None) -> Gamma:
        return gamma(1 + gradient[1], -gradient[0])

    def moved(self, old: Gamma, new: Gamma) -> Array:
        return in_spreads(new.mean - old.mean, new.a / new.b**2)


class WishartBelief:
    """Wishart beliefs, one for every element of the site's batch."""

    def __init__(self, block: Block, graph: Graph) -> None:
        self.block = block
        self.shape = graph.variables[block.variables[0]].site.shape

    def zero(self) -> Wishart:
        n = self.shape[-1]
        eye = jnp.broadcast_to(jnp.eye(n), self.shape)
        return wishart(jnp.full(self.shape[:-2], n + 1.0), eye * (n + 1.0))

    def stats(self, moments: Wishart, clamp: None) -> tuple[Array, Array]:
        return moments.mean, moments.log

    def update(self, moments: Wishart, gradient: tuple[Array, Array], clamp: None) -> Wishart:
        n = self.shape[-1]
        return wishart(n + 1 + 2 * gradient[1], -2 * symmetric(gradient[0]))

    def moved(self, old: Wishart, new: Wishart) -> Array:
        return in_spreads(new.mean - old.mean, wishart_variance(new))
