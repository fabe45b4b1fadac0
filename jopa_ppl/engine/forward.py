"""Forward in time: moments of steps that smoothing left out, and the roll-out of a plan.

The state (head, last k nodes) is carried with its mean and covariance. Where smoothing has settled
it, it is taken from there; after that the program's sites follow one another, each with its
conditional mean and covariance, over beliefs about what is shared (as if drawn afresh each step).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.custom_batching import custom_vmap

from jopa_ppl.beliefs import ChainBelief
from jopa_ppl.engine.conditional import Conditional
from jopa_ppl.engine.coordinates import Coordinates, with_zeros
from jopa_ppl.engine.engine import Engine
from jopa_ppl.engine.evidence import Evidence
from jopa_ppl.linalg.factors import augment
from jopa_ppl.program.refs import Ref
from jopa_ppl.program.segments import in_segments


class Smoothed(NamedTuple):
    """What smoothing settled; arrays (T, *plates, ..).

    state_*: (head, last k nodes) before step t, elements of which hold where `settled`; node_*: the
    step's own sites, elements of which hold where `free`; cross: covariance of state and node.
    """

    state_mean: Array
    state_cov: Array
    node_mean: Array
    node_cov: Array
    cross: Array
    settled: Array
    free: Array


def over_time(step: Callable, carry: Any, tree: Any, length: int, reverse: bool = False
              ) -> tuple[Any, Any]:
    """lax.scan over the leading axis of the leaves; leaves with one entry serve all steps.

    Args:
        step: (carry, leaves of one step) -> (next carry, output).
        carry: the first one.
        tree: a pytree of arrays (length or 1, ..).
        length: number of steps; reverse: from the last to the first.

    Returns:
        the last carry, and the outputs (length, ..).
    """
    leaves, treedef = jax.tree.flatten(tree)
    moving = [x.shape[0] == length and length > 1 for x in leaves]

    def body(carry: Any, here: list[Array]) -> tuple[Any, Any]:
        given = iter(here)
        return step(carry, treedef.unflatten(
            [next(given) if m else x[0] for m, x in zip(moving, leaves)]))

    return jax.lax.scan(body, carry, [x for m, x in zip(moving, leaves) if m], length=length,
                        reverse=reverse)


def smoothed(engine: Engine, block: ChainBelief, moments: dict, bound: Evidence) -> Smoothed:
    """The smoother's share of a chain, and where it holds: where some observation reaches.

    Steps that nothing reaches have numbers here too, which `roll` does not read.

    Args:
        engine: of the program; block: a chain of it.
        moments, bound: beliefs by block and the numbers of the run, completed (`complete`).
    """
    c, w = Coordinates(block), block.width
    free = jnp.concatenate(
        [jnp.broadcast_to(bound.alive[n][..., None],
                          (*bound.alive[n].shape, engine.graph.variables[n].dims))
         for n in block.variables], -1)
    ahead = jnp.ones((c.k, *free.shape[1:]), bool)
    nodes = jnp.concatenate([ahead, free])
    before = [jnp.ones((*free.shape[:-1], c.head_dims), bool),
              *(nodes[j:j + block.length] for j in range(c.k))]
    stats = block.stats(moments[block.name], bound.clamps[block.name])
    node_mean = jnp.concatenate([block.steps(stats[0], n, 1) for n in block.variables], -1)
    blocks = jnp.stack([stats[1][block.h:, ..., j * w:(j + 1) * w, j * w:(j + 1) * w]
                        for j in range(c.k)], 1)
    node_cov = blocks.reshape((-1, *blocks.shape[2:]))[:block.length]
    mean, cov = _states(block, stats, c)
    state, node = slice(0, c.state), slice(c.state, None)
    return Smoothed(mean[..., state], cov[..., state, state], node_mean, node_cov,
                    cov[..., state, node], jnp.concatenate(before, -1),
                    free.astype(jnp.result_type(float)))


def _states(belief: ChainBelief, stats: tuple[Array, Array, Array], c: Coordinates
            ) -> tuple[Array, Array]:
    """Moments of (head, z_{t-k}, .., z_{t-1}, z_t) for every t; 0 of nodes before the first, and of
    the head where it is forgotten."""
    means, covs = [], []
    for s in in_segments(belief.scan, belief.length, c.k, bool(belief.seeds and belief.head)):
        refs = [Ref(n, back) for back in range(s.depth, -1, -1) for n in belief.variables]
        refs = [*map(Ref, belief.head if s.early else ()), *refs]
        at, none = (c.head_dims, (c.k - s.depth) * c.width) if s.early else (0, c.head_dims)
        mean, cov = belief.windows(stats, refs, s)
        means.append(with_zeros(mean, at, none, [-1]))
        covs.append(with_zeros(cov, at, none, [-2, -1]))
    return jnp.concatenate(means), jnp.concatenate(covs)


def roll(start: Smoothed, segments: list[tuple[int, list[tuple[np.ndarray, Conditional]]]],
         c: Coordinates, look: Array | None = None) -> tuple[Array, ...]:
    """Mean and covariance of the sites of every step, and at some steps of h as a whole.

    Steps come from smoothing up to the first that it did not settle as a whole; from there on they
    are rolled out one by one.

    Args:
        start: what smoothing settled, (T, *plates, ..).
        segments: (number of steps, sites in program order: their places in h, how they follow).
        c: where sites lie in h.
        look: (*plates), the steps that h is wanted of, and no step after the last of them.

    Returns:
        mean (T, *plates, w) and covariance (T, *plates, w, w); with `look` also mean (*plates, H)
        and covariance (*plates, H, H) of h, of steps that are rolled out.
    """
    shift, z = c.shift()[1:], slice(c.size - c.width, c.size)
    whole = (start.free > 0).all(-1) & start.settled.all(-1)
    whole = whole.reshape((len(whole), -1)).all(-1)
    first = jnp.where(whole.all(), len(whole), jnp.argmin(whole))
    begun = jnp.minimum(first, len(whole) - 1)
    carry = (start.state_mean[begun], start.state_cov[begun])
    nodes, at = (start.node_mean, start.node_cov), 0
    seen = () if look is None else (jnp.zeros((*look.shape, c.size)),
                                    jnp.zeros((*look.shape, c.size, c.size)))

    def advance(carry: tuple[Array, Array], given: Smoothed, places: list[np.ndarray],
                rules: list[Conditional]) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        mean, cov = carry
        known = given.settled
        mean = jnp.where(known, given.state_mean, mean)
        cov = jnp.where(known[..., :, None] & known[..., None, :], given.state_cov, cov)
        pad = [(0, 0)] * (mean.ndim - 1)
        h = jnp.pad(augment(mean), [*pad, (0, c.width)])
        S = jnp.pad(cov, [*pad, (1, c.width), (1, c.width)])
        # What smoothing knows of the step comes first: the other sites follow from it.
        free = given.free > 0
        both = free[..., :, None] & free[..., None, :]
        cross = jnp.where(known[..., None] & free[..., None, :], given.cross, 0.0)
        mixed = free.any(-1) & ~known.all(-1)
        cross = _across_where(mixed, cross, cov, known)
        h = h.at[..., z].set(jnp.where(free, given.node_mean, 0.0))
        S = S.at[..., z, z].set(jnp.where(both, given.node_cov, 0.0))
        S = S.at[..., 1:z.start, z].set(cross)
        S = S.at[..., z, 1:z.start].set(jnp.swapaxes(cross, -1, -2))
        for where, rule in zip(places, rules):
            new = jnp.zeros(h.shape, bool).at[..., where].set(~free[..., where - z.start])
            drawn, spread = follow(h, S, where, rule)
            h = jnp.where(new, drawn, h)
            S = jnp.where(new[..., :, None] | new[..., None, :], spread, S)
        return (h[..., shift], S[..., shift, :][..., :, shift]), (h, S)

    for length, sites in segments:
        places, rules = [w for w, _ in sites], [rule for _, rule in sites]

        def step(i: Array, carried: Any, at: int = at, length: int = length,
                 places: list = places, rules: list = rules) -> Any:
            carry, nodes, seen = carried
            given = jax.tree.map(lambda a: a[at + i], start)
            here = jax.tree.map(lambda a: a[i] if len(a) == length else a[0], rules)
            carry, (h, S) = advance(carry, given, places, here)
            found = h[..., z], S[..., z, z]
            for j, new in enumerate((h, S) if seen else ()):
                this = (at + i == look).reshape(look.shape + (1,) * (new.ndim - look.ndim))
                seen = (*seen[:j], jnp.where(this, new, seen[j]), *seen[j + 1:])
            return carry, tuple(a.at[at + i].set(x) for a, x in zip(nodes, found)), seen

        end = length if look is None else jnp.clip(look.max() + 1 - at, 0, length)
        carry, nodes, seen = jax.lax.fori_loop(jnp.clip(first - at, 0, length), end, step,
                                               (carry, nodes, seen))
        at += length
    return *nodes, *seen


def walk(start: Smoothed, segments: list[tuple[int, list[tuple[np.ndarray, Any, Callable]]]],
         c: Coordinates) -> Array:
    """Means alone, h (T, *plates, H) of every step: what smoothing knows, and the rest in program
    order.

    Args:
        start: what smoothing settled, (T, *plates, ..).
        segments: (number of steps, sites in program order); of every site its places in h, its
            numbers (axes: time or 1), and what makes its mean (*plates, n) of those of a step and
            of h (*plates, H).
        c: where sites lie in h.
    """
    carry, at, found = start.state_mean[0], 0, []
    for length, sites in segments:
        def step(mean: Array, inputs: Any, sites: list = sites) -> tuple[Array, Array]:
            here, numbers = inputs
            mean = jnp.where(here.settled, here.state_mean, mean)
            h = jnp.pad(augment(mean), [(0, 0)] * (mean.ndim - 1) + [(0, c.width)])
            for (where, _, drift), mine in zip(sites, numbers):
                node = where - (c.size - c.width)
                h = h.at[..., where].set(jnp.where(
                    here.free[..., node] > 0, here.node_mean[..., node], drift(mine, h)))
            return h[..., c.shift()[1:]], h

        given = jax.tree.map(lambda a, at=at, n=length: a[at:at + n], start)
        carry, path = over_time(step, carry, (given, [n for _, n, _ in sites]), length)
        found.append(path)
        at += length
    return jnp.concatenate(found)


@custom_vmap
def _across_where(mixed: Array, cross: Array, cov: Array, known: Array) -> Array:
    """`_across` if it is wanted anywhere: it is dear, and rare."""
    return jax.lax.cond(mixed.any(), _across, lambda cross, *_: cross, cross, cov, known)


@_across_where.def_vmap
def _(size: int, batched: list[bool], *args: Array) -> tuple[Array, bool]:
    """Of many runs side by side too, whose `cond` would do both for all of them."""
    return _across_where(*(x if b else jnp.broadcast_to(x, (size, *x.shape))
                           for x, b in zip(args, batched))), True


def _across(cross: Array, cov: Array, known: Array) -> Array:
    """Covariance of state and node where smoothing knows but a part of the state: the rest was
    predicted from that part, and tells no more of the node than it does."""
    both = known[..., :, None] & known[..., None, :]
    unit = jnp.where(known & (jnp.diagonal(cov, axis1=-2, axis2=-1) > 0), 0.0, 1.0)
    inner = jnp.where(both, cov, 0.0) + unit[..., None] * jnp.eye(cov.shape[-1], dtype=cov.dtype)
    outer = jnp.where(~known[..., :, None] & known[..., None, :], cov, 0.0)
    # What is known may be tied (a recursion beside what it is made of): no plain inverse.
    size = jnp.sqrt(jnp.diagonal(inner, axis1=-2, axis2=-1))
    inner = jnp.linalg.pinv(inner / size[..., :, None] / size[..., None, :], hermitian=True)
    return cross + (outer / size[..., None, :]) @ inner @ (cross / size[..., :, None])


def follow(h: Array, S: Array, where: np.ndarray, rule: Conditional) -> tuple[Array, Array]:
    """Put z = M h + noise in its place in h: its mean, and its covariance with all of h."""
    z = jnp.einsum("...nh,...h->...n", rule.mean, h)
    across = jnp.einsum("...nh,...hk->...nk", rule.mean, S)
    own = jnp.einsum("...nh,...mh->...nm", across, rule.mean) + rule.cov
    if rule.K is not None:
        own = own + rule.K.spread_of(rule.slots, S + h[..., :, None] * h[..., None, :])
    S = S.at[..., where, :].set(across).at[..., :, where].set(jnp.swapaxes(across, -1, -2))
    return h.at[..., where].set(z), S.at[..., where[:, None], where[None, :]].set(own)
