"""Which directions of the state actions can move, as far as the beliefs about A and B tell."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jax import Array, random

from jopa_ppl.errors import ShapeError
from jopa_ppl.language.distributions import ArrayNormal
from jopa_ppl.language.keys import as_key
from jopa_ppl.posterior.posterior import Posterior
from jopa_ppl.settings import ours


class Reachability(NamedTuple):
    """What `reachability` found.

    Attributes:
        rank: directions that are reached; wanted: the dimension of the state.
        smallest: least singular value, in units of state per unit of action.
        noise: what uncertainty about A and B alone makes of it.
        unreached: the directions that are not, in words.
    """

    rank: int
    wanted: int
    smallest: float
    noise: float
    unreached: str


def reachability(posterior: Posterior, A: str = "A", B: str = "B", *, num_samples: int = 500,
                 rng_key: Array | int | None = None) -> Reachability:
    """Controllability of x' = A (x_{t-k+1}, .., x_t) + B u from the beliefs about A and B.

        R = [B, A B, .., A^(n-1) B] = sum_i s_i v_i w_i'        n = k d, A in companion form

    at the posterior means. Learned numbers are never exactly zero, so direction v_i counts as
    reached where s_i exceeds the 95 % quantile of |v_i' (R* - R)| over draws R* of the beliefs.

    Args:
        A: site (d, k d), the oldest state first; B: site (d, du).

    Raises:
        SiteError: no such site. ShapeError: A and B do not fit.

    Source: Kalman 1960; Sontag 1998, "Mathematical Control Theory", section 3.2.
    """
    means = [np.asarray(posterior.mean(name), np.float64) for name in (A, B)]
    (a, b) = means
    if a.ndim != 2 or b.ndim != 2 or len(a) != len(b) or a.shape[1] % len(a):
        raise ShapeError(f"'{A}' and '{B}' are no linear dynamics",
                         found=f"shapes {a.shape} and {b.shape}",
                         expected="(d, k d) and (d, du)",
                         fix="name the sites with dynamics=, or pass dynamics=None")
    key = as_key(rng_key)
    draws = _draws(posterior, (A, B), key, num_samples)
    mean = _matrix(*means)
    gaps = _matrix(draws[A].reshape(-1, *a.shape), draws[B].reshape(-1, *b.shape)) - mean
    directions, values, _ = np.linalg.svd(mean)
    values = np.pad(values, (0, len(mean) - len(values)))
    noise = np.quantile(np.linalg.norm(np.einsum("ni,sn...->si...", directions, gaps), axis=-1),
                        0.95, axis=0)
    # Known A and B have no noise but that of rounding.
    noise = np.maximum(noise, values[0] * np.finfo(np.float64).eps * len(mean))
    lost = np.flatnonzero(values <= noise)
    unreached = ", ".join(f"({', '.join(f'{x:.2f}' for x in directions[:, i])})" for i in lost)
    return Reachability(len(mean) - len(lost), len(mean), float(values[-1]), float(noise[-1]),
                        unreached)


def _draws(posterior: Posterior, sites: tuple[str, str], key: Array, count: int
           ) -> dict[str, np.ndarray]:
    """Draws of global sites alone, jointly where their belief is: {site: (count, size)}."""
    joint, single, _ = posterior.beliefs(sites)
    found = {n: np.asarray(d.sample(random.fold_in(key, i), (count,)), np.float64)
             for i, (n, d) in enumerate(single.items())}
    for members, (mean, cov) in joint.items():
        with ours():                        # a belief has all of its digits
            draws = np.asarray(ArrayNormal(mean, cov, 1).sample(key, (count,)))
        ends = np.cumsum([posterior.mean(n).size for n in members])
        found |= dict(zip(members, np.split(draws, ends[:-1], axis=1)))
    return found


def _matrix(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """R, (..., n, n du)."""
    d, n = a.shape[-2:]
    shift = np.broadcast_to(np.eye(n)[d:], (*a.shape[:-2], n - d, n))
    a = np.concatenate([shift, a], -2)
    column = np.concatenate([np.zeros((*b.shape[:-2], n - d, b.shape[-1])), b], -2)
    columns = [column]
    for _ in range(n - 1):
        columns.append(a @ columns[-1])
    return np.concatenate(columns, -1)
