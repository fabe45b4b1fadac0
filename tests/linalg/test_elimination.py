"""Gaussian elimination, by Funsor and of few numbers at once, against a dense joint precision."""

import itertools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jopa_ppl.linalg import chain, elimination, together
from jopa_ppl.linalg.elimination import Term, Variable, marginals, sample


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
        [(("x0",), (), None)] + [((a, b), (), 2) for a, b in itertools.pairwise(NAMES)],
    ),
    "two coupled chains": (
        {n: (2 if n[0] == "x" else 1, ()) for n in NAMES + OTHER},
        {},
        [(("x0",), (), None), (("y0",), (), None)]
        + [((a, b), (), 2) for a, b in itertools.pairwise(NAMES)]
        + [((a, b), (), 1) for a, b in itertools.pairwise(OTHER)]
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
for plain in ("tree", "chain", "two coupled chains", "hierarchical means", "groups and members"):
    PROBLEMS[plain][2].extend(((n,), p, d) for n, (d, p) in PROBLEMS[plain][0].items())
PROBLEMS["two plates that meet in a root"][2].extend([(("a",), ("I",), 1), (("b",), ("J",), 2)])


def jitted(variables, sizes, terms, vectors, solver=elimination):
    def solve(precisions, vectors):
        new = [t._replace(precision=p) for t, p in zip(terms, precisions)]
        return solver.marginals(variables, sizes, new, vectors)

    return jax.jit(solve)([t.precision for t in terms], vectors)


solvers = pytest.mark.parametrize("solver", [elimination, together], ids=["funsor", "together"])


@solvers
@pytest.mark.parametrize("name", PROBLEMS)
def test_moments_match_dense_joint(name, solver):
    problem = build(*PROBLEMS[name])
    assert_matches_dense(jitted(*problem, solver), *problem)


@solvers
def test_precision_of_1e8_next_to_1_within_a_clique(solver):
    variables, sizes, terms, vectors = build(*PROBLEMS["hierarchical means"])
    scale = jnp.array([1e4, 1.0])  # of theta's and mu's two elements
    scaled = [
        t._replace(precision=t.precision * (s := jnp.tile(scale, len(t.names))) * s[:, None])
        for t in terms
    ]
    problem = variables, sizes, scaled, vectors
    assert_matches_dense(jitted(*problem, solver), *problem, rtol=1e-8)


def test_agrees_with_the_chain_kernel():
    variables, sizes, terms, vectors = build(*PROBLEMS["chain"])
    found = jitted(variables, sizes, terms, vectors)
    diag, off = [jnp.zeros((2, 2))] * 10, []
    for term in terms:
        first = int(term.names[0][1:])
        diag[first] += term.precision[:2, :2]
        if len(term.names) == 2:
            diag[first + 1] += term.precision[2:, 2:]
            off.append(term.precision[2:, :2])
    vector = jnp.stack([vectors[n] for n in NAMES])
    expected = chain.marginals(jnp.stack(diag), jnp.stack(off), vector)
    np.testing.assert_allclose(jnp.stack([found.mean[n] for n in NAMES]), expected.mean, 1e-8)
    np.testing.assert_allclose(found.logdet, expected.logdet, 1e-10)
    pairs = jnp.stack([c for c, t in zip(found.cov, terms) if len(t.names) == 2])
    np.testing.assert_allclose(pairs[:, :2, :2], expected.cov[:-1], 1e-8, 1e-12)
    np.testing.assert_allclose(pairs[:, 2:, 2:], expected.cov[1:], 1e-8, 1e-12)
    np.testing.assert_allclose(pairs[:, 2:, :2], expected.cross, 1e-8, 1e-12)


def test_inside_a_while_loop():
    variables, sizes, terms, vectors = build(*PROBLEMS["factor analysis"])

    def body(carry):
        i, m = carry
        m = marginals(variables, sizes, terms, {"z": vectors["z"] + m})
        return i + 1, m.mean["z"]

    start = 0, jnp.zeros((5, 2))
    _, found = jax.jit(lambda: jax.lax.while_loop(lambda c: c[0] < 3, body, start))()
    precision, expected = np.asarray(terms[0].precision + terms[1].precision), np.zeros((5, 2))
    for _ in range(3):
        expected = np.linalg.solve(precision, (vectors["z"] + expected)[..., None])[..., 0]
    np.testing.assert_allclose(found, expected, 1e-10)


@pytest.mark.slow
def test_samples_have_the_joint_covariance():
    variables, sizes, terms, _ = build(*PROBLEMS["groups and members"])
    draw = jax.jit(lambda key: sample(key, variables, sizes, terms, (50, 100)))
    draws = draw(jax.random.key(0))
    assert draws["m"].shape == (50, 100, 3, 4, 1) and draws["mu"].shape == (50, 100, 1)
    flat = np.concatenate([draws[n].reshape(5000, -1) for n in variables], 1)
    white = flat @ np.linalg.cholesky(dense(variables, sizes, terms))
    np.testing.assert_allclose(white.mean(0), 0, atol=0.07)
    np.testing.assert_allclose(white.T @ white / len(white), np.eye(flat.shape[1]), atol=0.1)


def test_draws_of_few_numbers_have_the_joint_covariance():
    """The root of the covariance is what noise is multiplied by: no estimate is needed."""
    variables, sizes, terms, _ = build(*PROBLEMS["groups and members"])
    half, logdet = together._root(variables, sizes, terms)
    precision = dense(variables, sizes, terms)
    np.testing.assert_allclose(half.T @ half @ precision, np.eye(len(half)), atol=1e-9)
    np.testing.assert_allclose(logdet, np.linalg.slogdet(precision)[1], rtol=1e-10)
    noise = jax.random.normal(jax.random.key(0), (len(half),), half.dtype)
    drawn = together.sample(jax.random.key(0), variables, sizes, terms)
    rows, _ = positions(variables, sizes)
    for name, r in rows.items():
        np.testing.assert_allclose(drawn[name], (half.T @ noise)[r], rtol=1e-12)


@solvers
def test_indefinite_precision_gives_nan(solver):
    variables, sizes, terms, vectors = build(*PROBLEMS["factor analysis"])
    terms[0] = terms[0]._replace(precision=-terms[0].precision)
    found = jitted(variables, sizes, terms, vectors, solver)
    assert np.isnan(found.logdet) and np.isnan(found.mean["z"]).all()


def test_funsor_is_set_up_at_first_use_and_leaves_jax_alone():
    program = """
import sys, jax
before = dict(jax.config.values)
import jopa_ppl.linalg.elimination as e
import jax.numpy as jnp
assert "funsor" not in sys.modules or sys.modules["funsor"].get_backend() == "numpy"
term, vectors = e.Term(("x",), (), jnp.eye(1)), {"x": jnp.ones(1)}
jax.jit(lambda v: e.marginals({"x": e.Variable(1)}, {}, [term], v))(vectors)
import funsor
assert funsor.get_backend() == "jax"
assert dict(jax.config.values) == before
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_descriptions_that_do_not_fit_are_errors():
    variables, sizes, terms, vectors = build(*PROBLEMS["hierarchical means"])
    with pytest.raises(ValueError, match="at least one term"):
        marginals(variables, sizes, [], vectors)
    with pytest.raises(ValueError, match="unknown variables"):
        marginals(variables, sizes, [terms[0]._replace(names=("nu",))], vectors)
    with pytest.raises(ValueError, match="expected a precision"):
        marginals(variables, sizes, [terms[0]._replace(precision=jnp.eye(3))], vectors)
    with pytest.raises(ValueError, match="needs the plates"):
        marginals(variables, sizes, [terms[1]._replace(plates=())], vectors)
    with pytest.raises(ValueError, match="no size for the plates"):
        marginals(variables, {"N": 4}, terms, vectors)
    with pytest.raises(ValueError, match="expected a vector"):
        marginals(variables, sizes, terms, vectors | {"mu": jnp.zeros(3)})
