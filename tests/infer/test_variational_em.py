"""Variational EM against exact evidence: linear decoders, whose evidence NumPy can compute."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import numpyro.optim
import optax
import pytest
from flax import nnx
from numpy.testing import assert_allclose
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoNormal
from scipy.stats import multivariate_normal

import jopa_ppl as jp

T, N, D, P = 5, 3, 2, 4
A, Q, R = np.array([[0.9, -0.3], [0.3, 0.9]]), 0.3, 0.4
rng = np.random.default_rng(0)
TRUE = rng.normal(size=(D, P))


def data():
    x, frames = rng.normal(size=(N, D)), []
    for _ in range(T):
        frames.append(x @ TRUE + R * rng.normal(size=(N, P)))
        x = x @ A.T + Q * rng.normal(size=(N, D))
    y = np.array(frames, np.float32)
    y[3:, 1] = np.nan
    return y


Y = data()


class Autoencoder(nnx.Module):
    """A linear decoder and a linear encoder, whose message can be exact."""

    def __init__(self, rngs):
        self.decoder = nnx.Linear(D, P, use_bias=False, rngs=rngs)
        self.encoder = nnx.Linear(P, D, rngs=rngs)
        self.log_scale = nnx.Param(jnp.full((D,), 0.0))     # weakly typed

    def pixels(self, x):
        return dist.Normal(self.decoder(x), R).to_event(1)

    def likelihood(self, x):
        message = lambda y: dist.Normal(self.encoder(y), jnp.exp(self.log_scale[...])).to_event(1)
        return jp.Amortized(self.pixels(x), on=x, message=message)


def program(y=None, *, net, amortised):
    net = jp.module("net", net)
    with jp.plate("n", N):
        x0 = jp.latent("x0", dist.Normal(jnp.zeros(D), 1.0).to_event(1))

    def step(x, y):
        with jp.plate("n", N):
            jp.observe("y", net.likelihood(x) if amortised else net.pixels(x), y)
            x = jp.latent("x", dist.Normal(x @ A.T, Q).to_event(1))
        return x, None

    jp.scan(step, x0, y, length=T)


def evidence(kernel):
    """log p(y) with the decoder x @ kernel, by the joint covariance of all frames."""
    cov, joint = np.eye(D), {}
    for t in range(T):
        for s in range(t, T):
            joint[t, s] = cov @ np.linalg.matrix_power(A, s - t).T
        cov = A @ cov @ A.T + Q**2 * np.eye(D)
    full = np.block([[kernel.T @ (joint[t, s] if t <= s else joint[s, t].T) @ kernel
                      for s in range(T)] for t in range(T)]) + R**2 * np.eye(T * P)
    total = 0.0
    for n in range(N):
        seen = ~np.isnan(Y[:, n].ravel())
        total += multivariate_normal(cov=full[np.ix_(seen, seen)]).logpdf(Y[:, n].ravel()[seen])
    return total


def learn(steps, seed=0, rate=0.02, amortised=True, **options):
    em = jp.VariationalEM(program, optax.adam(rate), progress=False, **options)
    net = Autoencoder(nnx.Rngs(0))
    posterior, weights = em.run(jax.random.key(seed), steps, Y, net=net, amortised=amortised)
    return em, posterior, weights


def test_without_an_encoder_it_climbs_the_exact_evidence():
    """A linear decoder's messages are exact, and so is F at every step."""
    em, posterior, weights = learn(60, m_steps=5, amortised=False)
    exact = -evidence(np.asarray(weights["net"]["decoder"]["kernel"], float))
    assert_allclose(posterior.free_energy[-1], exact, rtol=1e-6)
    assert (posterior.free_energy_noise == 0).all()
    start = np.asarray(Autoencoder(nnx.Rngs(0)).decoder.kernel[...], float)
    assert_allclose(posterior.free_energy[0], -evidence(start), rtol=1e-6)
    best, state, tune = jnp.asarray(start), None, optax.adam(0.02)
    state = tune.init(best)
    slope = lambda k: np.array([[(evidence(k - e) - evidence(k + e)) / 2e-4 for e in row]
                                for row in 1e-4 * np.eye(D * P).reshape(D, P, D, P)])
    for _ in range(150):
        change, state = tune.update(jnp.asarray(slope(np.asarray(best, float))), state)
        best = optax.apply_updates(best, change)
    assert exact < -evidence(np.asarray(best, float)) + 1.0
    (learner,) = em._learners.values()
    assert learner.traces == 2      # one E-step and one M-step, whatever the number of steps


