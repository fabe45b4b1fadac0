"""Slow sweeps turn states: x -> R x, and what multiplies x follows."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from numpy.testing import assert_allclose

import jopa_ppl as jp
from jopa_ppl.engine import rotation
from jopa_ppl.linalg.bfgs import FARTHEST, Bfgs
from tests.engine.test_extrapolation import factors, loading, rows, trials


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def relevant(y, d):
    """An LDS whose columns of A and C have precisions of their own (ARD), more states than needed;
    as the demonstration `lssm` of BayesPy."""
    n = y.shape[1]
    alpha = jp.latent("alpha", dist.Gamma(1e-2, 1e-2).expand([d]).to_event(1))
    A = jp.latent("A", dist.Normal(jnp.zeros((d, d)), 1 / jnp.sqrt(alpha)).to_event(2))
    gamma = jp.latent("gamma", dist.Gamma(1e-2, 1e-2).expand([d]).to_event(1))
    C = jp.latent("C", dist.Normal(jnp.zeros((n, d)), 1 / jnp.sqrt(gamma)).to_event(2))
    tau = jp.latent("tau", dist.Gamma(1e-2, 1e-2))
    x0 = jp.latent("x0", dist.Normal(jnp.zeros(d), 1.0).to_event(1))

    def step(x, y):
        jp.observe("y", dist.Normal(C @ x, 1 / jnp.sqrt(tau)).to_event(1), y)
        return jp.latent("x", dist.Normal(A @ x, 1.0).to_event(1)), None

    jp.scan(step, x0, y)


def channels(T=40, d=2, n=8):
    rng = np.random.default_rng(0)
    A, C = 0.97 * np.linalg.qr(rng.normal(size=(d, d)))[0], rng.normal(size=(n, d))
    x, found = rng.normal(size=d), []
    for _ in range(T):
        found.append(C @ x + rng.normal(size=n))
        x = A @ x + 0.2 * rng.normal(size=d)
    return np.array(found)


def second_order(y, d):
    """A chain that looks two steps back, seen by a loading."""
    C = jp.latent("C", dist.Normal(jnp.zeros((y.shape[1], d)), 1.0).to_event(2))
    A = jp.latent("A", dist.Normal(jnp.eye(d), 1.0).to_event(2))
    first, second = (jp.latent(n, dist.Normal(jnp.zeros(d), 1.0).to_event(1)) for n in ("p", "q"))

    def step(carry, y):
        before, x = carry
        jp.observe("y", dist.Normal(C @ x, 0.5).to_event(1), y)
        new = jp.latent("x", dist.Normal(A @ x - 0.5 * before, 0.3).to_event(1))
        return (x, new), None

    jp.scan(step, (first, second), y)


def ran(model, *args, sweeps=5, **options):
    return jp.VMP(model, progress=False, max_iters=sweeps, tol=0.0, **options).run(*args)


@pytest.mark.filterwarnings("ignore::jopa_ppl.errors.ConvergenceWarning")
def test_columns_that_are_not_needed_arrive():
    found = ran(relevant, channels(), 4, sweeps=300)
    F = np.asarray(found.free_energy)
    assert np.diff(F).max() <= 1e-11 * abs(F[-1])           # rounding
    assert F[49] - F[-1] < 0.01             # 0.3 where states are not turned
    # Plain sweeps stay there.
    engine, bound, here = found.compiled.engine, found.bound, found.state.moments

    @jax.jit
    def plain(moments):
        moments = jax.lax.fori_loop(0, 100, lambda i, q: engine.sweep(q, bound)[0], moments)
        return engine.free_energy(moments, bound), engine.moved(here, moments)

    f, moved = plain(here)
    assert abs(f - F[-1]) < 1e-4
    assert moved < 0.05


@pytest.mark.filterwarnings("ignore::jopa_ppl.errors.ConvergenceWarning")
@pytest.mark.parametrize(("model", "args", "site", "heads"), [
    (loading, (trials(T=5), 2), "x", ("x0",)), (second_order, (channels(T=7, n=3), 2), "x",
                                               ("p", "q")), (factors, (rows(N=6), 2), "z", ())])
def test_a_turned_belief_is_the_belief_about_what_is_turned(model, args, site, heads):
    found = ran(model, *args)
    block = found.compiled.graph.block_of(site)
    q, mask = found.state.moments[block.name], found.bound.clamps[block.name]
    R = jnp.array([[1.2, -0.7], [0.4, 0.9]])
    new = block.turned(q, {site: R}, mask)
    assert block.turns[site] == {site, *heads}
    values = block.draw(q, jax.random.key(0), mask)[1]
    shift = block.free_dims(mask) / 2 * jnp.linalg.slogdet(R)[1]
    moved = {n: v @ R.T for n, v in values.items()}
    assert_allclose(block.log_prob(new, mask, moved), block.log_prob(q, mask, values) - shift)
    assert_allclose(block.entropy(new, mask), block.entropy(q, mask) + shift)
    here, there = (block.completed(x, mask) for x in (q, new))
    for name in (site, *heads):
        (mean, cov), (m, C) = block.site(there, name), block.site(here, name)
        assert_allclose(mean, m @ R.T)
        assert_allclose(cov, R @ C @ R.T)
    again = block.update(new, block.message(new, mask), mask)       # all of it from its precision
    jax.tree.map(partial(assert_allclose, atol=1e-10), again, new)


@pytest.mark.filterwarnings("ignore::jopa_ppl.errors.ConvergenceWarning")
def test_what_is_seen_stays_the_same():
    """The first C and A after x -> R x are C R^-1 and R A R^-1, next to what the data tell."""
    found = ran(loading, trials(), 2, sweeps=100)
    engine, bound = found.compiled.engine, found.bound
    turn = rotation.turned(engine.schedule)
    after = lambda G: engine.sweep(turn(found.state.moments, bound.clamps, G), bound,
                                   part=slice(turn.first, None))[0]
    G = jnp.array([0.2, -0.3, 0.3, 0.1])
    half = 0.5 * G.reshape(2, 2)
    R = jnp.linalg.solve(jnp.eye(2) - half, jnp.eye(2) + half)
    old, new = map(jax.jit(after), (0 * G, G))
    name = engine.graph.block_of("A").name
    mean = lambda q, name: q[name].mean.reshape(-1, 2)
    assert_allclose(mean(new, name), R @ mean(old, name) @ jnp.linalg.inv(R), atol=0.05)
    assert_allclose(mean(new, "C"), mean(old, "C") @ jnp.linalg.inv(R), atol=0.05)


def test_what_is_turned():
    def known_loading(y, C):
        A = jp.latent("A", dist.Normal(jnp.eye(2), 1.0).to_event(2))

        def step(x, y):
            jp.observe("y", dist.Normal(C @ x, 1.0).to_event(1), y)
            return jp.latent("x", dist.Normal(A @ x, 1.0).to_event(1)), None

        jp.scan(step, jp.latent("x0", dist.Normal(jnp.zeros(2), 1.0).to_event(1)), y)

    def means(y):
        m = jp.latent("m", dist.Normal(0.0, 1.0))
        with jp.plate("n", len(y)):
            b = jp.latent("b", dist.Normal(m, 1.0))
            jp.observe("y", dist.Normal(b, 1.0), y)

    def sites(model, *args):
        turn = rotation.turned(jp.VMP(model).compile(*args).schedule)
        return {} if turn is None else {n: d for _, dims in turn.sites for n, d in dims.items()}

    y = channels(T=6, n=3)
    assert sites(loading, trials(T=5), 2) == sites(second_order, y, 2) == {"x": 2}
    assert sites(relevant, y, 3) == {"x": 3}
    assert sites(factors, rows(), 4) == {"z": 4}
    assert sites(known_loading, y, np.ones((3, 2))) == sites(means, y[:, 0]) == {}
    told = jp.given(factors, {"C": dist.Normal(jnp.zeros((8, 4)), 1.0).to_event(2)})
    assert sites(told, rows(), 4) == {}
    part = np.where(np.arange(60)[:, None] < 30, np.nan, 1.0) * np.ones(4)
    assert sites(jp.condition(factors, {"z": part}), rows(), 4) == {}


def test_bfgs_finds_a_valley():
    """The least of x' A x / 2 + c, curved 1 to 10000."""
    A = jnp.diag(jnp.array([1.0, 30.0, 1e4])) + 0.5
    x, state = jnp.array([3.0, -1.0, 0.5]), Bfgs.of(3)
    for _ in range(60):
        step = state.step(A @ x)
        lower = (x + step) @ A @ (x + step) <= x @ A @ x
        state = state.after(step, A @ step, lower)
        x = jnp.where(lower, x + step, x)
    assert_allclose(x, 0.0, atol=1e-9)
    assert_allclose(state.inverse, jnp.linalg.inv(A), rtol=0.05, atol=3e-5)
    assert 0 < state.reach <= FARTHEST


def test_nothing_is_learned_from_no_step():
    state = Bfgs.of(2)
    same = state.after(state.step(jnp.zeros(2)), jnp.zeros(2), jnp.ones((), bool))
    assert not same.told
    assert same.reach == state.reach
