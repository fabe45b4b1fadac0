"""The same program under every engine: densities, guides, and what `jp.compare` reports."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import programs
import pytest
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.util import log_density
from optax import adam

import jopa_ppl as jp
from jopa_ppl.guides import AutoGaussMarkov

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


@pytest.mark.parametrize("name", ["local level (Nile)", "lds"])
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
