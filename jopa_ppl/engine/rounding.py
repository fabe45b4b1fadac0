"""How many digits rounding has left in the Gaussian beliefs of a run, and which sites took them.

A belief N(m, C), C = J^-1, is solved in float64, so that J_ii is known to eps J_ii. That moves

    the variance C_ii  by  eps J_ii C_ii  of itself,
    the mean m_i       by  eps J_ii sd_i |m_i|  of sd_i when solved for anew,
                       and half a unit of its last place once further passes have improved it,
    F                  by  eps |J_ii C_ii|  nats, and (eps m_i)^2 J_ii / 2, residuals being
                       differences of what is as large as m_i (root of the sums of squares).

J_ii C_ii is how much narrower element i is once its neighbours are known: 1 where elements are
independent, 1e16 where a site ties them with a scale 1e-8 of their spread: nothing is left then.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jopa_ppl.beliefs import Belief

EPS = 4 * float(np.finfo(np.float64).eps)     # of one operation, and a few more
ROUND = float(np.finfo(np.float64).eps) / 2     # of a number: half a unit in its last place
SILENT = 1e-6        # of a belief's spread: what may come back without a word
ENERGY = 1e-4        # nats
SERVES = 1e-2        # up to here a result comes back, with a warning
OF_SIZE = ROUND**2 / (2 * EPS)      # what m^2 J adds to `Digits.total`
POLISHED = 1e-9      # a first pass that is as good as this needs no second one
SAFE = (10 * EPS / SILENT)**0.5     # of a spread: a scale that costs a tenth of SILENT


class Digits(NamedTuple):
    """What rounding works on in one block; eps times each is an error.

    tied: max J_ii C_ii; total: of F, by all elements; far: max |m_i| / sd_i.
    """

    tied: Array
    total: Array
    far: Array

    @property
    def first_pass(self) -> Array:
        """Error of the means after one pass from zero, in spreads (at most)."""
        return (EPS * self.tied * self.far).max(initial=0.0)

    @property
    def left(self) -> Array:
        """What another pass leaves of an error of the means."""
        return jnp.minimum(1.0, EPS * self.tied.max(initial=0.0))


NONE = Digits(0.0, 0.0, 0.0)     # of beliefs that are no Gaussians


def digits(block: Belief, q: Any, precisions: Any) -> Digits:
    """Of a block's belief, and the diagonal of J that its message has given to it.

    Args:
        block: of Gaussians, or any other; q: the belief.
        precisions: diagonals of J, in the form of `block.means`; None or empty: not asked for.
    """
    if not jax.tree.leaves(precisions):
        return NONE
    tied, total, far = [], [], []
    for m, J, C in zip(*map(jax.tree.leaves, (block.means(q), precisions, block.variances(q)))):
        product = jnp.maximum(J, 0.0) * C
        tied.append(product.max(initial=0.0))
        total.append((product**2 + (OF_SIZE * m**2 * jnp.maximum(J, 0.0))**2).sum())
        seen = (J > 0) & (C > 0)
        far.append((m**2 / jnp.where(seen, C, jnp.inf)).max(initial=0.0))
    return Digits(jnp.stack(tied).max(), jnp.sqrt(sum(total)), jnp.sqrt(jnp.stack(far).max()))
