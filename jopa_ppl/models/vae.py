"""A variational autoencoder of frames with a prior in time, trained from several starts."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
from flax import nnx
from jax import Array
from jax.typing import ArrayLike

import jopa_ppl as jp
from jopa_ppl.compilation import once
from jopa_ppl.models.networks import Decoder, Encoder
from jopa_ppl.models.training import descend


def gaussian(vae: VAE, z: Array) -> dist.Distribution:
    """Pixels N(decode(z), sigma^2)."""
    return dist.Normal(vae.decode(z), vae.sigma)


def bernoulli(vae: VAE, z: Array) -> dist.Distribution:
    """Pixels of zeros and ones, logits(z)."""
    return dist.Bernoulli(logits=vae.logits(z))


PIXELS: dict[str, Callable[[VAE, Array], dist.Distribution]] = {
    "gaussian": gaussian, "bernoulli": bernoulli}
_COLLAPSED = 0.5  # a latent with more than this share of posterior variance says nearly nothing


class VAE(nnx.Module):
    """z ~ N(0, I_d), y | z ~ p(decode(z)) a pixel; q(z | y) = N(mean, std^2) of `encode`.

    Frames are (..., H, W, C) in [0, 1] of any size, latents (..., d). Channels are colours, or
    neighbouring frames (`jopa_ppl.models.networks.windows`), or both.

    Args:
        pixels: "gaussian", N(decode(z), sigma^2) with sigma learned, or "bernoulli" for frames
            of zeros and ones.
        sigma: standard deviation of a Gaussian pixel; None: learned.

    Raises:
        ValueError: `pixels` is neither of these.

    Source: Kingma & Welling 2014; Rybkin, Daniilidis & Levine 2021 (learned sigma).
    """

    def __init__(self, shape: tuple[int, int, int], d: int = 2, *, width: int = 4,
                 pixels: str = "gaussian", sigma: float | None = None, rngs: nnx.Rngs) -> None:
        if pixels not in PIXELS:
            raise ValueError(f"pixels: expected one of {tuple(PIXELS)}; got {pixels!r}")
        self.shape, self.d, self.pixel = tuple(shape), d, PIXELS[pixels]
        self.encoder = Encoder(self.shape, 2 * d, width=width, rngs=rngs)
        self.decoder = Decoder(self.shape, d, width=width, rngs=rngs)
        # The mean of q starts at the frames' principal components (`train` sets these): a closed
        # curve of frames starts as a closed curve, and no initialisation tears or folds it.
        self.centre = nnx.Param(jnp.zeros(self.shape))
        self.components = nnx.Param(jnp.zeros((math.prod(self.shape), d)))
        self.background = nnx.Param(jnp.zeros(self.shape))  # logits of the mean frame
        # What is no Param is not trained.
        self.log_sigma = (nnx.Param if sigma is None else nnx.Variable)(
            jnp.full((), math.log(sigma or 0.1), jnp.float32))

    def encode(self, frames: ArrayLike) -> tuple[Array, Array]:
        """Mean and std of q(z | y): frames (..., H, W, C) -> two arrays (..., d)."""
        frames = jnp.asarray(frames)
        batch = frames.shape[:frames.ndim - 3]
        out = self.encoder(frames.reshape(-1, *self.shape)).reshape(*batch, 2 * self.d)
        linear = (frames - self.centre[...]).reshape(*batch, -1) @ self.components[...]
        # Bounded, so that an odd frame can send neither an infinite nor an empty message.
        return linear + out[..., :self.d], jnp.exp(jnp.clip(out[..., self.d:] - 1.0, -8.0, 2.0))

    def decode(self, z: ArrayLike) -> Array:
        """Mean frames in [0, 1]: latents (..., d) -> (..., H, W, C)."""
        return nnx.sigmoid(self.logits(z))

    def logits(self, z: ArrayLike) -> Array:
        """Logits of the mean frames: latents (..., d) -> (..., H, W, C)."""
        z = jnp.asarray(z)
        flat = z.reshape(-1, self.d).astype(self.background[...].dtype)
        out = self.decoder(flat).reshape(*z.shape[:-1], *self.shape)
        return out + self.background[...]

    @property
    def sigma(self) -> Array:
        """Standard deviation of a Gaussian pixel, a scalar."""
        return jnp.exp(self.log_sigma[...])

    def pixels(self, z: ArrayLike) -> dist.Distribution:
        """p(y | z), event shape (H, W, C)."""
        return self.pixel(self, z).to_event(3)

    def message(self, frames: Array) -> dist.Distribution:
        """The encoder's Gaussian message about z."""
        return dist.Normal(*self.encode(frames)).to_event(1)

    def likelihood(self, z: Array) -> jp.Amortized:
        """p(y | z) that carries the encoder's message to z: what programs observe frames with."""
        return jp.Amortized(self.pixels(z), on=z, message=self.message)


