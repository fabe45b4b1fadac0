"""What a factor that is not conjugate is made of, as functions of the latents that it touches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from numpyro.distributions import biject_to, constraints
from numpyro.distributions.transforms import ExpTransform, SigmoidTransform

from jopa_ppl.beliefs.layout import align, join, split
from jopa_ppl.engine.evidence import FactorArrays
from jopa_ppl.engine.reading import evaluate_in
from jopa_ppl.graph.factor import Factor, Graph
from jopa_ppl.linalg.corners import over_corner
from jopa_ppl.linalg.factors import Moments
from jopa_ppl.linalg.nonconjugate import Score
from jopa_ppl.program.likelihood import ByParameters
from jopa_ppl.program.refs import Ref

FEW = 3        # parameters of an element at most that quadrature goes over


class Placement(NamedTuple):
    """Where latents `refs` lie in x (*batch, n): side by side, on the batch axes of a factor."""

    graph: Graph
    factor: Factor
    refs: Sequence[Ref]
    arrays: FactorArrays

    @property
    def length(self) -> int | None:
        return self.arrays.offset.shape[0] if self.factor.in_time else None

    def values(self, x: Array) -> dict[Ref, Array]:
        """The latents' values, in the shapes of their sites; x without the axis of time."""
        plates, values, at = [p.name for p in self.factor.plates], {}, 0
        for ref in self.refs:
            variable = self.graph.variables[ref.site]
            piece, own = x[..., at:at + variable.dims], list(variable.plates)
            for axis in reversed(range(len(plates))):
                if plates[axis] not in own:
                    piece = jax.lax.index_in_dim(piece, 0, axis, keepdims=False)
            piece = align(piece, 0, [p for p in plates if p in own], own, 1)
            values[ref] = join(piece, variable.site, variable.local)
            at += variable.dims
        return values

    def each(self, outputs: Sequence[int], x: Array | None,
             then: Callable[[list[Array], Mapping[Ref, Array]], Any] = lambda found, _: found,
             shared: Mapping[Ref, Array] | None = None) -> Any:
        """`then` of the given outputs at x, for every step where there are steps; `shared`: values
        of what is the same everywhere."""
        one = lambda step, x: self.at(step, outputs, x, then, shared)
        if (length := self.length) is None:
            return one(0, x)
        if x is None:
            return jax.vmap(lambda step: one(step, None))(jnp.arange(length))
        return jax.vmap(one)(jnp.arange(length), self.in_time(x))

    def copied(self, x: Array, refs: Sequence[Ref] | None = None) -> bool:
        """Whether x, of all latents or of some, holds copies of one that the elements of a plate
        share. The first is read, for all of them: no pass backward says what each makes of it."""
        lead, own = 0 if self.length is None else 1, self.refs if refs is None else refs
        return any(x.shape[lead + i] > 1 and p.name not in self.graph.variables[r.site].plates
                   for i, p in enumerate(self.factor.plates) for r in own)

    def copied_of(self, points: Sequence[Array]) -> list[bool]:
        """`copied` of each of the vectors that make x, side by side, or the first of them."""
        rest, found = list(self.refs), []
        for point in points:
            size, mine = point.shape[-1], []
            while size:
                mine.append(rest.pop(0))
                size -= self.graph.variables[mine[-1].site].dims
            found.append(self.copied(point, mine))
        return found

    def in_time(self, x: Array) -> Array:
        """x (*batch|1, n) with a copy for every step, where there are steps."""
        return x if self.length is None else jnp.broadcast_to(x, (self.length, *x.shape[1:]))

    def at(self, step: Array | int, outputs: Sequence[int], x: Array | None,
           then: Callable[[list[Array], Mapping[Ref, Array]], Any],
           shared: Mapping[Ref, Array] | None) -> Any:
        """As `each`, at one step of the segment, x without the axis of time."""
        values = dict(shared or {}) | ({} if x is None else self.values(x))
        return then(evaluate_in(self.graph.reader, self.factor, self.arrays.env, outputs, values,
                                step), values)

    def residual(self, x: Array, shared: Mapping[Ref, Array] | None = None) -> Array:
        """z - mean of a Gaussian at x, (*batch, n); of an observed one its mean alone,
        negative."""
        return self.each([self.factor.site.outputs["loc"]], x, self._less_mean, shared)

    def residual_at(self, step: Array | int, x: Array, shared: Mapping[Ref, Array]) -> Array:
        """As `residual` at one step of the segment, x and it without the axis of time."""
        return self.at(step, [self.factor.site.outputs["loc"]], x, self._less_mean, shared)

    def _less_mean(self, found: list[Array], values: Mapping[Ref, Array]) -> Array:
        own = 0.0 if self.factor.value is None else values[self.factor.value]
        return split(own - found[0], self.factor.site, self.factor.plates)


