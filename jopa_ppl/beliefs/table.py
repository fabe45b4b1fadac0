"""One joint belief about several discrete latents that meet in a factor: a table of all values.

Some may be shared by a plate that the others are in. Elements of the plate are independent of each
other given what they share, q(outer) prod_i q(inner_i | outer): a table of what is shared, and one
for every element, whose rows it gives.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, random
from jax.scipy.special import logsumexp

from jopa_ppl.beliefs.base import Clamp, Factor, Variable
from jopa_ppl.beliefs.discrete import DiscreteBelief, entropy_of, log_of, score_of
from jopa_ppl.beliefs.layout import align
from jopa_ppl.program.refs import Ref


class Table(NamedTuple):
    """Probabilities of joint values: outer (*shared plates, A), pair (*plates, A, B)."""

    outer: Array
    pair: Array


class TableBelief(DiscreteBelief):
    """A joint table.

    Attributes:
        outer, inner: members that a plate of the others shares, and the others.
        shared: the plates of the outer ones, all of them plates of the inner ones too.
    """

    kind, label, rank = "discrete table", "table (discrete)", 1

    def __init__(self, latents: Mapping[str, Variable], **about: Any) -> None:
        plates = max((v.plates for v in latents.values()), key=len)
        super().__init__(latents, plates=plates, **about)
        self.inner = [n for n, v in latents.items() if v.plates == plates]
        self.outer = [n for n in latents if n not in self.inner]
        self.shared = next((latents[n].plates for n in self.outer), ())
        self.elements = prod(self.sizes[p] for p in plates if p not in self.shared)

    @classmethod
    def read(cls, latents: Mapping[str, Variable], factors: Any, about: Mapping[str, Any]
             ) -> TableBelief:
        return cls(latents, **{k: v for k, v in about.items() if k != "plates"})

    def _values(self, names: Sequence[str]) -> list[int]:
        return [len(self.latents[n].site.values) for n in names]

    def _shape(self, name: str) -> tuple[int, ...]:
        return tuple(p.size for p in self.latents[name].local)

    def _each(self, shared: Array) -> Array:
        """(*shared plates, A) -> (*plates or 1s, A)."""
        return align(shared, 0, self.shared, self.plates, 1)

    def _over_plates(self, each: Array) -> Array:
        """The sum over elements that share: (*plates, A) -> (*shared plates, A)."""
        axes = tuple(i for i, p in enumerate(self.plates) if p not in self.shared)
        return align(each.sum(axes), 0, [p for p in self.plates if p in self.shared],
                     self.shared, 1)

    def _by_member(self, table: Array, names: Sequence[str], tail: int) -> Array:
        """Its last `tail` axes as one for each of `names`."""
        return table.reshape((*table.shape[:table.ndim - tail], *self._values(names)))

    def zero(self) -> Table:
        A, B = prod(self._values(self.outer)), prod(self._values(self.inner))
        shared = tuple(self.sizes[p] for p in self.shared)
        return Table(jnp.full((*shared, A), 1 / A), jnp.full((*self.batch, A, B), 1 / (A * B)))

    def mask(self, one: Callable[[str], Clamp]) -> dict[str, Array]:
        return {n: one(n).free[..., 0] for n in self.latents}

    def stats(self, q: Table, mask: Any) -> Table:
        return q

    def share(self, stats: Table, factor: Factor, fixed: list[tuple[Ref, int]]) -> Array:
        """The probability of the values that a copy of a factor has, on its batch axes."""
        chosen = {r.site: k for r, k in fixed}
        if chosen.keys() & set(self.inner):
            table, have, names = stats.pair, self.plates, [*self.outer, *self.inner]
        else:
            table, have, names = stats.outer, self.shared, self.outer
        table = self._by_member(table, names, 2 if table is stats.pair else 1)
        for n in reversed(names):
            table = table[..., chosen[n]] if n in chosen else table.sum(-1)
        found = align(table, 0, have, [p.name for p in factor.plates], 0)
        return found[None] if factor.in_time else found

    def update(self, q: Table, message: Table, mask: Any) -> Table:
        told = self._over_plates(logsumexp(message.pair, -1))
        outer = jax.nn.softmax(message.outer + told, -1)
        return Table(outer, self._each(outer)[..., None] * jax.nn.softmax(message.pair, -1))

    def message(self, q: Table, mask: Any) -> Table:
        return Table((1 - self.elements) * log_of(q.outer), log_of(q.pair))

    def entropy(self, q: Table, mask: Mapping[str, Array]) -> Array:
        whole = entropy_of(q.pair) + (1 - self.elements) * entropy_of(q.outer)
        return whole - sum(jnp.sum(1 - free) * jnp.log(len(self.latents[n].site.values))
                           for n, free in mask.items())

    def moved(self, old: Table, new: Table) -> Array:
        return jnp.sqrt(jnp.mean((new.pair.sum(-2) - old.pair.sum(-2))**2)
                        + jnp.mean((new.outer - old.outer)**2))

    def following(self, message: Table, mask: Mapping[str, Array]) -> Table:
        """The program's message to what nothing reaches, conditionals of what it follows."""
        def conditional(told: Array, names: Sequence[str], tail: int) -> Array:
            table = rest = self._by_member(told, names, tail)
            for i, n in enumerate(names):
                axis = i - len(names)
                have, want = self.latents[n].plates, self.plates if tail == 2 else self.shared
                free = align(mask[n], 0, have, want, 0)
                free = free.reshape((*free.shape, *(1,) * len(names)))
                own = n in (self.inner if tail == 2 else self.outer)
                if own:
                    rest = jnp.where(free > 0, rest, logsumexp(rest, axis, keepdims=True))
            return (table - rest).reshape(told.shape)

        return Table(conditional(message.outer, self.outer, 1),
                     conditional(message.pair, [*self.outer, *self.inner], 2))

    def draw(self, q: Table, key: Array, mask: Any) -> tuple[Table, dict[str, Array]]:
        first, second = random.split(key)
        a = random.categorical(first, log_of(q.outer))
        A, B = q.pair.shape[-2:]
        outer = jax.nn.one_hot(a, A, dtype=q.outer.dtype)
        rows = (q.pair * self._each(outer)[..., None]).sum(-2)
        b = random.categorical(second, log_of(rows))
        inner = jax.nn.one_hot(b, B, dtype=q.pair.dtype)
        point = Table(outer, self._each(outer)[..., None] * inner[..., None, :])
        return point, self._chosen(a, b)

    def most_probable(self, q: Table) -> dict[str, Array]:
        rows = score_of(q.pair) - self._each(log_of(q.outer))[..., None]
        a = jnp.argmax(score_of(q.outer) + self._over_plates(rows.max(-1)), -1)
        chosen = self._each(jax.nn.one_hot(a, q.outer.shape[-1], dtype=q.outer.dtype))
        return self._chosen(a, jnp.argmax((q.pair * chosen[..., None]).sum(-2), -1))

    def _chosen(self, outer: Array, inner: Array) -> dict[str, Array]:
        """Values by member, of places in the two tables."""
        values = {}
        for names, at in ((self.outer, outer), (self.inner, inner)):
            index = jnp.unravel_index(at, self._values(names)) if names else ()
            values |= {n: self._in_shape(n, self.values_of(n)[i]) for n, i in zip(names, index)}
        return values

    def _in_shape(self, name: str, array: Array, tail: tuple[int, ...] = ()) -> Array:
        return array.reshape((*self.latents[name].site.shape, *tail))

    def log_prob(self, q: Table, mask: Mapping[str, Array], values: Mapping[str, Array]) -> Array:
        def probability(table: Array, names: Sequence[str], tail: int, want: tuple[str, ...]
                        ) -> Array:
            """Of the values of what is inferred, summed over the rest."""
            found = self._by_member(table, names, tail)
            for i, n in enumerate(names):
                hit = values[n].reshape(self._shape(n))[..., None] == self.values_of(n)
                hit = jnp.where(mask[n][..., None] > 0, hit, True)
                hit = align(hit, 0, self.latents[n].plates, want, 1)
                found = found * hit.reshape((*hit.shape[:-1], *(1,) * i, hit.shape[-1],
                                             *(1,) * (len(names) - i - 1)))
            whole = found.sum(tuple(range(found.ndim - len(names), found.ndim)))
            return log_of(whole)

        shared = probability(q.outer, self.outer, 1, self.shared)
        both = probability(q.pair, [*self.outer, *self.inner], 2, self.plates)
        return both.sum() + (1 - self.elements) * shared.sum()

    def marginal(self, q: Table, steps: None = None) -> dict[str, dict[str, Array]]:
        found = {}
        for names, table in ((self.outer, q.outer), (self.inner, q.pair.sum(-2))):
            table = self._by_member(table, names, 1)
            lead = table.ndim - len(names)
            for i, n in enumerate(names):
                others = tuple(lead + j for j in range(len(names)) if j != i)
                found[n] = {"probs": self._in_shape(n, table.sum(others), (table.shape[lead + i],))}
        return {n: found[n] for n in self.latents}

    def take(self, q: Table, plate: str, index: Array) -> Table:
        pair = jnp.take(q.pair, index, self.plates.index(plate))
        shared = plate in self.shared
        return Table(jnp.take(q.outer, index, self.shared.index(plate)) if shared else q.outer,
                     pair)