def free_energy(vae: VAE, pairs: Array, key: Array, *, beta: float, rho: float) -> Array:
    """Nats a frame of neighbouring frames, one draw each, the KL weighted by beta:

        -log p(y | z) + beta KL(q(z_1) q(z_2) || N(z_1; 0, I) N(z_2; rho z_1, (1 - rho^2) I))

    A decoder can undo any warp of the latent; the prior in time picks the one that moves evenly.

    Args:
        pairs: frames and those after them, (B, 2, H, W, C); key: of the draws.
        beta: weight of the KL; rho: correlation of neighbouring latents a priori, below 1.
    """
    mean, std = vae.encode(pairs)
    z = mean + std * jax.random.normal(key, mean.shape, mean.dtype)
    (m1, m2), (s1, s2) = jnp.moveaxis(mean, 1, 0), jnp.moveaxis(std, 1, 0)
    left = 1 - rho**2
    first = 0.5 * (m1**2 + s1**2)
    second = 0.5 * (((m2 - rho * m1)**2 + s2**2 + rho**2 * s1**2) / left + math.log(left))
    kl = (first + second - jnp.log(s1) - jnp.log(s2) - 1.0).sum(-1)
    return (jnp.mean(beta * kl) - jnp.mean(vae.pixels(z).log_prob(pairs).sum(1))) / 2


