"""Small convolutional networks whose depth follows the frame: any height, width and channels.

A convolution is written as 3 x 3 patches times a matrix: the same linear map as `nnx.Conv`, and
several times faster on a CPU when parameters are vmapped (several initialisations side by side),
where XLA would fall back to slow grouped convolutions.
"""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
from flax import nnx

_COARSE = 4  # frames are halved until neither side is longer than this


def pyramid(height: int, width: int) -> list[tuple[int, int]]:
    """Sizes from the frame down to the coarsest grid, each side halved and rounded up."""
    sizes = [(height, width)]
    while max(sizes[-1]) > _COARSE:
        h, w = sizes[-1]
        sizes.append((-(-h // 2), -(-w // 2)))
    return sizes


def patches(x: jax.Array, stride: int) -> jax.Array:
    """3 x 3 neighbourhoods with zero padding: (N, H, W, C) -> (N, H/stride, W/stride, 9 C)."""
    _, h, w, _ = x.shape
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return jnp.concatenate(
        [padded[:, i : i + h : stride, j : j + w : stride] for i in range(3) for j in range(3)], -1
    )


def depth_to_space(x: jax.Array) -> jax.Array:
    """Sub-pixel upsampling, (N, h, w, 4 C) -> (N, 2 h, 2 w, C) (Shi et al. 2016, section 3.2)."""
    n, h, w, c = x.shape
    x = x.reshape(n, h, w, 2, 2, c // 4).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(n, 2 * h, 2 * w, c // 4)


def windows(frames: jax.Array, length: int) -> jax.Array:
    """Neighbouring frames as channels: (.., T, H, W, C) -> (.., T + 1 - length, H, W, length C).

    Window t holds the frames t, .., t + length - 1, oldest first.
    """
    last = frames.shape[-4] + 1 - length
    return jnp.concatenate([frames[..., i : i + last, :, :, :] for i in range(length)], -1)


class Encoder(nnx.Module):
    """Frames (N, H, W, C) -> features (N, out): strided 3 x 3 convolutions, one hidden layer."""

    def __init__(self, shape: tuple[int, int, int], out: int, *, width: int = 8, hidden: int = 64,
                 rngs: nnx.Rngs):
        sizes = pyramid(*shape[:2])
        channels = [shape[2]] + [width * min(2**i, 4) for i in range(len(sizes) - 1)]
        self.convolutions = nnx.List(
            [nnx.Linear(9 * a, b, rngs=rngs) for a, b in itertools.pairwise(channels)]
        )
        h, w = sizes[-1]
        self.hidden = nnx.Linear(h * w * channels[-1], hidden, rngs=rngs)
        self.out = nnx.Linear(hidden, out, kernel_init=nnx.initializers.zeros, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        for convolution in self.convolutions:
            x = nnx.silu(convolution(patches(x, 2)))
        return self.out(nnx.silu(self.hidden(x.reshape(x.shape[0], -1))))


class Decoder(nnx.Module):
    """Latents (N, d) -> one number a pixel (N, H, W, C): the encoder's mirror image."""

    def __init__(self, shape: tuple[int, int, int], d: int, *, width: int = 8, hidden: int = 64,
                 rngs: nnx.Rngs):
        self.sizes = tuple(reversed(pyramid(*shape[:2])))
        n = len(self.sizes) - 1
        channels = [width * min(2**i, 4) for i in reversed(range(n))] + [shape[2]]
        h, w = self.sizes[0]
        self.hidden = nnx.Linear(d, hidden, rngs=rngs)
        self.grid = nnx.Linear(hidden, h * w * channels[0], rngs=rngs)
        self.convolutions = nnx.List(
            [nnx.Linear(9 * a, 4 * b, rngs=rngs) for a, b in itertools.pairwise(channels)]
        )

    def __call__(self, z: jax.Array) -> jax.Array:
        h, w = self.sizes[0]
        x = self.grid(nnx.silu(self.hidden(z))).reshape(z.shape[0], h, w, -1)
        for convolution, (h, w) in zip(self.convolutions, self.sizes[1:]):
            x = depth_to_space(convolution(patches(nnx.silu(x), 1)))[:, :h, :w]
        return x
