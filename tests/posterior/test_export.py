"""Posteriors as ArviZ's objects, on ArviZ 0.x and 1.x alike."""

import arviz
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro.distributions as dist
import pytest
import xarray
from posterior.test_files import D, N, T, learned, series  # noqa: F401
from programs import fusion, regression, rotation, simulate, trajectories

import jopa_ppl as jp
from jopa_ppl.posterior import arviz as export
from jopa_ppl.posterior.arviz import GROUPS, draws_to_arviz

OLD = int(arviz.__version__.split(".")[0]) < 1


@pytest.fixture(scope="session")
def tree(learned):  # noqa: F811
    return learned.to_arviz(num_samples=N)


def test_draws_are_one_chain_with_named_axes(tree):
    x = tree.posterior["x"]
    assert x.dims == ("chain", "draw", "time", "state") and x.shape == (1, N, T, D)
    np.testing.assert_array_equal(x["time"], np.arange(T))
    assert tree.posterior["A"].dims == ("chain", "draw", "A_dim_0", "A_dim_1")
    assert tree.posterior["tau"].dims == ("chain", "draw")


def test_data_are_nan_where_missing(tree):
    y = tree.observed_data["y"]
    assert y.dims == ("time", "y_dim_0")
    np.testing.assert_allclose(y, series()[0])
    u = np.asarray(tree.constant_data["u"])             # T - 1 actions were given
    np.testing.assert_allclose(u[:-1], series()[1])
    assert np.isnan(u[-1])


def test_attributes_tell_how_it_came_about(tree, learned):  # noqa: F811
    attrs = tree.posterior.attrs
    assert attrs["inference_library"] == "jopa_ppl" and attrs["program"] == "lds"
    assert {"jopa_ppl_version", "jax_version", "numpyro_version"} <= set(attrs)
    assert attrs["free_energy"] == learned.free_energy[-1]
    assert (attrs["num_iters"], attrs["converged"]) == (learned.num_iters, learned.converged)
    assert "A,B" in attrs["schedule"]


def test_netcdf_round_trip(tree, learned, tmp_path):  # noqa: F811
    file = str(tmp_path / "posterior.nc")
    tree.to_netcdf(file, engine="h5netcdf")
    for group in GROUPS:
        back = xarray.load_dataset(file, group=group, engine="h5netcdf")
        for name, x in tree[group].data_vars.items():
            np.testing.assert_array_equal(back[name], x)
            assert back[name].dims == x.dims
        if group == "posterior":
            np.testing.assert_array_equal(back.attrs["free_energy_history"], learned.free_energy)
            assert back.attrs["schedule"] == str(learned.compiled.schedule)


def test_arviz_summarises_it(tree):
    table = arviz.summary(tree, var_names=["A", "tau"])
    assert len(table) == D * D + 1


def test_axes_can_be_named(learned):  # noqa: F811
    tree = learned.to_arviz(N, dims={"x": ("time", "state"), "A": ("state", "from")})
    assert tree.posterior["x"].dims == ("chain", "draw", "time", "state")
    assert tree.posterior["A"].dims == ("chain", "draw", "state", "from")
    with pytest.raises(jp.ShapeError, match=r"dims=(.|\n)*2 names"):
        learned.to_arviz(N, dims={"x": ("state",)})
    with pytest.raises(jp.SiteError, match="unknown site in dims="):
        learned.to_arviz(N, dims={"z": ("state",)})


