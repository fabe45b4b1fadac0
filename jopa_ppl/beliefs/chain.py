"""The belief of a chain block: a block-tridiagonal Gaussian over the states and actions of a scan.

A node z_t holds the block's sites of one step; k consecutive nodes make a group, so that an order-k
program is block-tridiagonal with no singular transition. Outer latents that the first carry is made
of are a group of their own, before the first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import ceil
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.scipy.linalg import solve_triangular

from jopa_ppl.beliefs.base import Clamp, Factor, Variable
from jopa_ppl.beliefs.gaussian import (
    GaussianBelief,
    clamped,
    log_density,
    restrict,
    unit_where_fixed,
)
from jopa_ppl.beliefs.layout import align, take
from jopa_ppl.linalg import chain, elimination
from jopa_ppl.linalg.factors import Moments
from jopa_ppl.linalg.families import symmetric
from jopa_ppl.program.refs import Ref
from jopa_ppl.program.segments import Segment


class Chain(NamedTuple):
    """Moments of a chain, groups leading: mean (G, *plates, D), cov, cross = Cov(z[g+1], z[g]),
    and the precision blocks they come from."""

    mean: Array
    cov: Array
    cross: Array
    logdet: Array
    diag: Array
    off: Array


class ChainBelief(GaussianBelief):
    """One joint Gaussian over all steps of a scan.

    Attributes:
        length: steps. k: nodes in a group; groups: of nodes; h: 1 where the head is one before.
        node, head_at: where a member lies in a node, or in the head, (start, size).
        seeds: latents that stand for an earlier value of a site, {latent: which}.
        method: the kernel of `linalg.chain`, or "funsor".

    What goes along its steps (`engine.coordinates`, `forward`, `filtering`, `posterior.state`) asks
    more of a chain than `Belief` lists: `variables`, the members of its steps; where these lie, by
    the attributes above, and `width` of a node; `windows(stats, refs, segment)`, the joint moments
    of what each step of a segment sees, (T, *plates, n) and (T, *plates, n, n); `with_means(stats,
    steps)`, the same about other means, (T, *plates, width). A belief of another form about the
    steps of a scan answers these as well.
    """

    kind, label, rank = "chain", "chain (block-tridiagonal Gaussian)", 0
    structured = True

    def __init__(self, latents: Mapping[str, Variable], *, scan: int, length: int, order: int,
                 seeds: Mapping[str, Ref], head: tuple[str, ...] = (),
                 method: str = "auto", **about: Any) -> None:
        super().__init__(latents, **about)
        self.scan, self.length, self.order, self.head = scan, length, order, head
        self.method, self.k, self.groups = method, order, ceil(length / order)
        self.node, self.width = self._lay_out(self.variables)
        self.seeds = dict(seeds)
        # A seed is an earlier value of a site: the head group holds the k nodes before step 0, and
        # after them what else is in the head (such as the first state of a chain that is barren).
        own = {n: r for n, r in self.seeds.items() if n in head and r.site in self.node}
        rest, end = self._lay_out([n for n in head if n not in own],
                                  self.k * self.width if own else 0)
        self.head_at = rest | {n: self._place(r.site, -r.back) for n, r in own.items()}
        self.dims = max(self.k * self.width, end)
        self.h = int(bool(head))

    @property
    def can_follow(self) -> tuple[str, ...]:
        return () if self.held else self.variables

    def _lay_out(self, names: Iterable[str], start: int = 0
                 ) -> tuple[dict[str, tuple[int, int]], int]:
        """Members side by side, {name: (start, size)}, and where they end."""
        table = {}
        for name in names:
            table[name] = (start, self.latents[name].dims)
            start += self.latents[name].dims
        return table, start

    def _place(self, site: str, node: int) -> tuple[int, int]:
        """Where a site of a node, counted from step 0, lies in its group."""
        start, size = self.node[site]
        return node % self.k * self.width + start, size

    def zero(self) -> Chain:
        G, D, b = self.groups + self.h, self.dims, self.batch
        return Chain(jnp.zeros((G, *b, D)), jnp.zeros((G, *b, D, D)), jnp.zeros((G - 1, *b, D, D)),
                     jnp.zeros(b), jnp.zeros((G, *b, D, D)), jnp.zeros((G - 1, *b, D, D)))

    def mask(self, one: Callable[[str], Clamp]) -> Clamp:
        parts = {n: one(n) for n in self.members}
        return Clamp(*(self.vector({n: p[i] for n, p in parts.items()}) for i in (0, 1)))

    def vector(self, parts: Mapping[str, Array]) -> Array:
        """What members hold, (T, *plates, dims) or of the head (*plates, dims), by group."""
        nodes = self.nodes(jnp.concatenate([parts[n] for n in self.variables], -1))
        if not self.head:
            return nodes
        return jnp.concatenate([self.head_vector({n: parts[n] for n in self.head})[None], nodes])

    def stats(self, q: Chain, mask: Clamp) -> tuple[Array, Array, Array]:
        return *clamped(q.mean, q.cov, mask), between(q.cross, mask.free)

    def nodes(self, array: Array) -> Array:
        """(T, *plates, width) of steps -> (G, *plates, D) of groups, without the head."""
        pad = self.groups * self.k - self.length
        array = jnp.concatenate([array, jnp.zeros((pad, *array.shape[1:]), array.dtype)])
        grouped = array.reshape((self.groups, self.k, *array.shape[1:]))
        grouped = jnp.moveaxis(grouped, 1, -2)
        grouped = grouped.reshape((*grouped.shape[:-2], self.k * self.width))
        extra = [(0, 0)] * (grouped.ndim - 1) + [(0, self.dims - self.k * self.width)]
        return jnp.pad(grouped, extra)

    def with_means(self, stats: tuple[Array, Array, Array], steps: Array
                   ) -> tuple[Array, Array, Array]:
        """The statistics with other means of the steps, (T, *plates, width)."""
        return jnp.concatenate([stats[0][:self.h], self.nodes(steps)]), *stats[1:]

    def at_rest(self, q: Chain) -> Chain:
        first = q.mean[self.h, ..., :self.width]
        for name, ref in self.seeds.items():
            if name in self.head and ref.back == 1 and ref.site in self.node:
                (at, size), (start, _) = self.node[ref.site], self.head_at[name]
                first = first.at[..., at:at + size].set(q.mean[0, ..., start:start + size])
        mean, *_ = self.with_means((q.mean, q.cov, q.cross),
                                   jnp.broadcast_to(first, (self.length, *first.shape)))
        return q._replace(mean=mean)

    def head_vector(self, parts: dict[str, Array]) -> Array:
        """Values of the head's members (*plates, dims) -> the head group (*plates, D)."""
        out = jnp.zeros((*self.batch, self.dims))
        for name, part in parts.items():
            start, size = self.head_at[name]
            out = out.at[..., start:start + size].set(part)
        return out

    def view(self, stats: tuple[Array, Array, Array], factor: Factor) -> Moments:
        instances = factor.instances_of(self)
        want = [p.name for p in factor.plates]
        have = self.plates
        # Steps of other scans see the head alone, as what is outside of scans does.
        own = factor.segment if factor.segment.scan == self.scan else Segment()
        m, c = self.windows(stats, instances, own)
        if not factor.in_time:
            m, c = m[0], c[0]
        lead = int(factor.in_time)
        return Moments(align(m, lead, have, want, 1), align(c, lead, have, want, 2))

    def windows(self, stats: tuple[Array, Array, Array], refs: Sequence[Ref], segment: Segment
                ) -> tuple[Array, Array]:
        """Joint moments of what is read, (T, ..), for every step of a segment."""
        mean, cov, cross = stats
        one, (group, phase) = segment.length == 1, divmod(segment.start, self.k)
        group, phases = self.h + group, [phase] if one else range(self.k)
        own = slice(group, group + 1 if one else len(mean))
        means, covs, behind = mean[own], cov[own], 0
        if any(r.back is None or r.back > phases[0] for r in refs):
            # Else its own group tells, and there need be none before it.
            before, behind = slice(own.start - 1, own.stop - 1), self.dims
            means = jnp.concatenate([mean[before], means], -1)
            covs = _pair(cov[before], covs, cross[before])

        def place(ref: Ref, phase: int) -> tuple[int, int]:
            if ref.back is None:
                return self.head_at[ref.site]
            start, size = self._place(ref.site, phase - ref.back)
            return start + behind * (ref.back <= phase), size

        def by_step(array: Array, axes: list[int]) -> Array:
            parts = [take(array, [place(r, phase) for r in refs], axes) for phase in phases]
            if len(parts) == 1:
                return parts[0]
            return jnp.stack(parts, 1).reshape((-1, *parts[0].shape[1:]))[:segment.length]

        return by_step(means, [-1]), by_step(covs, [-2, -1])

    def update(self, q: Chain, message: tuple[Array, Array, Array], mask: Clamp) -> Chain:
        g_mean, g_cov, g_cross = message
        diag = restrict(-2 * symmetric(g_cov), mask.free) + unit_where_fixed(mask.free)
        off, vector = between(-g_cross, mask.free), g_mean * mask.free
        found = (self._by_elimination(diag, off, vector) if self.method == "funsor"
                 else chain.marginals(diag, off, vector, self.method))
        mean = jnp.where(mask.free > 0, q.mean + found.mean, mask.value)
        return Chain(mean, found.cov, found.cross, found.logdet, diag, off)

    @property
    def turns(self) -> dict[str, set[str]]:
        found = {n: {n} for n in self.latents}
        for name, ref in self.seeds.items():
            if name in self.head and ref.site in self.node:
                found[ref.site] |= found.pop(name)
        return {n: alike for n, alike in found.items()
                if not any(self.latents[a].site.partial for a in alike)}

    def turned(self, q: Chain, by: Mapping[str, Array], mask: Clamp) -> Chain:
        places = {n: ([self.head_at[a][0] for a in self.turns[n] if a in self.head],
                      [self._place(n, j)[0] for j in range(self.k)] if n in self.node else [])
                  for n in by}
        h, unit, logdet = self.h, unit_where_fixed(mask.free), q.logdet
        for name, R in by.items():
            free = sum(part[..., start].sum(0) for part, starts in zip(
                (mask.free[:h], mask.free[h:]), places[name]) for start in starts)
            logdet -= 2 * jnp.linalg.slogdet(R)[1] * free

        def maps(by: Mapping[str, Array]) -> list[Array]:
            """Of the head, and of every other group."""
            found = [jnp.eye(self.dims)] * 2
            for name, R in by.items():
                for i, starts in enumerate(places[name]):
                    for start in starts:
                        at = slice(start, start + len(R))
                        found[i] = found[i].at[at, at].set(R)
            return found

        def moved(M: list[Array], diag: Array, off: Array) -> tuple[Array, Array]:
            head, node = M
            diag = jnp.concatenate([head @ diag[:h] @ head.T, node @ diag[h:] @ node.T])
            off = jnp.concatenate([node @ off[:h] @ head.T, node @ off[h:] @ node.T])
            return restrict(diag, mask.free) + unit, off

        M = maps(by)
        back = [x.T for x in maps({n: jnp.linalg.inv(R) for n, R in by.items()})]
        mean = jnp.concatenate([q.mean[:h] @ M[0].T, q.mean[h:] @ M[1].T])
        cov, cross = moved(M, q.cov, q.cross)
        return Chain(mean, cov, cross, logdet, *moved(back, q.diag, q.off))

    def _by_elimination(self, diag: Array, off: Array, vector: Array) -> chain.Marginals:
        """The same marginals by Funsor, every group a named variable."""
        plates = self.plates
        names = [f"z{g}" for g in range(len(diag))]
        variables = {n: elimination.Variable(self.dims, plates) for n in names}
        # Funsor takes positive semi-definite terms: share the diagonal blocks between neighbours by
        # what each leaves of the next, [[S, C'], [C, C S^-1 C']] with S what is left of its own.
        terms, left = [], diag[0]
        for g in range(len(diag) - 1):
            white = solve_triangular(jnp.linalg.cholesky(left), jnp.swapaxes(off[g], -1, -2),
                                     lower=True)
            passed = jnp.swapaxes(white, -1, -2) @ white
            pair = _pair(left, passed, off[g])
            left = diag[g + 1] - passed
            if g == len(diag) - 2:
                pair = pair + _pair(jnp.zeros_like(left), left, jnp.zeros_like(left))
            terms.append(elimination.Term((names[g], names[g + 1]), plates, pair))
        if not terms:
            terms = [elimination.Term((names[0],), plates, diag[0])]
        sizes = dict(zip(plates, self.batch))
        found = elimination.marginals(variables, sizes, terms, dict(zip(names, vector)))
        D = self.dims
        cov = [found.cov[min(g, len(terms) - 1)] for g in range(len(diag))]
        cov = [c[..., :D, :D] if g < len(terms) else c[..., D:, D:] for g, c in enumerate(cov)]
        cross = [c[..., D:, :D] for c in found.cov[:len(diag) - 1]]
        return chain.Marginals(
            jnp.stack([found.mean[n] for n in names]), jnp.stack(cov),
            jnp.stack(cross) if cross else jnp.zeros_like(off), found.logdet)

    def message(self, q: Chain, mask: Clamp) -> tuple[Array, Array, Array]:
        diag = q.diag - unit_where_fixed(mask.free)
        return jnp.zeros_like(q.mean), -0.5 * diag, -q.off

    def jointly(self, chosen: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(n for n in chosen if n in self.head)

    def joint(self, q: Chain, names: tuple[str, ...]) -> tuple[Array, Array]:
        pieces = [self.head_at[n] for n in names]
        return take(q.mean[0], pieces, [-1]), take(q.cov[0], pieces, [-2, -1])

    def steps(self, array: Array, name: str, tail: int) -> Array:
        """Per-step pieces of a site: (T, *plates, dims) of means, (.., dims, dims) of covs."""
        axes = [-1] if tail == 1 else [-2, -1]
        parts = [take(array[self.h:], [self._place(name, j)], axes) for j in range(self.k)]
        stacked = jnp.stack(parts, 1)
        return stacked.reshape((-1, *stacked.shape[2:]))[:self.length]

    def site(self, q: Chain, name: str) -> tuple[Array, Array]:
        """Marginals of a site: (T, *plates, dims) and (.., dims, dims), no T for the head."""
        if name in self.head_at:
            piece = [self.head_at[name]]
            return take(q.mean[0], piece, [-1]), take(q.cov[0], piece, [-2, -1])
        return self.steps(q.mean, name, 1), self.steps(q.cov, name, 2)

    def marginal(self, q: Chain, steps: tuple[Array, Array] | None = None
                 ) -> dict[str, dict[str, Array]]:
        if steps is None:
            return super().marginal(q)
        found = {n: self.site(q, n) for n in self.head}
        for name in self.variables:
            piece = [self.node[name]]
            found[name] = take(steps[0], piece, [-1]), take(steps[1], piece, [-2, -1])
        return {n: dict(zip(self.parts, x)) for n, x in found.items()}

    def draw(self, q: Chain, key: Array, mask: Clamp) -> tuple[Chain, dict[str, Array]]:
        method = "auto" if self.method == "funsor" else self.method
        z = q.mean + chain.sample(key, q.diag, q.off, method=method)
        return self.without_spread(q, jnp.where(mask.free > 0, z, mask.value))

    def without_spread(self, q: Chain, z: Array) -> tuple[Chain, dict[str, Array]]:
        """A draw by group, as a q without spread and as values by site."""
        point = q._replace(mean=z, cov=jnp.zeros_like(q.cov), cross=jnp.zeros_like(q.cross))
        return point, {n: v.values(self.site(point, n)[0]) for n, v in self.latents.items()}

    def log_prob(self, q: Chain, mask: Clamp, values: Mapping[str, Array]) -> Array:
        z = self.vector({n: v.vectors(values[n]) for n, v in self.latents.items()})
        gap = (z - q.mean) * mask.free
        return log_density(square(q, gap), q.logdet, jnp.sum(mask.free))

    def take(self, q: Chain, plate: str, index: Array) -> Chain:
        axis = self.plates.index(plate)
        at = dict.fromkeys(q._fields, axis + 1) | {"logdet": axis}
        return Chain(*(jnp.take(a, index, at[f]) for f, a in q._asdict().items()))


def square(q: Any, gap: Array) -> Array:
    """gap' J gap of a chain's precision."""
    return (jnp.einsum("...i,...ij,...j->", gap, q.diag, gap)
            + 2 * jnp.einsum("...i,...ij,...j->", gap[1:], q.off, gap[:-1]))


def between(cross: Array, free: Array) -> Array:
    """Blocks between neighbouring groups without the rows and columns of what is not free."""
    return cross * free[1:, ..., :, None] * free[:-1, ..., None, :]


def _pair(first: Array, second: Array, cross: Array) -> Array:
    """[[first, cross'], [cross, second]]."""
    top = jnp.concatenate([first, jnp.swapaxes(cross, -1, -2)], -1)
    return jnp.concatenate([top, jnp.concatenate([cross, second], -1)], -2)
