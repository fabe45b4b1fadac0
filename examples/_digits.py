"""Rotating MNIST digits, and a VAE whose latents turn as they do.

Angles are in degrees, counter-clockwise; frames are (28, 28, 1) in [0, 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
from flax import nnx
from jax.typing import ArrayLike
from numpy.typing import NDArray
from scipy import ndimage

import jopa_ppl as jp
from jopa_ppl.models.training import descend

Array = NDArray[np.float32]

DIGITS = (0, 1, 8)
TRAINED = 10  # exemplars of each digit that the VAE sees; later ones are unseen
SEEN, LENGTH, STEP = 100, 200, 3.6  # frames observed, frames in all, degrees a step
ANGLES = 36  # of each exemplar, evenly spaced over the circle

_FILE = Path(__file__).parent / "data" / "mnist_digits.npz"
_PAD = 4  # pixels of background around an image, so that the spline is smooth at its edge


def load(path: Path = _FILE) -> dict[int, Array]:
    """The handwritten digits by label, each (50, 28, 28) in [0, 1] (see data/README.md)."""
    with np.load(path) as file:
        images, labels = file["images"].astype(np.float32) / 255, file["labels"]
    return {digit: images[labels == digit] for digit in range(10)}


def rotate(image: ArrayLike, degrees: ArrayLike) -> Array:
    """Turn an image about its centre of ink, which is moved to the middle of the frame.

        y(p) = image(R(-angle) (p - middle) + centre of ink),   by one cubic spline interpolation

    The centre of ink is where a digit turns without wobbling: about the frame's middle instead, the
    two are half a pixel apart, and up to half of the motion's power is in the first harmonic.

    Args:
        image: (H, W), zero outside.
        degrees: (T,) or a scalar.

    Returns:
        (T, H, W, 1), clipped to [0, 1].

    Raises:
        ValueError: the image is not two-dimensional or has no ink.
    """
    image = np.asarray(image, float)
    if image.ndim != 2 or not image.sum() > 0:
        raise ValueError(f"image: expected (H, W) with some ink, found {image.shape} with a sum of "
                         f"{image.sum():g}.")
    angle = np.deg2rad(np.atleast_1d(degrees))[:, None, None]
    rows, columns = np.indices(image.shape) - (np.reshape(image.shape, (2, 1, 1)) - 1) / 2
    centre = np.reshape(ndimage.center_of_mass(image), (2, 1, 1, 1)) + _PAD
    turned = np.stack([
        np.cos(angle) * rows + np.sin(angle) * columns,
        np.cos(angle) * columns - np.sin(angle) * rows,
    ])
    spline = ndimage.spline_filter(np.pad(image, _PAD), order=3)
    frames = ndimage.map_coordinates(spline, turned + centre, order=3, prefilter=False)
    return np.clip(frames, 0, 1).astype(np.float32)[..., None]


def training_set(digits: Sequence[int] = DIGITS, exemplars: int = TRAINED,
                 angles: int = ANGLES) -> Array:
    """The first exemplars of each digit over one turn: (digits x exemplars, angles, 28, 28, 1)."""
    images = load()
    turn = 360 * np.arange(angles) / angles
    chosen = [image for digit in digits for image in images[digit][:exemplars]]
    return np.stack([rotate(image, turn) for image in chosen])


def unseen(digit: int, index: int = 0, length: int = 200, step: float = 3.6) -> Array:
    """Exemplar `index` (0, 1, ..) among those not trained on, turning: (length, 28, 28, 1).

    Raises:
        IndexError: there are only 40 unseen exemplars of a digit.
    """
    return rotate(load()[digit][TRAINED:][index], step * np.arange(length))


class DigitVAE(nnx.Module):
    """y | z ~ Bernoulli(decode(z)) a pixel; q(z | y) = N(mean, std^2) of `encode`; two dense nets.

    Frames are (..., H, W, C) in [0, 1], latents (..., d).
    """

    def __init__(self, shape: tuple[int, ...] = (28, 28, 1), d: int = 4, *, hidden: int = 128,
                 rngs: nnx.Rngs):
        self.shape, self.d, size = tuple(shape), d, int(np.prod(shape))
        wide = nnx.initializers.he_normal()

        def net(widths: list[int]) -> nnx.List:
            return nnx.List([nnx.Linear(a, b, kernel_init=wide, rngs=rngs)
                             for a, b in pairwise(widths)])

        self.encoder = net([size, hidden, hidden, 2 * d])
        self.decoder = net([d, hidden, hidden, size])

    def _apply(self, layers: nnx.List, x: jax.Array) -> jax.Array:
        for layer in layers[:-1]:
            x = nnx.gelu(layer(x))
        return layers[-1](x)

    def encode(self, frames: ArrayLike) -> tuple[jax.Array, jax.Array]:
        """Mean and std of q(z | y): frames (..., H, W, C) -> two arrays (..., d)."""
        frames = jnp.asarray(frames)
        out = self._apply(self.encoder, frames.reshape(*frames.shape[:-3], -1) - 0.1)
        return out[..., : self.d], jnp.exp(jnp.clip(out[..., self.d :] - 2, -7, 2))

    def logits(self, z: ArrayLike) -> jax.Array:
        """Log odds of ink: latents (..., d) -> (..., H, W, C)."""
        z = jnp.asarray(z)
        return self._apply(self.decoder, z).reshape(*z.shape[:-1], *self.shape) - 1.5

    def decode(self, z: ArrayLike) -> jax.Array:
        """Mean frames in [0, 1]: latents (..., d) -> (..., H, W, C)."""
        return nnx.sigmoid(self.logits(z))

    def pixels(self, z: ArrayLike) -> dist.Distribution:
        """p(y | z), event shape (H, W, C); grey pixels are scored as fractions of ink."""
        return dist.Bernoulli(logits=self.logits(z), validate_args=False).to_event(3)

    def message(self, frame: ArrayLike) -> dist.Distribution:
        """q(z | y) as a distribution, event shape (d,)."""
        return dist.Normal(*self.encode(frame)).to_event(1)

    def likelihood(self, x: jax.Array) -> jp.Amortized:
        """p(y | x) with the encoder's Gaussian as its message to x, for one state x (d,)."""
        return jp.Amortized(self.pixels(x), on=x, message=self.message)


