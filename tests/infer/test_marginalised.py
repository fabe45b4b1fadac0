"""Programs with latents integrated out: evidence and gradient against dense Gaussians, draws
against their exact moments, NUTS on them against NUTS on the whole program."""

from __future__ import annotations

import arviz
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import oracles
import programs
import pytest
from numpyro.contrib.control_flow import scan
from numpyro.infer import MCMC, NUTS, Predictive
from numpyro.infer.util import log_density

import jopa_ppl as jp
from jopa_ppl.engines import UseMarginalised, UseNUTS
from tests.caches import forget

C = np.array([[1.0, 0.5], [0.0, 1.0]])
Y, U = programs.simulate(3, seed=3)
Y = np.where(np.arange(6).reshape(3, 2) == 4, np.nan, Y)
NILE = ((programs.NILE[:20] - 900) / 150).astype(np.float32)
LDS = jp.condition(programs.lds, {"u": U})
THETA = {"A": np.array([[0.9, 0.1], [-0.2, 0.8]]), "W": np.array([[2.0, 0.3], [0.3, 1.5]])}


def total(model, args, kwargs, values):
    """log density of a program at some values, by NumPyro."""
    return log_density(numpyro.handlers.seed(model, 0), args, kwargs, values)[0]


def dense(model, args, kwargs, shapes):
    """log p(y, theta) with the Gaussians of these shapes gone, as a function of theta."""
    flat, unravel = jax.flatten_util.ravel_pytree({n: jnp.zeros(s) for n, s in shapes.items()})

    def log_joint(theta):
        score = lambda z: log_density(model, args, kwargs, {**unravel(z), **theta})[0]
        value, g, H = score(flat), jax.grad(score)(flat), -jax.hessian(score)(flat)
        return (value + 0.5 * g @ jnp.linalg.solve(H, g) - 0.5 * jnp.linalg.slogdet(H)[1]
                + 0.5 * len(flat) * jnp.log(2 * jnp.pi))

    return log_joint


def grouped(y):
    """A hierarchy in plates: means of groups and their own mean are one tree."""
    tau = numpyro.sample("tau", dist.HalfNormal(1.0))
    mu = numpyro.sample("mu", dist.Normal(0.0, 2.0))
    with numpyro.plate("group", y.shape[1]):
        m = numpyro.sample("m", dist.Normal(mu, tau))
        with numpyro.plate("n", len(y)):
            jp.observe("y", dist.Normal(m, 0.5), y)


