"""What is proved by values at random arguments: polynomial identities.

Is a matrix precision made of latents one that VMP can average: linear, with their determinants?

E[P] is P at E[W] only where P is linear in W, and E[log|P|] follows from E[log|W|] only where
log|P(W)| is log|W| up to a factor and a constant. A part of W, a masked W or a scaling of its rows
alone break one or the other, element by element, which exponents do not show. Both are polynomial
identities, so that holding at random arguments (and data) proves them.

No matrix is inverted, so that those which barely can be (a kernel and its jitter) are told as well:

    P(a + b) = P(a) + P(b)    iff    C(a + b) = C(a) (C(a) + C(b))^-1 C(b),      C = P^-1,

and Gamma arguments are powers of 4, by which (and whose roots) a matrix is scaled without rounding.
"""

from __future__ import annotations

import numpy as np

from jopa_ppl.errors import StructureError, names
from jopa_ppl.program.program import Program, Site

# Operations that only move whole matrices: nothing is left to prove.
MOVES = {"reshape", "broadcast_in_dim", "squeeze", "convert_element_type", "copy"}


def check_matrix(site: Site, key: str, latents: tuple[str, ...], program: Program) -> None:
    """Refuse a precision that is not linear in its latents, or forgets part of their determinants.

    Args:
        site: whose precision it is; key: of its output, "precision_matrix" say.
        latents: that it is made of; program: that of the site.

    Raises:
        StructureError: names the site and the latents.
    """
    output = site.outputs[key]
    closed, used = program.pruned([output])
    if all(eqn.primitive.name in MOVES for eqn in closed.jaxpr.eqns):
        return
    rng = np.random.default_rng(0)
    keys = [k for i, k in enumerate(program.inputs) if i in used]
    avals = dict(zip(program.inputs, closed.in_avals))
    fixed = {k: _random(rng, avals[k]) for k in keys}

    def matrix(**values: np.ndarray) -> np.ndarray:
        given = {**fixed, **{f"latent/{n}": v for n, v in values.items()}}
        return np.asarray(program.evaluate([output], given)[0], np.float64)

    def linear(both: np.ndarray, one: np.ndarray, other: np.ndarray) -> bool:
        if key == "precision_matrix":
            return _close(both, one + other)
        if key == "scale_tril":
            both, one, other = (m @ np.swapaxes(m, -1, -2) for m in (both, one, other))
        try:
            return _close(both, one @ np.linalg.solve(one + other, other))
        except np.linalg.LinAlgError:       # as with what is not finite, below
            return True

    def logdet(m: np.ndarray) -> np.ndarray:
        """The logarithm of a determinant, not the precision's own, but proportional to it."""
        size = np.diagonal(m, axis1=-2, axis2=-1)
        if key == "scale_tril":
            return np.log(np.abs(size)).sum(-1)
        size = np.sqrt(np.abs(size))
        scaled = m / size[..., :, None] / size[..., None, :]
        return np.linalg.slogdet(scaled)[1] + 2 * np.log(size).sum(-1)

    for name in latents:
        a, b = (_random(rng, avals[f"latent/{name}"]) for _ in range(2))
        one, other, both = (matrix(**{name: x}) for x in (a, b, a + b))
        straight = linear(both, one, other)
        if program.sites[name].rules.by_matrix:
            alike = [logdet(matrix(**{name: _alike(x)})) for x in (a, b)]
            follows = _same(logdet(one) - logdet(other), alike[0] - alike[1])
        else:
            # No element is scaled as another is: along one ray anything homogeneous would do.
            a, ratio = rng.integers(-2, 3, a.shape), 1 + rng.permutation(a.size) % 20
            a, b = 4.0**a, 4.0**(a + ratio.reshape(a.shape))
            one, other, middle = (logdet(matrix(**{name: x})) for x in (a, b, np.sqrt(a * b)))
            follows = _same(2 * middle, one + other)
        if not (straight and follows):
            raise StructureError(
                f"the precision is not proportional to '{name}'", site=site.name,
                found=f"a precision of {names(latents)} that is "
                + ("not linear in it" if not straight else "a part or a masked copy of it"),
                expected="precision_matrix=W, or W with its rows and columns scaled alike by data; "
                "Gamma latents that scale all of a matrix, or the columns of scale_tril",
                fix="give each part a latent of its own, or run SVI or NUTS on the same program")


def check_selection(site: Site, key: str, latents: tuple[str, ...], program: Program) -> None:
    """Refuse a probability that is not an element of a latent: 0.9 p, or a product of two, of which
    E[log(1 - p)] does not follow. What is made of others by moving them alone has their values, and
    nothing else has, at random ones.

    Args:
        site: whose probability it is; key: of its output.
        latents: that it is made of; program: that of the site.

    Raises:
        StructureError: names the site and the latents.
    """
    rng, output = np.random.default_rng(0), site.outputs[key]
    closed, used = program.pruned([output])
    avals = dict(zip(program.inputs, closed.in_avals))
    given = {k: _random(rng, avals[k]) for i, k in enumerate(program.inputs) if i in used}
    own = {f"latent/{n}": rng.uniform(0.1, 0.9, avals[f"latent/{n}"].shape) for n in latents}
    (found,) = program.evaluate([output], {**given, **own})
    if not np.isin(np.asarray(found), np.concatenate([x.ravel() for x in own.values()])).all():
        raise StructureError(
            f"its probability is made of '{latents[0]}'", site=site.name,
            found=f"a function of {latents[0]} that changes its values",
            expected=f"elements of {latents[0]}", fix="leave the latent as it is")


def _random(rng: np.random.Generator, aval: object) -> np.ndarray:
    """Positive numbers, symmetric positive definite where they can be a matrix."""
    shape = tuple(aval.shape)
    if not np.issubdtype(aval.dtype, np.floating):
        return np.zeros(shape, aval.dtype)
    if len(shape) > 1 and shape[-1] == shape[-2]:
        root = rng.normal(size=shape)
        return root @ np.swapaxes(root, -1, -2) + np.eye(shape[-1])
    return rng.uniform(0.5, 1.5, shape)


def _alike(matrix: np.ndarray) -> np.ndarray:
    """The multiple of the identity with the same determinant."""
    n = matrix.shape[-1]
    return np.exp(np.linalg.slogdet(matrix)[1] / n)[..., None, None] * np.eye(n)


def _close(a: np.ndarray, b: np.ndarray) -> bool:
    """Equal matrices to rounding, by the scales of their rows and columns; what is not finite tells
    nothing and passes."""
    size = np.sqrt(np.abs(np.diagonal(b, axis1=-2, axis2=-1)))
    return not (np.abs(a - b) > 1e-8 * size[..., :, None] * size[..., None, :]).any()


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    return not (np.abs(a - b) > 1e-8 * np.maximum(1, np.abs(b))).any()
