"""How the settings of `examples.end_to_end_digits` are chosen: on five exemplars of their own.

    python -m tests.benchmarks.em_rates

One line a setting of variational EM, the mean of 5 exemplars x 3 seeds: error of 100 predicted
frames over the mean frame's (what the choice goes by), over EM's own reconstruction's, and how far
the modulus of a leading pair is from 1 at worst; then the same of the exemplars that the example
judges.
"""

from __future__ import annotations

from tqdm import tqdm

from examples._digits import pretrained
from examples.end_to_end_digits import compare, learner, means
from examples.rotating_digits import CHOSEN

SETS = {"others": ((8, 2), (1, 2), (0, 1), (0, 2), (8, 3)), "judged": CHOSEN}
SETTINGS = (  # steps of EM, rates of the decoder and of the encoder
    (5, 1e-3, 1e-5), (5, 3e-3, 1e-5), (10, 3e-4, 1e-5), (10, 1e-3, 1e-6), (10, 1e-3, 1e-5),
    (10, 1e-3, 1e-4), (10, 3e-3, 1e-5), (20, 3e-4, 1e-5), (20, 3e-4, 1e-4), (20, 1e-3, 1e-5),
    (20, 1e-3, 1e-4))


def main() -> None:
    vaes = [pretrained(seed) for seed in range(3)]
    print(f"{'steps':>5} {'decoder':>8} {'encoder':>8}" + "".join(
        f"  {name + ': / mean':>14} {'/ own':>6} {'moduli':>7}" for name in SETS))
    for steps, rate, encoder_rate in tqdm(SETTINGS, unit="setting"):
        em, line = learner(steps, rate, encoder_rate), f"{steps:>5} {rate:>8g} {encoder_rate:>8g}"
        for exemplars in SETS.values():
            m = means([compare(em, steps, vae, seed, *chosen)
                       for seed, vae in enumerate(vaes) for chosen in exemplars])
            line += (f"  {m['em_vs_mean']:>14.3f} {m['em_vs_reconstruction']:>6.2f} "
                     f"{m['em_farthest_from_one']:>7.4f}")
        tqdm.write(line)


if __name__ == "__main__":
    main()
