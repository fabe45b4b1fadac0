"""The local level model and the series it is known for."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.contrib.control_flow import scan

# Annual flow of the Nile at Aswan, 1871-1970 (Durbin & Koopman 2012, table in section 2.2).
NILE = np.array([
    1120, 1160, 963, 1210, 1160, 1160, 813, 1230, 1370, 1140, 995, 935, 1110, 994, 1020, 960, 1180,
    799, 958, 1140, 1100, 1210, 1150, 1250, 1260, 1220, 1030, 1100, 774, 840, 874, 694, 940, 833,
    701, 916, 692, 1020, 1050, 969, 831, 726, 456, 824, 702, 1120, 1100, 832, 764, 821, 768, 845,
    864, 862, 698, 845, 744, 796, 1040, 759, 781, 865, 845, 944, 984, 897, 822, 1010, 771, 676, 649,
    846, 812, 742, 801, 1040, 860, 874, 848, 890, 744, 749, 838, 1050, 918, 986, 797, 923, 975, 815,
    1020, 906, 901, 1170, 912, 746, 919, 718, 714, 740], float)


def local_level(y: jax.Array | None = None, *, T: int) -> None:
    """A random walk seen in noise, both variances unknown, in plain NumPyro.

        level, noise ~ Gamma(2, 2)    x_0 ~ N(0, 3^2)
        y_t ~ N(x_t, 1 / noise)       x_t+1 ~ N(x_t, 1 / level)            t = 0 .. T-1
    """
    level = numpyro.sample("level", dist.Gamma(2.0, 2.0))
    noise = numpyro.sample("noise", dist.Gamma(2.0, 2.0))
    x0 = numpyro.sample("x0", dist.Normal(0.0, 3.0))

    def step(x: jax.Array, y: jax.Array | None) -> tuple[jax.Array, None]:
        numpyro.sample("y", dist.Normal(x, noise**-0.5), obs=y)
        x = numpyro.sample("x", dist.Normal(x, 1 / jnp.sqrt(level)))
        return x, None

    scan(step, x0, y, length=T)
