"""How one latent site of a step follows from what the step sees: the fifth contract."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jax import Array

from jopa_ppl.engine.steps import SiteMap
from jopa_ppl.linalg.coefficients import Coefficients
from jopa_ppl.linalg.factors import Moments


class Conditional(NamedTuple):
    """How a latent site of a step follows from what the step sees, by the program or by a plan:

        z = M h + e,  e ~ N(0, C),  h = (1, head, the last k nodes, this node up to z)

    Attributes (axes: time, or 1 where all steps are alike, then the chain's plates):
        mean: E[M], (.., n, H), H the size of h (`steps.Coordinates` says what lies where).
        cov: E[C], (.., n, n): of unknown precisions that of their inverse.
        K, slots: where M is uncertain, its coefficients and the moments of what they multiply, as
            of a `SiteMap`: `K.spread_of(slots, E[h h'])` is what that adds to the covariance. A
            decision's gain is a conditional too, and has none.
    """

    mean: Array
    cov: Array
    K: Coefficients | None = None
    slots: tuple[Moments, ...] = ()


def own_conditional(site: SiteMap, where: np.ndarray) -> Conditional:
    """A latent site drawn by the program: its residual is z - M h."""
    K = site.K.on_h(lambda K: K.at[..., where].set(0.0))
    uncertain = K if site.slots else None
    return Conditional(-K.at_mean(site.slots), site.covariance, uncertain, site.slots)
