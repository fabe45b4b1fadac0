"""Loops, scattered products and the like in a mean: exact where affine, else refused."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from fitting import run
from jax import lax
from numpy.testing import assert_allclose

import jopa_ppl as jp
from jopa_ppl.proof.analyse import analyse
from jopa_ppl.proof.dependence import variable

A = np.array([[0.9, 0.2, 0.0], [0.0, 0.8, 0.1], [0.1, 0.0, 0.7]])
Y = np.array([0.3, -0.2, 0.9])

AFFINE = {
    "multiply": lambda c: c.at[0].multiply(0.5),
    "multiply twice": lambda c: c.at[jnp.array([0, 0, 2])].multiply(jnp.array([2.0, 3.0, 0.5])),
    "divide": lambda c: c.at[1:].divide(4.0),
    "data multiplied": lambda c: jnp.ones(3).at[1].multiply(c[0]) + c,
    "map": lambda c: lax.map(lambda v: 2 * v + 1.0, c),
    "map over rows": lambda c: lax.map(lambda row: row @ c, jnp.asarray(A)),
    "map in batches": lambda c: lax.map(lambda v: 2 * v + 1.0, c, batch_size=2),
    "fori": lambda c: lax.fori_loop(0, 20, lambda i, v: A @ v + i, c),
    "fori, each element": lambda c: lax.fori_loop(0, 3, lambda i, v: v.at[i].multiply(2.0), c),
    "while": lambda c: lax.while_loop(lambda s: s[0] < 5, lambda s: (s[0] + 1, A @ s[1]),
                                      (0, c))[1],
    "scan": lambda c: lax.scan(lambda s, M: (M @ s, s[0]), c, jnp.stack([A] * 12))[1][:3],
    "scan over c": lambda c: lax.scan(lambda s, v: (0.5 * s + v, s + v), 0.0, c)[1],
    "leaves that swap": lambda c: lax.fori_loop(0, 11, lambda i, s: (s[1], s[0]), (c, 2 * c))[0],
    "in a vmap": lambda c: jax.vmap(lambda a: lax.scan(
        lambda s, x: (0.5 * s + x * a[0], s), 0.0, c)[0])(jnp.asarray(A)),
    "associative": lambda c: lax.associative_scan(jnp.add, c),
    "fourier": lambda c: jnp.fft.irfft(jnp.fft.rfft(c) * jnp.array([1.0, 2.0j]), n=3),
    "window": lambda c: lax.reduce_window(c, 0.0, lax.add, (2,), (1,), "SAME"),
    "no steps": lambda c: lax.fori_loop(0, 0, lambda i, v: jnp.sin(v), c),
}
CURVED = {
    "multiply by a latent": lambda c: c.at[0].multiply(c[1]),
    "data multiplied by two": lambda c: jnp.ones(3).at[jnp.array([0, 0])].multiply(c[:2]),
    "map": lambda c: lax.map(jnp.sin, c),
    "power": lambda c: lax.fori_loop(0, 20, lambda i, v: v * c, c),
    "square": lambda c: lax.fori_loop(0, 2, lambda i, v: v * v, c),
    "while": lambda c: lax.while_loop(lambda v: v[0] < 5, lambda v: v + 1, c),
    "scan": lambda c: lax.scan(lambda s, v: (s * v, s), 1.0, jnp.concatenate([c] * 4))[1][:3],
}


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def seen(y, f):
    c = jp.latent("c", dist.Normal(jnp.ones(3), 1.0).to_event(1))
    jp.observe("y", dist.Normal(f(c), 0.5).to_event(1), y)


@pytest.mark.parametrize("name", AFFINE)
def test_an_affine_loop_is_told_as_affine(name):
    """Its claim: degree one in c, no other names; and so it is, at random points."""
    f = AFFINE[name]
    (d,) = analyse(jax.make_jaxpr(f)(jnp.ones(3)), [variable("c", (3,))])
    assert not d.nonlinear and d.degree("c") == 1 and d.names == {"c"}
    x, z = np.random.default_rng(0).normal(size=(2, 3))
    slope = jax.jacfwd(f)(jnp.zeros(3))
    assert_allclose(f(jnp.asarray(x)) - f(jnp.asarray(z)), slope @ (x - z), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["multiply", "fori", "scan over c"])
def test_an_affine_loop_has_its_exact_posterior(name):
    f = AFFINE[name]
    slope, offset = np.asarray(jax.jacfwd(f)(jnp.zeros(3))), np.asarray(f(jnp.zeros(3)))
    posterior = run(seen, Y, f)
    cov = np.linalg.inv(np.eye(3) + 4 * slope.T @ slope)
    mean = cov @ (np.ones(3) + 4 * slope.T @ (Y - offset))
    S = slope @ slope.T + 0.25 * np.eye(3)
    gap = Y - offset - slope.sum(1)
    evidence = -0.5 * (gap @ np.linalg.solve(S, gap) + np.linalg.slogdet(2 * np.pi * S)[1])
    assert_allclose(posterior.mean("c"), mean, rtol=1e-8)
    assert_allclose(posterior.variance("c"), np.diag(cov), rtol=1e-8)
    assert_allclose(posterior.free_energy[-1], -evidence, rtol=1e-9)


@pytest.mark.parametrize("name", CURVED)
def test_a_loop_that_is_not_affine_is_not_taken_for_exact(name):
    graph = jp.VMP(seen).compile(Y, CURVED[name]).graph
    factor = next(f for f in graph.factors if f.site.name == "y")
    assert factor.message == "quadrature" and [r.site for r in factor.curved] == ["c"]


def test_a_map_along_a_plate_keeps_it():
    """Element n of the outcome sees element n alone; a carry would mix them."""
    def told(f, *inputs):
        return analyse(jax.make_jaxpr(f)(*(jnp.ones(3) for _ in inputs)), inputs)[0]

    x, y, z = (variable(n, (3,), {0: p}) for n, p in (("x", "n"), ("y", "n"), ("z", "m")))
    alone = told(lambda x: lax.map(lambda v: 2 * v, x), x)
    assert alone.axes[0].plate == "n" and not alone.lost
    pair = told(lambda x, y: lax.map(lambda v: v[0] * v[1], (x, y)), x, y)
    assert pair.axes[0].plate == "n" and not pair.lost
    assert told(lambda x: lax.scan(lambda s, v: (s + v, s), 0.0, x)[1], x).lost == {("x", "n")}
    assert told(lambda x, z: lax.map(lambda v: v[0] + v[1], (x, z)), x, z).lost == {
        ("x", "n"), ("z", "m")}
    crossed = told(lambda x, y: lax.map(lambda v: v * y, x), x, y)
    assert crossed.lost == {("x", "n")} and [a.plate for a in crossed.axes] == [None, "n"]


def test_a_loop_in_the_step_of_a_scan():
    """Three half-steps of a rotation: as the rotation of a whole step and a half."""
    half = np.array([[0.9, 0.3], [-0.2, 0.8]])

    def program(y, move):
        def step(x, y):
            x = jp.latent("x", dist.MultivariateNormal(move(x), 0.1 * jnp.eye(2)))
            jp.observe("y", dist.Normal(x[0], 0.3), y)
            return x, None

        x0 = jp.latent("x0", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
        jp.scan(step, x0, y)

    found = run(program, Y, lambda x: lax.fori_loop(0, 3, lambda i, v: half @ v, x))
    wanted = run(program, Y, lambda x: half @ half @ half @ x)
    assert_allclose(found.free_energy[-1], wanted.free_energy[-1], rtol=1e-12)
    assert_allclose(found.mean("x"), wanted.mean("x"), rtol=1e-9, atol=1e-12)
