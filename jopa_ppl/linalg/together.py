"""Few jointly Gaussian variables, with plates, solved as one dense matrix.

The same question as `elimination.marginals` answers by Funsor, for so few numbers that one Cholesky
of all of them is less work than a plan: a tenth of the operations to compile, and to run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.linalg import solve_triangular

from jopa_ppl.linalg.elimination import Moments, Term, Variable

FEW = 64            # numbers


def count(variables: Mapping[str, Variable], sizes: Mapping[str, int]) -> int:
    """Of how many numbers the variables are, over all their plates."""
    return sum(prod(sizes[p] for p in v.plates) * v.dim for v in variables.values())


def marginals(variables: Mapping[str, Variable], sizes: Mapping[str, int], terms: Sequence[Term],
              vectors: Mapping[str, Array]) -> Moments:
    """Means, clique covariances and log|J| of the joint Gaussian of all variables.

    NaN where J is not positive definite. Arguments as of `elimination.marginals`.
    """
    places, rows = _places(variables, sizes), [_rows(t, variables, sizes) for t in terms]
    half, logdet = _root(variables, sizes, terms)
    v = jnp.zeros(len(half), half.dtype)
    for name, at in places.items():
        v = v.at[at].set(vectors[name])
    cov, mean = half.T @ half, half.T @ (half @ v)
    return Moments({name: mean[at] for name, at in places.items()},
                   [cov[at[..., :, None], at[..., None, :]] for at in rows], logdet)


def sample(rng_key: Array, variables: Mapping[str, Variable], sizes: Mapping[str, int],
           terms: Sequence[Term]) -> dict[str, Array]:
    """A joint draw from N(0, J^-1), name -> (*plates, dim). Arguments as of `elimination.sample`.
    """
    half, _ = _root(variables, sizes, terms)
    drawn = half.T @ jax.random.normal(rng_key, (len(half),), half.dtype)
    return {name: drawn[at] for name, at in _places(variables, sizes).items()}


def _root(variables: Mapping[str, Variable], sizes: Mapping[str, int], terms: Sequence[Term]
          ) -> tuple[Array, Array]:
    """H with H' H = J^-1, and log|J|."""
    n = count(variables, sizes)
    J = jnp.zeros((n, n), jnp.result_type(*(t.precision for t in terms)))
    for term in terms:
        at = _rows(term, variables, sizes)
        J = J.at[at[..., :, None], at[..., None, :]].add(term.precision)
    # Of the matrix with ones on its diagonal: precisions may be of very different sizes.
    scale = jnp.sqrt(jnp.diagonal(J))
    chol = jnp.linalg.cholesky(J / scale[:, None] / scale)
    half = solve_triangular(chol, jnp.diag(1 / scale), lower=True)
    return half, 2 * (jnp.log(jnp.diagonal(chol)) + jnp.log(scale)).sum()


def _places(variables: Mapping[str, Variable], sizes: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Where the numbers of each variable stand in the vector of all, (*plates, dim)."""
    found, at = {}, 0
    for name, v in variables.items():
        shape = (*(sizes[p] for p in v.plates), v.dim)
        found[name] = at + np.arange(prod(shape)).reshape(shape)
        at += prod(shape)
    return found


def _rows(term: Term, variables: Mapping[str, Variable], sizes: Mapping[str, int]) -> np.ndarray:
    """Where the numbers of a term stand, (*its plates, L)."""
    places, full, found = _places(variables, sizes), tuple(sizes[p] for p in term.plates), []
    for name in term.names:
        own = variables[name].plates
        order = np.argsort([term.plates.index(p) for p in own]).astype(int)
        at = np.moveaxis(places[name], order, range(len(own)))
        at = at.reshape((*(sizes[p] if p in own else 1 for p in term.plates), -1))
        found.append(np.broadcast_to(at, (*full, at.shape[-1])))
    return np.concatenate(found, -1)
