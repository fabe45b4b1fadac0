"""The same program under every engine: densities, guides, and what `jp.compare` reports."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import programs
import pytest
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.util import log_density
from optax import adam

import jopa_ppl as jp
from jopa_ppl.engines import Run, UseNUTS, UseSVI
from jopa_ppl.tools.guides import AutoGaussMarkov

Y = programs.simulate(6, seed=3)[0].astype(np.float32)


def moved(y, *, T):
    """Known dynamics, sensed after moving: one Gaussian block without barren steps."""
    A = programs.rotation()
    x0 = jp.latent("x0", dist.MultivariateNormal(jnp.zeros(2), jnp.eye(2)))

    def step(x, y):
        u = jp.latent("u", dist.Normal(jnp.zeros(1), 0.5).to_event(1))
        x = jp.latent("x", dist.MultivariateNormal(A @ x + jnp.ones((2, 1)) @ u, 0.2 * jnp.eye(2)))
        jp.observe("y", dist.Normal(x, 0.3).to_event(1), y)
        return x, None

    jp.scan(step, x0, y, length=T)


@pytest.mark.parametrize("name", [
    "local level (Nile)", *(pytest.param(n, marks=pytest.mark.slow) for n in (
        "lds", "second order", "factor analysis", "hierarchy", "trajectories"))])
def test_free_energy_is_what_draws_say(name):
    """F = E_q[log q - log p], by Monte Carlo with NumPyro's own log p."""
    case = programs.cases()[name]
    posterior = jp.VMP(case.model, tol=1e-9).run(*case.args, **case.kwargs)
    draws = posterior.sample(jax.random.key(0), (2000,))
    score = jax.jit(jax.vmap(lambda d: log_density(case.model, case.args, case.kwargs, d)[0]))
    loss = np.asarray(posterior.log_prob(draws) - score(draws), float)
    error = loss.std() / np.sqrt(len(loss))
    assert abs(loss.mean() - posterior.free_energy[-1]) < 4 * error and error < 0.1


def markov(posterior: jp.Posterior, block: str) -> dict[str, np.ndarray]:
    """The guide's parameters at a chain belief of VMP: conditionals from its covariances."""
    m = jax.tree.map(np.asarray, posterior.state.moments[block])
    back = m.cross @ np.linalg.inv(m.cov[:-1])
    noise = m.cov.copy()
    noise[1:] -= back @ np.swapaxes(m.cross, -1, -2)
    tril = np.linalg.cholesky(noise) / 0.1                     # in units of init_scale
    at = np.arange(tril.shape[-1])
    diagonal = np.log(tril[..., at, at])
    tril[..., at, at] = diagonal
    return {"auto_chain0_loc": m.mean, "auto_chain0_back": back, "auto_chain0_tril": tril}


def test_one_block_has_the_same_bound_under_svi():
    """The guide holds the exact posterior: NumPyro's loss is then F for every single draw."""
    posterior = jp.VMP(moved).run(Y, T=6)
    (block,) = posterior.compiled.graph.blocks
    with jax.enable_x64(True):
        guide = AutoGaussMarkov(moved, posterior.compiled.graph)
        svi = SVI(moved, guide, adam(1e-3), Trace_ELBO())
        params = svi.get_params(svi.init(jax.random.key(0), Y, T=6))
        params |= markov(posterior, block.name)
        losses = jax.jit(jax.vmap(lambda k: Trace_ELBO().loss(k, params, moved, guide, Y, T=6)))(
            jax.random.split(jax.random.key(1), 20))
    np.testing.assert_allclose(losses, posterior.free_energy[-1], rtol=1e-6)


@pytest.fixture(scope="module")
def compared():
    return jp.compare(moved, Y, T=6, engines=(
        "vmp", "svi normal", UseSVI("chain", steps=3000), UseNUTS(200, 400)), budget=5.0,
        progress=False)


@pytest.fixture(scope="module")
def shown():
    return jp.compare(moved, Y, T=6, engines=("vmp", UseNUTS(50, 100)), progress=False)


def test_engines_agree_where_the_answer_is_exact(compared):
    """One Gaussian block: VMP's F is -log p(y), no guide may go below it, NUTS draws from it."""
    exact = compared["vmp"].free_energy
    for name in ("svi normal", "svi chain"):
        assert compared[name].free_energy > exact - 4 * compared[name].error - 1e-3
    assert compared["svi chain"].free_energy < exact + 0.1
    assert compared["svi normal"].free_energy > exact + 1             # states are correlated
    assert compared["svi chain"].reach(exact + 1) <= compared["svi chain"].warm
    assert compared["svi normal"].reach(exact + 0.5) == float("inf")
    assert compared.reference == "nuts" and compared["nuts"].rhat < 1.1
    for name in ("vmp", "svi chain"):
        for site, gap in compared.gaps(name).items():
            assert gap.worst < 0.5 and 0.75 < gap.ratio_min < gap.ratio_max < 1.3, (name, site, gap)
    assert min(g.ratio for g in compared.gaps("svi normal").values()) < 0.9
    ax = compared.plot_free_energy()
    assert [line.get_label() for line in ax.lines] == ["vmp", "svi normal", "svi chain"]