def straight(x, y=None):
    """A regression with a scale that has no conjugate prior."""
    w = numpyro.sample("w", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    s = numpyro.sample("s", dist.LogNormal(0.0, 0.5))
    with numpyro.plate("n", len(x)):
        numpyro.sample("y", dist.Normal(x @ w, s), obs=y)


RNG = np.random.default_rng(0)
GROUPS = np.where(RNG.random((4, 3)) < 0.2, np.nan, RNG.normal(size=(4, 3)))
X, LINE = RNG.normal(size=(7, 2)), RNG.normal(size=7)
CASES = {
    "lds": (LDS, (Y,), {"T": 3, "C": C}, THETA,
            {"B": (2, 1), "x0": (2,), "x": (3, 2)}),
    "local level": (programs.local_level, (NILE[:5].astype(float),), {"T": 5},
                    {"level": np.array(2.0), "noise": np.array(1.5)}, {"x0": (), "x": (5,)}),
    "hierarchy": (grouped, (GROUPS,), {}, {"tau": np.array(0.7)}, {"mu": (), "m": (3,)}),
    "regression": (straight, (X, LINE), {}, {"s": np.array(0.7)}, {"w": (2,)})}


@pytest.mark.parametrize("name", [
    "lds", "regression", *(pytest.param(n, marks=pytest.mark.slow) for n in (
        "local level", "hierarchy"))])
def test_the_evidence_and_its_gradient_are_those_of_a_dense_gaussian(name):
    model, args, kwargs, theta, shapes = CASES[name]
    with jax.enable_x64(True):
        rest = jp.marginalised(model, over=tuple(shapes))
        found = jax.jit(jax.value_and_grad(lambda t: total(rest, args, kwargs, t)))(theta)
        wanted = jax.jit(jax.value_and_grad(dense(model, args, kwargs, shapes)))(theta)
    found, wanted = jax.device_get((found, wanted))
    assert abs(found[0] - wanted[0]) < 1e-9 * max(1, abs(wanted[0]))
    for n in theta:
        slope = wanted[1][n]            # of a symmetric matrix: any split between its two halves
        both = (found[1][n] + found[1][n].T, slope + slope.T) if n == "W" else (found[1][n], slope)
        np.testing.assert_allclose(*both, rtol=1e-8, atol=1e-8)


def test_what_is_drawn_back_has_the_exact_moments():
    """Given theta: by the key alone. The same theta and key give the same draw."""
    model, args, kwargs, theta, shapes = CASES["local level"]
    with jax.enable_x64(True):
        exact = oracles.dense_gaussian(model, args, kwargs, shapes, theta)
        many = {n: jnp.broadcast_to(x, (4000, *x.shape)) for n, x in theta.items()}
        run = Predictive(jp.marginalised(model), many)
        drawn, again = (run(jax.random.key(0), *args, **kwargs) for _ in range(2))
    np.testing.assert_array_equal(drawn["x"], again["x"])
    z = np.concatenate([drawn["x"], drawn["x0"][:, None]], 1)       # the oracle's order: by name
    sd = np.sqrt(np.diag(exact.cov))
    mean = np.append(exact.mean["x"], exact.mean["x0"])
    np.testing.assert_allclose((z.mean(0) - mean) / sd, 0, atol=5 / np.sqrt(4000))
    np.testing.assert_allclose(np.cov(z.T) / np.outer(sd, sd), exact.cov / np.outer(sd, sd),
                               atol=0.1)


def test_two_chains_in_single_precision_show_every_site():
    """Under jit, vmap and grad, from a caller in float32: the numbers are those of float64."""
    x, y = X.astype(np.float32), LINE.astype(np.float32)
    rest = jp.marginalised(straight)
    mcmc = MCMC(NUTS(rest), num_warmup=200, num_samples=200, num_chains=2,
                chain_method="vectorized", progress_bar=False)
    mcmc.run(jax.random.key(0), x, y)
    drawn = mcmc.get_samples(group_by_chain=True)
    assert {n: (v.shape, v.dtype) for n, v in drawn.items()} == {
        "s": ((2, 200), np.float32), "w": ((2, 200, 2), np.float32)}
    assert {"s", "w"} <= set(arviz.from_numpyro(mcmc).posterior.data_vars)
    # w is drawn anew for every s: what is left of it has the spread that it has given s.
    s, w = np.asarray(drawn["s"]).ravel(), np.asarray(drawn["w"]).reshape(-1, 2)
    J = X.T @ X / s[:, None, None]**2 + np.eye(2)
    gap = w - np.linalg.solve(J, (X.T @ LINE / s[:, None]**2)[..., None])[..., 0]
    assert abs(np.einsum("ni,nij,nj->n", gap, J, gap).mean() / 2 - 1) < 5 / np.sqrt(400)
    later = Predictive(straight, mcmc.get_samples())(jax.random.key(1), x, None)
    assert later["y"].shape == (400, 7)
    scales = np.float32([0.5, 0.9])
    both = jax.vmap(lambda s: rest.log_evidence({"s": s}, x, y))(scales)
    with jax.enable_x64(True):
        high = [rest.log_evidence({"s": jnp.asarray(s, float)}, x, y) for s in scales]
    np.testing.assert_allclose(both, high, rtol=3e-7)


def test_discrete_latents_go_first():
    """A mixture: the labels are summed over, exactly; weights and means stay."""
    def mixture(y):
        w = numpyro.sample("w", dist.Beta(2.0, 2.0))
        mu = numpyro.sample("mu", dist.Normal(jnp.array([-1.0, 1.0]), 1.0).to_event(1))
        with numpyro.plate("n", len(y)):
            z = numpyro.sample("z", dist.Bernoulli(w))
            numpyro.sample("y", dist.Normal(mu[z], 0.5), obs=y)

    y = np.array([-1.2, 0.9, 1.4])
    theta = {"w": np.array(0.3), "mu": np.array([-0.8, 1.1])}
    with jax.enable_x64(True):
        rest = jp.marginalised(mixture)
        assert rest.integrated(y) == ("z",)
        assert rest._split((y,), {}) is rest._split((y + 1,), {})      # found once for a shape
        found, slope = jax.value_and_grad(lambda t: rest.log_evidence(t, y))(theta)

        def wanted(t):
            each = dist.Normal(t["mu"], 0.5).log_prob(y[:, None]) + jnp.log(
                jnp.array([1 - t["w"], t["w"]]))
            return jax.scipy.special.logsumexp(each, -1).sum()

        value, exact = jax.value_and_grad(wanted)(theta)
    np.testing.assert_allclose(found, value, rtol=1e-12)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9), slope, exact)