@pytest.mark.slow
def test_amortised_free_energy_is_a_bound_that_closes():
    em, posterior, weights = learn(80, m_steps=10, rate=0.01)
    (learner,) = em._learners.values()
    assert learner.traces == 2      # one E-step and one M-step, whatever the number of steps
    f, noise = posterior.free_energy, posterior.free_energy_noise
    exact = -evidence(np.asarray(weights["net"]["decoder"]["kernel"], float))
    assert f[-1] > exact - 4 * noise[-1]
    assert f[0] - f[-1] > 50 and f[-1] - exact < 3.0 + 4 * noise[-1]
    rises = np.diff(f) - 4 * np.hypot(noise[1:], noise[:-1])
    assert (rises < 0.05 * (f[0] - f[-1])).all()


@pytest.mark.slow
def test_minibatches_have_the_gradient_of_the_whole():
    em, _, weights = learn(1, m_steps=1, batch=1, draws=1500)
    whole, _, _ = learn(1, m_steps=1, draws=500)
    (small,), (full,) = em._learners.values(), whole._learners.values()
    with jax.enable_x64(True):
        kwargs = {"net": Autoencoder(nnx.Rngs(0)), "amortised": True}
        at = small.data(weights, (Y,), kwargs).batch
        moments = small.begin(small.data(weights, (Y,), kwargs).whole.dynamic, jax.random.key(0))
        one = jax.jit(lambda i, key: jax.grad(small._loss)(weights, at, i, {
            **moments, **_pick(small, moments, i)}, key))
        parts = [one(jnp.array([i]), jax.random.key(i)) for i in range(N)]
        mean = jax.tree.map(lambda *g: sum(g) / N, *parts)
        call = full.data(weights, (Y,), kwargs).whole
        truth = jax.jit(lambda key: jax.grad(full._loss)(weights, call, None, moments, key))(
            jax.random.key(9))
    a, b = (np.concatenate([np.ravel(x) for x in jax.tree.leaves(g)]) for g in (mean, truth))
    assert np.linalg.norm(a - b) < 0.1 * np.linalg.norm(b)


def _pick(learner, moments, index):
    return {b.name: b.take(moments[b.name], learner.plate, index) for b in learner.local}


@pytest.mark.parametrize("file", [pytest.param(False, marks=pytest.mark.slow), True])
def test_an_interrupted_run_goes_on_where_it_was(file, tmp_path):
    options = {"m_steps": 2, "checkpoint": str(tmp_path / "run.safetensors") if file else None}
    _, whole, weights = learn(6, **{**options, "checkpoint": None})
    net, key = Autoencoder(nnx.Rngs(0)), jax.random.key(0)
    em = jp.VariationalEM(program, optax.adam(0.02), progress=False, **options)
    save, count = em._save, []

    def interrupt(*args):
        save(*args)
        count.append(1)
        if len(count) == 3:
            raise KeyboardInterrupt

    em._save = interrupt
    with pytest.raises(KeyboardInterrupt):
        em.run(key, 6, Y, net=net, amortised=True)
    if file:
        em = jp.VariationalEM(program, optax.adam(0.02), progress=False, **options)
        with pytest.raises(jp.FileError, match="another run"):
            em.run(key, 6, -Y, net=net, amortised=True)
    again, found = em.run(key, 6, Y.copy(), net=net, amortised=True)     # known by its values
    assert file or not em._interrupted
    assert_allclose(again.free_energy, whole.free_energy, rtol=1e-12)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(weights)):
        assert_allclose(a, b, rtol=1e-6)
    if file:
        kept = jp.load_posterior(options["checkpoint"])
        assert_allclose(kept.mean("x"), again.mean("x"), rtol=1e-6)
        assert_allclose(kept.free_energy_noise, again.free_energy_noise)