def test_plates_and_encoded_frames():
    def movies(y):
        def step(z, y):
            with jp.plate("films", 3):
                z = jp.latent("film/z", dist.Normal(0.9 * z, 1.0).to_event(1))
                jp.observe("y", jp.Amortized(
                    dist.Normal(jnp.zeros((3, 2, 2)) + z[:, None], 1.0).to_event(2), on=z,
                    message=lambda y: dist.Normal(2 * y[:, 0], 0.5).to_event(1)), y)
            return z, None

        jp.scan(step, jnp.zeros((3, D)), y)

    frames = np.arange(48.0, dtype=np.float32).reshape(4, 3, 2, D)
    frames[1, 2] = np.nan
    tree = jp.VMP(movies).run(frames).to_arviz(5)
    dims = ("chain", "draw", "time", "films", "state")
    assert tree.posterior["film.z"].dims == dims      # netCDF forbids "/"
    np.testing.assert_allclose(tree.observed_data["y"], frames)      # frames, not messages
    assert tree.observed_data["y"].dims == ("time", "films", "y_dim_1", "y_dim_2")


def test_draws_of_any_engine_get_the_same_axes(learned):  # noqa: F811
    """Every engine's draws, with names of a posterior, of its graph or of a compiled program."""
    draws = {n: np.asarray(x).reshape(2, 8, *x.shape[1:])
             for n, x in learned.sample(jax.random.key(1), (16,)).items()}
    draws["logdet"] = np.linalg.slogdet(draws["W"])[1]
    own = learned.to_arviz(num_samples=N)
    for source in (learned, learned.compiled, learned.compiled.graph,
                   learned.compiled.graph.program):
        tree = draws_to_arviz(source, draws, attrs={"engine": "test"})
        for name in learned.sites:
            assert tree.posterior[name].dims == own.posterior[name].dims, name
            np.testing.assert_array_equal(tree.posterior[name], draws[name])
        assert tree.posterior["logdet"].dims == ("chain", "draw")
        assert tree.posterior.attrs["engine"] == "test"
    assert tree.posterior["u"].dims == ("chain", "draw", "time", "action")
    assert tree.posterior["x0"].dims == ("chain", "draw", "state")
    arviz.plot_forest([own, tree] if OLD else {"vmp": own, "other": tree}, var_names=["A", "x0"])
    with pytest.raises(jp.ShapeError, match=r"'A'(.|\n)*\(chain, draw, 2, 2\)"):
        draws_to_arviz(learned, {"A": draws["A"][0]})


def test_log_likelihood_is_that_of_every_draw_and_has_what_was_seen(tree):
    """By hand: log N(y_t; x_t, 1 / tau), the state before the first action being x0."""
    p, y = tree.posterior, series()[0]
    x = np.concatenate([np.asarray(p["x0"])[:, :, None], np.asarray(p["x"])[:, :, :-1]], 2)
    tau = np.asarray(p["tau"])[..., None, None]
    each = 0.5 * np.log(tau / (2 * np.pi)) - 0.5 * tau * (y - x)**2
    score = tree.log_likelihood["y"]
    assert score.dims == ("chain", "draw", "time")
    np.testing.assert_array_equal(score["time"], np.arange(T - 2))      # the last two are missing
    np.testing.assert_allclose(score, np.nansum(each, -1)[:, :, :-2], rtol=2e-4, atol=2e-4)


def test_replicates_scatter_about_the_states_of_their_draw(tree):
    p, y = tree.posterior, tree.posterior_predictive["y"]
    assert y.dims == ("chain", "draw", "time", "y_dim_0")
    assert set(tree.posterior_predictive) == {"y"}
    x = np.concatenate([np.asarray(p["x0"])[:, :, None], np.asarray(p["x"])[:, :, :-1]], 2)
    z = (np.asarray(y) - x) * np.sqrt(np.asarray(p["tau"]))[..., None, None]
    assert abs(z.mean()) < 0.05 and abs(z.std() - 1) < 0.05
    future = tree.predictions["y"]
    np.testing.assert_array_equal(future["time"], [T - 2, T - 1])
    np.testing.assert_array_equal(future, y[:, :, -2:])


