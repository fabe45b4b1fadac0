"""Expectations of log densities with a corner, which points do not see.

Of a Laplace, and of its like, log p = c - s - a(z) exp(-s): z = x - loc, s = log scale, and a
straight on both sides of zero, a(0) = 0. With z and s jointly Gaussian, e^-s tilts z,

    E[a(z) e^-s] = exp(-m_s + v_s / 2) E[a(z')],   z' ~ N(m_z - c_zs, v_z)
    E[a(z')] = a(E[z'+]) + a(-E[z'-]),             E[z'+] = m Phi(m / sd) + sd phi(m / sd)

which is smooth in all moments, and has the curvature that the corner gives to it.
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array
from jax.scipy.stats import norm


def over_corner(log: Callable[[Array, Array], Array], z: Array, s: Array, var_z: Array,
                cov: Array, var_s: Array) -> Array:
    """E[log p(z, s)] of every element, exact.

    Args:
        log: (z, s) -> log p of every element.
        z, s: means; var_z, cov, var_s: variances and covariance (0 of what is known).

    Returns:
        as `log` does.
    """
    spread = jnp.sqrt(jnp.where(var_z > 0, var_z, 1.0))
    z, mean_s, s = z - cov, s, s - var_s / 2
    r = z / spread
    above = jnp.where(var_z > 0, z * norm.cdf(r) + spread * norm.pdf(r), jnp.maximum(z, 0.0))
    # Of c once, and of -s at its mean: both come of `log` alone, which may weigh an element.
    corner = lambda s: log(jnp.zeros_like(z), s)
    return log(above, s) + log(z - above, s) + corner(mean_s) - 2 * corner(s)