def test_it_prints_and_draws(shown):
    text = str(shown)
    for word in ("vmp", "nuts", "exact", "divergences", "sd ratio"):
        assert word in text
    ax = shown.plot_free_energy()
    assert [line.get_label() for line in ax.lines] == ["vmp"]
    assert shown.plot_marginals("x", (2, 0), ax=ax) is ax
    with pytest.raises(jp.SiteError, match=r"index(.|\n)*\(6, 2\)"):
        shown.plot_marginals("x")
    with pytest.raises(jp.SiteError, match="no engine drew it"):
        shown.plot_marginals("z")


def test_arviz_objects_have_the_same_names_and_dims(shown):
    trees = shown.to_arviz()
    assert list(trees) == ["vmp", "nuts"]
    dims = {n: x.dims for n, x in trees["nuts"].posterior.data_vars.items()}
    assert dims["x"][:3] == ("chain", "draw", "time")
    for tree in trees.values():
        assert {n: x.dims for n, x in tree.posterior.data_vars.items()} == dims
    np.testing.assert_array_equal(trees["vmp"].posterior["x"], shown["vmp"].draws["x"])


class Stuck:
    """Stands for NUTS whose chains have not met, or have."""

    name = "nuts"

    def __init__(self, rhat):
        self.rhat = rhat

    def run(self, *_):
        draws = np.random.default_rng(0).normal(size=(2, 100, 6, 2))
        return Run("nuts", {"x": draws}, rhat=self.rhat, ess=3.0, divergences=0)


def test_the_reference_is_judged_first():
    """Nothing is measured against NUTS where its own chains disagree, and the table says so."""
    for rhat in (6.1, 1.051, float("nan")):
        found = jp.compare(moved, Y, T=6, engines=("vmp", Stuck(rhat)), progress=False)
        assert found.reference is None and found.gaps("vmp") == {}
        text = str(found)
        assert "sd ratio" not in text and "nothing is measured against nuts" in text
        assert f"r-hat is {rhat:.3g}" in text
        labels = found.plot_marginals("x", (2, 0)).get_legend_handles_labels()[1]
        assert labels == ["vmp", "nuts"]
    found = jp.compare(moved, Y, T=6, engines=("vmp", Stuck(1.05)), progress=False)
    assert found.reference == "nuts" and set(found.gaps("vmp")) == {"x"}
    assert "sd ratio" in str(found)


def test_the_best_free_energy_is_the_best_of_all():
    """An engine of which only the end is known is a point, and counts."""
    runs = {"vmp": Run("vmp", warm=0.1, free_energy=-10.0),
            "svi": Run("svi", times=np.array([0.5, 1.0]), bounds=np.array([-5.0, -8.0])),
            "nuts": Run("nuts", warm=1.0)}
    ax = jp.Comparison(None, runs, None).plot_free_energy()
    curves = {line.get_label(): line.get_xydata() for line in ax.lines}
    np.testing.assert_allclose(curves["vmp"], [[0.1, 0.01]])
    np.testing.assert_allclose(curves["svi"], [[0.5, 5.01], [1.0, 2.01]])
    assert set(curves) == {"vmp", "svi"}


def test_faults_are_told():
    with pytest.raises(jp.JopaError, match="unknown engine"):
        jp.compare(moved, Y, T=6, engines=("vi",))
    with pytest.raises(jp.SiteError, match=r"no value"):
        jp.VMP(moved).run(Y, T=6).log_prob({"x": np.zeros((6, 2)), "u": np.zeros((6, 1))})

    def bent(y):
        x = jp.latent("x", dist.Normal(0.0, 1.0))
        jp.observe("y", dist.Normal(jnp.sin(x), 0.1), y)

    found = jp.compare(bent, np.array(0.3, np.float32), engines=("vmp", "svi normal"), budget=0.1,
                       progress=False)
    assert "approximate messages" in found["vmp"].note
    assert np.isfinite(found["svi normal"].free_energy) and found.reference is None

    def without(y):
        W, V = (jp.latent(n, dist.Wishart(3.0, jnp.eye(2))) for n in "WV")
        jp.observe("y", dist.MultivariateNormal(y * jnp.ones(2), precision_matrix=W + V),
                   jnp.ones(2))

    found = jp.compare(without, np.array(0.3, np.float32), engines=("vmp", "svi normal"),
                       budget=0.1, progress=False)
    assert "sum" in found["vmp"].note
    assert np.isfinite(found["svi normal"].free_energy)


def test_densities_keep_the_shape_of_the_draws():
    posterior = jp.VMP(moved).run(Y, T=6)
    draws = posterior.sample(jax.random.key(0), (3, 2))
    found = posterior.log_prob(draws)
    assert found.shape == (3, 2)
    one = posterior.log_prob(jax.tree.map(lambda x: x[1, 1], draws))
    np.testing.assert_allclose(one, found[1, 1], rtol=1e-5)


def test_parameters_of_the_program_are_constants_to_every_engine():
    """SVI would train the scale away: the evidence of the program as it stands is what counts."""
    def program(y):
        scale = numpyro.param("scale", 2.0, constraint=dist.constraints.positive)
        w = numpyro.sample("w", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(w, scale).expand([len(y)]).to_event(1), obs=y)

    y = np.linspace(-0.1, 0.1, 8).astype(np.float32)
    svi = UseSVI("normal", optim=adam(0.05), steps=400)
    found = jp.compare(program, y, engines=("vmp", svi), budget=20.0, progress=False)
    assert abs(found["svi normal"].free_energy - found["vmp"].free_energy) < 0.1
