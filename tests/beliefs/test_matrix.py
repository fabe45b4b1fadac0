"""Matrices with a precision W (x) S + U (x) V: as the dense path, in a form of their own."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from numpy.testing import assert_allclose

import jopa_ppl as jp
from jopa_ppl.beliefs import DenseBelief, MatrixBelief
from jopa_ppl.graph import matrices
from tests.caches import forget

D, DU, T = 3, 2, 12


pytestmark = pytest.mark.filterwarnings("ignore::jopa_ppl.errors.ConvergenceWarning")


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def lds(y, u=None, *, d=D, du=DU, sd=0.7, sd_b=1.5, noise="wishart", bias=False, spelling=0):
    """Unknown dynamics, known sensors."""
    A = jp.latent("A", dist.Normal(jnp.eye(d), sd).to_event(2) if np.ndim(sd) < 2 else
                  dist.MatrixNormal(jnp.eye(d), 0.7 * jnp.eye(d), jnp.asarray(sd)))
    B = jp.latent("B", dist.Normal(0.0, sd_b).expand((d, du)).to_event(2))
    c = jp.latent("c", dist.Normal(0.0, 0.5).expand((d,)).to_event(1)) if bias else 0.0
    if noise == "wishart":
        W = jp.latent("W", dist.Wishart(d + 2.0, rate_matrix=0.3 * jnp.eye(d)))
    elif noise == "gamma":
        tau = jp.latent("tau", dist.Gamma(3.0, 1.0).expand((d,)).to_event(1))
    x0 = jp.latent("x0", dist.MultivariateNormal(jnp.zeros(d), jnp.eye(d)))

    def step(x, now):
        y, u = now
        jp.observe("y", dist.Normal(x, 0.3).to_event(1), y)
        u = jp.latent("u", dist.Normal(jnp.zeros(du), 1.0).to_event(1)) if u is None else u
        mean = [A @ x + B @ u + c, x @ A.T + jnp.einsum("ij,j->i", B, u) + c,
                (A * x).sum(-1) + B.dot(u) + c][spelling]
        if noise == "wishart":
            return jp.latent("x", dist.MultivariateNormal(mean, precision_matrix=W)), None
        scale = 1 / jnp.sqrt(tau) if noise == "gamma" else jnp.linspace(0.4, 0.9, d)
        return jp.latent("x", dist.Normal(mean, scale).to_event(1)), None

    jp.scan(step, x0, (y, u))


def data(T=T, d=D, du=DU, missing=False):
    rng = np.random.default_rng(0)
    A = 0.95 * np.linalg.qr(rng.normal(size=(d, d)))[0]
    B, u = rng.normal(size=(d, du)), rng.normal(size=(T, du))
    x, y = rng.normal(size=d), []
    for t in range(T):
        y.append(x + 0.3 * rng.normal(size=d))
        x = A @ x + B @ u[t] + 0.5 * rng.normal(size=d)
    y = np.array(y)
    if missing:
        y[T // 3], y[-4:] = np.nan, np.nan
    return y, u


def forms(monkeypatch, fit):
    """What `fit` returns where matrices may have their own form, and where they may not."""
    found = []
    for least in (1, 10**9):
        monkeypatch.setattr(matrices, "LEAST", least)
        forget()
        found.append(fit())
    forget()
    return found


def both(monkeypatch, model, *args, sweeps=40, tol=0.0, extrapolate=False, **kwargs):
    """The posterior in the matrix's own form, and the dense one. Sweeps start where the last one
    ended: where they start ahead, each form has coordinates of its own to tell how far."""
    vmp = jp.VMP(model, progress=False, max_iters=sweeps, tol=tol, extrapolate=extrapolate)
    own, dense = forms(monkeypatch, lambda: vmp.run(*args, **kwargs))
    assert isinstance(own.compiled.graph.block_of("A"), MatrixBelief)
    assert isinstance(dense.compiled.graph.block_of("A"), DenseBelief)
    return own, dense


def same(own, dense, tol=1e-8):
    assert_allclose(own.free_energy, dense.free_energy, rtol=tol)
    for name in dense.sites:
        sd = np.sqrt(dense.variance(name))
        assert (np.abs(own.mean(name) - dense.mean(name)) <= tol * (sd + 1)).all(), name
        assert_allclose(own.variance(name), dense.variance(name), rtol=tol, err_msg=name)


@pytest.mark.parametrize("case", [
    {"sd": np.tril(np.full((D, D), 0.3)) + np.eye(D)}, pytest.param({}, marks=pytest.mark.slow),
    pytest.param({"noise": "gamma", "bias": True}, marks=pytest.mark.slow),
    pytest.param({"noise": "known", "spelling": 1}, marks=pytest.mark.slow),
    pytest.param({"spelling": 2, "sd": np.array([0.5, 1.0, 2.0])}, marks=pytest.mark.slow)],
    ids=str)
def test_every_sweep_is_that_of_the_dense_form(monkeypatch, case):
    y, u = data(missing=True)
    model = jp.condition(lds, {"u": u}) if case == {} else lds
    same(*both(monkeypatch, model, y, None if case == {} else u, sweeps=20, **case))


@pytest.mark.slow
def test_sweeps_that_start_ahead_end_where_those_of_the_dense_form_do(monkeypatch):
    y, u = data(missing=True)
    own, dense = both(monkeypatch, lds, y, u, sweeps=1000, tol=1e-12, extrapolate=True)
    assert own.converged and dense.converged
    assert_allclose(own.free_energy[-1], dense.free_energy[-1], rtol=1e-8)
    for name in dense.sites:
        sd = np.sqrt(dense.variance(name))
        assert (np.abs(own.mean(name) - dense.mean(name)) <= 1e-4 * sd).all(), name
        assert_allclose(own.variance(name), dense.variance(name), rtol=1e-4, err_msg=name)


def polynomial(y, u, *, transposed=False):
    """x + A phi(x, u), in a plate of two trajectories."""
    A = jp.latent("A", dist.Normal(0.0, 0.1).expand((D, D) if transposed else (D, 2 * D + 1)
                                                    ).to_event(2))
    W = jp.latent("W", dist.Wishart(D + 2.0, rate_matrix=0.3 * jnp.eye(D)))
    n = jp.plate("n", 2)
    with n:
        x0 = jp.latent("x0", dist.Normal(jnp.zeros(D), 1.0).to_event(1))

    def step(x, y):
        with n:
            jp.observe("y", dist.Normal(x, 0.3).to_event(1), y)
            a = jp.latent("u", dist.Normal(jnp.zeros(1), 1.0).to_event(1))
            if transposed:
                mean = x + jnp.tanh(x) @ A
            else:
                mean = x + jnp.concatenate([jnp.tanh(x), x * jnp.tanh(a), a], -1) @ A.T
            return jp.latent("x", dist.MultivariateNormal(mean, precision_matrix=W)), None

    jp.scan(step, x0, y)


@pytest.mark.slow
@pytest.mark.parametrize("transposed", [False, True])
def test_products_with_any_function_of_a_step(monkeypatch, transposed):
    """A @ phi(x, u), linearised: the form that plain products have, and the dense one's numbers."""
    (y, u), (z, v) = data(missing=True), data(du=1)
    y, u = np.stack([y, z[::-1]], 1), np.stack([u[:, :1], v], 1)

    def fit():
        return jp.VMP(jp.condition(polynomial, {"u": u}), messages={"x": "linearise"}, tol=0.0,
                      progress=False, max_iters=15).run(y, u, transposed=transposed)

    own, dense = forms(monkeypatch, fit)
    assert isinstance(own.compiled.graph.block_of("A"), DenseBelief if transposed else MatrixBelief)
    assert isinstance(dense.compiled.graph.block_of("A"), DenseBelief)
    same(own, dense)


