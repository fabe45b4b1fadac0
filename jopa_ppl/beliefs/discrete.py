"""Beliefs about latents that take one of a few values, alone and along time, and of probabilities.

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
from jax.scipy.special import digamma, gammaln, logsumexp

from jopa_ppl.beliefs.base import Belief, Clamp, Factor, Variable
from jopa_ppl.beliefs.layout import align
from jopa_ppl.program.refs import Ref


class Choice(NamedTuple):
    """Probabilities of values: prob (*plates, K)."""

    prob: Array


class Markov(NamedTuple):
    """Of every step alone, single (S, *plates, K), and of neighbours, pair (S - 1, *plates, K, K),
    the earlier one first."""

    single: Array
    pair: Array


class Dirichlet(NamedTuple):
    """E[log p] and the concentrations, (*batch, K)."""

    log: Array
    concentration: Array


def entropy_of(prob: Array) -> Array:
    """Of probabilities, in nats; the sum over all others axes."""
    return -jnp.sum(prob * jnp.log(jnp.where(prob > 0, prob, 1.0)))


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
        return found[None] if factor.in_bulk else found

    def update(self, q: Choice, message: Array, mask: Array) -> Choice:
        return Choice(jax.nn.softmax(message, -1))

    def message(self, q: Choice, mask: Array) -> Array:
        return jnp.log(jnp.maximum(q.prob, 1e-300))

    def entropy(self, q: Choice, mask: Array) -> Array:
        return entropy_of(q.prob) - jnp.sum(1 - mask) * jnp.log(self.size)

    def moved(self, old: Choice, new: Choice) -> Array:
        return jnp.sqrt(jnp.mean((new.prob - old.prob)**2))

    def following(self, message: Array, mask: Array) -> Array:
        """The program's message to what nothing reaches, a conditional of what it follows."""
        return jnp.where(mask[..., None] > 0, 0.0, jax.nn.log_softmax(message, -1))

    def draw(self, q: Choice, key: Array, mask: Any) -> tuple[Choice, dict[str, Array]]:
        index = random.categorical(key, jnp.log(jnp.maximum(q.prob, 1e-300)))
        return (Choice(jax.nn.one_hot(index, self.size, dtype=q.prob.dtype)),
                {self.name: self._in_shape(self.values_of(self.name)[index])})

    def _in_shape(self, array: Array) -> Array:
        return array.reshape(self.latents[self.name].site.shape)

    def log_prob(self, q: Choice, mask: Array, values: Mapping[str, Array]) -> Array:
        value = values[self.name].reshape(self.shape)
        hit = value[..., None] == self.values_of(self.name)
        return jnp.sum(mask * jnp.log(jnp.maximum((q.prob * hit).sum(-1), 1e-300)))

    def marginal(self, q: Choice, steps: None = None) -> dict[str, dict[str, Array]]:
        return {self.name: {"probs": q.prob.reshape(
            (*self.latents[self.name].site.shape, self.size))}}


