"""Gaussian elimination by Funsor against a dense joint precision."""

import itertools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jopa_ppl.messages import chain
from jopa_ppl.messages.elimination import Term, Variable, marginals, sample


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def psd(rng, *shape, rank=None):
    """Random positive semi-definite matrices of the given rank."""
    root = rng.normal(size=(*shape, rank or shape[-1] + 1))
    return jnp.asarray(root @ np.swapaxes(root, -1, -2))


def build(variables, sizes, cliques, seed=0):
    """Random terms for cliques (names, plates, rank), and random vectors."""
    rng = np.random.default_rng(seed)
    variables = {name: Variable(dim, plates) for name, (dim, plates) in variables.items()}
    terms = []
    for names, plates, rank in cliques:
        length = sum(variables[n].dim for n in names)
        precision = psd(rng, *(sizes[p] for p in plates), length, rank=rank)
        terms.append(Term(names, plates, precision))
    vectors = {
        name: jnp.asarray(rng.normal(size=(*(sizes[p] for p in v.plates), v.dim)))
        for name, v in variables.items()
    }
    return variables, sizes, terms, vectors


def positions(variables, sizes):
    """The rows of each instance of each variable in the dense joint, and how many there are."""
    rows, start = {}, 0
    for name, v in variables.items():
        shape = (*(sizes[p] for p in v.plates), v.dim)
        rows[name] = start + np.arange(np.prod(shape)).reshape(shape)
        start += rows[name].size
    return rows, start


def instances(variables, sizes, term):
    """For each index of a term's plates: the index and the rows of its variables."""
    rows, _ = positions(variables, sizes)
    for index in itertools.product(*(range(sizes[p]) for p in term.plates)):
        at = dict(zip(term.plates, index))
        own = [rows[n][tuple(at[p] for p in variables[n].plates)] for n in term.names]
        yield index, np.concatenate(own)


def dense(variables, sizes, terms):
    _, total = positions(variables, sizes)
    precision = np.zeros((total, total))
    for term in terms:
        for index, r in instances(variables, sizes, term):
            precision[np.ix_(r, r)] += term.precision[index]
    return precision


def assert_matches_dense(found, variables, sizes, terms, vectors, rtol=1e-9):
    precision = dense(variables, sizes, terms)
    cov = np.linalg.inv(precision)
    rows, total = positions(variables, sizes)
    vector = np.zeros(total)
    for name, r in rows.items():
        vector[r] = vectors[name]
    scale = np.max(np.abs(cov @ vector))
    for name, r in rows.items():
        np.testing.assert_allclose(found.mean[name], (cov @ vector)[r], rtol, rtol * scale)
    for term, block in zip(terms, found.cov, strict=True):
        assert block.shape == term.precision.shape
        for index, r in instances(variables, sizes, term):
            expected = cov[np.ix_(r, r)]
            np.testing.assert_allclose(block[index], expected, rtol, rtol * np.max(expected))
    np.testing.assert_allclose(found.logdet, np.linalg.slogdet(precision)[1], rtol)


NAMES = [f"x{i}" for i in range(10)]
OTHER = [f"y{i}" for i in range(10)]
PROBLEMS = {
    "one variable": ({"x": (3, ())}, {}, [(("x",), (), None)]),
    "tree": (
        {"a": (2, ()), "b": (1, ()), "c": (3, ()), "d": (2, ())},
        {},
        [
            (("a",), (), None),
            (("a", "b"), (), 1),
            (("c", "a"), (), 3),
            (("c", "d"), (), 2),
            (("b",), (), None),
        ],
    ),
    "chain": (
        {n: (2, ()) for n in NAMES},
        {},
        [(("x0",), (), None)] + [((a, b), (), 2) for a, b in zip(NAMES, NAMES[1:])],
    ),
    "two coupled chains": (
        {n: (2 if n[0] == "x" else 1, ()) for n in NAMES + OTHER},
        {},
        [(("x0",), (), None), (("y0",), (), None)]
        + [((a, b), (), 2) for a, b in zip(NAMES, NAMES[1:])]
        + [((a, b), (), 1) for a, b in zip(OTHER, OTHER[1:])]
        + [((a, b), (), 1) for a, b in zip(NAMES, OTHER)],
    ),
    "factor analysis": (  # local latents that do not meet
        {"z": (2, ("N",))},
        {"N": 5},
        [(("z",), ("N",), None), (("z",), ("N",), 1)],
    ),
    "hierarchical means": (
        {"mu": (2, ()), "theta": (2, ("G",))},
        {"G": 3, "N": 4},
        [
            (("mu",), (), None),
            (("theta", "mu"), ("G",), 2),
            (("theta",), ("N", "G"), 1),
        ],
    ),
    "groups and members": (
        {"mu": (1, ()), "g": (2, ("G",)), "m": (1, ("G", "M"))},
        {"G": 3, "M": 4},
        [
            (("mu",), (), None),
            (("mu", "g"), ("G",), 2),
            (("g", "m"), ("G", "M"), 1),
            (("m",), ("M", "G"), None),
        ],
    ),
    "a root without a term of its own": (
        {"mu": (1, ()), "x": (1, ("N",))},
        {"N": 6},
        [(("mu", "x"), ("N",), 2), (("x",), ("N",), None)],
    ),
    "two plates that meet in a root": (
        {"mu": (2, ()), "a": (1, ("I",)), "b": (2, ("J",))},
        {"I": 3, "J": 2},
        [(("mu",), (), None), (("mu", "a"), ("I",), 1), (("b", "mu"), ("J",), 2)],
    ),
    "crossed plates": (
        {"row": (1, ("I",)), "col": (2, ("J",))},
        {"I": 3, "J": 4},
        [(("row",), ("I",), None), (("col",), ("J",), None), (("row", "col"), ("I", "J"), 1)],
    ),
    "crossed plates under a root": (
        {"mu": (1, ()), "row": (1, ("I",)), "col": (2, ("J",))},
        {"I": 3, "J": 4},
        [
            (("mu",), (), None),
            (("mu", "row"), ("I",), 1),
            (("row",), ("I",), None),
            (("col",), ("J",), None),
            (("row", "col"), ("I", "J"), 1),
        ],
    ),
    "a plate and a variable of one name": (
        {"x": (1, ("x",)), "_PREV_x": (1, ())},
        {"x": 2},
        [(("x",), ("x",), None), (("x", "_PREV_x"), ("x",), 1), (("_PREV_x",), (), None)],
    ),
}
# Transitions of rank 2 and a prior leave each x in "chain" and "coupled" determined; a further
# unary term of full rank keeps the rest of the problems positive definite.
for name in ("tree", "chain", "two coupled chains", "hierarchical means", "groups and members",
             "a root without a term of its own", "two plates that meet in a root"):
    variables, sizes, cliques = PROBLEMS[name]
    cliques += [((n,), plates, dim) for n, (dim, plates) in variables.items()]


@pytest.mark.parametrize("name", PROBLEMS)
def test_moments_match_dense_joint(name):
    variables, sizes, terms, vectors = build(*PROBLEMS[name])
    precisions = [t.precision for t in terms]
    found = jax.jit(
        lambda p, v: marginals(
            variables, sizes, [t._replace(precision=x) for t, x in zip(terms, p)], v
        )
    )(precisions, vectors)
    assert_matches_dense(found, variables, sizes, terms, vectors)
