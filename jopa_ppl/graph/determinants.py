"""Is a matrix precision made of latents one that VMP can average: linear, with their determinants?

E[P] is P at E[W] only where P is linear in W, and E[log|P|] follows from E[log|W|] only where
log|P(W)| is log|W| up to a factor and a constant. A part of W, a masked W or a scaling of its rows
alone break one or the other, element by element, which exponents do not show. Both are polynomial
identities, so that holding at random arguments (and data) proves them.
"""

from __future__ import annotations

import numpy as np

from jopa_ppl.errors import StructureError, names
from jopa_ppl.graph.program import Program, Site

# Operations that only move whole matrices: nothing is left to prove.
MOVES = {"reshape", "broadcast_in_dim", "squeeze", "convert_element_type", "copy"}


def check_matrix(site: Site, key: str, latents: tuple[str, ...], program: Program) -> None:
    """Refuse a precision that is not linear in its latents, or forgets part of their determinants.

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

    def precision(**values: np.ndarray) -> np.ndarray:
        given = {**fixed, **{f"latent/{n}": v for n, v in values.items()}}
        matrix = np.asarray(program.evaluate([output], given)[0], np.float64)
        if key == "precision_matrix":
            return matrix
        return np.linalg.inv(matrix @ np.swapaxes(matrix, -1, -2) if key == "scale_tril"
                             else matrix)

    def logdet(**values: np.ndarray) -> np.ndarray:
        return np.linalg.slogdet(precision(**values))[1]

    for name in latents:
        a, b = (_random(rng, avals[f"latent/{name}"]) for _ in range(2))
        linear = _close(precision(**{name: a + b}),
                        precision(**{name: a}) + precision(**{name: b}))
        if program.sites[name].family == "wishart":
            follows = _close(logdet(**{name: a}) - logdet(**{name: b}),
                             logdet(**{name: _alike(a)}) - logdet(**{name: _alike(b)}))
        else:
            follows = _close(2 * logdet(**{name: np.sqrt(a * b)}),
                             logdet(**{name: a}) + logdet(**{name: b}))
        if not (linear and follows):
            raise StructureError(
                f"the precision is not proportional to '{name}'", site=site.name,
                found=f"a precision of {names(latents)} that is "
                + ("not linear in it" if not linear else "a part or a masked copy of it"),
                expected="precision_matrix=W, or W with its rows and columns scaled alike by data; "
                "Gamma latents that scale all of a matrix, or the columns of scale_tril",
                fix="give each part a latent of its own, or run SVI or NUTS on the same program")


def _random(rng: np.random.Generator, aval: object) -> np.ndarray:
    """Positive numbers, symmetric positive definite where they can be a matrix."""
    shape = tuple(aval.shape)
    if np.dtype(aval.dtype).kind != "f":
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
    """Equal to rounding; what is not finite tells nothing and passes."""
    return not (np.abs(a - b) > 1e-8 * np.maximum(1, np.abs(b))).any()
