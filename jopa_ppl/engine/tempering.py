"""A way from a prior to far data, in steps that weigh them more and more.

From afar a decoder is no guide: what one step makes of sharp pixels may be where it tells nothing
any more. And dynamics that leave no room hold states on a path that is wrong, and linearised there.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jopa_ppl.arrays import where
from jopa_ppl.beliefs import Belief
from jopa_ppl.engine import filtering
from jopa_ppl.engine.engine import Engine
from jopa_ppl.engine.evidence import Evidence
from jopa_ppl.engine.schedule import Update
from jopa_ppl.graph.factor import Factor

TEMPERED, TEMPERING = (1e-3, 1e-2, 1e-1), 3     # weights of data at the start, steps each
LOOSE = (1e-8, 1e-6, 1e-4)                      # and of dynamics before these
AT_ONCE = 0.1        # nats that a whole step may be off by what it was linearised about
TRIED, CLEARLY = 5, 1.0          # whole steps by which two beginnings are compared, and nats

Moments = dict[str, Any]


def linearised(factor: Factor) -> Factor:
    """The factor with its message taken at the mean alone, if it is not conjugate."""
    return replace(factor, message="linearise") if factor.scored or factor.curved else factor


def towards_data(engine: Engine, update: Update, far: list[Factor], moments: Moments,
                 bound: Evidence) -> Moments:
    """A step from the mean alone; where the mean or few points are all that is asked for, many,
    in which the factors `far` weigh little at first.

    Where a whole step ends where the program is still as it was linearised, as that of a filter
    mostly does, it begins with that; else, where all else is known, on the path of a filter
    (`filtering`) as well, and where that ends with clearly less F, of all plates together, it
    begins there.

    Args:
        engine: of the program; update: the step of its schedule.
        far: factors of the update, data or dynamics that are far from the prior.
        moments: beliefs by block; bound: the numbers of the run.

    Returns:
        beliefs by block, of which that of the update is another.
    """
    block, factors = update.block, [linearised(f) for f in update.factors]
    two, loose = filtering.fits(engine, block), any(not f.site.observed for f in far)
    if not (two or loose) and any(f.message == "quadrature" for f in far):
        return engine.step(block, factors, moments, bound)[0]
    way = _Way(engine, block, factors, far, bound, moments, two, loose)
    return way.better_of_two() if two else way.tempered(0, moments)[1]


class _Way(NamedTuple):
    """What the steps towards data read: `moments` are the beliefs that they begin with, `two`
    whether there is a filter to compare with, `loose` whether dynamics are `far` as well."""

    engine: Engine
    block: Belief
    factors: list[Factor]
    far: list[Factor]
    bound: Evidence
    moments: Moments
    two: bool
    loose: bool

    @property
    def whole(self) -> bool:
        """Whether a whole step is tried first: where the data themselves are not far."""
        return not any(f.site.observed for f in self.far)

    @property
    def powers(self) -> np.ndarray:
        """The weights of `far`, step by step, without those by which two beginnings compare."""
        weights = (*(LOOSE if self.loose else ()), *TEMPERED)
        return np.array((*(1.0,) * self.whole, *np.repeat(weights, TEMPERING)))

    def weighed(self, power: Array | float) -> Evidence:
        """The evidence with `far` weighing `power`. Masked priors count next to nothing: tails
        that weigh little hold no belief."""
        arrays = self.bound.arrays
        faint = {n: a._replace(weight=jnp.where(arrays[n].weight > 0, arrays[n].weight,
                                                TEMPERED[0] * a.weight))
                 for n, a in self.bound.priors.items()}
        part = {f.name: arrays[f.name]._replace(weight=power * arrays[f.name].weight)
                for f in self.far}
        return self.bound._replace(arrays={**arrays, **faint, **part})

    def gap(self, old: Moments, new: Moments) -> Array:
        """How far the energy of the new beliefs is off, linearised at the old ones."""
        alone, energy = [linearised(f) for f in self.far], self.engine.energy
        about = [self.engine.stats(m, self.bound.clamps) for m in (old, new)]
        first, second = (energy(alone, energy.linearised(alone, self.bound.arrays, s), about[1])
                         for s in about)
        return jnp.abs(first - second)

    def tempered(self, first: Array | int, begun: Moments) -> tuple[Moments, Moments, Array]:
        """The last beliefs, those that the search is to begin with, and whether a step will do."""
        end = len(self.powers)
        powers = np.append(self.powers, [1.0] * TRIED * self.two)

        def again(carry: tuple) -> tuple:
            i, old, kept, _ = carry
            new, _, size = self.engine.step(self.block, self.factors, old,
                                            self.weighed(jnp.asarray(powers)[i]))
            kept = where(i < end, new, kept) if self.loose else new
            if not self.whole:
                return i + 1, new, kept, jnp.asarray(False)
            stands = jax.lax.cond((i == 0) & (size == 1.0),
                                  lambda: self.gap(old, new) <= AT_ONCE,
                                  lambda: jnp.asarray(False))
            back = (i == 0) & ~stands
            return (i + 1, where(back, self.moments, new), where(back, self.moments, kept), stands)

        return jax.lax.while_loop(lambda c: (c[0] < len(powers)) & ~c[-1], again, (
            jnp.asarray(first), begun, begun, jnp.asarray(False)))[1:]

    def better_of_two(self) -> Moments:
        """From the beliefs themselves; and, unless one step did, from the path of a filter."""
        last = len(self.powers) - TEMPERING

        def better(carry: tuple) -> tuple:
            i, best, least, _ = carry
            begun = jax.lax.cond(i == 0, lambda: self.moments, lambda: {
                **self.moments, self.block.name: filtering.begun(
                    self.engine, self.block, self.moments, self.bound)})
            now, kept, stands = self.tempered(jnp.where(i == 0, 0, last), begun)
            f = self.free_energy(now)
            best = where(i == 0, kept, where(f < least - CLEARLY, now, best))
            return i + 1, best, jnp.minimum(f, least), stands

        return jax.lax.while_loop(lambda c: (c[0] < 2) & ~c[-1], better, (
            jnp.zeros((), int), self.moments, jnp.asarray(jnp.inf), jnp.asarray(False)))[1]

    def free_energy(self, moments: Moments) -> Array:
        """F of the block, with all else as it is; infinity where it is no number."""
        local = self.engine.energy_of(self.block, self.factors, moments, self.weighed(1.0))
        f = -local.energy(local.own) - self.block.entropy(moments[self.block.name],
                                                          self.bound.clamps[self.block.name])
        return jnp.where(jnp.isnan(f), jnp.inf, f)