def train(frames: ArrayLike, rng_key: Array, *, d: int = 2, width: int = 4,
          pixels: str = "gaussian", inits: int = 3, steps: int = 500, batch: int = 16,
          rate: float = 6e-3, beta: float = 20.0, rho: float = 0.98, progress: bool = True
          ) -> tuple[VAE, np.ndarray]:
    """Train `inits` VAEs side by side on episodes (E, T, H, W, C); return the best, and its losses.

    Best is the lowest free energy on held-out pairs of frames among those with no collapsed latent
    (more than half of its variance is the posterior's own; compare the active units of Burda,
    Grosse & Salakhutdinov 2016).

    Args:
        frames: finite, in [0, 1], E >= 2 and T >= 2; a tenth of the episodes, or one, is held out.
        d: number of latents; width, pixels: as of `VAE`.
        inits: how many; steps: of Adam; batch: pairs of frames a step; rate: the largest.
        beta, rho: as of `free_energy`.

    Returns:
        the VAE, and its losses (steps,).

    Raises:
        ValueError: frames are not (E, T, H, W, C) with E, T >= 2, or not finite; or `pixels`.
        RuntimeError: every initialisation collapsed.
    """
    frames = np.asarray(frames, np.float32)
    if frames.ndim != 5 or min(frames.shape[:2]) < 2 or not np.isfinite(frames).all():
        raise ValueError("frames: expected finite episodes (E, T, H, W, C) with E, T >= 2; got "
                         f"{frames.shape}, all finite: {np.isfinite(frames).all()}")
    shape = frames.shape[2:]
    key_init, key_train, key_test = jax.random.split(rng_key, 3)
    held = max(1, len(frames) // 10)
    test = jnp.asarray(np.stack([frames[:held, :-1], frames[:held, 1:]], 2).reshape(-1, 2, *shape))
    frames = jnp.asarray(frames[held:])
    mean = jnp.clip(frames.mean((0, 1)), 0.02, 0.98)
    some = frames.reshape(-1, *shape)[::max(1, frames.shape[0] * frames.shape[1] // 600)]
    centre, components = principal_components(some, d)

    def fresh(key: Array) -> VAE:
        return VAE(shape, d, width=width, pixels=pixels, rngs=nnx.Rngs(key))

    recipe = _Recipe(nnx.graphdef(nnx.eval_shape(fresh, key_init)), steps, batch, rate, beta, rho)

    @partial(jax.jit, compiler_options=once())
    @jax.vmap
    def create(key: Array) -> nnx.State:
        vae = fresh(key)
        vae.background[...] = jnp.log(mean / (1 - mean))
        vae.centre[...], vae.components[...] = centre, components
        return nnx.state(vae)

    @partial(jax.jit, compiler_options=once())
    @jax.vmap
    def judge(weights: nnx.State) -> tuple[Array, Array]:
        z, std = nnx.merge(recipe.graph, weights).encode(test)
        noise = jnp.mean(std**2, (0, 1))
        return recipe.of_pairs(weights, test, key_test), noise / (noise + jnp.var(z, (0, 1)))

    weights, losses = descend(recipe, create(jax.random.split(key_init, inits)), frames, key_train,
                              several=True, label="VAE", progress=progress)
    energy, variance = map(np.asarray, judge(weights))
    alive = np.isfinite(energy) & (variance < _COLLAPSED).all(-1)
    if not alive.any():
        raise RuntimeError(
            f"All {inits} VAEs collapsed: shares of posterior variance "
            f"{variance.round(2).tolist()}, expected below {_COLLAPSED}. Give more steps, more "
            f"inits, a lower rate, or fewer latents than d = {d}.")
    best = int(np.argmin(np.where(alive, energy, np.inf)))
    one = jax.device_put(jax.tree.map(lambda leaf: np.asarray(leaf)[best], weights))
    return nnx.merge(recipe.graph, one), losses[:, best]


class _Recipe(NamedTuple):
    """Adam on neighbouring frames of episodes (E, T, H, W, C); see `train`."""

    graph: nnx.GraphDef
    steps: int
    batch: int
    rate: float
    beta: float
    rho: float

    def optimiser(self) -> optax.GradientTransformation:
        rate = optax.warmup_cosine_decay_schedule(self.rate / 30, self.rate, self.steps // 10,
                                                  self.steps, self.rate / 50)
        return optax.chain(optax.clip_by_global_norm(100.0), optax.adam(rate))

    def of_pairs(self, weights: nnx.State, pairs: Array, key: Array) -> Array:
        vae = nnx.merge(self.graph, weights)
        return free_energy(vae, pairs, key, beta=self.beta, rho=self.rho)

    def loss(self, weights: nnx.State, frames: Array, key: Array, step: Array) -> Array:
        key, pick, when = jax.random.split(key, 3)
        e = jax.random.randint(pick, (self.batch,), 0, len(frames))
        t = jax.random.randint(when, (self.batch,), 0, frames.shape[1] - 1)
        return self.of_pairs(weights, jnp.stack([frames[e, t], frames[e, t + 1]], 1), key)


def principal_components(frames: Array, d: int, blur: float = 0.0) -> tuple[Array, Array]:
    """Mean frame (H, W, C), and V (H W C, d): (y - mean) V has variances 1, the d largest.

    With `blur`, a share of the frame, variances are those of blurred frames. Of a thin thing that
    turns, a few harmonics of its angle vary nearly as much as the first (1, 1, 0.88, 0.87), and mix
    with it: the ring of poses is dented. Blurred, the first two stand out (1, 1, 0.57, 0.56).
    """
    centre, shape = frames.mean(0), frames.shape[1:]
    rows, columns = (_smoothing(n, blur * n) for n in shape[:2])

    def smooth(y: Array) -> Array:
        return jnp.einsum("ij,njkc,lk->nilc", rows, y.reshape(-1, *shape), columns)

    y = smooth(frames - centre).reshape(len(frames), -1)
    _, scale, v = jnp.linalg.svd(y, full_matrices=False)
    back = jax.linear_transpose(smooth, jax.ShapeDtypeStruct((d, centre.size), v.dtype))
    (v,) = back(v[:d].reshape(d, *shape))
    return centre, v.T * jnp.sqrt(len(frames)) / scale[:d]


def _smoothing(n: int, width: float) -> Array:
    """The weights (n, n) of a Gaussian of this width in pixels; rows add up to 1."""
    if not width:
        return jnp.eye(n)
    gap = jnp.arange(n)[:, None] - jnp.arange(n)
    weights = jnp.exp(-0.5 * (gap / width)**2)
    return weights / weights.sum(1, keepdims=True)


def cover(frames: np.ndarray, count: int) -> np.ndarray:
    """`count` of the frames (N, H, W, C), each the farthest in pixels from those before it: an
    account of what can be seen, and not of what was seen often. (count, H, W, C)."""
    flat = frames.reshape(len(frames), -1)
    chosen = [0]
    gap = ((flat - flat[0])**2).sum(1)
    for _ in range(count - 1):
        chosen.append(int(gap.argmax()))
        gap = np.minimum(gap, ((flat - flat[chosen[-1]])**2).sum(1))
    return frames[chosen]


def covering(frames: np.ndarray, rng_key: Array, *, d: int = 2, count: int = 64,
             blur: float = 1 / 6, std: float = 0.05, sigma: float = 0.1, width: int = 4) -> VAE:
    """A VAE that is not trained yet: it starts from the principal components of a blurred cover of
    the frames (N, H, W, C), so that poses have unit variance over the cover and std `std` each.

    `sigma` is not trained: the errors of neighbouring pixels are alike, and a frame whose every
    pixel counts as fine as it can be drawn tells so much that dynamics are not heard beside it.

    Args:
        d: number of latents; width: as of `VAE`.
        count: frames of the cover, at most.
        blur: width of the blur, a share of the frame.
        std: of each pose; sigma: standard deviation of a pixel.
    """
    vae = VAE(frames.shape[1:], d, width=width, sigma=sigma, rngs=nnx.Rngs(rng_key))
    some = jnp.asarray(cover(frames, min(count, len(frames))))
    vae.centre[...], vae.components[...] = principal_components(some, d, blur)
    mean = jnp.clip(jnp.asarray(frames.mean(0)), 0.02, 0.98)
    vae.background[...] = jnp.log(mean / (1 - mean))
    vae.encoder.out.bias[...] = vae.encoder.out.bias[...].at[d:].set(1.0 + math.log(std))
    return vae