def test_svi_trains_the_same_weights_and_with_weights_takes_them():
    kwargs = {"net": Autoencoder(nnx.Rngs(0)), "amortised": False}
    svi = SVI(program, AutoNormal(program), numpyro.optim.Adam(0.02), Trace_ELBO())
    found = svi.run(jax.random.key(0), 300, Y, progress_bar=False, **kwargs)
    assert found.losses[-50:].mean() < found.losses[:50].mean() - 50
    weights = {"net": found.params["net$params"]}
    trained = jp.VMP(jp.with_weights(program, weights), progress=False).run(Y, **kwargs)
    kernel = np.asarray(found.params["net$params"]["decoder"]["kernel"], float)
    assert_allclose(trained.free_energy[-1], -evidence(kernel), rtol=1e-5)


def test_errors_say_what_to_do():
    with pytest.raises(jp.JopaError, match="at least 1"):
        jp.VariationalEM(program, optax.adam(0.1), m_steps=0)
    plain = lambda y: jp.observe("y", dist.Normal(jp.latent("x", dist.Normal(0.0, 1.0)), 1.0), y)
    with pytest.raises(jp.StructureError, match=r"jp\.module"):
        jp.VariationalEM(plain, optax.adam(0.1)).run(jax.random.key(0), 1, jnp.zeros(()))
    with pytest.raises(jp.StructureError, match="batch"):
        learn(1, batch=7)
    with pytest.raises(jp.SiteError, match="unknown network"):
        jp.VMP(jp.with_weights(plain, {"net": {}})).run(jnp.zeros(()))


def bent(y=None, *, net):
    """As `program`, of states that a curved map moves."""
    net = jp.module("net", net)
    with jp.plate("n", N):
        x0 = jp.latent("x0", dist.Normal(jnp.zeros(D), 1.0).to_event(1))

    def step(x, y):
        with jp.plate("n", N):
            jp.observe("y", net.likelihood(x), y)
            x = jp.latent("x", dist.Normal(jnp.tanh(2 * x @ A.T), Q).to_event(1))
        return x, None

    jp.scan(step, x0, y, length=T)


def by_particles(kernel, count=200_000):
    """log p(y) of `bent` with the decoder x @ kernel, by a particle filter."""
    draws, total = np.random.default_rng(1), 0.0
    for n in range(N):
        x = draws.normal(size=(count, D))
        for frame in Y[:, n]:
            if np.isfinite(frame).all():
                log = -0.5 * (((frame - x @ kernel) / R)**2 + np.log(2 * np.pi * R**2)).sum(1)
                weight = np.exp(log - log.max())
                total += log.max() + np.log(weight.mean())
                x = x[draws.choice(count, count, p=weight / weight.sum())]
            x = np.tanh(2 * x @ A.T) + Q * draws.normal(size=x.shape)
    return total


@pytest.mark.slow
def test_through_curved_dynamics_it_climbs_the_evidence():
    """Decoder and encoder on the free energy of a program whose transition is not affine."""
    em = jp.VariationalEM(bent, optax.adam(0.02), m_steps=30, draws=4,
                          messages={"x": "linearise"}, progress=False)
    net = Autoencoder(nnx.Rngs(0))
    before = -by_particles(np.asarray(net.decoder.kernel[...]))
    posterior, weights = em.run(0, 40, Y, net=net)
    after = -by_particles(np.asarray(weights["net"]["decoder"]["kernel"]))
    F, error = posterior.free_energy, posterior.free_energy_noise
    assert F[-1] < F[0] - 20 and after < before - 20
    assert after - 4 * error[-1] < F[-1] < after + 2.0 + 4 * error[-1]
