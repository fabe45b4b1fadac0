"""Beliefs about latents that take one of a few values, each alone, and about probabilities.

A factor that touches such a latent z stands once for every value, with z there:

    U = sum_k q(z = k) E_q[log f | z = k]

which is linear in q, so that its gradient is the log of the belief, up to a constant.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array, random
from jax.scipy.special import digamma, gammaln

from jopa_ppl.beliefs.base import Belief, Clamp, Factor
from jopa_ppl.beliefs.layout import align
from jopa_ppl.program.refs import Ref

LARGEST = 4096      # joint values that a table holds, or two states of a chain
NEVER = -1e30       # log of no probability; finite, as it is added to others


class Choice(NamedTuple):
    """Probabilities of values: prob (*plates, K)."""

    prob: Array


class Dirichlet(NamedTuple):
    """E[log p] and the concentrations, (*batch, K)."""

    log: Array
    concentration: Array


def entropy_of(prob: Array) -> Array:
    """Of probabilities, in nats; the sum over all others axes."""
    return -jnp.sum(prob * jnp.log(jnp.where(prob > 0, prob, 1.0)))


def log_of(prob: Array) -> Array:
    """Of probabilities; finite."""
    return jnp.log(jnp.maximum(prob, 1e-300))


def score_of(prob: Array) -> Array:
    """log of probabilities, NEVER of none: what a most probable value never has."""
    return jnp.where(prob > 0, log_of(prob), NEVER)


class DiscreteBelief(Belief):
    """What beliefs about discrete latents share: marginals by value."""

    family, parts, follows = "categorical", ("probs",), True

    def values_of(self, name: str) -> Array:
        """The values that a site takes."""
        return jnp.asarray(self.latents[name].site.values)

    def shaped(self, name: str, parts: Mapping[str, Array]
               ) -> tuple[Array, Array, dict[str, Array]]:
        values, probs = self.values_of(name), parts["probs"]
        mean = (probs * values).sum(-1)
        return mean, (probs * (values - mean[..., None])**2).sum(-1), dict(parts)

    def distribution(self, name: str, parts: Mapping[str, Array], certain: bool
                     ) -> dist.Distribution:
        site, probs = self.latents[name].site, parts["probs"]
        if site.described.startswith("Bernoulli"):
            return dist.Bernoulli(probs[..., 1])
        if site.values[0] == 0:
            return dist.Categorical(probs)
        return dist.TransformedDistribution(
            dist.Categorical(probs), dist.transforms.AffineTransform(site.values[0], 1))

    def temper(self, q: Any, power: float, mask: Any) -> Any:
        return self.update(q, jax.tree.map(lambda g: power * g, self.message(q, mask)), mask)


class CategoricalBelief(DiscreteBelief):
    """Independent probabilities, one set for every element of a site's plates."""

    kind, label, rank = "categorical", "categorical", 1

    @property
    def size(self) -> int:
        return len(self.latents[self.name].site.values)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(p.size for p in self.latents[self.name].local)

    def zero(self) -> Choice:
        return Choice(jnp.full((*self.shape, self.size), 1 / self.size))

    def mask(self, one: Callable[[str], Clamp]) -> Array:
        return one(self.name).free[..., 0]

    def stats(self, q: Choice, mask: Array) -> Array:
        return q.prob

    def share(self, stats: Array, factor: Factor, fixed: list[tuple[Ref, int]]) -> Array:
        """The probability of the values that a copy of a factor has, on its batch axes."""
        ((_, k),) = fixed
        found = align(stats[..., k], 0, self.plates, [p.name for p in factor.plates], 0)
        return found[None] if factor.in_time else found

    def update(self, q: Choice, message: Array, mask: Array) -> Choice:
        return Choice(jax.nn.softmax(message, -1))

    def message(self, q: Choice, mask: Array) -> Array:
        return log_of(q.prob)

    def entropy(self, q: Choice, mask: Array) -> Array:
        return entropy_of(q.prob) - jnp.sum(1 - mask) * jnp.log(self.size)

    def moved(self, old: Choice, new: Choice) -> Array:
        return jnp.sqrt(jnp.mean((new.prob - old.prob)**2))

    def following(self, message: Array, mask: Array) -> Array:
        """The program's message to what nothing reaches, a conditional of what it follows."""
        return jnp.where(mask[..., None] > 0, 0.0, jax.nn.log_softmax(message, -1))

    def draw(self, q: Choice, key: Array, mask: Any) -> tuple[Choice, dict[str, Array]]:
        index = random.categorical(key, log_of(q.prob))
        return (Choice(jax.nn.one_hot(index, self.size, dtype=q.prob.dtype)),
                {self.name: self._in_shape(self.values_of(self.name)[index])})

    def most_probable(self, q: Choice) -> dict[str, Array]:
        return {self.name: self._in_shape(self.values_of(self.name)[jnp.argmax(q.prob, -1)])}

    def _in_shape(self, array: Array) -> Array:
        return array.reshape(self.latents[self.name].site.shape)

    def log_prob(self, q: Choice, mask: Array, values: Mapping[str, Array]) -> Array:
        value = values[self.name].reshape(self.shape)
        hit = value[..., None] == self.values_of(self.name)
        return jnp.sum(mask * log_of((q.prob * hit).sum(-1)))

    def marginal(self, q: Choice, steps: None = None) -> dict[str, dict[str, Array]]:
        return {self.name: {"probs": q.prob.reshape(
            (*self.latents[self.name].site.shape, self.size))}}