@pytest.mark.parametrize("case", ["transposed", "prior"])
def test_coefficients_of_another_form_fall_back_to_the_dense_one(monkeypatch, case):
    monkeypatch.setattr(matrices, "LEAST", 1)
    sd = np.arange(1.0, 1 + D * D).reshape(D, D) / 5 if case == "prior" else 0.7

    def model(y):
        A = jp.latent("A", dist.Normal(jnp.eye(D), sd).to_event(2))

        def step(x, y):
            jp.observe("y", dist.Normal(x, 0.3).to_event(1), y)
            mean = A.T @ x if case == "transposed" else A @ x
            return jp.latent("x", dist.Normal(mean, 0.5).to_event(1)), None

        jp.scan(step, jp.latent("x0", dist.Normal(jnp.zeros(D), 1.0).to_event(1)), y)

    y, _ = data()
    forget()
    assert isinstance(jp.compile(model, y).graph.block_of("A"), DenseBelief)
    first, again = (jp.VMP(model, progress=False, max_iters=9).run(y) for _ in range(2))
    assert isinstance(first.compiled.graph.block_of("A"), DenseBelief)
    assert again.compiled is first.compiled and first.compiled.traces == 1
    monkeypatch.setattr(matrices, "LEAST", 10**9)
    forget()
    same(first, jp.VMP(model, progress=False, max_iters=9).run(y), 1e-14)


