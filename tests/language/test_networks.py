"""Networks and VAE for frames of any size and channel count, Gaussian and Bernoulli pixels."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.test_util import check_grads

import jopa_ppl as jp
from jopa_ppl.models.networks import Decoder, Encoder, patches, windows
from jopa_ppl.models.training import descend
from jopa_ppl.models.vae import VAE, free_energy, train


@pytest.mark.parametrize("shape", [(24, 24, 1), (7, 18, 3), (1, 5, 2), (33, 16, 6)])
def test_encoder_and_decoder_follow_the_frame(shape):
    x = jnp.ones((2, *shape))
    encoder = Encoder(shape, 6, rngs=nnx.Rngs(0))
    assert encoder(x).shape == (2, 6)
    decoder = Decoder(shape, 3, rngs=nnx.Rngs(0))
    assert decoder(jnp.ones((2, 3))).shape == x.shape


@pytest.mark.parametrize("stride", [1, 2])
def test_patches_times_a_matrix_is_a_convolution(stride):
    k1, k2 = jax.random.split(jax.random.key(0))
    x, kernel = jax.random.normal(k1, (2, 6, 8, 3)), jax.random.normal(k2, (3, 3, 3, 5))
    expected = jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC"))
    found = patches(x, stride) @ kernel.reshape(27, 5)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_windows_stack_neighbouring_frames_oldest_first():
    frames = jnp.arange(2 * 5 * 3).reshape(2, 5, 1, 1, 3)
    found = windows(frames, 2)
    assert found.shape == (2, 4, 1, 1, 6)
    np.testing.assert_array_equal(found[1, 2, 0, 0], jnp.concatenate(
        [frames[1, 2, 0, 0], frames[1, 3, 0, 0]]))


@pytest.mark.parametrize("pixels", ["gaussian", "bernoulli"])
def test_pixels_score_frames(pixels):
    vae = VAE((5, 6, 3), 2, pixels=pixels, rngs=nnx.Rngs(0))
    z = jnp.array([[0.3, -1.0], [2.0, 0.1]])
    frames = jax.random.uniform(jax.random.key(1), (2, 5, 6, 3))
    if pixels == "bernoulli":
        frames = jnp.round(frames)
    mean = np.asarray(vae.decode(z), np.float64)
    y = np.asarray(frames, np.float64)
    if pixels == "gaussian":
        s = float(vae.sigma)
        each = -0.5 * ((y - mean) / s)**2 - np.log(s) - 0.5 * np.log(2 * np.pi)
    else:
        each = y * np.log(mean) + (1 - y) * np.log1p(-mean)
    np.testing.assert_allclose(vae.pixels(z).log_prob(frames), each.sum((1, 2, 3)), rtol=1e-4)
    assert isinstance(vae.likelihood(z), jp.Amortized)


def test_gradient_of_the_free_energy():
    graph, state = nnx.split(VAE((4, 4, 2), 1, pixels="bernoulli", rngs=nnx.Rngs(0)))
    pairs = jnp.round(jax.random.uniform(jax.random.key(0), (3, 2, 4, 4, 2)))
    loss = lambda s: free_energy(nnx.merge(graph, s), pairs, jax.random.key(1), beta=1.0, rho=0.9)
    check_grads(loss, (state,), order=1, modes=["rev"], atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("pixels", ["gaussian", "bernoulli"])
def test_training_finds_the_colour_that_varies(pixels):
    level = jax.random.uniform(jax.random.key(0), (10, 20), minval=0.1, maxval=0.9)
    if pixels == "bernoulli":
        level = jnp.round(level)
    frames = jnp.stack([level, 1 - level, jnp.ones_like(level)], -1)[:, :, None, None]
    frames = jnp.broadcast_to(frames, (10, 20, 4, 5, 3))
    vae, losses = train(frames, jax.random.key(1), d=1, pixels=pixels, inits=1, steps=150, beta=1.0,
                        rho=0.0, progress=False)
    assert losses[-10:].mean() < losses[:10].mean()
    again = vae.decode(vae.encode(frames)[0])
    assert float(jnp.abs(again - frames).mean()) < 0.05    # the mean frame is 0.13 or more off


def test_unknown_pixels_and_bad_frames_are_refused():
    with pytest.raises(ValueError, match="pixels: expected one of"):
        VAE((4, 4, 1), pixels="poisson", rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="finite episodes"):
        train(jnp.full((2, 3, 4, 4, 1), jnp.nan), jax.random.key(0))


class _Descent(NamedTuple):
    """|p - a mean of data|^2, with momentum."""

    steps: int = 7

    def optimiser(self):
        return optax.sgd(0.1, momentum=0.5)

    def loss(self, p, data, key, step):
        return ((p - data.mean() - jax.random.normal(key)) ** 2).sum() * (step + 1)


def test_a_training_takes_the_steps_of_its_optimiser_and_copies_descend_each_for_itself():
    recipe, key, data = _Descent(), jax.random.key(0), jnp.arange(4.0)
    starts, ends, told = np.array([[0.0, 1.0], [5.0, -2.0]], np.float32), [], []
    for p in jnp.asarray(starts):
        state, losses = recipe.optimiser().init(p), []
        for step in range(recipe.steps):
            value, slope = jax.value_and_grad(recipe.loss)(p, data, jax.random.fold_in(key, step),
                                                           step)
            change, state = recipe.optimiser().update(slope, state, p)
            p = optax.apply_updates(p, change)
            losses.append(value)
        ends.append(p)
        told.append(losses)
    for i in (0, 1):
        p, losses = descend(recipe, jnp.asarray(starts[i]), data, key, progress=False)
        np.testing.assert_allclose(p, ends[i], rtol=1e-5)
        np.testing.assert_allclose(losses, told[i], rtol=1e-5)
    p, losses = descend(recipe, jnp.asarray(starts), data, key, several=True, progress=False)
    np.testing.assert_allclose(p, np.stack(ends), rtol=1e-5)
    np.testing.assert_allclose(losses, np.transpose(told), rtol=1e-5)
