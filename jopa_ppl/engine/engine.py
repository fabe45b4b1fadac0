"""Sweeps: beliefs to begin with, updates block by block, until the free energy settles.

Everything here is a pure function of arrays; `compiled.py` jits it once per program and shapes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, random

from jopa_ppl.beliefs import Belief
from jopa_ppl.engine import extrapolation
from jopa_ppl.engine.arithmetic import Arithmetic
from jopa_ppl.engine.evidence import Evidence
from jopa_ppl.engine.rounding import NONE, POLISHED, Digits, digits
from jopa_ppl.engine.schedule import Schedule, Update
from jopa_ppl.engine.state import State
from jopa_ppl.graph.factor import Factor, Graph

TEMPERED, TEMPERING = (1e-3, 1e-2, 1e-1), 3     # weights of data at the start, steps each
LOOSE = (1e-8, 1e-6, 1e-4)                      # and of dynamics before these
AT_ONCE = 0.1        # nats that a whole step may be off by what it was linearised about
NEAR = 1e-4          # of standard deviations
SETTLING = 30        # steps from a standard normal to the Gaussian nearest to a prior
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
        return self.measured_update(block, factors, moments, bound)[0]

    def measured_update(self, block: Belief, factors: list[Factor], moments: dict[str, Any],
                        bound: Evidence) -> tuple[dict[str, Any], Digits]:
        """`update`, and what rounding works on in the new belief."""
        local = self.energy_of(block, factors, moments, bound)
        message, mask = jax.grad(local.energy)(local.own), bound.clamps[block.name]
        new = block.update(moments[block.name], message, mask)
        return {**moments, block.name: new}, digits(*block.diagonals(new, message, mask))

    def step(self, block: Belief, factors: list[Factor], moments: dict[str, Any], bound: Evidence,
             size: float = 1.0) -> tuple[dict[str, Any], Digits, Array]:
        """As `update`, for messages that approximate: the largest of the steps `size`, size / 2, ..
        that does not raise F. Returns what rounding works on, and that size, as well.

        Natural parameters go from old to new. Where all messages are linearised, whose curvature
        sees the mean alone, only the mean has a way to go: Newton's, damped. But for where a flat
        prior meets no curvature: a step without precision goes anywhere.
        """
        mask, old = bound.clamps[block.name], moments[block.name]
        local = self.energy_of(block, factors, moments, bound)
        energy, stats, still = local.energy, local.stats, local.arrays
        here, there = block.message(old, mask), jax.grad(energy)(local.own)
        rules = {f.message for f in factors if f.bends(block)}
        if "quadrature" in rules:
            # The sum of elements may be a precision where not every element's is one.
            safe, whole = energy, self.energy_of(block, factors, moments, bound, False).energy
            other = jax.grad(whole)(local.own)
            fine = finite(block.update(old, other, mask))
            there = jax.tree.map(lambda a, b: jnp.where(fine, a, b), other, there)
            energy = lambda mine: jax.lax.cond(fine, whole, safe, mine)

        newton = jnp.zeros((), bool)
        if rules == {"linearise"}:
            firm = jax.tree.map(lambda new, was: (new >= KEPT * was).all(), *(
                block.diagonals(old, message, mask)[1] for message in (there, here)))
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
            found = -energy(own) - block.entropy(mine, mask)
            if not bent:
                return found
            here = {**stats, block.name: own}       # of what is linearised there, its own F
            again = self.energy.linearised(bent, bound.arrays, here)
            return found + self.energy(bent, still, here) - self.energy(bent, again, here)

        digits_of_f = 1e-7 if self.graph.program.networks else 1e-12     # float32 in networks

        def tried(last: _Trial) -> _Trial:
            mine = stepped(last.next)
            f = free_energy(mine)
            # The fixed point of what is linearised is a mode, no least F: F has no say next to it.
            near = newton & (block.moved(old, mine) < NEAR)
            begins = last.next == 0
            most = jnp.where(begins, f + digits_of_f * jnp.maximum(1.0, jnp.abs(f)), last.most)
            return _Trial(mine, last.next, jnp.where(begins, size, last.next / 2), most,
                          ~begins & (near | (f <= most) | (last.next <= LEAST_STEP)))

        none = jnp.zeros(())
        mine, size, *_ = jax.lax.while_loop(lambda t: ~t.fits, tried, _Trial(
            old, none, none, none, jnp.zeros((), bool)))
        measured = digits(*block.diagonals(mine, way(size), mask))
        return {**moments, block.name: mine}, measured, size

    def start(self, key: Array | None, bound: Evidence) -> State:
        """Beliefs before the first sweep: the priors; with a key, globals are nudged off them.

        Messages that approximate start from there too: chains from their roll-out, and sums over
        points, which may not be finite for a wide prior, after a step from the mean alone.
        """
        prior = bound._replace(arrays={**bound.arrays, **bound.priors})
        moments = {b.name: b.zero() for b in self.graph.blocks}
        order = list(self.graph.program.sites)
        blocks = sorted(self.graph.blocks, key=lambda b: (
            b.scan is not None, min(order.index(m) for m in b.members)))
        for i, block in enumerate(blocks):
            touching = self.energy.touching(block)
            own = [f for f in touching if f.site.name in block.members]
            bent = [linearised(f) for f in touching if f.bends(block)]
            if block.scan is not None and not bent:
                continue
            # A prior may be singular to rounding (1e8 beside 1) where the posterior is not.
            begun = {**moments, block.name: self._begun(block, own, moments, prior)}
            if any(f.curved for f in bent):
                # What is linearised is no guide far away: chains roll off as no state of them does.
                begun[block.name] = block.at_rest(begun[block.name])
            moments = _if_finite(begun, moments, block)
            alone = [f for f in own if f.scored and f.bends(block) and not f.fixed]
            if alone:           # a prior that is no Gaussian, by the nearest one
                moments = jax.lax.fori_loop(
                    0, SETTLING, lambda _, m, b=block, own=own: self.step(b, own, m, prior)[0],
                    moments)
            if key is not None and not block.held:
                moments = self._nudged(block, bent, moments, bound, random.fold_in(key, i))
        for update in self.schedule.updates:
            bends = [f for f in update.factors if f.bends(update.block)]
            seen = [f for f in bends if f.site.observed
                    and (f.scored or (f.curved and f.message != "quadrature"))]
            far = seen + [f for f in bends if f.curved and f not in seen]
            # No scale of what has yet to be found, and nothing that has yet to fall into parts.
            if far and all((f.scored or f in far) and not f.fixed for f in bends):
                moments = _if_finite(self._towards_data(update, far, moments, bound), moments,
                                     update.block)
        zero = jnp.zeros(())
        return State(moments, zero, jnp.zeros((), int), jnp.full((), -1), jnp.zeros((), bool),
                     self.unmeasured(), zero, cancelled=(zero, zero))

    def _towards_data(self, update: Update, far: list[Factor], moments: dict[str, Any],
                      bound: Evidence) -> dict[str, Any]:
        """A step from the mean alone; where the mean or few points are all that is asked for, many,
        in which the factors `far` weigh little at first.

        From afar a decoder is no guide: what one step makes of sharp pixels may be where it tells
        nothing any more. And dynamics that leave no room hold states on a path that is wrong, and
        linearised there. Where a whole step ends where the program is still as it was linearised,
        as that of a filter mostly does, it begins with that. Masked priors count meanwhile, next to
        nothing: tails that weigh little hold no belief.
        """
        factors = [linearised(f) for f in update.factors]
        loose = () if all(f.site.observed for f in far) else LOOSE
        if not loose and any(f.message == "quadrature" for f in far):
            return self.step(update.block, factors, moments, bound)[0]
        whole = not any(f.site.observed for f in far)
        powers = jnp.array((*(1.0,) * whole, *np.repeat((*loose, *TEMPERED), TEMPERING)))
        alone = [linearised(f) for f in far]
        faint = {n: a._replace(weight=jnp.where(
            bound.arrays[n].weight > 0, bound.arrays[n].weight, TEMPERED[0] * a.weight))
            for n, a in bound.priors.items()}

        def gap(old: dict[str, Any], new: dict[str, Any]) -> Array:
            """How far the energy of the new beliefs is off, linearised at the old ones."""
            about = [self.stats(m, bound.clamps) for m in (old, new)]
            first, second = (self.energy(alone, self.energy.linearised(alone, bound.arrays, s),
                                         about[1]) for s in about)
            return jnp.abs(first - second)

        def again(carry: tuple) -> tuple:
            i, old, _ = carry
            part = {f.name: bound.arrays[f.name]._replace(
                weight=powers[i] * bound.arrays[f.name].weight) for f in far}
            here = bound._replace(arrays={**bound.arrays, **faint, **part})
            new, _, size = self.step(update.block, factors, old, here)
            if not whole:
                return i + 1, new, jnp.asarray(False)
            stands = jax.lax.cond((i == 0) & (size == 1.0),
                                  lambda: gap(old, new) <= AT_ONCE, lambda: jnp.asarray(False))
            back = (i == 0) & ~stands
            return i + 1, jax.tree.map(lambda a, b: jnp.where(back, a, b), moments, new), stands

        return jax.lax.while_loop(lambda c: (c[0] < len(powers)) & ~c[2], again, (
            jnp.zeros((), int), moments, jnp.asarray(False)))[1]

    def _begun(self, block: Belief, own: list[Factor], moments: dict[str, Any], prior: Evidence
               ) -> Any:
        """The belief by the priors of a block; by a standard normal where a prior is no Gaussian
        (of the log of a scale, say)."""
        plain = [f for f in own if not f.scored]
        local = self.energy_of(block, plain, moments, prior)
        scored = [f for f in own if f.scored]

        def standard(mine: Any) -> Array:
            here = {**local.stats, block.name: mine}
            views = (self.energy.joined[f.name].view(prior.arrays[f.name], here) for f in scored)
            return local.energy(mine) - 0.5 * sum(
                ((v.mean**2).sum() + jnp.trace(v.cov, axis1=-2, axis2=-1).sum() for v in views),
                jnp.zeros(()))

        return block.update(moments[block.name], jax.grad(standard)(local.own),
                            prior.clamps[block.name])

    def unmeasured(self) -> Digits:
        """What rounding works on before the first sweep: nothing."""
        return Digits(*jnp.zeros((3, len(self.schedule.updates))))

    def _nudged(self, block: Belief, bent: list[Factor], moments: dict[str, Any], bound: Evidence,
                key: Array) -> dict[str, Any]:
        """A block moved off its prior, by no more than what costs log p of the factors `bent` a
        nat: a tenth of a wide prior is far away."""
        def score(moments: dict[str, Any]) -> Array:
            stats = self.stats(moments, bound.clamps)
            arrays = self.energy.linearised(bent, bound.arrays, stats)
            return self.energy(bent, arrays, stats, {
                f.name: [jnp.zeros(())] * len(self.energy.messages(f, arrays[f.name], stats))
                for f in bent})

        def moved(size: Array | float) -> dict[str, Any]:
            return {**moments, block.name: block.break_symmetry(moments[block.name], key, size)}

        if not bent or moved(0.1)[block.name] is moments[block.name]:
            return moved(0.1)
        least = jnp.nan_to_num(score(moments), nan=-jnp.inf) - 1.0
        return moved(halved(0.1, lambda size: score(moved(size)) >= least))

    def sweep(self, moments: dict[str, Any], bound: Evidence, damping: float | None = None
              ) -> tuple[dict[str, Any], Array, Digits, Array]:
        """One pass over the schedule: beliefs, the position of a bad update (or -1), what rounding
        works on in every update, and the smallest step that was taken."""
        bad, measured, least = jnp.full((), -1), [], jnp.ones(())
        for i, step in enumerate(self.schedule.updates):
            old, factors = moments, list(step.factors)
            if any(f.bends(step.block) for f in factors):
                moments, found, size = self.step(step.block, factors, old, bound,
                                                 1 - (damping or 0.0))
                least = jnp.minimum(least, size)
            else:
                moments, found = self.measured_update(step.block, factors, old, bound)
                if damping:
                    fresh = jax.tree.map(lambda a, b: (1 - damping) * a + damping * b,
                                         moments[step.block.name], old[step.block.name])
                    moments = {**moments, step.block.name: fresh}
            measured.append(found)
            bad = jnp.where((bad < 0) & ~finite(moments[step.block.name]), i, bad)
        return moments, bad, Digits(*(jnp.stack(x) if measured else jnp.zeros((0,))
                                      for x in zip(*measured or [NONE]))), least

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
        blocks = [u.block for u in self.schedule.updates]
        return jnp.stack([jnp.zeros(()), *(b.moved(old[b.name], new[b.name]) for b in blocks)]
                         ).max()

    def advance(self, state: State, bound: Evidence, history: Array, until: Array, tol: float,
                damping: float | None, heed: bool = False) -> tuple[State, Array]:
        """Sweep until converged, bad, or `until` sweeps are done; `heed`: or until they are found
        to be slow, and do not start ahead yet."""

        def running(carry: tuple[State, Array]) -> Array:
            s, _ = carry
            slow = s.pace.slow if heed and s.ahead is None else False
            return (s.sweep < until) & ~s.converged & (s.bad < 0) & ~jnp.asarray(slow)

        def body(carry: tuple[State, Array]) -> tuple[State, Array]:
            s, past = carry
            begun = s.moments if s.ahead is None else extrapolation.start(
                blocks, s.moments, s.ahead)
            moments, bad, measured, size = self.sweep(begun, bound, damping)
            f = self.free_energy(moments, bound, solved)
            bad = jnp.where((bad < 0) & ~jnp.isfinite(f), len(self.schedule.updates), bad)
            vain, pace, ahead = jnp.zeros((), bool), s.pace, s.ahead
            if pace is not None:
                pace = pace.after(s.sweep, self.moved(begun, moments))
            if ahead is not None:
                vain = ahead.tried & ((bad >= 0) | ~(f <= s.free_energy))
                ahead = extrapolation.after(blocks, begun, moments, ahead, vain, pace.moved)
                moments, f, bad, measured = jax.tree.map(
                    lambda old, new: jnp.where(vain, old, new),
                    (s.moments, s.free_energy, jnp.full((), -1), s.digits),
                    (moments, f, bad, measured))
            ok = bad < 0
            kept = jax.tree.map(lambda new, old: jnp.where(ok, new, old), moments, s.moments)
            moved = s.moved
            if not exact:
                settled = ~vain & (s.sweep > 0) & self.settled(
                    s._replace(moments=begun), moments, f, tol, size)
            else:       # another pass only polishes rounding, where there is any to speak of
                polish = self.moved(s.moments, moments) * measured.left
                moved = jnp.where(s.sweep > 0, polish, measured.first_pass)
                settled = (moved <= POLISHED) | (s.sweep + 1 >= PASSES)
            past = jnp.where(ok, past.at[s.sweep].set(f), past)
            f = jnp.where(ok, f, s.free_energy)
            return State(kept, f, s.sweep + ok, bad, settled & ok, measured, moved, pace, ahead
                         ), past

        blocks = extrapolation.followed(self.schedule)
        exact = self.schedule.exact and not damping
        solved = next((u.block for u in self.schedule.updates if exact), None)
        state, history = jax.lax.while_loop(running, body, (state, history))
        return state._replace(cancelled=self.cancelled(state.moments, bound)), history


def linearised(factor: Factor) -> Factor:
    """The factor with its message taken at the mean alone, if it is not conjugate."""
    return replace(factor, message="linearise") if factor.scored or factor.curved else factor


def _if_finite(new: dict[str, Any], old: dict[str, Any], block: Belief) -> dict[str, Any]:
    """The `new` beliefs, or the old ones where that about a block went wrong."""
    fine = finite(new[block.name])
    return jax.tree.map(lambda a, b: jnp.where(fine, a, b), new, old)


def finite(moments: Any) -> Array:
    """Whether a belief has no NaN or infinity."""
    return jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves(moments)]).all()


class _Trial(NamedTuple):
    """A belief that a step of this `size` leads to (0: where it stands), what is tried `next`, the
    `most` that F may be, and whether the step `fits`. One loop: what it makes is compiled once."""

    mine: Any
    size: Array
    next: Array
    most: Array
    fits: Array


def halved(size: float, fits: Callable[[Array], Array]) -> Array:
    """The first of size, size / 2, .. that fits (or next to nothing, where none does)."""
    return jax.lax.while_loop(lambda s: ~fits(s) & (s > LEAST_STEP), lambda s: s / 2,
                              jnp.asarray(size))
