"""A variational autoencoder of single frames, trained from several initialisations side by side."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
import optax
from flax import nnx
from jax.typing import ArrayLike

from models.networks import Decoder, Encoder

_COLLAPSED = 0.5  # a latent whose posterior variance averages above this says nearly nothing
_TORN = 1.0  # neighbours in pixels further apart in z than this many stds lie across a tear


class VAE(nnx.Module):
    """z ~ N(0, I_d), y | z ~ N(decode(z), sigma^2) a pixel; q(z | y) = N(mean, std^2) of `encode`.

    Frames are (..., H, W, C) in [0, 1], latents (..., d). sigma is learned with the weights (its
    optimum is the root mean square error of a pixel), so no weight of the KL term is to be tuned.

    Source: Kingma & Welling 2014; Rybkin, Daniilidis & Levine 2021 (learned sigma).
    """

    def __init__(self, shape: tuple[int, int, int], d: int = 2, *, width: int = 4, rngs: nnx.Rngs):
        self.shape, self.d = tuple(shape), d
        self.encoder = Encoder(self.shape, 2 * d, width=width, rngs=rngs)
        self.decoder = Decoder(self.shape, d, width=width, rngs=rngs)
        # the mean of q starts at the frames' principal components (`train` sets these)
        self.centre = nnx.Param(jnp.zeros(self.shape))
        self.components = nnx.Param(jnp.zeros((math.prod(self.shape), d)))
        self.background = nnx.Param(jnp.zeros(self.shape))  # logits of the mean frame
        self.log_sigma = nnx.Param(jnp.full((), math.log(0.1)))

    def encode(self, frames: ArrayLike) -> tuple[jax.Array, jax.Array]:
        """Mean and std of q(z | y): frames (..., H, W, C) -> two arrays (..., d)."""
        frames = jnp.asarray(frames)
        batch = frames.shape[: frames.ndim - 3]
        out = self.encoder(frames.reshape(-1, *self.shape)).reshape(*batch, 2 * self.d)
        linear = (frames - self.centre[...]).reshape(*batch, -1) @ self.components[...]
        # bounded, so that an odd frame can send neither an infinite nor an empty message
        return linear + out[..., : self.d], jnp.exp(jnp.clip(out[..., self.d :] - 1.0, -8.0, 2.0))

    def decode(self, z: ArrayLike) -> jax.Array:
        """Mean frames in [0, 1]: latents (..., d) -> (..., H, W, C)."""
        z = jnp.asarray(z)
        out = self.decoder(z.reshape(-1, self.d)).reshape(*z.shape[:-1], *self.shape)
        return nnx.sigmoid(out + self.background[...])

    @property
    def sigma(self) -> jax.Array:
        """Standard deviation of a pixel, a scalar."""
        return jnp.exp(self.log_sigma[...])

    def pixels(self, z: ArrayLike) -> dist.Distribution:
        """p(y | z), event shape (H, W, C)."""
        return dist.Normal(self.decode(z), self.sigma).to_event(3)


def free_energy(vae: VAE, frames: jax.Array, key: jax.Array, beta: ArrayLike = 1.0) -> jax.Array:
    """-ELBO in nats a frame, one draw each: mean of -log p(y | z) + beta KL(q(z | y) || p(z))."""
    mean, std = vae.encode(frames)
    z = mean + std * jax.random.normal(key, mean.shape, mean.dtype)
    kl = jnp.sum((mean**2 + std**2 - 1) / 2 - jnp.log(std), -1)
    return jnp.mean(beta * kl - vae.pixels(z).log_prob(frames))


def train(
    frames: ArrayLike, rng_key: jax.Array, *, d: int = 2, width: int = 4, inits: int = 4,
    steps: int = 500, batch: int = 32, rate: float = 6e-3,
) -> tuple[VAE, jax.Array]:
    """Train `inits` VAEs side by side on frames (N, H, W, C); return the best and its losses.

    Best is the lowest free energy on a held-out tenth of the frames, among those with no collapsed
    latent (mean posterior variance above 0.5; compare the active units of Burda, Grosse &
    Salakhutdinov 2016) and, where there are any, no tear: frames near in pixels are near in z.
    The KL term is warmed up over the first fifth of the steps. Losses: (steps,), the free energy
    of each minibatch in nats a frame.

    Raises:
        ValueError: frames are not (N, H, W, C) with N >= 10, or not finite.
        RuntimeError: every initialisation collapsed.
    """
    frames = jnp.asarray(frames, jnp.float32)
    if frames.ndim != 4 or len(frames) < 10 or not bool(jnp.isfinite(frames).all()):
        raise ValueError(f"frames: expected at least 10 finite ones, (N, H, W, C); got "
                         f"{frames.shape}, all finite: {bool(jnp.isfinite(frames).all())}.")
    key_init, key_split, key_train, key_test = jax.random.split(rng_key, 4)
    frames = jax.random.permutation(key_split, frames)
    held, frames = jnp.split(frames, [len(frames) // 10])
    mean = jnp.clip(frames.mean(0), 0.02, 0.98)
    centre, components = principal_components(held, d)
    graph, _ = nnx.split(VAE(frames.shape[1:], d, width=width, rngs=nnx.Rngs(0)))
    schedule = optax.warmup_cosine_decay_schedule(rate / 30, rate, steps // 10, steps, rate / 50)
    optimiser = optax.chain(optax.clip_by_global_norm(100.0), optax.adam(schedule))

    def create(key: jax.Array) -> nnx.State:
        vae = VAE(frames.shape[1:], d, width=width, rngs=nnx.Rngs(key))
        vae.background[...] = jnp.log(mean / (1 - mean))
        vae.centre[...], vae.components[...] = centre, components
        return nnx.state(vae)

    def loss(weights: nnx.State, y: jax.Array, key: jax.Array, beta: ArrayLike) -> jax.Array:
        return free_energy(nnx.merge(graph, weights), y, key, beta)

    def update(carry: tuple, i: jax.Array) -> tuple[tuple, jax.Array]:
        key, pick = jax.random.split(jax.random.fold_in(key_train, i))
        y = frames[jax.random.randint(pick, (batch,), 0, len(frames))]
        beta = jnp.minimum(1.0, 5 * i / steps)

        def one(weights: nnx.State, state: optax.OptState) -> tuple:
            value, slope = jax.value_and_grad(loss)(weights, y, key, beta)
            change, state = optimiser.update(slope, state, weights)
            return optax.apply_updates(weights, change), state, value

        *carry, values = jax.vmap(one)(*carry)
        return tuple(carry), values

    @jax.jit
    def fit(keys: jax.Array) -> tuple:
        weights = jax.vmap(create)(keys)
        carry = weights, jax.vmap(optimiser.init)(weights)
        (weights, _), losses = jax.lax.scan(update, carry, jnp.arange(steps))
        near = _neighbours(held)
        return weights, losses, *jax.vmap(lambda w: judge(w, near))(weights)

    def judge(weights: nnx.State, near: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        z, std = nnx.merge(graph, weights).encode(held)
        gap = jnp.linalg.norm(z[:, None] - z[near], axis=-1).max()
        return loss(weights, held, key_test, 1.0), jnp.mean(std**2, 0), gap / jnp.std(z, 0).mean()

    weights, losses, energy, variance, gap = fit(jax.random.split(key_init, inits))
    alive = jnp.isfinite(energy) & (variance < _COLLAPSED).all(-1)
    if not bool(alive.any()):
        raise RuntimeError(
            f"All {inits} VAEs collapsed: mean posterior variances {variance.round(2).tolist()}, "
            f"expected below {_COLLAPSED}. Give more steps, more inits, a lower rate, or fewer "
            f"latents than d = {d}."
        )
    whole = alive & (gap < _TORN)
    best = int(jnp.argmin(jnp.where(jnp.where(whole.any(), whole, alive), energy, jnp.inf)))
    return nnx.merge(graph, jax.tree.map(lambda leaf: leaf[best], weights)), losses[:, best]


def principal_components(frames: jax.Array, d: int) -> tuple[jax.Array, jax.Array]:
    """Mean frame (H, W, C), and V (H W C, d): (y - mean) V has variances 1, the d largest."""
    centre = frames.mean(0)
    y = (frames - centre).reshape(len(frames), -1)
    _, scale, v = jnp.linalg.svd(y, full_matrices=False)
    return centre, v[:d].T * jnp.sqrt(len(frames)) / scale[:d]


def _neighbours(frames: jax.Array) -> jax.Array:
    """The nearest hundredth of the frames (at least 1) to each frame, in pixels: (N, k) indices."""
    y = frames.reshape(len(frames), -1)
    distance = jnp.sum(y**2, -1) - 2 * y @ y.T  # up to a constant in each row
    return jnp.argsort(distance, -1)[:, 1 : 2 + len(frames) // 100]
