"""Do latents collapse, and does variational EM keep their scale? Ten seeds of the digit VAE.

    python -m tests.benchmarks.collapse

What keeps them in check:
- collapse: the KL term grows over the first 30 % of training, so that a latent is of use before it
  has a price; its prior correlates neighbouring frames, so that a latent that turns costs little.
- scale: every z_t is N(0, 1) a priori in training; in `models.lds.lds`, x_0 ~ N(0, I) keeps latents
  from growing and the rate of W ~ Wishart(d + 2, 0.1 I), in their squared units, from shrinking.
- gauge: what is left, a rotation, changes no prediction; EM moves little of it, because its encoder
  learns at a hundredth of its decoder's rate (at the same rate, latents grow threefold).

A latent is active where the variance of its mean over frames exceeds 0.01 (Burda, Grosse &
Salakhutdinov 2016). Share: of the posterior's own variance in the whole, 1 if collapsed. The digit
of EM is one exemplar, which moves only some of the latents that tell exemplars apart: A is damped
along the others, and det A is their product.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from examples._digits import Array, DigitVAE, pretrained, training_set
from examples.end_to_end_digits import compare, learner


def activity(vae: DigitVAE, frames: Array) -> tuple[int, Array]:
    """Active latents, and the share of posterior variance in each (d,); frames (..., H, W, C)."""
    mean, std = (a.reshape(-1, vae.d) for a in vae.encode(frames))
    own, spread = jnp.mean(std**2, 0), jnp.var(mean, 0)
    return int((spread > 0.01).sum()), np.asarray(own / (own + spread))


def main(argv: Sequence[str] | None = None) -> None:
    """Print a line a seed."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.collapse",
                                     description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10, help="how many (10)")
    parser.add_argument("--steps", type=int, default=1000, help="of training the VAE (1000)")
    parser.add_argument("--exemplar", type=int, default=0, help="unseen 8 that EM learns (0)")
    options = parser.parse_args(argv)
    em, frames = learner(10, 1e-3, 1e-5), training_set()
    print("seed  active  shares of posterior variance   scale on one digit: before -> after EM"
          "          |det A|         free energy")
    for seed in range(options.seeds):
        vae = pretrained(seed, options.steps)
        count, shares = activity(vae, frames)
        pair = compare(em, 10, vae, seed, 8, options.exemplar)
        before, after = (np.std(run.encoded, 0) for run in (pair.frozen, pair.em))
        det = [float(abs(np.prod(run.eigenvalues))) for run in (pair.frozen, pair.em)]
        shown = [" ".join(f"{x:.2f}" for x in a) for a in (shares, before, after)]
        print(f"{seed:>4}  {count:>2} of {vae.d}  {shown[0]:<29}  {shown[1]} -> {shown[2]}   "
              f"{det[0]:.3f} -> {det[1]:.3f}  {pair.free_energy[0]:.0f} -> "
              f"{pair.free_energy[-1]:.0f}", flush=True)


if __name__ == "__main__":
    main()