class DiscreteChainBelief(DiscreteBelief):
    """One joint belief over all steps of a discrete site of a scan: a Markov chain.

    Attributes:
        over: the index of its scan; length: steps; start: the latent outside that its first carry
            is, or None; h: 1 where there is one, which then is the step before the first.
    """

    kind, label, rank = "discrete chain", "chain (discrete)", 0

    def __init__(self, latents: Mapping[str, Variable], *, over: int, length: int,
                 start: str | None = None, **about: Any) -> None:
        super().__init__(latents, **about)
        self.over, self.length, self.start, self.h = over, length, start, int(start is not None)
        (self.site,) = [n for n in latents if n != start]
        self.size = len(latents[self.site].site.values)

    def zero(self) -> Markov:
        S, K = self.length + self.h, self.size
        return Markov(jnp.full((S, *self.batch, K), 1 / K),
                      jnp.full((S - 1, *self.batch, K, K), 1 / K**2))

    def mask(self, one: Callable[[str], Clamp]) -> Array:
        free = one(self.site).free[..., 0]
        return jnp.concatenate([one(self.start).free[None, ..., 0], free]) if self.h else free

    def stats(self, q: Markov, mask: Array) -> tuple[Array, Array]:
        return q.single, q.pair

    def place(self, ref: Ref, step: int) -> int:
        """Where a latent of a step lies."""
        return 0 if ref.site == self.start else self.h + step - ref.back

    def share(self, stats: tuple[Array, Array], factor: Factor, fixed: list[tuple[Ref, int]]
              ) -> Array:
        """The probability of the values that a copy of a factor has, on its batch axes."""
        bulk = factor.in_bulk
        first = factor.context.first if bulk else factor.context.at or 0
        count = self.length - factor.context.first if bulk else 1
        (at, k), *rest = sorted((self.place(r, first), i) for r, i in fixed)
        found = stats[0][at:at + count, ..., k]
        if rest:
            found = stats[1][at:at + count, ..., k, rest[0][1]]
        want = [p.name for p in factor.plates]
        return align(found if bulk else found[0], int(bulk), self.plates, want, 0)

    def update(self, q: Markov, message: tuple[Array, Array], mask: Array) -> Markov:
        one, two = message

        def forward(a: Array, here: tuple[Array, Array]) -> tuple[Array, Array]:
            new = here[0] + logsumexp(a[..., :, None] + here[1], -2)
            return new, new

        def backward(b: Array, here: tuple[Array, Array]) -> tuple[Array, Array]:
            new = logsumexp(here[1] + (here[0] + b)[..., None, :], -1)
            return new, new

        _, a = jax.lax.scan(forward, one[0], (one[1:], two))
        a = jnp.concatenate([one[:1], a])
        last = jnp.zeros_like(one[0])
        _, b = jax.lax.scan(backward, last, (one[1:], two), reverse=True)
        b = jnp.concatenate([b, last[None]])
        joint = a[:-1][..., :, None] + two + (one + b)[1:][..., None, :]
        flat = joint.reshape((*joint.shape[:-2], self.size**2))
        pair = jax.nn.softmax(flat, -1).reshape(joint.shape)
        return Markov(jax.nn.softmax(a + b, -1), pair)

    def message(self, q: Markov, mask: Array) -> tuple[Array, Array]:
        log = lambda x: jnp.log(jnp.maximum(x, 1e-300))
        inner = log(q.single).at[0].set(0.0).at[-1].set(0.0)
        return -inner, log(q.pair)

    def entropy(self, q: Markov, mask: Array) -> Array:
        if len(q.single) == 1:
            whole = entropy_of(q.single)
        else:
            whole = entropy_of(q.pair) - entropy_of(q.single[1:-1])
        return whole - jnp.sum(1 - mask) * jnp.log(self.size)

    def moved(self, old: Markov, new: Markov) -> Array:
        return jnp.sqrt(jnp.mean((new.single - old.single)**2))

    def following(self, message: tuple[Array, Array], mask: Array) -> tuple[Array, Array]:
        """The program's message to what nothing reaches, conditionals of what it follows."""
        one = jax.nn.log_softmax(message[0], -1)
        two = jax.nn.log_softmax(message[1], -1)
        return (jnp.where(mask[..., None] > 0, 0.0, one),
                jnp.where(mask[1:, ..., None, None] > 0, 0.0, two))

    def draw(self, q: Markov, key: Array, mask: Any) -> tuple[Markov, dict[str, Array]]:
        first, rest = random.split(key)
        log = lambda x: jnp.log(jnp.maximum(x, 1e-300))
        z = random.categorical(first, log(q.single[0]))

        def step(z: Array, here: tuple[Array, Array]) -> tuple[Array, Array]:
            pair, key = here
            row = jnp.take_along_axis(log(pair), z[..., None, None], -2)[..., 0, :]
            new = random.categorical(key, row)
            return new, new

        _, path = jax.lax.scan(step, z, (q.pair, random.split(rest, len(q.pair))))
        path = jnp.concatenate([z[None], path])
        hot = jax.nn.one_hot(path, self.size, dtype=q.single.dtype)
        point = Markov(hot, hot[:-1][..., :, None] * hot[1:][..., None, :])
        values = {n: self.values_of(n)[x] for n, x in self._by_site(path).items()}
        return point, {n: self._in_shape(n, x) for n, x in values.items()}

    def _by_site(self, array: Array) -> dict[str, Array]:
        found = {self.site: array[self.h:]}
        return found | ({self.start: array[0]} if self.h else {})

    def _in_shape(self, name: str, array: Array, tail: tuple[int, ...] = ()) -> Array:
        lead = (self.length,) if name == self.site else ()
        return array.reshape((*lead, *self.latents[name].site.shape, *tail))

    def log_prob(self, q: Markov, mask: Array, values: Mapping[str, Array]) -> Array:
        parts = [values[self.site].reshape((self.length, *self.batch))]
        if self.h:
            parts.insert(0, values[self.start].reshape((1, *self.batch)))
        hot = (jnp.concatenate(parts)[..., None] == self.values_of(self.site)) * 1.0
        log = lambda x: jnp.log(jnp.maximum(x, 1e-300))
        pairs = (q.pair * hot[:-1][..., :, None] * hot[1:][..., None, :]).sum((-1, -2))
        alone = log((q.single * hot).sum(-1))
        return jnp.sum(mask[0] * alone[0]) + jnp.sum(mask[1:] * (log(pairs) - alone[:-1]))

    def marginal(self, q: Markov, steps: None = None) -> dict[str, dict[str, Array]]:
        return {n: {"probs": self._in_shape(n, x, (self.size,))}
                for n, x in self._by_site(q.single).items()}


class DirichletBelief(Belief):
    """Dirichlet beliefs, one for every element of the site's batch."""

    kind, family, label, rank = "dirichlet", "dirichlet", "Dirichlet", 3
    symmetric = True           # topics that start alike would stay alike
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
        """Concentrations off by `size` of themselves."""
        noise = random.normal(key, q.concentration.shape, q.concentration.dtype)
        return self._of(q.concentration * jnp.exp(size * noise))

    def averaged(self, stats: Array, q: Dirichlet) -> Array:
        """Statistics at the mean: log E[p] in place of E[log p]."""
        return jnp.log(q.concentration / q.concentration.sum(-1, keepdims=True))

    def draw(self, q: Dirichlet, key: Array, mask: Any) -> tuple[Dirichlet, dict[str, Array]]:
        p = random.dirichlet(key, q.concentration)
        return Dirichlet(jnp.log(jnp.maximum(p, 1e-300)), q.concentration), {self.name: p}

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


def log_normaliser(a: Array) -> Array:
    """sum log Gamma(a) - log Gamma(sum a) of a Dirichlet, (*batch)."""
    return gammaln(a).sum(-1) - gammaln(a.sum(-1))