def test_a_posterior_answers_as_the_dense_one(monkeypatch, tmp_path, capsys):
    y, u = data()
    own, dense = both(monkeypatch, lds, y, u, sweeps=60, bias=True)
    draws = own.sample(0, 4000)
    some = {n: x[:9] for n, x in draws.items()}
    assert_allclose(own.log_prob(some), dense.log_prob(some), rtol=1e-8)
    for name in "ABc":
        fn, other = own[name], dense[name]
        assert fn.event_shape == other.event_shape
        assert_allclose(fn.mean, other.mean, atol=1e-8)
        assert_allclose(fn.variance, other.variance, rtol=1e-8)
        assert_allclose(fn.log_prob(draws[name][0]), other.log_prob(draws[name][0]), rtol=1e-8)
        for x in (draws[name], fn.sample(jax.random.key(1), (4000,))):
            assert_allclose(x.mean(0), own.mean(name), atol=0.1)
            assert_allclose(x.var(0), own.variance(name), rtol=0.15)
    cross = np.cov(np.concatenate([draws[n].reshape(4000, -1) for n in "ABc"], -1).T)
    (joint,), _, _ = (list(x.values()) if isinstance(x, dict) else x
                      for x in dense.beliefs(["A", "B", "c"]))
    (mine,) = own.beliefs(["A", "B", "c"])[0].values()
    assert_allclose(mine.cov, joint.cov, atol=1e-10)
    assert_allclose(cross, joint.cov, atol=0.1 * joint.cov.max())
    own.save(tmp_path / "f")
    loaded = jp.load_posterior(tmp_path / "f")
    same(loaded, own, 1e-14)
    with pytest.raises(jp.JopaError, match="a loaded posterior has no density"):
        loaded.log_prob(some)
    assert_allclose(loaded["B"].log_prob(draws["B"][0]), own["B"].log_prob(draws["B"][0]))
    assert "W (x) S + U (x) V" in str(own.compiled.graph)
    monkeypatch.setattr(matrices, "LEAST", 1)
    jp.explain(lds, y, u, bias=True)
    assert "block A,B,c: one matrix, its precision W (x) S" in capsys.readouterr().out


@pytest.mark.parametrize("case", ["actions in part", *(
    pytest.param(c, marks=pytest.mark.slow) for c in ("prior", "given"))])
def test_plans_are_the_same(monkeypatch, case):
    goal = jp.sparse(6, {0: np.zeros(D), -1: np.ones(D)})

    def plan():
        model = lds
        if case == "given":
            model = jp.given(lds, jp.VMP(lds, progress=False, max_iters=50).run(*data()))
        if case == "actions in part":
            u = np.full((6, DU), np.nan)
            u[:2], u[3, 0] = 0.3, -0.2
            model = jp.condition(lds, {"u": u})
        return jp.VMP(model, decide="u", progress=False).run(goal)

    same(*forms(monkeypatch, plan), tol=1e-7)


