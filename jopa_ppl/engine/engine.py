"""Sweeps: updates block by block, until the free energy settles.

Everything here is a pure function of arrays; `compiled.py` jits it once per program and shapes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jopa_ppl.arrays import where
from jopa_ppl.beliefs import Belief
from jopa_ppl.engine import extrapolation, rotation
from jopa_ppl.engine.arithmetic import Arithmetic
from jopa_ppl.engine.evidence import Evidence
from jopa_ppl.engine.rounding import POLISHED, Digits, digits
from jopa_ppl.engine.schedule import Schedule
from jopa_ppl.engine.state import State
from jopa_ppl.graph.factor import Factor, Graph

NEAR = 1e-4          # of standard deviations
LEAST_STEP = 1e-18   # next to none
KEPT = 1e-6          # of an old precision in a new one, which is none of its own below
PASSES = 5           # at most, of a program that one pass solves but for rounding


class Engine(Arithmetic):
    """The sweeps of one graph: updates of its blocks in the order of a schedule."""

    def __init__(self, graph: Graph) -> None:
        super().__init__(graph)
        self.schedule = Schedule.of(graph, self.energy)

    def update(self, block: Belief, factors: list[Factor], moments: dict[str, Any],
               bound: Evidence) -> dict[str, Any]:
        """The block's belief from its complete message, the gradient of the energy."""
        return self.watched_update(block, factors, moments, bound)[0]

    def watched_update(self, block: Belief, factors: list[Factor], moments: dict[str, Any],
                       bound: Evidence) -> tuple[dict[str, Any], Any]:
        """`update`, and the precisions that tell how many digits the new belief has
        (`rounding.digits`)."""
        local = self.energy_of(block, factors, moments, bound)
        message = jax.lax.optimization_barrier(jax.grad(local.energy)(local.own))
        mask = bound.clamps[block.name]
        new, precisions = block.watched(moments[block.name], message, mask)
        return {**moments, block.name: new}, precisions

    def step(self, block: Belief, factors: list[Factor], moments: dict[str, Any], bound: Evidence,
             size: float = 1.0) -> tuple[dict[str, Any], Any, Array]:
        """As `update`, for messages that approximate: the largest of the steps `size`, size / 2, ..
        that does not raise F. Returns its precisions, as `watched_update`, and that size as well.

        Natural parameters go from old to new. Where all messages are linearised, whose curvature
        sees the mean alone, only the mean has a way to go: Newton's, damped. But for where a flat
        prior meets no curvature: a step without precision goes anywhere.
        """
        mask, old = bound.clamps[block.name], moments[block.name]
        local = self.energy_of(block, factors, moments, bound)
        stats, still, held = local.stats, local.arrays, local.held
        here, slope = block.message(old, mask), lambda held: jax.grad(local.less)(local.own, held)
        rules = {f.message for f in factors if f.bends(block)}
        if "quadrature" in rules and jax.tree.leaves(held):
            # The sum of elements may be a precision where not every element's is one. Both in one
            # loop, which is compiled once.
            whole = self.energy.unclipped(factors, held)
            found = jax.lax.map(slope, jax.tree.map(lambda *x: jnp.stack(x), held, whole))
            there, other = (jax.tree.map(lambda x, i=i: x[i], found) for i in (0, 1))
            fine = finite(block.update(old, other, mask))
            there, held = where(fine, (other, whole), (there, held))
        else:
            there = slope(held)

        newton = jnp.zeros((), bool)
        if rules == {"linearise"}:
            firm = jax.tree.map(lambda new, was: (new >= KEPT * was).all(), *(
                block.precisions(message, mask) for message in (there, here)))
            newton = jnp.stack([jnp.ones((), bool), *jax.tree.leaves(firm)]).all()

        def mixed(size: Array | float) -> Any:
            return jax.tree.map(lambda a, b: (1 - size) * a + size * b, here, there)

        def way(size: Array | float) -> Any:
            return (mixed(size)[0], *mixed(jnp.where(newton, 1 - KEPT, size))[1:])

        def stepped(size: Array | float) -> Any:
            return block.update(old, way(size), mask)

        bent = [f for f in factors
                if f.curved and f.message == "linearise" and f.bends(block)]

        def free_energy(mine: Any) -> Array:
            own = block.stats(mine, mask)
            found = -local.less(own, held) - block.entropy(mine, mask)
            if not bent:
                return found
            here = {**stats, block.name: own}       # of what is linearised there, its own F
            again = self.energy.linearised(bent, bound.arrays, here)
            return found + self.energy(bent, still, here) - self.energy(bent, again, here)

        digits_of_f = 1e-7 if self.graph.program.networks else 1e-12     # float32 in networks

        def tried(size: Array, most: Array) -> tuple[Any, Array, Array]:
            mine = stepped(size)
            f = free_energy(mine)
            # The fixed point of what is linearised is a mode, no least F: F has no say next to it.
            near = newton & (block.moved(old, mine) < NEAR)
            most = jnp.where(size == 0, f + digits_of_f * jnp.maximum(1.0, jnp.abs(f)), most)
            return mine, most, near | (f <= most)

        mine, size = halved(size, old, tried)
        return {**moments, block.name: mine}, block.precisions(way(size), mask), size

    @property
    def blocks(self) -> list[Belief]:
        """Of the updates of a sweep."""
        return [u.block for u in self.schedule.updates]

    def unwatched(self, moments: dict[str, Any]) -> list[Any]:
        """`watched`, before the first sweep: no precisions."""
        return [jax.tree.map(jnp.zeros_like, b.means(moments[b.name])) for b in self.blocks]

    def digits(self, moments: dict[str, Any], watched: list[Any]) -> Digits:
        """What rounding works on in the beliefs after a sweep, update by update."""
        found = [digits(b, moments[b.name], J) for b, J in zip(self.blocks, watched)]
        return Digits(*map(jnp.asarray, zip(*found))) if found else Digits(*jnp.zeros((3, 0)))

    def sweep(self, moments: dict[str, Any], bound: Evidence, damping: float | None = None,
              part: slice = slice(None)
              ) -> tuple[dict[str, Any], Array, list[Any], Array]:
        """One pass over the schedule, or a part of it: beliefs, the position of a bad update (or
        -1), the precisions of every update (`watched_update`), and the smallest step taken."""
        bad, watched, least = jnp.full((), -1), [], jnp.ones(())
        for i, step in list(enumerate(self.schedule.updates))[part]:
            old, factors = moments, list(step.factors)
            if any(f.bends(step.block) for f in factors):
                moments, found, size = self.step(step.block, factors, old, bound,
                                                 1 - (damping or 0.0))
                least = jnp.minimum(least, size)
            else:
                moments, found = self.watched_update(step.block, factors, old, bound)
                if damping:
                    fresh = jax.tree.map(lambda a, b: (1 - damping) * a + damping * b,
                                         moments[step.block.name], old[step.block.name])
                    moments = {**moments, step.block.name: fresh}
            watched.append(found)
            bad = jnp.where((bad < 0) & ~finite(moments[step.block.name]), i, bad)
        return moments, bad, watched, least

    def settled(self, old: State, moments: dict[str, Any], f: Array, tol: float, size: Array
                ) -> Array:
        """Whether a sweep changed F by less than `tol` and every block's means by less than
        sqrt(tol) of their spread (were its steps, of `size`, whole): F sees an error of the beliefs
        squared, and less and less of it the more data there are."""
        close = max(tol, 1e-12)              # a sum of many terms has no more digits than that
        still = jnp.abs(old.free_energy - f) <= close * jnp.maximum(1.0, jnp.abs(f))
        return still & (self.moved(old.moments, moments) <= tol**0.5 * size)

    def moved(self, old: dict[str, Any], new: dict[str, Any]) -> Array:
        """How far a sweep moved the means of the block that it moved most, in spreads."""
        return jnp.stack([jnp.zeros(()), *(b.moved(old[b.name], new[b.name])
                                           for b in self.blocks)]).max()

    def advance(self, state: State, bound: Evidence, history: Array, until: Array, tol: float,
                damping: float | None, heed: bool = False) -> tuple[State, Array]:
        """Sweep until converged, bad, or `until` sweeps are done; `heed`: or until they are found
        to be slow, and do not start ahead yet."""

        def running(carry: tuple[State, Array, list, Array]) -> Array:
            s, *_ = carry
            slow = s.pace.slow if heed and s.ahead is None else False
            return (s.sweep < until) & ~s.converged & (s.bad < 0) & ~jnp.asarray(slow)

        def body(carry: tuple[State, Array, list, Array]) -> tuple[State, Array, list, Array]:
            s, past, before, looked = carry
            begun = s.moments if s.ahead is None else extrapolation.start(
                blocks, s.moments, s.ahead)
            bfgs = s.bfgs
            if bfgs is None:
                moments, bad, watched, size = self.sweep(begun, bound, damping)
                f = self.free_energy(moments, bound, solved)
            else:
                size = jnp.ones(())
                moments, f, bad, watched, bfgs = rotation.sweep(
                    turn, begun, s.free_energy, bound.clamps, bfgs,
                    lambda part, q: self.sweep(q, bound, part=part)[:3],
                    lambda q: self.free_energy(q, bound), before)
            bad = jnp.where((bad < 0) & ~jnp.isfinite(f), len(self.schedule.updates), bad)
            vain, pace, ahead = jnp.zeros((), bool), s.pace, s.ahead
            if pace is not None:
                pace = pace.after(s.sweep, self.moved(begun, moments))
            if ahead is not None:
                vain = ahead.tried & ((bad >= 0) | ~(f <= s.free_energy))
                ahead = extrapolation.after(blocks, begun, moments, ahead, vain, pace.moved)
                moments, f, bad, watched = where(
                    vain, (s.moments, s.free_energy, jnp.full((), -1), before),
                    (moments, f, bad, watched))
            ok = bad < 0
            kept = where(ok, moments, s.moments)
            moved = s.moved
            if not exact:
                settled = ~vain & (s.sweep > 0) & self.settled(
                    s._replace(moments=begun), moments, f, tol, size)
            else:       # another pass only polishes rounding, where there is any to speak of
                measured = self.digits(moments, watched)
                polish = self.moved(s.moments, moments) * measured.left
                moved = jnp.where(s.sweep > 0, polish, jnp.maximum(polish, measured.first_pass))
                settled = (moved <= POLISHED) | (s.sweep + 1 >= PASSES)
            past = jnp.where(ok, past.at[s.sweep].set(f), past)
            f = jnp.where(ok, f, s.free_energy)
            return State(kept, f, s.sweep + ok, bad, settled & ok, s.digits, moved, pace, ahead,
                         bfgs), past, watched, looked | ~vain

        blocks, turn = extrapolation.followed(self.schedule), rotation.turned(self.schedule)
        exact = self.schedule.exact and not damping
        solved = next((u.block for u in self.schedule.updates if exact), None)
        state, history, watched, looked = jax.lax.while_loop(running, body, (
            state, history, self.unwatched(state.moments), jnp.zeros((), bool)))
        # Only the beliefs that come back are looked at: in every sweep it would take some time. Of
        # a run that had settled before, beside others that had not, what was found then counts.
        digits = where(looked, self.digits(state.moments, watched), state.digits)
        return state._replace(digits=digits,
                              cancelled=self.cancelled(state.moments, bound)), history