class DirichletBelief(Belief):
    """Dirichlet beliefs, one for every element of the site's batch."""

    kind, family, label, rank = "dirichlet", "dirichlet", "Dirichlet", 3
    parts = ("concentration",)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.latents[self.name].site.shape

    def zero(self) -> Dirichlet:
        return self._of(jnp.ones(self.shape))

    @staticmethod
    def _of(a: Array) -> Dirichlet:
        return Dirichlet(digamma(a) - digamma(a.sum(-1, keepdims=True)), a)

    def stats(self, q: Dirichlet, mask: None) -> Array:
        return q.log

    def update(self, q: Dirichlet, message: Array, mask: None) -> Dirichlet:
        return self._of(1 + message)

    def message(self, q: Dirichlet, mask: None) -> Array:
        return q.concentration - 1

    def moved(self, old: Dirichlet, new: Dirichlet) -> Array:
        mean = lambda q: q.concentration / q.concentration.sum(-1, keepdims=True)
        total = new.concentration.sum(-1, keepdims=True)
        variance = mean(new) * (1 - mean(new)) / (total + 1)
        return jnp.sqrt(jnp.mean((mean(new) - mean(old))**2 / variance))

    def break_symmetry(self, q: Dirichlet, key: Array, size: Array | float) -> Dirichlet:
        """Concentrations off by `size` of themselves: topics that start alike would stay alike."""
        noise = random.normal(key, q.concentration.shape, q.concentration.dtype)
        return self._of(q.concentration * jnp.exp(size * noise))

    def averaged(self, stats: Array, q: Dirichlet) -> Array:
        """Statistics at the mean: log E[p] in place of E[log p]."""
        return jnp.log(q.concentration / q.concentration.sum(-1, keepdims=True))

    def draw(self, q: Dirichlet, key: Array, mask: Any) -> tuple[Dirichlet, dict[str, Array]]:
        p = random.dirichlet(key, q.concentration)
        return Dirichlet(log_of(p), q.concentration), {self.name: p}

    def log_prob(self, q: Dirichlet, mask: None, values: Mapping[str, Array]) -> Array:
        return dist.Dirichlet(q.concentration).log_prob(values[self.name]).sum()

    def marginal(self, q: Dirichlet, steps: None = None) -> dict[str, dict[str, Array]]:
        return {self.name: {"concentration": q.concentration}}

    def shaped(self, name: str, parts: Mapping[str, Array]
               ) -> tuple[Array, Array, dict[str, Array]]:
        a = parts["concentration"]
        total = a.sum(-1, keepdims=True)
        mean = a / total
        return mean, mean * (1 - mean) / (total + 1), dict(parts)

    def distribution(self, name: str, parts: Mapping[str, Array], certain: bool
                     ) -> dist.Distribution:
        return dist.Dirichlet(parts["concentration"])

    def temper(self, q: Dirichlet, power: float, mask: None) -> Dirichlet:
        return self._of(1 + power * (q.concentration - 1))


class BetaBelief(DirichletBelief):
    """Beta beliefs, one for every element of the site: of p and 1 - p, Dirichlet ones."""

    kind, family, label = "beta", "beta", "Beta"

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.latents[self.name].site.shape, 2)

    def draw(self, q: Dirichlet, key: Array, mask: Any) -> tuple[Dirichlet, dict[str, Array]]:
        p = random.beta(key, q.concentration[..., 0], q.concentration[..., 1])
        return Dirichlet(log_of(jnp.stack([p, 1 - p], -1)), q.concentration), {self.name: p}

    def log_prob(self, q: Dirichlet, mask: None, values: Mapping[str, Array]) -> Array:
        return self._beta(q.concentration).log_prob(values[self.name]).sum()

    def shaped(self, name: str, parts: Mapping[str, Array]
               ) -> tuple[Array, Array, dict[str, Array]]:
        mean, variance, own = super().shaped(name, parts)
        return mean[..., 0], variance[..., 0], own

    def distribution(self, name: str, parts: Mapping[str, Array], certain: bool
                     ) -> dist.Distribution:
        return self._beta(parts["concentration"])

    @staticmethod
    def _beta(concentration: Array) -> dist.Distribution:
        return dist.Beta(concentration[..., 0], concentration[..., 1])


def log_normaliser(a: Array) -> Array:
    """sum log Gamma(a) - log Gamma(sum a) of a Dirichlet, (*batch)."""
    return gammaln(a).sum(-1) - gammaln(a.sum(-1))