def train(vae: nnx.Module, sequences: ArrayLike, rng_key: jax.Array, *, steps: int = 1000,
          batch: int = 4, rate: float = 2e-3, beta: float = 10.0, warm: float = 0.3,
          hide: float = 0.3, rho: float = 0.97, turns: tuple[float, ...] = (0.17, 0.35),
          learn_turns: bool = True, label: str = "VAE") -> tuple[nnx.Module, jax.Array, Array]:
    """Train a VAE on closed sequences under a prior in which latents turn linearly.

        z_t | z_{t-1} ~ N(rho R z_{t-1}, (1 - rho^2) I),   R = expm(K - K')

    The prior of each z_t alone is N(0, I), as in an ordinary VAE; between frames it asks for
    orbits that one linear map, the same for every exemplar, goes around. The loss is the free
    energy with its KL term times `beta`, of frames whose encoder misses a random part of the
    pixels: both for the sake of exemplars that are not among the few trained on.

    Args:
        vae: has `encode` and `decode`.
        sequences: (N, T, H, W, C), the last frame followed by the first.
        steps, batch, rate: of Adam with a cosine schedule; sequences a step.
        beta: weight of the KL term, reached over the first part `warm` of the steps. Where the
            orbit is known (`learn_turns=False`) begin with it: an orbit torn at first stays torn.
        hide: part of the pixels hidden from the encoder while training.
        rho: correlation of neighbours, in [0, 1); 0 is the ordinary prior.
        turns: radians a frame that planes 0, 1, .. of R turn by at first; at R = I, no plane would
            be preferred and K had no slope. learn_turns: whether K is learned from there.
        label: of the progress bar.

    Returns:
        The VAE, R (d, d), the losses (steps,) in nats a frame.

    Source: Kingma & Welling 2014; Higgins et al. 2017 (beta); Krishnan, Shalit & Sontag 2015 for a
    dynamical prior.
    """
    graph, weights = nnx.split(vae)
    recipe = _Recipe(graph, steps, batch, rate, beta, warm, hide, rho, learn_turns)
    k = jnp.zeros((vae.d, vae.d))
    for plane, turn in enumerate(turns):
        k = k.at[2 * plane + 1, 2 * plane].set(turn)
    (weights, k), losses = descend(recipe, (weights, k), jnp.asarray(sequences), rng_key,
                                   label=label)
    return nnx.merge(graph, weights), _turn(k), losses


def pretrained(seed: int, steps: int = 1000) -> DigitVAE:
    """The VAE of both digit studies: `train` on `training_set()`, weights and all from one seed."""
    vae, *_ = train(DigitVAE(rngs=nnx.Rngs(seed)), training_set(), jax.random.key(seed),
                    steps=steps, label=f"VAE, seed {seed}")
    return vae


class _Recipe(NamedTuple):
    """What shapes the compiled training step, apart from arrays; see `train`."""

    graph: nnx.GraphDef
    steps: int
    batch: int
    rate: float
    beta: float
    warm: float
    hide: float
    rho: float
    learn_turns: bool

    def optimiser(self) -> optax.GradientTransformation:
        return optax.adam(optax.cosine_decay_schedule(self.rate, self.steps))

    def loss(self, parameters: tuple, sequences: jax.Array, key: jax.Array, step: jax.Array
             ) -> jax.Array:
        """Nats a frame of whole turns y (batch, T, H, W, C), the KL term times its weight now."""
        pick, key = jax.random.split(key)
        y = sequences[jax.random.choice(pick, len(sequences), (self.batch,), replace=False)]
        weight = self.beta * jnp.minimum(1.0, (step + 1) / (self.warm * self.steps))
        weights, k = parameters
        vae, rho = nnx.merge(self.graph, weights), self.rho
        r = _turn(k if self.learn_turns else jax.lax.stop_gradient(k))
        noise = 1 - rho**2
        key_hide, key_z = jax.random.split(key)
        seen = jax.random.bernoulli(key_hide, 1 - self.hide, y.shape) / (1 - self.hide)
        mean, std = vae.encode(y * seen)
        z = mean + std * jax.random.normal(key_z, mean.shape)
        ink = jnp.clip(vae.decode(z), 1e-6, 1 - 1e-6)
        fit = jnp.sum(y * jnp.log(ink) + (1 - y) * jnp.log1p(-ink), (-3, -2, -1))
        gap = jnp.roll(mean, -1, 1) - rho * mean @ r.T
        spread = jnp.roll(std, -1, 1) ** 2 + rho**2 * std**2 @ (r**2).T
        kl = jnp.sum((gap**2 + spread) / noise + jnp.log(noise) - 1 - 2 * jnp.log(std), -1) / 2
        return jnp.mean(weight * kl - fit)


def _turn(k: jax.Array) -> jax.Array:
    return jax.scipy.linalg.expm(k - k.T)
