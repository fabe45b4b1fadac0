"""Steps down a function whose second derivatives are learned from its slopes.

With s a step and y by how much it changed the slope, H the inverse of the second derivatives,

    H <- (1 - s y' / <s, y>) H (1 - y s' / <s, y>) + s s' / <s, y>

wherever <s, y> > 0. Steps -H g are no longer than a reach, which grows where they lower the
function and shrinks where they do not.

Source: Nocedal & Wright 2006, "Numerical Optimization", sections 6.1 and 4.1.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

NUDGE = 0.01         # length of the first step, of which nothing is known
REACH = 0.3          # of those after it, at first,
FARTHEST = 1.0       # and at last
STILL = 1e-8         # steps that are rounding, and angles of s and y


class Bfgs(NamedTuple):
    """H (n, n), the reach of a step, and whether anything is known of H."""

    inverse: Array
    reach: Array
    told: Array

    @staticmethod
    def of(size: int) -> Bfgs:
        """Before the first step."""
        return Bfgs(jnp.eye(size), jnp.full((), REACH), jnp.zeros((), bool))

    def step(self, slope: Array) -> Array:
        """Where to go from a place with this slope; nowhere where it is none."""
        step = -self.inverse @ slope
        size = jnp.sqrt(step @ step)
        most = jnp.where(self.told, jnp.minimum(size, self.reach), NUDGE)
        return step * jnp.where(size > 0, most / jnp.where(size > 0, size, 1.0), 0.0)

    def after(self, s: Array, y: Array, lower: Array) -> Bfgs:
        """With one more step, and whether the function is lower there."""
        size, along = jnp.sqrt(s @ s), s @ y
        tells = (size > STILL) & (along > STILL * size * jnp.sqrt(y @ y))
        along = jnp.where(tells, along, 1.0)
        H = jnp.where(self.told, self.inverse, along / (y @ y) * self.inverse)
        left = jnp.eye(len(s)) - jnp.outer(s, y) / along
        H = left @ H @ left.T + jnp.outer(s, s) / along
        reach = jnp.where(lower, jnp.clip(2 * size, self.reach, FARTHEST), size / 2)
        return Bfgs(jnp.where(tells, H, self.inverse), jnp.where(size > 0, reach, self.reach),
                    self.told | tells)