@pytest.mark.parametrize("noise", ["shared", "known by element", pytest.param(
    "latent by element", marks=pytest.mark.slow)])
def test_trajectories_in_a_plate(monkeypatch, noise):
    """Noise that differs along a plate gives a sum of many products, which is the dense form's."""
    K = 3

    def model(y):
        A = jp.latent("A", dist.Normal(jnp.eye(D), 0.7).to_event(2))
        rate = 0.3 * jnp.eye(D)
        if noise == "shared":
            W = jp.latent("W", dist.Wishart(D + 2.0, rate_matrix=rate))
        with jp.plate("k", K):
            if noise == "latent by element":
                W = jp.latent("W", dist.Wishart(D + 2.0, rate_matrix=rate))
            x0 = jp.latent("x0", dist.Normal(jnp.zeros(D), 1.0).to_event(1))

        def step(x, y):
            with jp.plate("k", K):
                jp.observe("y", dist.Normal(x, 0.3).to_event(1), y)
                if noise == "known by element":
                    scales = jnp.linspace(0.1, 2.0, K * D).reshape(K, D)
                    return jp.latent("x", dist.Normal(x @ A.T, scales).to_event(1)), None
                return jp.latent("x", dist.MultivariateNormal(x @ A.T, precision_matrix=W)), None

        jp.scan(step, x0, y)

    y = np.random.default_rng(0).normal(size=(7, K, D)).cumsum(0)
    y[2, 1] = np.nan
    vmp = jp.VMP(model, progress=False, max_iters=12, tol=0.0)
    found = forms(monkeypatch, lambda: vmp.run(y))
    own = found[0].compiled.graph.block_of("A")
    assert isinstance(own, MatrixBelief if noise == "shared" else DenseBelief)
    same(*found, tol=1e-8 if noise == "shared" else 1e-14)


def test_first_steps_of_their_own(monkeypatch):
    """Order two, where the first carry is in part a number: steps 0 and 1 have their own form."""
    C = np.random.default_rng(2).normal(size=(D, D))

    def model(y):
        A = jp.latent("A", dist.Normal(jnp.eye(D), 0.7).to_event(2))
        W = jp.latent("W", dist.Wishart(D + 2.0, rate_matrix=0.3 * jnp.eye(D)))
        x0 = jp.latent("x0", dist.Normal(jnp.zeros(D), 1.0).to_event(1))

        def step(carry, y):
            x, before = carry
            jp.observe("y", dist.Normal(x, 0.3).to_event(1), y)
            mean = A @ (C @ (x - 0.5 * before))
            return (jp.latent("x", dist.MultivariateNormal(mean, precision_matrix=W)), x), None

        jp.scan(step, (x0, jnp.full(D, 0.3)), y)

    same(*both(monkeypatch, model, data(7, missing=True)[0], sweeps=9))


@pytest.mark.parametrize("steps", [1, 2])
def test_a_matrix_between_discrete_choices_is_dense(monkeypatch, steps):
    """A step whose mean a discrete latent shifts stands once for every value of it."""
    monkeypatch.setattr(matrices, "LEAST", 1)

    def model(y):
        A = jp.latent("A", dist.Normal(jnp.eye(2), 0.7).to_event(2))
        k = jp.latent("k", dist.Categorical(jnp.array([0.4, 0.6])))
        x0 = jp.latent("x0", dist.Normal(jnp.zeros(2), 1.0).to_event(1))

        def step(x, y):
            x = jp.latent("x", dist.Normal(A @ x + jnp.array([-1.0, 1.0])[k], 0.5).to_event(1))
            jp.observe("y", dist.Normal(x, 0.3).to_event(1), y)
            return x, None

        jp.scan(step, 2 * x0, y)

    posterior = jp.VMP(model, progress=False).run(np.ones((steps, 2)))
    forms = [type(b) for b in posterior.compiled.graph.blocks]
    assert MatrixBelief not in forms and np.isfinite(posterior.free_energy[-1])
    assert (np.diff(posterior.free_energy) < 1e-9).all()