def test_sites_that_follow_are_those_of_the_draw():
    """Deterministic sites see what is drawn back, and what nothing observed reaches follows."""
    def program(y):
        s = numpyro.sample("s", dist.Gamma(2.0, 2.0))
        w = numpyro.sample("w", dist.Normal(0.0, 1.0))
        numpyro.deterministic("twice", 2 * w)
        numpyro.sample("y", dist.Normal(w, s).expand([len(y)]).to_event(1), obs=y)
        numpyro.sample("next", dist.Normal(w, 1e-3))

    rest = jp.marginalised(program)
    drawn = Predictive(rest, num_samples=20)(jax.random.key(0), np.float32([0.3, 0.4]))
    np.testing.assert_allclose(drawn["twice"], 2 * drawn["w"], rtol=1e-6)
    np.testing.assert_allclose(drawn["next"], drawn["w"], atol=6e-3)
    assert np.std(drawn["w"]) > 0.05 and "y" not in rest.integrated(np.float32([0.3, 0.4]))


def test_data_in_part_are_integrated_out_where_they_are_missing():
    """NaN of jp.condition: the gap is drawn, the rest stays, and beliefs of jp.given are priors."""
    def program(T):
        a = numpyro.sample("a", dist.Normal(0.0, 1.0))
        scan(lambda x, _: (numpyro.sample("y", dist.Normal(a * x, 1.0)), None), 0.5, None, length=T)

    series = np.float32([0.3, np.nan, 0.9, 1.1])
    rest = jp.marginalised(jp.given(jp.condition(program, {"y": series}),
                                    {"a": dist.Normal(0.5, 0.1)}))
    assert rest.integrated(4) == ("y",)
    drawn = Predictive(rest, num_samples=10)(jax.random.key(0), 4)
    np.testing.assert_allclose(drawn["y"][:, [0, 2, 3]], np.tile(series[[0, 2, 3]], (10, 1)))
    assert np.std(drawn["y"][:, 1]) > 0.1 and abs(drawn["a"].mean() - 0.5) < 0.2
    a = 0.7
    with jax.enable_x64(True):
        found = float(rest.log_evidence({"a": jnp.array(a)}, 4))
    y = np.asarray(series, float)
    wanted = dist.Normal(0, 1).log_prob(y[0] - a * 0.5) + dist.Normal(0, 1).log_prob(
        y[3] - a * y[2]) + dist.Normal(a**2 * y[0], np.sqrt(1 + a**2)).log_prob(y[2])
    assert abs(found - float(wanted)) < 1e-5


def test_it_says_what_becomes_of_every_site(capsys):
    rest = jp.marginalised(LDS)
    text = rest.explain(Y, T=3, C=C)
    rows = {line.split()[0]: line for line in text.splitlines()}
    assert "integrated out" in rows["x"] and "integrated out" in rows["x0"]
    assert "'x' ties it to 'x0,x'" in rows["A"] and "sampled" in rows["W"]
    assert "slower than sampled" in rows["B"]
    assert "in the evidence" in rows["y"] and "as it stands" in rows["u"]
    jp.explain(rest, Y, T=3, C=C)
    assert capsys.readouterr().out.strip() == text


