"""A joint belief about all steps of the discrete sites of a scan that meet in a factor.

It is a Markov chain over states, each a joint value of the sites at a step. Where a factor looks
back further than a step, earlier values are parts of the state that are handed on; a latent outside
of the scan that a step sees is a part that never changes. Moves between states that disagree about
either have no probability, nor has any value but the first where nothing stands for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import product
from math import prod
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, random
from jax.scipy.special import logsumexp

from jopa_ppl.beliefs.base import Clamp, Factor, Variable
from jopa_ppl.beliefs.discrete import LARGEST, NEVER, DiscreteBelief, entropy_of, log_of, score_of
from jopa_ppl.beliefs.layout import align
from jopa_ppl.program.refs import Ref

MOST = 64           # steps back that a file may tell of


class Markov(NamedTuple):
    """Of every step alone, single (S, *plates, K), and of neighbours, pair (S - 1, *plates, K, K),
    the earlier one first."""

    single: Array
    pair: Array


class Part(NamedTuple):
    """What a state is made of: a site's value so many steps ago, or (None) a latent's outside."""

    name: str
    ago: int | None


class DiscreteChainBelief(DiscreteBelief):
    """A chain of states.

    Attributes:
        over: the index of its scan; length: steps.
        seeds: latents outside that stand for a site's value before the first step, {name: which};
            h: how many places they take, in front of the steps.
        parts_of: the parts of a state. counts: how many values each has; size: their product.
        first: log of which states can be at each of the first places, (places, K), at all others
            any; moves: from state to state, (K, K).
    """

    kind, label, rank = "discrete chain", "chain (discrete)", 0
    layout_form: ClassVar[dict[Any, Any]] = {
        "over": int, "length": int, "starts": {...: (str, int)}, "lags": {...: int}}

    def __init__(self, latents: Mapping[str, Variable], *, over: int, length: int,
                 seeds: Mapping[str, Ref], lags: Mapping[str, int],
                 **about: Any) -> None:
        super().__init__(latents, **about)
        self.over, self.length, self.seeds = over, length, dict(seeds)
        self.h = max((r.back for r in self.seeds.values()), default=0)
        self.steps = [n for n, v in latents.items() if v.is_series]
        self.constants = [n for n in latents if n not in self.seeds and n not in self.steps]
        self.parts_of = [*(Part(n, ago) for n in self.steps for ago in range(1 + lags[n])),
                         *(Part(n, None) for n in self.constants)]
        self.counts = [len(latents[p.name].site.values) for p in self.parts_of]
        self.size = prod(self.counts)
        self.first, self.moves = self._support()

    @property
    def layout(self) -> dict[str, Any]:
        lags = {n: max(p.ago for p in self.parts_of if p.name == n) for n in self.steps}
        starts = {n: (r.site, r.back) for n, r in self.seeds.items()}
        return {"over": self.over, "length": self.length, "starts": starts, "lags": lags}

    @classmethod
    def read(cls, latents: Mapping[str, Variable], factors: Any, about: Mapping[str, Any]
             ) -> DiscreteChainBelief:
        about = dict(about)
        seeds = {n: Ref(*at) for n, at in about.pop("starts").items()}
        lags, steps = about["lags"], {n for n, v in latents.items() if v.is_series}
        states = {n: 1 + lags.get(n, 0) for n in latents if n not in seeds}
        if not (lags.keys() == steps and all(0 <= k <= MOST for k in lags.values())
                and steps >= {r.site for r in seeds.values()}
                and all(0 < r.back <= 1 + lags[r.site] for r in seeds.values())
                and len({*seeds.values()}) == len(seeds)
                and latents.keys() - steps >= seeds.keys()
                and {latents[n].site.scan for n in steps} == {about["over"]}
                and prod(len(latents[n].site.values)**k for n, k in states.items())**2 <= LARGEST):
            raise ValueError(f"no chain of {sorted(latents)} has this layout")
        return cls(latents, seeds=seeds, **about)

    def _support(self) -> tuple[np.ndarray, np.ndarray]:
        at = {p: i for i, p in enumerate(self.parts_of)}
        states = np.array(list(product(*map(range, self.counts))))
        moves = np.ones((self.size, self.size), bool)
        places = min(self.h + max(p.ago or 0 for p in at), self.h + self.length)
        first = np.ones((places, self.size), bool)
        given = {(r.site, self.h - r.back) for r in self.seeds.values()}
        for part, i in at.items():
            own = states[:, i]
            if part.ago != 0:
                before = states[:, i if part.ago is None else at[Part(part.name, part.ago - 1)]]
                moves &= before[:, None] == own
            for place in () if part.ago is None else range(min(places, self.h + part.ago)):
                if (part.name, place - part.ago) not in given:          # nothing stands for it
                    first[place] &= own == 0
        log = lambda possible: np.where(possible, 0.0, NEVER)
        return log(first), log(moves)

    def zero(self) -> Markov:
        S, K = self.h + self.length, self.size
        if not (self.first.any() or self.moves.any()):
            return Markov(jnp.full((S, *self.batch, K), 1 / K),
                          jnp.full((S - 1, *self.batch, K, K), 1 / K**2))
        return self.update(None, (jnp.zeros((S, *self.batch, K)),
                                  jnp.zeros((S - 1, *self.batch, K, K))), None)

    def mask(self, one: Callable[[str], Clamp]) -> dict[str, Array]:
        return {n: one(n).free[..., 0] for n in self.latents}

    def stats(self, q: Markov, mask: Any) -> tuple[Array, Array]:
        return q.single, q.pair

    def place(self, ref: Ref, step: int) -> int:
        """Where a latent of a step lies."""
        seed = self.seeds.get(ref.site)
        return self.h + (step - ref.back if seed is None else -seed.back)

    def share(self, stats: tuple[Array, Array], factor: Factor, fixed: list[tuple[Ref, int]]
              ) -> Array:
        """The probability of the values that a copy of a factor has, on its batch axes."""
        mine = factor.segment.scan == self.over
        step, count = (factor.segment.start, factor.segment.length) if mine else (0, 1)
        at = {r: self.place(r, step) for r, _ in fixed if r.site not in self.constants}
        last = max(at.values(), default=self.h + step)
        now, before = {}, {}
        for ref, k in fixed:
            if ref not in at:
                now[Part(ref.site, None)] = k
                continue
            name, ago = self.seeds.get(ref.site, ref).site, last - at[ref]
            here = Part(name, ago) in self.parts_of
            (now if here else before)[Part(name, ago if here else ago - 1)] = k
        if before:
            found = self._picked(stats[1][last - 1:last - 1 + count], before, now)
        else:
            found = self._picked(stats[0][last:last + count], now)
        if not factor.in_time:
            found = found[0]
        return align(found, int(factor.in_time), self.plates, [p.name for p in factor.plates], 0)

    def _picked(self, table: Array, *chosen: Mapping[Part, int]) -> Array:
        """At chosen values of parts, for each of the last axes of a table, summed over the rest."""
        lead = table.ndim - len(chosen)
        table = table.reshape((*table.shape[:lead], *self.counts * len(chosen)))
        for picks in reversed(chosen):
            for part in reversed(self.parts_of):
                table = table[..., picks[part]] if part in picks else table.sum(-1)
        return table

    def update(self, q: Any, message: tuple[Array, Array], mask: Any) -> Markov:
        one, two = message
        first = self.first.reshape((-1, *(1,) * len(self.batch), self.size))
        one, two = one.at[:len(first)].add(first), two + self.moves

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

    def message(self, q: Markov, mask: Any) -> tuple[Array, Array]:
        inner = log_of(q.single).at[0].set(0.0).at[-1].set(0.0)
        return -inner, log_of(q.pair)

    def entropy(self, q: Markov, mask: Mapping[str, Array]) -> Array:
        if len(q.single) == 1:
            whole = entropy_of(q.single)
        else:
            whole = entropy_of(q.pair) - entropy_of(q.single[1:-1])
        return whole - self._of_barren(mask)

    def _of_barren(self, mask: Mapping[str, Array]) -> Array:
        """The entropy of what nothing observed reaches, whose factors do not count: uniform."""
        return sum(jnp.sum(1 - free) * jnp.log(len(self.latents[n].site.values))
                   for n, free in mask.items())

    def moved(self, old: Markov, new: Markov) -> Array:
        return jnp.sqrt(jnp.mean((new.single - old.single)**2))

    def following(self, message: tuple[Array, Array], mask: Mapping[str, Array]
                  ) -> tuple[Array, Array]:
        """The program's message to what nothing reaches, conditionals of what it follows."""
        free = {}
        for i, part in enumerate(self.parts_of):
            if not part.ago:                    # what is handed on was drawn before
                reached = self._over_places(part, mask, 1.0)
                once = reached.at[1:].set(1.0)          # a latent outside, before the first step
                free[i - len(self.counts)] = once if part.ago is None else reached

        def conditional(told: Array, start: int) -> Array:
            table = rest = told.reshape((*told.shape[:-1], *self.counts))
            for axis, reached in free.items():
                seen = reached[start:]
                seen = seen.reshape((*seen.shape, *(1,) * (table.ndim - seen.ndim)))
                rest = jnp.where(seen > 0, rest, logsumexp(rest, axis, keepdims=True))
            return (table - rest).reshape(told.shape)

        return conditional(message[0], 0), conditional(message[1], 1)

    def _over_places(self, part: Part, by_name: Mapping[str, Array], empty: Any) -> Array:
        """What is told of a part, (S, *plates), `empty` where nothing stands for it."""
        if part.ago is None:
            whole = by_name[part.name][None]
            return jnp.broadcast_to(whole, (self.h + self.length, *whole.shape[1:]))
        steps = by_name[part.name]
        places = [jnp.full(steps.shape[1:], empty, steps.dtype)] * self.h
        for n, ref in self.seeds.items():
            if ref.site == part.name:
                places[self.h - ref.back] = by_name[n]
        whole = jnp.concatenate([jnp.stack(places), steps]) if places else steps
        none = jnp.full((part.ago, *whole.shape[1:]), empty, whole.dtype)
        return jnp.concatenate([none, whole])[:len(whole)]

    def draw(self, q: Markov, key: Array, mask: Any) -> tuple[Markov, dict[str, Array]]:
        first, rest = random.split(key)
        z = random.categorical(first, log_of(q.single[0]))

        def step(z: Array, here: tuple[Array, Array]) -> tuple[Array, Array]:
            pair, key = here
            row = jnp.take_along_axis(log_of(pair), z[..., None, None], -2)[..., 0, :]
            new = random.categorical(key, row)
            return new, new

        _, path = jax.lax.scan(step, z, (q.pair, random.split(rest, len(q.pair))))
        path = jnp.concatenate([z[None], path])
        hot = jax.nn.one_hot(path, self.size, dtype=q.single.dtype)
        point = Markov(hot, hot[:-1][..., :, None] * hot[1:][..., None, :])
        return point, self._values(path)

    def most_probable(self, q: Markov) -> dict[str, Array]:
        """Viterbi's algorithm: the states of all steps at once."""
        first, pair = score_of(q.single[0]), score_of(q.pair)
        moves = jnp.where(q.pair > 0, pair - log_of(q.single[:-1])[..., :, None], NEVER)

        def forward(best: Array, move: Array) -> tuple[Array, Array]:
            total = best[..., :, None] + move
            return total.max(-2), total.argmax(-2)

        def backward(z: Array, before: Array) -> tuple[Array, Array]:
            z = jnp.take_along_axis(before, z[..., None], -1)[..., 0]
            return z, z

        best, before = jax.lax.scan(forward, first, moves)
        last = best.argmax(-1)
        _, path = jax.lax.scan(backward, last, before, reverse=True)
        return self._values(jnp.concatenate([path, last[None]]))

    def _values(self, path: Array) -> dict[str, Array]:
        """Of states (S, *plates) the values of every latent, in its shape."""
        index = dict(zip(self.parts_of, jnp.unravel_index(path, self.counts)))
        return {n: self._in_shape(n, self.values_of(n)[x])
                for n, x in self._by_site(index).items()}

    def _by_site(self, parts: Mapping[Part, Array]) -> dict[str, Array]:
        """Of arrays by part (S, ..) those of every latent: a step's, or a latent's outside."""
        found = {n: parts[Part(n, 0)][self.h:] for n in self.steps}
        found |= {n: parts[Part(r.site, 0)][self.h - r.back] for n, r in self.seeds.items()}
        return found | {n: parts[Part(n, None)][0] for n in self.constants}

    def _in_shape(self, name: str, array: Array, tail: tuple[int, ...] = ()) -> Array:
        lead = (self.length,) if name in self.steps else ()
        return array.reshape((*lead, *self.latents[name].site.shape, *tail))

    def log_prob(self, q: Markov, mask: Mapping[str, Array], values: Mapping[str, Array]) -> Array:
        hit = {n: (x.reshape((*(self.length,) * v.is_series, *self.batch))[..., None]
                   == self.values_of(n)) * 1.0
               for n, v in self.latents.items() for x in [values[n]]}
        hot = jnp.ones((self.h + self.length, *self.batch, 1))
        for part, count in zip(self.parts_of, self.counts):
            none = jnp.zeros(count).at[0].set(1.0)
            own = self._over_places(part, hit, none)
            hot = (hot[..., :, None] * own[..., None, :]).reshape((*hot.shape[:-1], -1))
        pairs = (q.pair * hot[:-1][..., :, None] * hot[1:][..., None, :]).sum((-1, -2))
        alone = log_of((q.single * hot).sum(-1))
        return (jnp.sum(alone[0]) + jnp.sum(log_of(pairs) - alone[:-1]) + self._of_barren(mask))

    def take(self, q: Markov, plate: str, index: Array) -> Markov:
        axis = 1 + self.plates.index(plate)
        return jax.tree.map(lambda a: jnp.take(a, index, axis), q)

    def marginal(self, q: Markov, steps: None = None) -> dict[str, dict[str, Array]]:
        table = q.single.reshape((*q.single.shape[:-1], *self.counts))
        lead, n = q.single.ndim - 1, len(self.counts)
        each = {p: table.sum(tuple(lead + j for j in range(n) if j != i))
                for i, p in enumerate(self.parts_of)}
        return {n: {"probs": self._in_shape(n, x, (x.shape[-1],))}
                for n, x in self._by_site(each).items()}
