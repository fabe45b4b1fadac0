"""Where an iteration x -> g(x) is going, from the steps that it took.

Its residuals r = g(x) - x are steps downhill of a function F, in a metric of spreads. Between the
last places the residual changed by dr = J dx, and -J is the curvature of F in that metric: values a
with directions v, by the Rayleigh-Ritz method in the span of the moves dx. Along v the iteration
converges with rate 1 - a, to where one step of <v, r> / a goes at once. Where a < 0, at a saddle,
the step is taken as well, but away from it, as the iteration goes: <v, r> / |a|.

Sources: Anderson 1965; Henderson & Varadhan 2019 ("DAAREM", for EM); Dauphin et al. 2014
("saddle-free Newton").
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

WINDOW = 10          # moves that are remembered
LEAST = 1e-10        # eigenvalues of their Gram matrix, over the largest, that tell of a direction
SLOWEST = 1e-3       # the least curvature: no more than 1000 steps at once
FLEEING = 0.1        # the same off a saddle, where the function is no quadratic for long


class Trail(NamedTuple):
    """The last steps of an iteration: place (n,) and residual of the latest, moves and changes
    (WINDOW, n), the latest last; rows of zeros tell nothing. count: of steps."""

    place: Array
    residual: Array
    moves: Array
    changes: Array
    count: Array

    @staticmethod
    def of(size: int) -> Trail:
        """No steps yet."""
        shapes = (size,), (size,), (WINDOW, size), (WINDOW, size)
        return Trail(*map(jnp.zeros, shapes), jnp.zeros((), int))

    def after(self, place: Array, result: Array) -> Trail:
        """With one more step, from a place to its result."""
        residual, known = result - place, self.count > 0

        def shifted(rows: Array, new: Array) -> Array:
            return jnp.concatenate([rows[1:], jnp.where(known, new, 0.0)[None]])

        return Trail(place, residual, shifted(self.moves, place - self.place),
                     shifted(self.changes, residual - self.residual), self.count + 1)

    def ahead(self, spreads: Array) -> Array:
        """How far beyond the latest result the iteration is going; 0 where nothing tells."""
        scale = jnp.where(spreads > 0, 1 / jnp.where(spreads > 0, spreads, 1.0), 0.0)
        moves, changes = self.moves * scale, self.changes * scale
        size = jnp.sqrt((moves**2).sum(1))
        unit = jnp.where(size > 0, 1 / jnp.where(size > 0, size, 1.0), 0.0)[:, None]
        moves, changes = moves * unit, changes * unit
        values, vectors = jnp.linalg.eigh(moves @ moves.T)
        told = values > LEAST * values[-1]
        basis = vectors * jnp.where(told, jnp.where(told, values, 1.0)**-0.5, 0.0)
        slope = basis.T @ (moves @ changes.T) @ basis
        a, v = jnp.linalg.eigh(-0.5 * (slope + slope.T))
        a = jnp.where(a > 0, jnp.maximum(a, SLOWEST), jnp.maximum(-a, FLEEING))
        along = v.T @ (basis.T @ (moves @ (self.residual * scale)))
        weights = unit[:, 0] * (basis @ (v @ (along / a)))
        return weights @ (self.moves + self.changes)