def test_faults_are_told():
    def bent(y):
        x = jp.latent("x", dist.Normal(0.0, 1.0))
        jp.observe("y", dist.Normal(jnp.sin(x), 0.1), y)

    y = np.float32(0.3)
    with pytest.raises(jp.StructureError, match=r"no latent can(.|\n)*'x'.*not exact(.|\n)*NUTS"):
        jp.marginalised(bent).integrated(y)
    with pytest.raises(jp.StructureError, match=r"site 'A'(.|\n)*another belief(.|\n)*over="):
        jp.marginalised(LDS, over=("x0", "x", "A")).integrated(Y, T=3, C=C)
    with pytest.raises(jp.SiteError, match=r"unknown site in over=(.|\n)*'A', 'B', 'W'"):
        jp.marginalised(LDS, over="z").integrated(Y, T=3, C=C)
    with pytest.raises(jp.StructureError, match="prior of 'm' depends on it"):
        jp.marginalised(grouped, over="mu").integrated(GROUPS)
    for wrong in ((), 3, (1,)):
        with pytest.raises(jp.JopaError, match="over="):
            jp.marginalised(LDS, over=wrong)
    with pytest.raises(jp.JopaError, match="not callable"):
        jp.marginalised(None)
    with pytest.raises(jp.JopaError, match=r"site 'W'(.|\n)*no value"):
        jp.marginalised(LDS).log_evidence({"A": C, "B": C}, Y, T=3, C=C)


def agree(model, args, kwargs, warmup, draws):
    """NUTS on the program with and without its states: means and spreads within their errors."""
    found = jp.compare(model, *args, engines=(
        UseNUTS(warmup, draws), UseMarginalised(num_samples=draws)), budget=600.0, progress=False,
        **kwargs)
    runs = found["nuts"], found["marginalised"]
    assert found.reference is not None and runs[0].draws.keys() == runs[1].draws.keys()
    for site in runs[0].draws:
        a, b = (np.asarray(r.draws[site], float) for r in runs)
        sd, error = b.std((0, 1)), np.sqrt(1 / runs[0].ess + 1 / runs[1].ess)
        assert (np.abs(a.mean((0, 1)) - b.mean((0, 1))) < 4.5 * error * sd).all(), site
        ratio = a.std((0, 1)) / sd
        assert (np.abs(np.log(ratio)) < 4.5 * error).all(), (site, ratio)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", ["local level", "lds"])
def test_the_posterior_is_that_of_nuts_on_the_whole_program(name):
    if name == "lds":
        y, u = programs.simulate(15, seed=3)
        agree(jp.condition(programs.lds, {"u": u.astype(np.float32)}), (y.astype(np.float32),),
              {"T": 15, "C": C.astype(np.float32)}, 500, 1500)
    else:
        agree(programs.local_level, (NILE,), {"T": 20}, 500, 1500)


def driven(y, u):
    """The LDS with its data as arguments, so that one compilation serves all of them."""
    return jp.marginalised(jp.condition(programs.lds, {"u": u}))(y, T=10, C=jnp.asarray(C))


@pytest.mark.slow
def test_intervals_hold_the_truth_as_often_as_they_say():
    """Data sets drawn from the prior: 50 and 90 % intervals of A, B, W and the states."""
    sets, shares = 80, (0.5, 0.9)
    u = programs.simulate(10, seed=3)[1].astype(np.float32)
    prior = Predictive(jp.condition(programs.lds, {"u": u}), num_samples=sets)
    truth = prior(jax.random.key(5), None, T=10, C=jnp.asarray(C))
    mcmc = MCMC(NUTS(driven), num_warmup=200, num_samples=300, progress_bar=False,
                jit_model_args=True)
    held = {(n, s): [] for n in ("A", "B", "W", "x") for s in shares}
    for i in range(sets):
        mcmc.run(jax.random.key(i), truth["y"][i], u)
        found = mcmc.get_samples()
        if i % 10 == 9:
            forget()
        for (name, share), hits in held.items():
            low, high = np.quantile(found[name], [0.5 - share / 2, 0.5 + share / 2], axis=0)
            at = slice(0, 9) if name == "x" else slice(None)
            hits.append(np.mean(((truth[name][i] >= low) & (truth[name][i] <= high))[at]))
    for (name, share), hits in held.items():
        error = max(np.std(hits) / np.sqrt(sets), 0.02)
        print(name, share, np.mean(hits), error)
        assert abs(np.mean(hits) - share) < 3.5 * error, (name, share, np.mean(hits), error)
