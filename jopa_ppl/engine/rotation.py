"""Sweeps that turn and scale states: x -> R x, and all that multiplies them follows.

Where states x are seen through products with other latents alone (C x, and A x by the next step),
R x with C R^-1 and R A R^-1 does as well but for priors and noise, and sweeps that hold x while C
moves, and C while x does, creep there. So each sweep of a program that is slow goes on: x -> R x,
and every block after x is updated anew. It takes C, A and their precisions along, and nothing has
to be known of how they multiply x. F is so a function of R = (1 - G / 2)^-1 (1 + G / 2) for any
matrix G. Its slope at G = 0 is that of F with the rest held, which is where F is least: one
derivative of F along x -> (1 + G) x. The step is learned by (`linalg.bfgs`), and counts where it
lowers F.

Source: Qi & Jaakkola 2006 ("Parameter expanded variational Bayesian methods"); Luttinen 2013 ("Fast
variational Bayesian linear state-space model"), who derive R's own F for one program.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jopa_ppl.arrays import where
from jopa_ppl.beliefs import Belief
from jopa_ppl.engine.schedule import Schedule, Update
from jopa_ppl.linalg.bfgs import Bfgs

MOST = 1024          # numbers in the matrices G of a program: states of 32 numbers
WORTH = 0.01         # what a step has to promise, over what the sweep lowered F by itself


class Turned(NamedTuple):
    """What is turned, {site: dims} by block, and how many updates there are up to the last of these
    blocks."""

    sites: tuple[tuple[Belief, dict[str, int]], ...]
    first: int

    @property
    def size(self) -> int:
        """Numbers in G."""
        return sum(d * d for _, dims in self.sites for d in dims.values())

    def __call__(self, moments: dict[str, Any], clamps: dict[str, Any], G: Array,
                 small: bool = False) -> dict[str, Any]:
        """The beliefs with states turned by R, from the numbers of G; `small`: by 1 + G."""
        new = dict(moments)
        for block, dims in self.sites:
            by = {}
            for site, d in dims.items():
                half, G = 0.5 * G[:d * d].reshape(d, d), G[d * d:]
                by[site] = jnp.eye(d) + 2 * half if small else jnp.linalg.solve(
                    jnp.eye(d) - half, jnp.eye(d) + half)
            new[block.name] = block.turned(new[block.name], by, clamps[block.name])
        return new


def turned(schedule: Schedule) -> Turned | None:
    """What is turned in a conjugate program: of the first blocks with such members, those that
    other sites see through products alone, with members of blocks that are updated after them."""
    found, partners = [], set()
    for i, update in enumerate(schedule.updates):
        later = {n for u in schedule.updates[i + 1:] for n in u.block.members}
        dims, met = _free_to_turn(update, later)
        if dims and not partners & {*update.block.members}:
            found.append((update.block, dims))
            partners |= met
            last = i + 1
        elif found:
            break
    if not found:
        return None
    turn = Turned(tuple(found), last)
    return turn if turn.size <= MOST else None


def _free_to_turn(update: Update, later: set[str]) -> tuple[dict[str, int], set[str]]:
    """Sites of a block that may be turned, {site: dims}, and what they are multiplied by."""
    block, dims, partners = update.block, {}, set()
    for site, alike in block.turns.items():
        met, fixed = set(), False
        for f in update.factors:
            for product in f.products:
                names = {r.site for r in product}
                if names & alike:
                    others = names - alike
                    met |= others
                    # Data, and what is held, let go of no product; nor does what adds x itself.
                    fixed |= bool(others - later) or not (others or f.site.name in alike)
        if met and not fixed:
            dims[site] = block.latents[site].dims
            partners |= met
    return dims, partners


def beginning(schedule: Schedule) -> Bfgs | None:
    """No step yet; None where nothing is turned."""
    turn = turned(schedule)
    return None if turn is None else Bfgs.of(turn.size)


class _Best(NamedTuple):
    """The beliefs with the least F so far, and its slope; `bad` and `watched` as a sweep has them,
    of the updates after what is turned."""

    moments: dict[str, Any]
    free_energy: Array
    slope: Array
    bad: Array
    watched: list[Any]
    bfgs: Bfgs


def sweep(turn: Turned, begun: dict[str, Any], before: Array, clamps: dict[str, Any], bfgs: Bfgs,
          over: Callable[[slice, dict[str, Any]], tuple[dict[str, Any], Array, list]],
          free_energy: Callable[[dict[str, Any]], Array], unwatched: list[Any]
          ) -> tuple[dict[str, Any], Array, Array, list[Any], Bfgs]:
    """A sweep, and its second part again with states turned: beliefs, F, the position of a bad
    update (or -1), what was watched, and what was learned. `before`: F; `over`: goes over
    a part of the updates."""
    moments, wrong, watched = over(slice(turn.first), begun)

    def goes_on(at: tuple[Array, _Best]) -> Array:
        i, best = at
        promised = -0.5 * best.slope @ best.bfgs.step(best.slope)
        worth = ~best.bfgs.told | (promised > WORTH * (before - best.free_energy))
        return (i == 0) | ((i == 1) & worth)

    def again(at: tuple[Array, _Best]) -> tuple[Array, _Best]:
        i, best = at
        step = best.bfgs.step(best.slope)                # none at first
        there = jax.lax.cond(i > 0, lambda q: turn(q, clamps, step), lambda q: q, best.moments)
        moved, bad, seen = over(slice(turn.first, None), there)
        f, slope = jax.value_and_grad(lambda G: free_energy(turn(
            moved, clamps, G, small=True)))(jnp.zeros(turn.size))
        lower = f <= best.free_energy
        learned = best.bfgs.after(step, slope - best.slope, lower)
        new = _Best(moved, f, slope, jnp.where(i == 0, bad, best.bad), seen, learned)
        kept = best._replace(bad=new.bad, bfgs=learned)
        return i + 1, where(lower, new, kept)

    # One loop of two rounds: what it makes is compiled once.
    _, best = jax.lax.while_loop(goes_on, again, (jnp.zeros((), int), _Best(
        moments, jnp.full((), jnp.inf), jnp.zeros(turn.size), wrong,
        unwatched[turn.first:], bfgs)))
    return (best.moments, best.free_energy, jnp.where(wrong >= 0, wrong, best.bad),
            watched + best.watched, best.bfgs)
