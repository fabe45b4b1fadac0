"""Gaussian messages of likelihoods that are not conjugate.

For q = N(m, S) the complete message of a likelihood p(y | x) is the gradient of U = E_q[log p]:

    dU/dm = E_q[d log p / dx],      dU/dS = -C / 2,   C = -E_q[d^2 log p / dx^2]   (Bonnet, Price)

with the positive part of C for C, so that a message never has negative precision; where that is not
all of C, of a density of independent elements the positive part of each in its parameters (logits,
a mean): a decoder far from its frame bends any way. The derivatives
are those of x -> log p(y | x) as a whole: how a likelihood is written (logits or probabilities, a
network or a formula) makes no difference. The expectations are sums over points m + L z, S = L L':
"linearise" takes the mean alone (at its fixed point, the mode and the curvature there: Laplace's
approximation); "cubature" takes products of Gauss-Hermite points up to three latents, which is
E_q but for rounding in one and for smooth densities in three, and above three the 2 n points of the
cubature rule, exact to the third degree. "quadrature" is the same up to three latents, and above
goes over the parameters of each element, where these are few: with eta(x) what the element is made
of, on the real line (logits, a mean, the log of a scale),

    E_q[log p(y | x)] = E[log p(y | eta)],   eta ~ N(eta(m), J S J'),   J = d eta / dx at m

which is exact where eta is affine in x, and its curvature the positive part of that in eta.

Of a Laplace, and its like, E[log p(y | eta)] is known (`corners`), and stands for all rules but
"linearise".

Source: Khan & Lin 2017, "Conjugate-computation variational inference"; Opper & Archambeau 2009;
Arasaratnam & Haykin 2009 (cubature).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jopa_ppl.linalg.factors import Moments
from jopa_ppl.linalg.slopes import slopes, value_and_slopes

# Points a latent (or a parameter of an element), by their number.
AT_ONCE = 2**16     # elements at all points together
HERMITE = {"cubature": {1: 15, 2: 5, 3: 3}, "quadrature": {1: 15, 2: 9, 3: 7}}


class Score(NamedTuple):
    """A log density.

    Attributes:
        value: x (*batch, n) -> log p: a value for every element of the factor's batch, each made of
            its own element of x alone (an axis of x may have size 1: one latent for many elements).
        parameters: x -> [eta (*batch, d), ..], what independent elements are made of, or None.
        density: [eta, ..] -> log p of every element (*batch, d).
        expected: of densities with corners, which points do not see: the Gaussian about eta, mean
            (*batch, d, k) and covariance (*batch, d, k, k) -> E[log p] of every element, exact.
        copied: whether such an x (its shape tells) holds a latent that elements share, a copy for
            each, of which the first is read for all. What one of them makes of it tangents tell,
            which move all copies; a pass backward gives the first what is everyone's.
        elements: how many numbers it is the density of.
    """

    value: Callable[[Array], Array]
    parameters: Callable[[Array], list[Array]] | None = None
    density: Callable[[Sequence[Array]], Array] | None = None
    copied: Callable[[Array], bool] = lambda x: False
    elements: int = 0
    expected: Callable[[Moments], Array] | None = None

    def __call__(self, x: Array) -> Array:
        return self.value(x)


def by_element(score: Score, at: Moments, rule: str) -> bool:
    """Whether a rule goes over the parameters of elements."""
    if score.parameters is None or rule == "linearise":
        return False
    return score.expected is not None or (rule == "quadrature" and at.mean.shape[-1] > 3)


def expected_score(score: Score, at: Moments, rule: str, held: Array | None = None) -> Array:
    """sum of E_q[log p] by the points of a rule, less <held, S> / 2 of what `remainder` found.

    Args:
        at: the belief, mean (*batch, n) and covariance (*batch, n, n).
        rule: "linearise", "cubature" or "quadrature".
    """
    spread = at.cov
    if by_element(score, at, rule):
        cov = at.cov
        score, at, J = _of_elements(score, at)
        spread = _spread(lax.stop_gradient(J), cov)
    total = (jnp.sum(score.expected(at)) if _exact(score, rule)
             else over_points(lambda x: jnp.sum(score(x)), at, rule, score.elements))
    return total if held is None else total - 0.5 * jnp.sum(held * spread)


def _exact(score: Score, rule: str) -> bool:
    """Whether the expectation over what an element is made of is known."""
    return score.expected is not None and score.parameters is None and rule != "linearise"


def _of_elements(score: Score, at: Moments) -> tuple[Score, Moments, Array]:
    """The density of every element as a function of its parameters eta (*batch, d, k), the moments
    of these, and their slope in x (*batch, d, k, n)."""
    join = lambda x: jnp.stack(score.parameters(x), -1).astype(x.dtype)   # networks have their own
    mean, J = value_and_slopes(join, at.mean)
    J = jnp.moveaxis(J, 0, -1)
    unstacked = lambda eta: score.density([eta[..., i] for i in range(eta.shape[-1])])
    of = Score(unstacked, elements=score.elements, expected=score.expected)
    return of, Moments(mean, _spread(J, at.cov)), J


def _spread(J: Array, cov: Array) -> Array:
    return jnp.einsum("...dkn,...nm,...dlm->...dkl", J, cov, J)


def curvature(score: Score, at: Moments, rule: str) -> Array:
    """The positive part of C = -E_q[d^2 log p / dx^2], (*batch, n, n).

    Args:
        score: the log density.
        at: the belief about x, mean (*batch, n) and covariance (*batch, n, n).
        rule: "linearise", "cubature" or "quadrature".
    """
    return _positive(_bend(score, at, rule))


def remainder(score: Score, at: Moments, rule: str) -> Array:
    """What `expected_score` lacks of the message's precision, R = C + 2 dU/dS of the sum itself.

    At `at`, the gradient of U - 1/2 <R, S> is the message. Straight pieces bend where they meet
    (Laplace), which is between the points: of these C is what the sum itself bends by. By element,
    all of it is in the parameters.

    Args:
        score, at, rule: as in `curvature`.

    Returns:
        (*batch, n, n), or by element (*batch, d, k, k) of its k parameters; no gradient goes
        through it.
    """
    if by_element(score, at, rule):
        score, at, _ = _of_elements(score, at)
    own = 2 * jax.grad(lambda cov: expected_score(score, Moments(at.mean, cov), rule))(at.cov)
    straight = lambda C: (C == 0).all((-2, -1), keepdims=True)
    seen = tells_all(rule, at.mean.shape[-1]) or _exact(score, rule)
    C = -own if seen else _bend(score, at, rule)
    values, found = _decomposed(jnp.where(straight(C), -own, C))
    if rule in ("linearise", "cubature") and score.parameters is not None:
        least = (values[..., 0] >= -1e-9 * jnp.abs(values).max(-1))[..., None, None]
        fine, positive = least | straight(C), found

        def by_parameters() -> Array:
            B = _bend_of_elements(score, at, rule)
            return jnp.where(fine, positive, _positive(jnp.where(straight(B), -own, B)))

        found = lax.cond(fine.all(), lambda: positive, by_parameters)
    return lax.stop_gradient(found + own)


def tells_all(rule: str, n: int) -> bool:
    """Whether the points of a rule see all that bends, of n latents or parameters: products of them
    do, the 2 n of the cubature rule n directions alone."""
    return rule == "quadrature" and n in HERMITE[rule]


def _bend(score: Score, at: Moments, rule: str) -> Array:
    """-E_q[d^2 log p / dx^2], of any sign."""
    def forward(x: Array) -> Array:
        found = slopes(lambda x: slopes(score.value, x), x)
        return -_served(jnp.moveaxis(found, (0, 1), (-2, -1)), x)

    slope = jax.grad(lambda x: jnp.sum(score(x)))
    backward = lambda x: -jnp.moveaxis(slopes(slope, x), 0, -1)
    return over_points(forward if score.copied(at.mean) else backward, at, rule,
                       score.elements * at.mean.shape[-1]**2)


def _served(found: Array, x: Array) -> Array:
    """Sums over the elements that one latent of x serves, on its batch."""
    shared = tuple(i for i, size in enumerate(x.shape[:-1]) if size < found.shape[i])
    return found.sum(shared, keepdims=True)


def _bend_of_elements(score: Score, at: Moments, rule: str) -> Array:
    """E_q[J' C J] with C the positive part of the curvature of every element in its parameters, J
    their slope in x: of no negative part, however the parameters bend (Gauss and Newton's)."""
    def bend(x: Array) -> Array:
        of, inner, J = _of_elements(score, at._replace(mean=x))
        C = _positive(_bend(of, inner, "linearise"))
        return _served(jnp.einsum("...dkn,...dkl,...dlm->...nm", J, C, J), x)

    return over_points(bend, at, rule, score.elements)


def _positive(C: Array) -> Array:
    """The positive part of matrices, as if they were symmetric."""
    return _decomposed(C)[1]


def _decomposed(C: Array) -> tuple[Array, Array]:
    """The eigenvalues of matrices, as if they were symmetric, and their positive part."""
    if C.shape[-1] == 1:
        return C[..., 0], jnp.maximum(C, 0.0)
    values, vectors = jnp.linalg.eigh(0.5 * (C + jnp.swapaxes(C, -1, -2)))
    return values, jnp.einsum("...ij,...j,...kj->...ik", vectors, jnp.maximum(values, 0.0), vectors)


def expected_exp(logs: Callable[[Array], tuple[Array, Array]], at: Moments
                 ) -> tuple[Array, Array]:
    """E[exp f(x)] and E[g(x)] for every element of f(x) and g(x) (*batch, d).

    By Gauss-Hermite points of one latent; of more, exp(f(m) + J S J' / 2) and g(m), which is exact
    where they are affine (products of scales, each with a belief about its log).

    Args:
        logs: f and g, x (*batch, n) -> two arrays (*batch, d).
        at: the belief about x, mean (*batch, n) and covariance (*batch, n, n).
    """
    if at.mean.shape[-1] == 1:
        points, weights = _points(1, HERMITE["quadrature"])
        place = drawn(at)
        f, g = jax.vmap(lambda z: logs(place(jnp.broadcast_to(z, at.mean.shape))))(points)
        return jnp.tensordot(weights, jnp.exp(f), 1), jnp.tensordot(weights, g, 1)
    center, J = value_and_slopes(lambda x: logs(x)[0], at.mean)
    J = lax.stop_gradient(jnp.moveaxis(J, 0, -1))                      # (*batch, d, n)
    spread = jnp.einsum("...dn,...nm,...dm->...d", J, at.cov, J)
    return jnp.exp(center + 0.5 * spread), logs(at.mean)[1]


def drawn_score(score: Score, at: Moments, noise: Array) -> Array:
    """log p at draws of x, x = m + L noise with S = L L' (differentiable in all), by element of
    the batch.

    Args:
        score: the log density.
        at: the belief about x, mean m (*batch, n) and covariance S (*batch, n, n).
        noise: standard normal, of the shape of the mean.
    """
    return score(drawn(at)(noise))


def drawn(at: Moments) -> Callable[[Array], Array]:
    """Standard normal noise (*batch, n) -> m + L noise; elements of no spread (data, or barren)
    stay at m.

    Args:
        at: mean m (*batch, n) and covariance S = L L' (*batch, n, n).
    """
    spread = jnp.diagonal(at.cov, axis1=-2, axis2=-1)
    fixed = spread <= 0
    ridge = jnp.where(fixed, 1.0, 1e-14 * spread)         # S may be singular but for rounding
    firm = at.cov + ridge[..., None] * jnp.eye(at.cov.shape[-1])
    chol = jnp.sqrt(firm) if firm.shape[-1] == 1 else jnp.linalg.cholesky(firm)
    return lambda noise: at.mean + jnp.einsum("...ij,...j->...i", chol,
                                              jnp.where(fixed, 0.0, noise))


def over_points(fn: Callable[[Array], Array], at: Moments, rule: str, elements: int) -> Array:
    """sum of w fn(x) over the points of a rule; one after the other where they are many, as
    decoders are large.

    Args:
        fn: x (*batch, n) -> an array of any shape, which the result has too.
        at: the belief about x, mean (*batch, n) and covariance (*batch, n, n).
        rule: "linearise" (the mean alone), "cubature" or "quadrature".
        elements: how many numbers `fn` goes over at each point.
    """
    n = at.mean.shape[-1]
    if rule == "linearise" or n == 0:
        return fn(at.mean)
    points, weights = _points(n, HERMITE[rule])
    noise, place = points.reshape((len(points), *(1,) * (at.mean.ndim - 1), n)), drawn(at)
    one = lambda z: fn(place(jnp.broadcast_to(z, at.mean.shape)))
    few = len(points) * elements <= AT_ONCE
    found = jax.vmap(one)(noise) if few else lax.map(jax.checkpoint(one), noise)
    return jnp.tensordot(weights, found, 1)


def _points(n: int, fine: Mapping[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Points z (K, n) and weights (K,) for E of a standard normal in n dimensions."""
    if n in fine:
        z, w = np.polynomial.hermite_e.hermegauss(fine[n])
        grid = np.stack(np.meshgrid(*[z] * n, indexing="ij"), -1).reshape(-1, n)
        return grid, reduce(np.multiply.outer, [w / w.sum()] * n).ravel()
    return np.sqrt(n) * np.concatenate([np.eye(n), -np.eye(n)]), np.full(2 * n, 0.5 / n)