def score_of(place: Placement) -> Score:
    """log p(value | x) with x the latents of `place`, for all steps and plates at once.

    An element that weighs nothing is no function of x, whatever the program does there. Where its
    elements are independent, what they are made of is told as well (`Score.parameters`), each
    parameter by NumPyro's own map from the real line to where it has to lie.

    The factor's weights temper the density and leave out what is missing.
    """
    graph, factor, refs, arrays = place
    likelihood = factor.site.likelihood
    lead = 0 if place.length is None else 1
    avals = [v.aval for v in graph.program.jaxpr.jaxpr.outvars]
    shape = avals[likelihood.value].shape
    elements = prod(shape) * (place.length or 1)
    outputs = likelihood.outputs
    moves = [bool(d.names & {*refs}) for d in graph.reader.dependence(outputs, factor.segment)]
    moving = [i for i, m in zip(outputs, moves) if m]
    held = place.each([i for i, m in zip(outputs, moves) if not m], None)

    def whole(moved: Sequence[Array]) -> tuple[list[Array], Array]:
        """Leaves and value, from those of them that move."""
        found, fixed = iter(moved), iter(held)
        *leaves, value = [next(found if m else fixed) for m in moves]
        return leaves, value

    def log_prob(moved: Sequence[Array]) -> Array:
        leaves, value = whole(moved)

        def one(leaves: list[Array], value: Array) -> tuple[Array, ...]:
            fn = likelihood.tree.unflatten(leaves)
            if factor.site.transform is None:
                return (fn.log_prob(value),)
            return fn.inside(value), fn.change(value)

        density, *change = (jax.vmap(one) if lead else one)(leaves, value)
        return sum(map(laid, change), arrays.weight * laid(density))

    plates = range(lead, lead + len(factor.plates))
    places = [lead + p.axis for p in factor.plates]

    def laid(array: Array) -> Array:
        """(*lead, *shape of the value) -> (*batch, elements)."""
        # What the base distribution has for an event is summed already.
        own = shape[:array.ndim - lead]
        array = jnp.broadcast_to(array, (*array.shape[:lead], *own))
        moved = jnp.moveaxis(array, places, plates)
        return moved.reshape((*moved.shape[:lead + len(factor.plates)], -1))

    def unlaid(array: Array) -> Array:
        """The reverse, from a batch that may hold 1s."""
        rest = [n for i, n in enumerate(shape) if lead + i not in places]
        array = array.reshape((*array.shape[:-1], *rest))
        array = jnp.moveaxis(array, plates, places)
        return jnp.broadcast_to(array, (*array.shape[:lead], *shape))

    def full(array: Array) -> Array:
        """(*lead, the last axes of the value's shape, or fewer) -> (*lead, *shape): a parameter may
        be one for an event that `expand` made of it."""
        own = array.shape[lead:]
        array = array.reshape((*array.shape[:lead], *(1,) * (len(shape) - len(own)), *own))
        return jnp.broadcast_to(array, (*array.shape[:lead], *shape))

    seen = (arrays.weight > 0).any(-1) | (factor.site.transform is not None)

    def quiet(x: Array) -> Array:
        """x, of which what weighs nothing is no function: no 0 * NaN in its derivatives."""
        shared = tuple(i for i, n in enumerate(x.shape[:-1]) if n == 1)
        used = seen.any(shared, keepdims=True)[..., None]
        return jnp.where(used, x, jax.lax.stop_gradient(x))

    def score(x: Array) -> Array:
        found = jnp.sum(log_prob(place.each(moving, quiet(x))), -1)
        return jnp.where(seen, found, 0.0)

    maps = _maps(likelihood.tree, moves)
    if maps is None or not moving:
        return Score(score, copied=place.copied, elements=elements)

    def parameters(x: Array) -> list[Array]:
        found = place.each(moving, quiet(x))
        return [laid(full(m.inv(_off_the_edge(m, a)))) for m, a in zip(maps, found)]

    def density(moved: Sequence[Array]) -> Array:
        found = log_prob([m(unlaid(a)) for m, a in zip(maps, moved)])
        return jnp.where(seen[..., None], found, 0.0)

    names = [n for n, m in zip([*likelihood.tree.names, "value"], moves) if m]

    def expected(at: Moments) -> Array:
        etas = {n: at.mean[..., i] for i, n in enumerate(names)}
        leaves, value = whole([m(unlaid(a)) for m, a in zip(maps, etas.values())])
        value, loc = (laid(full(a)) for a in (value, leaves[likelihood.tree.names.index("loc")]))
        gap, scale = (jnp.array([signs.get(n, 0.0) for n in names]) for signs in (
            {"value": 1.0, "loc": -1.0}, {"scale": 1.0}))
        spread = lambda a, b: jnp.einsum("i,...ij,j->...", a, at.cov, b)

        def log(z: Array, s: Array) -> Array:
            there = {"value": loc + z} if "value" in etas else {"loc": value - z}
            scaled = {"scale": s} if "scale" in etas else {}
            return density([*{**etas, **there, **scaled}.values()])

        mean = jnp.where(seen[..., None], value - loc, 0.0)
        return over_corner(log, mean, etas.get("scale", jnp.zeros(())), spread(gap, gap),
                           spread(gap, scale), spread(scale, scale))

    corner = likelihood.tree.straight and {"value", "loc"} & {*names} and (
        {*names} <= {"value", "loc", "scale"})
    return Score(score, parameters, density, place.copied, elements, expected if corner else None)


def _off_the_edge(transform: Any, a: Array) -> Array:
    """Probabilities of zero and one, and rates of zero, as numbers that have a place on the real
    line and whose squares have inverses; there they depend on nothing."""
    limits = jnp.finfo(a.dtype)
    least = limits.tiny**0.45
    if isinstance(transform, SigmoidTransform):
        return jnp.clip(a, least, 1 - limits.eps)
    return jnp.maximum(a, least) if isinstance(transform, ExpTransform) else a


def _maps(tree: Any, moves: Sequence[bool]) -> list[Any] | None:
    """NumPyro's transforms of what moves, where that are few parameters (the value last) of a
    density of independent elements; else None."""
    if not isinstance(tree, ByParameters) or sum(moves) > FEW:
        return None
    found = [c for c, m in zip([*tree.constraints.values(), constraints.real], moves) if m]
    simple = all(not c.event_dim and not c.is_discrete for c in found)
    return [biject_to(c) for c in found] if simple else None
