"""Sites written after a scan, on what it returned: they belong to its steps, and are exact."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import programs
import pytest
from fitting import C, run
from numpy.testing import assert_allclose
from numpyro.contrib.control_flow import scan
from oracles import conditioned, dense_gaussian

import jopa_ppl as jp

T = 7
R = programs.rotation()


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def chain(T=T):
    """x_0 and the stacked x_1..x_T, of known dynamics; plain NumPyro."""
    x0 = numpyro.sample("x0", dist.Normal(jnp.ones(2), 1.0).to_event(1))

    def step(x, _):
        x = numpyro.sample("x", dist.Normal(R @ x, 0.5).to_event(1))
        return x, x

    return x0, scan(step, x0, None, length=T)


def every_step(y=None, X=None, scale=0.3, C=C):
    _, (_, xs) = chain()
    mean = xs @ C.T + (0.0 if X is None else X)
    numpyro.sample("y", dist.Normal(mean, scale).to_event(1), obs=y)


def one_event(y=None):
    _, (_, xs) = chain()
    numpyro.sample("y", dist.Normal(2 * xs[:, 0], 0.3).to_event(1), obs=y)


def plated(y=None, noise=None):
    _, (_, xs) = chain()
    with numpyro.plate("time", T):
        numpyro.sample("y", dist.MultivariateNormal(xs @ C.T, covariance_matrix=noise), obs=y)


def last(goal=None, y=None):
    _, (x, xs) = chain()
    numpyro.sample("y", dist.Normal(xs, 0.4).to_event(1), obs=y)
    numpyro.sample("goal", dist.Normal(C @ x, 0.1).to_event(1), obs=goal)


def further(y=None):
    """A latent a step outside of the scan, between the states and the data."""
    _, (_, xs) = chain()
    z = numpyro.sample("z", dist.Normal(xs[:, 0] + xs[:, 1], 0.7).to_event(1))
    numpyro.sample("y", dist.Normal(3 * z, 0.3).to_event(1), obs=y)


rng = np.random.default_rng(0)
Y, LINE = rng.normal(size=(T, 2)), np.linspace(0, 3, T)[:, None] * np.ones(2)
MANY = np.array([m @ m.T + np.eye(2) for m in rng.normal(size=(T, 2, 2))])
STATES = {"x0": (2,), "x": (T, 2)}
CASES = {
    "every step": (every_step, (Y,), {}, STATES),
    "inputs, scales a step": (every_step, (Y, LINE), {"scale": 0.2 + LINE}, STATES),
    "one event": (one_event, (Y[:, 0],), {}, STATES),
    "plate of time": (plated, (Y,), {"noise": np.eye(2)}, STATES),
    "covariances a step": (plated, (Y,), {"noise": MANY}, STATES),
    "last carry": (last, (np.ones(2), Y), {}, STATES),
    "last carry alone": (jp.condition(last, {"goal": np.ones(2)}), (), {}, STATES),
    "latents outside": (further, (Y[:, 0],), {}, {**STATES, "z": (T,)}),
}


@pytest.mark.parametrize("name", CASES)
def test_posterior_and_evidence_are_exact(name):
    model, args, kwargs, shapes = CASES[name]
    posterior = run(model, *args, **kwargs)
    if name == "last carry alone":      # NumPyro's log_density wants every site
        model, args = last_alone, (np.ones(2),)
    exact = dense_gaussian(model, args, kwargs, shapes)
    for site in shapes:
        assert_allclose(posterior.mean(site), exact.mean[site], rtol=1e-8, atol=1e-10)
        assert_allclose(posterior.variance(site), exact.var[site], rtol=1e-8)
    assert_allclose(posterior.free_energy[-1], -exact.evidence, rtol=1e-9)


def last_alone(goal):
    _, (x, _) = chain()
    numpyro.sample("goal", dist.Normal(C @ x, 0.1).to_event(1), obs=goal)


def test_missing_data_and_data_conditioned_in_part():
    gaps = Y.copy()
    gaps[2], gaps[4, 1] = np.nan, np.nan

    def masked(y):
        _, (_, xs) = chain()
        seen = ~jnp.isnan(y)
        fn = dist.Normal(xs @ C.T, 0.3).mask(seen).to_event(1)
        numpyro.sample("y", fn, obs=jnp.where(seen, y, 0.0))

    exact = dense_gaussian(masked, (gaps,), {}, STATES)
    posterior = run(lambda y: jp.observe("y", dist.Normal(chain()[1][1] @ C.T, 0.3).to_event(1), y),
                    gaps)
    assert_allclose(posterior.mean("x"), exact.mean["x"], rtol=1e-8)
    assert_allclose(posterior.free_energy[-1], -exact.evidence, rtol=1e-9)
    known = rng.normal(size=T)
    known[3:5] = np.nan
    posterior = run(jp.condition(further, {"z": known}), Y[:, 0])
    joint = dense_gaussian(further, (Y[:, 0],), {}, {**STATES, "z": (T,)})
    exact = conditioned(joint, {"z": known})
    for site in ("x", "z"):
        assert_allclose(posterior.mean(site), exact.mean[site], rtol=1e-8)
        assert_allclose(posterior.variance(site), exact.var[site], rtol=1e-8, atol=1e-12)


def learned(y, *, inside):
    """An LDS with unknown A, W, C, tau; its frames seen within its steps or after them."""
    A = jp.latent("A", dist.Normal(jnp.eye(2), 0.7).to_event(2))
    W = jp.latent("W", dist.Wishart(4.0, rate_matrix=jnp.eye(2)))
    M = jp.latent("M", dist.Normal(jnp.eye(2), 0.2).to_event(2))
    tau = jp.latent("tau", dist.Gamma(2.0, 1.0))
    with jp.plate("many", 3):
        x0 = jp.latent("x0", dist.Normal(jnp.ones((3, 2)), 1.0).to_event(1))

    def step(x, y):
        with jp.plate("many", 3):
            x = jp.latent("x", dist.MultivariateNormal(x @ A.T, precision_matrix=W))
            if inside:
                jp.observe("y", dist.Normal(x @ M.T, 1 / jnp.sqrt(tau)).to_event(1), y)
        return x, x

    _, xs = jp.scan(step, x0, y if inside else None, length=len(y))
    if not inside:
        with jp.plate("time", len(y), dim=-2), jp.plate("many", 3, dim=-1):
            jp.observe("y", dist.Normal(xs @ M.T, 1 / jnp.sqrt(tau)).to_event(1), y)


def test_learning_is_the_same_inside_and_after_the_scan():
    y = programs.simulate(9, n=3, missing=0.2)[0]
    within, after = (run(learned, y, inside=i) for i in (True, False))
    assert_allclose(after.free_energy[-1], within.free_energy[-1], rtol=1e-9)
    for site in ("A", "M", "tau", "x"):
        assert_allclose(after.mean(site), within.mean(site), rtol=1e-6, atol=1e-7)


def test_two_runs_one_program_and_arviz():
    posterior = run(last, np.ones(2), Y)
    data = posterior.to_arviz(50)
    assert dict(data.posterior["x"].sizes) == {"chain": 1, "draw": 50, "time": T, "state": 2}
    assert data.log_likelihood["y"].shape[2:] == (T,)
    assert data.observed_data["goal"].shape == (2,)
    assert data.posterior_predictive["goal"].shape == (1, 50, 2)
    one = run(one_event, Y[:, 0]).to_arviz(20)
    assert one.observed_data["y"].dims == ("time",)
    assert np.isfinite(one.log_likelihood["y"]).all()


def test_nuts_and_predict_agree():
    posterior = run(every_step, Y)
    draws = posterior.predict(num_samples=4000)["y"]
    assert_allclose(draws.mean(0), posterior.mean("x") @ C.T, atol=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mcmc = numpyro.infer.MCMC(numpyro.infer.NUTS(every_step), num_warmup=300,
                                  num_samples=2000, progress_bar=False)
        mcmc.run(jax.random.key(0), Y)
    sd = np.sqrt(posterior.variance("x"))
    assert (np.abs(mcmc.get_samples()["x"].mean(0) - posterior.mean("x")) < 0.15 * sd).all()


def test_a_goal_on_the_last_carry_is_planned_for():
    def double(inside, goal):
        x0 = jp.latent("x0", dist.Normal(jnp.zeros(2), 1e-3).to_event(1))
        F, G = jnp.array([[1.0, 0.1], [0.0, 1.0]]), jnp.array([[0.0], [0.1]])

        def step(x, g):
            u = jp.latent("u", dist.Normal(jnp.zeros(1), 5.0).to_event(1))
            x = jp.latent("x", dist.Normal(F @ x + G @ u, 0.05).to_event(1))
            if inside:
                jp.observe("goal", dist.Normal(x, 0.01).to_event(1), g)
            return x, None

        x, _ = jp.scan(step, x0, jp.sparse(20, {-1: goal}) if inside else None, length=20)
        if not inside:
            jp.observe("goal", dist.Normal(x, 0.01).to_event(1), goal)

    goal = np.array([1.0, 0.0])
    plans = [jp.VMP(double, decide="u").run(i, goal).mean("u") for i in (True, False)]
    assert_allclose(plans[1], plans[0], rtol=1e-9, atol=1e-9)
    assert np.abs(plans[0]).max() > 1


def mixed(y):
    _, (_, xs) = chain()
    numpyro.sample("y", dist.Normal(jnp.cumsum(xs, 0), 0.3).to_event(1), obs=y)


def shifted(y):
    x0, (_, xs) = chain()
    numpyro.sample("y", dist.Normal(jnp.concatenate([x0[None], xs[:-1]]), 0.3).to_event(1), obs=y)


def reversed_(y):
    _, (_, xs) = chain()
    numpyro.sample("y", dist.Normal(xs[::-1], 0.3).to_event(1), obs=y)


def latent_end(y):
    _, (x, _) = chain()
    z = numpyro.sample("z", dist.Normal(x, 1.0).to_event(1))
    numpyro.sample("y", dist.Normal(z, 0.3).to_event(1), obs=y[0])


@pytest.mark.parametrize(("model", "site"), [(mixed, "y"), (shifted, "y"), (reversed_, "y"),
                                             (latent_end, "z")])
def test_what_mixes_steps_is_refused(model, site):
    with pytest.raises(jp.StructureError, match=f"(?s)site '{site}'.*step by step"):
        jp.VMP(model).run(Y)


def test_what_is_only_predicted_may_see_anything():
    def model(y):
        _, (x, xs) = chain()
        numpyro.sample("y", dist.Normal(xs, 0.3).to_event(1), obs=y)
        numpyro.sample("mean", dist.Normal(xs.mean(0), 0.01).to_event(1))
        numpyro.sample("end", dist.Normal(x, 0.01).to_event(1))

    posterior = run(model, Y)
    draws = posterior.predict(num_samples=2000)
    assert_allclose(draws["end"].mean(0), posterior.mean("x")[-1], atol=0.05)
    assert_allclose(draws["mean"].mean(0), posterior.mean("x").mean(0), atol=0.05)


def test_nonlinear_after_the_scan_names_the_line(capsys):
    def model(y):
        _, (_, xs) = chain()
        numpyro.sample("y", dist.Normal(jnp.sin(xs), 0.3).to_event(1), obs=y)

    jp.explain(model, Y)
    row = next(x for x in capsys.readouterr().out.splitlines() if x.startswith("y "))
    assert "quadrature" in row and "'sin'" in row and "test_outside" in row


def test_a_plan_goes_on_from_a_filtered_state():
    """`at` is the marginal at one step; `given` takes it for the prior of the first state."""
    filtered = run(every_step, Y)
    x0 = filtered.at("x", -1)
    assert_allclose(x0.mean, filtered.mean("x")[-1], rtol=1e-12)
    assert_allclose(np.diag(x0.covariance_matrix), filtered.variance("x")[-1], rtol=1e-12)
    later = rng.normal(size=(T, 2))
    onward = run(jp.given(every_step, {"x0": x0}, update=True), later)

    def both(y):
        _, (end, xs) = chain()
        numpyro.sample("y", dist.Normal(xs @ C.T, 0.3).to_event(1), obs=y[:T])

        def step(x, _):
            x = numpyro.sample("x later", dist.Normal(R @ x, 0.5).to_event(1))
            return x, x

        _, more = scan(step, end, None, length=T)
        numpyro.sample("y later", dist.Normal(more @ C.T, 0.3).to_event(1), obs=y[T:])

    exact = dense_gaussian(both, (np.concatenate([Y, later]),), {}, {**STATES, "x later": (T, 2)})
    assert_allclose(onward.mean("x"), exact.mean["x later"], rtol=1e-8)
    assert_allclose(onward.variance("x"), exact.var["x later"], rtol=1e-8)


@pytest.mark.parametrize(("name", "step", "error"), [
    ("x0", 0, jp.SiteError), ("x", T, jp.ShapeError), ("z", 0, jp.SiteError)])
def test_no_belief_at_such_a_step(name, step, error):
    with pytest.raises(error, match=f"site '{name}'"):
        run(every_step, Y).at(name, step)
