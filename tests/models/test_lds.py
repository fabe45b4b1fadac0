"""The programs of models/lds.py under VMP and, unchanged, under NumPyro's engines."""

import jax
import numpy as np
import numpyro.distributions as dist
import optax
import pytest
from numpyro.infer import SVI, Predictive, Trace_ELBO
from numpyro.infer.autoguide import AutoNormal

import jopa_ppl as jp
from models.lds import controlled_lds, lds

SD = 0.1


def sensor(x):
    return dist.Normal(x, SD).to_event(1)


class Sensor:
    """Stands in for a VAE whose decoder is the identity."""

    def likelihood(self, x):
        return sensor(x)


@pytest.fixture(scope="module")
def turning():
    """Two planes turning by 20 and 50 degrees a step, (150, 4), every seventh step missing."""
    rng = np.random.default_rng(0)
    A = np.zeros((4, 4))
    for i, angle in enumerate(np.radians([20, 50])):
        c, s = np.cos(angle), np.sin(angle)
        A[2 * i : 2 * i + 2, 2 * i : 2 * i + 2] = [[c, -s], [s, c]]
    x, y = np.ones(4), []
    for _ in range(150):
        y.append(x + SD * rng.normal(size=4))
        x = A @ x + 0.05 * rng.normal(size=4)
    y = np.array(y, np.float32)
    y[3::7] = np.nan
    return y


def test_lds_recovers_the_rotation_and_continues_it(turning):
    T, ahead = len(turning), 10
    seen = turning.copy()
    seen[-ahead:] = np.nan
    posterior = jp.VMP(lds).run(seen, T=T, likelihood=sensor)
    assert posterior.converged
    e = np.linalg.eigvals(posterior.mean("A"))
    np.testing.assert_allclose(np.sort(np.degrees(np.angle(e))), [-50, -20, 20, 50], atol=1)
    np.testing.assert_allclose(abs(e), 1, atol=0.02)
    x = np.concatenate([posterior.mean("x0")[None], posterior.mean("x")[:-1]])
    sd = np.sqrt(posterior.variance("x")[-ahead - 1 : -1] + SD**2)
    z = (turning - x)[-ahead:] / sd
    assert np.nanmean(z**2) < 2.5
    # beliefs about A enter the prediction as their mean
    A = np.asarray(posterior.mean("A"))
    np.testing.assert_allclose(x[-1], A @ x[-2], rtol=1e-4, atol=1e-5)


def test_the_same_lds_under_svi_and_predictive(turning):
    y = turning[:30]
    kwargs = {"T": len(y), "likelihood": sensor}

    @jax.jit  # as a whole: op by op, the guide's initialisation alone takes longer
    def losses(key):
        svi = SVI(lds, AutoNormal(lds), optax.adam(0.01), Trace_ELBO())
        return jax.lax.scan(lambda state, _: svi.update(state, y, **kwargs),
                            svi.init(key, y, **kwargs), length=200)[1]

    found = losses(jax.random.key(0))
    assert np.isfinite(found).all() and found[-20:].mean() < found[:20].mean()
    draws = Predictive(lds, num_samples=3)(jax.random.key(1), **kwargs)
    assert draws["y"].shape == draws["x"].shape == (3, 30, 4)
    assert draws["A"].shape == draws["W"].shape == (3, 4, 4)


def test_controlled_lds_finds_what_actions_do():
    rng = np.random.default_rng(1)
    A, B = np.array([[1.0, 0.1], [-0.1, 0.95]]), np.array([[0.0], [0.5]])
    u = rng.normal(size=(120, 1)).astype(np.float32)
    x, y = np.zeros(2), []
    for action in u:
        y.append(x + SD * rng.normal(size=2))
        x = A @ x + B @ action + 0.05 * rng.normal(size=2)
    posterior = jp.VMP(jp.condition(controlled_lds, {"u": u})).run(
        np.array(y, np.float32), T=len(u), d=2, du=1, vae=Sensor())
    np.testing.assert_allclose(posterior.mean("A"), A, atol=0.1)
    np.testing.assert_allclose(posterior.mean("B"), B, atol=0.1)