def test_several_axes_with_gaps_become_one():
    y = simulate(6, n=3)[0]
    y[3:, 1] = np.nan
    tree = jp.VMP(trajectories, tol=1e-3).run(y).to_arviz(8)
    assert tree.posterior["x"].dims == ("chain", "draw", "time", "n", "state")
    score, seen = tree.log_likelihood["y"], ~np.isnan(y).all(-1)
    assert score.dims == ("chain", "draw", "y_observed") and np.isfinite(score).all()
    np.testing.assert_array_equal(np.stack([score["time"], score["n"]]), np.nonzero(seen))
    assert "predictions" not in tree.children if not OLD else "predictions" not in tree.groups()


def test_arguments_are_constant_and_sites_without_data_are_predicted():
    X = np.random.default_rng(0).normal(size=(30, 3))
    tree = jp.VMP(regression).run(X, X @ np.ones(3)).to_arviz(8, dims={"w": ("feature",)})
    np.testing.assert_array_equal(tree.constant_data["X"], X)
    assert set(tree.constant_data) == {"X"} and set(tree.observed_data) == {"y"}
    assert tree.log_likelihood["y"].dims == ("chain", "draw", "n")
    y = simulate(8)[0]
    tree = jp.VMP(fusion).run(y, None, T=8, A=rotation()).to_arviz(8)
    assert tree.predictions["b"].dims == ("chain", "draw", "time")
    assert set(tree.posterior_predictive) == {"a"} and "tau" in tree.predictions


def test_groups_can_be_chosen_and_large_ones_must_be(learned, monkeypatch):  # noqa: F811
    tree = learned.to_arviz(N, groups=("posterior", "log_likelihood"))
    assert hasattr(tree, "log_likelihood") and not hasattr(tree, "observed_data")
    with pytest.raises(jp.JopaError, match=r"unknown group(.|\n)*'prior'"):
        learned.to_arviz(N, groups=("prior",))
    monkeypatch.setattr(export, "LARGE", 0)
    with pytest.warns(UserWarning, match=r"left out.*groups=\["):
        tree = learned.to_arviz(N)
    assert hasattr(tree, "observed_data") and not hasattr(tree, "posterior_predictive")


def test_arviz_draws_and_scores_it(tree, learned):  # noqa: F811
    """What a user would call first, by the names that the installed ArviZ has for it."""
    scores = arviz.loo(tree, pointwise=True)
    assert np.isfinite(scores.elpd_loo if OLD else scores.elpd) and len(scores.pareto_k) == T - 2
    other = learned.to_arviz(N, rng_key=jax.random.key(5))
    pair = [tree, other] if OLD else {"one": tree, "two": other}
    arviz.plot_forest(pair, var_names=["A", "x0"])
    arviz.plot_trace(tree, var_names=["A"])
    if OLD:
        arviz.plot_ppc(tree, num_pp_samples=20)
    else:
        arviz.plot_dist(tree, var_names=["A"])
        arviz.plot_ppc_dist(tree, num_samples=20)
    plt.close("all")


def test_no_name_is_lost_to_an_axis_or_to_another_site():
    """Sites that are called as an axis, or alike once "/" is no part of a name."""
    named = ("chain", "draw", "m", "a/b", "a.b", "z\0")

    def program(y):
        total = sum(jp.latent(n, dist.Normal(float(i), 1.0)) for i, n in enumerate(named))
        with jp.plate("m", 3):
            jp.observe("y", dist.Normal(total, 1.0), y)

    found = jp.VMP(program, progress=False).run(np.array([1.0, 2.0, 3.0]))
    posterior = found.to_arviz(num_samples=50)["posterior"]
    shown = {"chain": "chain_", "draw": "draw_", "m": "m_", "a/b": "a.b_", "a.b": "a.b", "z\0": "z"}
    assert set(shown.values()) == {str(n) for n in posterior.data_vars}
    for name, ours in shown.items():
        spread = np.sqrt(found.variance(name))
        assert abs(float(posterior[ours].mean()) - found.mean(name)) < spread, name
