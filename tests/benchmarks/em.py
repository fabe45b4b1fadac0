"""Times of variational EM on 10 trajectories of 77 frames, 28 x 28.

    python -m tests.benchmarks.em

The E-step is timed with the encoding of all frames, two sweeps and the free energy at two decoded
draws of every frame; the M-step an optimiser step on 4 trajectories.
"""

from __future__ import annotations

import time

import jax
import numpy as np
import optax
from flax import nnx

import jopa_ppl as jp
from jopa_ppl.language.networks import weights_of
from jopa_ppl.models.vae import VAE
from models.second_order import dynamics

T, N, SIZE, STEPS, M_STEPS = 77, 10, 28, 8, 5


def discs(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Frames (T, N, SIZE, SIZE, 1) of a disc that goes round, and its pushes (T, N, 1)."""
    push = rng.normal(size=(T, N, 1)).astype(np.float32)
    angle = rng.uniform(0, 6, N) + 0.2 * np.arange(T)[:, None] + 0.05 * push[..., 0].cumsum(0)
    centre = SIZE / 2 + SIZE / 4 * np.stack([np.cos(angle), np.sin(angle)])
    at = np.arange(SIZE)
    gap = (at[:, None] - centre[0][..., None, None])**2 + (at - centre[1][..., None, None])**2
    return np.exp(-gap / 8)[..., None].astype(np.float32), push


def main() -> None:
    frames, push = discs(np.random.default_rng(0))
    model, vae = jp.condition(dynamics, {"u": push}), VAE((SIZE, SIZE, 1), 2, rngs=nnx.Rngs(0))
    em = jp.VariationalEM(model, optax.adam(1e-3), e_sweeps=2, m_steps=M_STEPS, batch=4,
                          progress=False)
    arguments = {"T": T, "trajectories": N, "vae": vae, "action_scale": 1.0}

    def run(steps: int) -> tuple[float, jp.Posterior]:
        start = time.perf_counter()
        posterior, _ = em.run(jax.random.key(0), steps, frames, **arguments)
        return time.perf_counter() - start, posterior

    first, _ = run(STEPS)
    (learner,) = em._learners.values()
    traces = learner.traces
    whole, posterior = run(STEPS)
    with jax.enable_x64(True):
        weights = weights_of(model, (frames,), arguments)
        leaves = learner.leaves(learner.data(weights, (frames,), arguments).whole, weights)
        times = []
        for i in range(6):
            start = time.perf_counter()
            jax.block_until_ready(learner.e_step(leaves, posterior.state.moments,
                                                 jax.random.key(i), 2))
            times.append(time.perf_counter() - start)
    print(f"tracing and compilation {first - whole:.1f} s; run again, {learner.traces - traces} "
          "functions are traced")
    print(f"encoding, E-step of 2 sweeps and free energy {1e3 * np.median(times):.0f} ms; an EM "
          f"step with {M_STEPS} optimiser steps {1e3 * whole / (STEPS + 1):.0f} ms")
    f, noise = posterior.free_energy, posterior.free_energy_noise
    print("free energy a step: " + ", ".join(f"{a:.0f} +- {b:.0f}" for a, b in zip(f, noise)))


if __name__ == "__main__":
    main()
