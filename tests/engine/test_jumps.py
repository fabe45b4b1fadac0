"""Densities that only jump with a latent are refused, and each way out is followed."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy import stats
from scipy.special import softmax

import jopa_ppl as jp

Y, STEPS = np.array([2.0, 1.0, 2.0, 7.0, 9.0, 8.0]), np.arange(6)


def normal(name="a"):
    return jp.latent(name, dist.Normal(0.0, 2.0))


JUMPS = {
    "floor": lambda: dist.Normal(jnp.floor(normal()), 1.0),
    "comparison": lambda: dist.Normal(jnp.where(normal() > 0.5, 1.0, -1.0), 1.0),
    "sign": lambda: dist.Normal(jnp.sign(normal()), 1.0),
    "index": lambda: dist.Normal(jnp.arange(3.0)[jnp.round(normal()).astype(int)], 1.0),
    "index beside a latent": lambda: dist.Normal(
        normal("m") * jnp.arange(3.0)[jnp.round(normal()).astype(int)], 1.0),
    "scale": lambda: dist.Normal(0.0, jnp.where(normal() > 0.5, 1.0, 2.0)),
    "count": lambda: dist.Poisson(jnp.where(normal() > 0.5, 1.0, 2.0)),
    "stopped": lambda: dist.Normal(jnp.exp(jax.lax.stop_gradient(jnp.floor(normal()))), 1.0),
    "change point": lambda: dist.Poisson(jnp.where(
        STEPS < jp.latent("a", dist.Uniform(0.0, 6.0)), 2.0, 8.0)),
    "change point of latents": lambda: dist.Poisson(jnp.where(
        STEPS < jp.latent("a", dist.Uniform(0.0, 6.0)), *(
            jp.latent(f"r{i}", dist.Gamma(1.0, 1.0)) for i in range(2)))),
}


@pytest.mark.parametrize("name", JUMPS)
def test_a_density_that_only_jumps_is_refused(name):
    def model(y):
        with numpyro.plate("n", len(y)):
            jp.observe("y", JUMPS[name](), y)

    with pytest.raises(jp.StructureError, match=r"site 'y': it has no slope in 'a'"):
        jp.VMP(model).run(Y)


def test_a_step_that_only_jumps_is_refused():
    def model(y):
        def step(x, y):
            x = jp.latent("x", dist.Normal(jnp.sign(x), 1.0))
            jp.observe("y", dist.Normal(x, 1.0), y)
            return x, None

        jp.scan(step, jp.latent("x0", dist.Normal(0.0, 1.0)), y)

    with pytest.raises(jp.StructureError, match=r"'x': it has no slope in 'x'(.|\n)*'sign' at"):
        jp.VMP(model).run(Y)


@pytest.mark.parametrize("f", [
    lambda a: jnp.where(a > 0, a, 0.1 * a), jax.nn.relu, lambda a: a - jnp.floor(a)])
def test_corners_have_slopes(f):
    def model(y):
        jp.observe("y", dist.Normal(f(normal()), 1.0), y)

    assert np.isfinite(jp.VMP(model, progress=False).run(np.array(0.5)).free_energy[-1])


def logits():
    """log p(y | the change comes before step k), k from 0 to 5, rates 2 and 8."""
    rate = np.where(STEPS < STEPS[:, None], 2.0, 8.0)
    return stats.poisson(rate).logpmf(Y).sum(1)


def test_the_way_out_a_discrete_change_point_is_exact():
    def model(y):
        k = jp.latent("k", dist.Categorical(jnp.ones(6) / 6))
        jp.observe("y", dist.Poisson(jnp.where(STEPS < k, 2.0, 8.0)).to_event(1), y)

    posterior = jp.VMP(model, progress=False).run(Y)
    np.testing.assert_allclose(posterior["k"].probs, softmax(logits()), atol=1e-6)


def test_the_way_out_a_smooth_jump_finds_the_change():
    def model(y):
        k = jp.latent("k", dist.Uniform(0.0, 6.0))
        late = jax.nn.sigmoid((STEPS - k) / 0.3)
        with numpyro.plate("n", len(y)):
            jp.observe("y", dist.Poisson(2.0 + 6.0 * late), y)

    grid = np.linspace(0, 6, 6001)[1:-1]
    rate = 2 + 6 / (1 + np.exp(-(STEPS - grid[:, None]) / 0.3))
    weight = softmax(stats.poisson(rate).logpmf(Y).sum(1))
    mean = weight @ grid
    posterior = jp.VMP(model, progress=False).run(Y)
    assert abs(posterior.mean("k") - mean) < 0.5 * np.sqrt(weight @ (grid - mean)**2)


def test_data_with_a_latent_bound_are_refused_and_the_way_out_is_right():
    y = np.array([0.1, 0.2, 0.3])

    def model(y):
        a = jp.latent("a", dist.Gamma(2.0, 1.0))
        with numpyro.plate("n", 3):
            jp.observe("y", dist.Uniform(0.0, a), y)

    with pytest.raises(jp.StructureError, match=r"site 'y': its support depends on 'a'"):
        jp.VMP(model).run(y)

    def written(y):
        more = jp.latent("more", dist.Gamma(2.0, 1.0))
        numpyro.factor("y", -len(y) * jnp.log(y.max() + more))

    grid = np.linspace(0, 40, 40001)[1:]
    weight = grid * np.exp(-grid) * (0.3 + grid)**-3
    mean = grid @ weight / weight.sum()
    sd = np.sqrt((grid - mean)**2 @ weight / weight.sum())
    posterior = jp.VMP(written, progress=False).run(y)
    assert abs(posterior.mean("more") - mean) < 0.1 * sd


def test_discrete_latents_of_one_event_are_refused_and_the_ways_out_are_exact():
    p, y = jnp.array([0.3, 0.4, 0.5]), np.array([0.2, 1.4, 0.9])

    def event(y):
        z = jp.latent("z", dist.Bernoulli(p).to_event(1))
        jp.observe("y", dist.Normal(2.0 * z, 1.0).to_event(1), y)

    with pytest.raises(jp.StructureError, match=r"'z': several discrete latents are one event"):
        jp.VMP(event).run(y)

    def plate(y):
        with numpyro.plate("n", 3):
            z = jp.latent("z", dist.Bernoulli(p))
            jp.observe("y", dist.Normal(2.0 * z, 1.0), y)

    odds = p / (1 - p) * np.exp(-0.5 * ((y - 2)**2 - y**2))
    posterior = jp.VMP(plate, progress=False).run(y)
    np.testing.assert_allclose(posterior.mean("z"), odds / (1 + odds), atol=1e-6)

    def one_sees_all(y):
        with numpyro.plate("n", 3):
            z = jp.latent("z", dist.Bernoulli(p))
        jp.observe("y", dist.Normal(1.0 * z.sum(), 1.0), y)

    with pytest.raises(jp.StructureError, match=r"each be a site of its own"):
        jp.VMP(one_sees_all).run(1.7)

    def apart(y):
        z = [jp.latent(f"z{k}", dist.Bernoulli(p[k])) for k in range(3)]
        jp.observe("y", dist.Normal(1.0 * sum(z), 1.0), y)

    values = np.array([[i >> k & 1 for k in range(3)] for i in range(8)])
    prior = np.where(values, p, 1 - p).prod(1)
    weight = prior * np.exp(-0.5 * (1.7 - values.sum(1))**2)
    posterior = jp.VMP(apart, progress=False).run(1.7)
    for k in range(3):
        np.testing.assert_allclose(posterior.mean(f"z{k}"), weight @ values[:, k] / weight.sum(),
                                   atol=1e-6)


def test_too_many_discrete_latents_at_once_are_refused():
    def model(y, K):
        z = [jp.latent(f"z{k}", dist.Bernoulli(0.3)) for k in range(K)]
        jp.observe("y", dist.Normal(1.0 * sum(z), 1.0), y)

    with pytest.raises(jp.StructureError, match=r"site 'y': it is made of 13 discrete(.|\n)*8192"):
        jp.VMP(model).run(1.7, 13)
    assert jp.VMP(model, progress=False).run(1.7, 4).converged


def test_switches_cannot_be_left_to_a_sampler():
    def model(y):
        def step(carry, y):
            z, x = carry
            z = jp.latent("z", dist.Categorical(jnp.array([[0.8, 0.2], [0.3, 0.7]])[z]))
            x = jp.latent("x", dist.Normal(x + jnp.array([1.0, -0.3])[z], 0.5))
            jp.observe("y", dist.Normal(x, 0.2), y)
            return (z, x), None

        z0 = jp.latent("z0", dist.Categorical(jnp.ones(2) / 2))
        jp.scan(step, (z0, jp.latent("x0", dist.Normal(0.0, 1.0))), y)

    with pytest.raises(jp.StructureError, match=r"a discrete latent would be left to the sampler"):
        jp.marginalised(model).explain(Y / 4)
    assert jp.VMP(model, starts=3, progress=False).run(Y / 4).converged