def finite(moments: Any) -> Array:
    """Whether a belief has no NaN or infinity."""
    return jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves(moments)]).all()


def halved(most: Array | float, none: Any, tried: Callable[[Array, Array], tuple[Any, Array, Array]]
           ) -> tuple[Any, Array]:
    """What the first of most, most / 2, .. leads to that fits (or next to nothing, where none
    does), and that size. One loop: what is tried is compiled once.

    Args:
        none: what no step at all leads to, for its shapes.
        tried: a size, and the bound so far -> what it leads to, the bound, and whether it fits;
            asked for the size 0 first, which sets the bound.
    """
    def once(trial: _Trial) -> _Trial:
        now, bound, fits = tried(trial.next, trial.bound)
        begins = trial.next == 0
        return _Trial(now, trial.next, jnp.where(begins, most, trial.next / 2), bound,
                      ~begins & (fits | (trial.next <= LEAST_STEP)))

    zero = jnp.zeros(())
    return jax.lax.while_loop(lambda t: ~t.fits, once, _Trial(
        none, zero, zero, zero, jnp.zeros((), bool)))[:2]


class _Trial(NamedTuple):
    """What a step of this `size` leads to, the `next` one that is tried, the bound that it is held
    to, and whether it `fits`."""

    now: Any
    size: Array
    next: Array
    bound: Array
    fits: Array
