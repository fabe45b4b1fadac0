"""Learn how a handwritten digit turns from 100 frames, and predict the next 100.

    x_t+1 | x_t ~ N(A x_t, W^-1)       y_t | x_t ~ Bernoulli(decode(x_t))       A, W unknown

A VAE is trained on turning digits 0, 1 and 8 (10 exemplars of each). Of an exemplar it has not
seen, 100 frames are observed, turning by 3.6 degrees a step; A and W are learned by message
passing in the program `models.lds.lds`, and 100 further frames are predicted. They are missing
(NaN) in the data, so the posterior of "x" simply goes on. Predictions are compared, by the squared
error of a pixel, with the mean of the observed frames (a ratio of 1 is reached by predicting no
motion at all) and with the VAE's own reconstruction of the true frames (the best it can draw).
A pair of eigenvalues of A should turn by a multiple of 3.6 degrees and have modulus 1; digits that
nearly repeat after half a turn, as these do, turn by 7.2. Where the VAE draws an exemplar badly
(the thin 8:0), no dynamics can beat the mean frame, and the second ratio is the one to read.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.tree_util import Partial
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import jopa_ppl as jp
from examples._digits import Array, DigitVAE, train, training_set, unseen
from models.lds import lds

SEEN, LENGTH, STEP = 100, 200, 3.6  # frames observed, frames in all, degrees a step
CHOSEN = ((8, 0), (1, 0), (0, 0), (8, 1), (1, 1))
BALANCED = tuple((digit, index) for digit in (0, 1, 8) for index in range(5))
STRIP = (70, 80, 90, *range(100, 200, 10), 199)  # frames drawn
COLOURS = {0: "#0072b2", 1: "#e69f00", 8: "#009e73"}
DIMENSIONS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")


class Run(NamedTuple):
    """One exemplar under one VAE; frames are (LENGTH, 28, 28, 1), states (LENGTH, d)."""

    seed: int
    digit: int
    index: int
    eigenvalues: Array
    vs_mean: float  # error of the predicted frames over that of the mean observed frame
    vs_reconstruction: float  # .. over that of the VAE's reconstruction of the true frames
    seconds: float
    compilations: int
    true: Array
    reconstructed: Array
    predicted: Array  # smoothed where observed
    encoded: Array
    state: Array
    sd: Array

    @property
    def turns(self) -> Array:
        """One of each pair of eigenvalues of A, and the real ones, by modulus."""
        upper = self.eigenvalues[self.eigenvalues.imag >= 0]
        return upper[np.argsort(-abs(upper))]


def fit(vmp: jp.VMP, vae: DigitVAE, seed: int, digit: int, index: int) -> Run:
    """Learn A and W from the first frames of an unseen exemplar and predict the others."""
    true = unseen(digit, index, LENGTH, STEP)
    start = time.perf_counter()
    # a Partial over the VAE is a pytree: its weights are data, and no seed compiles anew
    likelihood = Partial(DigitVAE.likelihood, vae)
    observed = np.where(np.arange(LENGTH)[:, None, None, None] < SEEN, true, np.nan)
    posterior = vmp.run(observed.astype(np.float32), T=LENGTH, d=vae.d, likelihood=likelihood)
    state, variance = (np.concatenate([f("x0")[None], f("x")[:-1]])
                       for f in (posterior.mean, posterior.variance))
    seconds = time.perf_counter() - start
    encoded = vae.encode(true)[0]
    reconstructed, predicted = np.asarray(vae.decode(encoded)), np.asarray(vae.decode(state))

    def error(frames: Array) -> float:
        return float(np.mean((frames - true[SEEN:]) ** 2))

    ours = error(predicted[SEEN:])
    return Run(seed, digit, index, np.linalg.eigvals(posterior.mean("A")),
               ours / error(true[:SEEN].mean(0)), ours / error(reconstructed[SEEN:]), seconds,
               posterior.compiled.traces, true, reconstructed, predicted, np.asarray(encoded),
               state, np.sqrt(variance))


def table(runs: Sequence[Run]) -> str:
    """One line a run (pairs of eigenvalues once), then the mean, the spread and the worst."""
    head = (f"{'exemplar':>8} {'seed':>4}  {'|eigenvalues|':<27} {'degrees a step':<27} "
            f"{'/ mean frame':>12} {'/ reconstruction':>16}")
    lines = [head, "-" * len(head)]
    for run in runs:
        moduli = " ".join(f"{abs(e):6.4f}" for e in run.turns)
        degrees = " ".join(f"{'±' if e.imag else ''}{np.degrees(np.angle(e)):.2f}".rjust(6)
                           for e in run.turns)
        lines.append(f"{_name(run):>8} {run.seed:>4}  {moduli:<27} {degrees:<27} "
                     f"{run.vs_mean:>12.3f} {run.vs_reconstruction:>16.2f}")
    lines.append(lines[1])
    ours, reconstruction = _means(runs).values()
    lines += [f"{label:>8} {'':>61} {ours[label]:>12.3f} {reconstruction[label]:>16.2f}"
              for label in ours]
    return "\n".join(lines)


def _means(runs: Sequence[Run]) -> dict[str, dict[str, float]]:
    ratios = {key: np.array([getattr(run, key) for run in runs])
              for key in ("vs_mean", "vs_reconstruction")}
    return {key: {"mean": float(a.mean()), "sd": float(a.std()), "max": float(a.max())}
            for key, a in ratios.items()}


def _name(run: Run) -> str:
    return f"{run.digit}:{run.index}"


def draw(runs: Sequence[Run], path: Path) -> None:
    """Film strips and latent paths of one exemplar a digit; eigenvalues and errors of all runs."""
    shown: dict[int, Run] = {}
    for run in runs:
        shown.setdefault(run.digit, run)
    figure = Figure(figsize=(15, 2.7 * len(shown) + 4.6), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.06)
    top, bottom = figure.subfigures(2, 1, height_ratios=(2.7 * len(shown), 4.6))
    axes = top.subplots(len(shown), 2, width_ratios=(1.75, 1), squeeze=False)
    for row, (run, (strip, path_)) in enumerate(zip(shown.values(), axes)):
        _draw_strip(strip, run)
        _draw_path(path_, run, legend=row == 0)
    axes[-1, 0].set_xlabel("step")
    axes[-1, 1].set_xlabel("step")
    left, middle, right = bottom.subplots(1, 3, width_ratios=(1, 0.8, 1.5))
    _draw_eigenvalues(left, middle, runs)
    _draw_errors(right, runs)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _draw_strip(axes: Axes, run: Run) -> None:
    size, gap = run.true.shape[1], 3
    rows = [np.concatenate([np.pad(frames[t, ..., 0], ((0, 0), (0, gap)), constant_values=0)
                            for t in STRIP], 1)
            for frames in (run.true, run.reconstructed, run.predicted)]
    rows = [np.pad(row, ((0, gap), (0, 0)), constant_values=0) for row in rows]
    axes.imshow(1 - np.concatenate(rows)[:-gap, :-gap], cmap="gray", vmin=0, vmax=1)
    for edge in range(1, 3):  # grey hairlines between the rows
        axes.axhline(edge * (size + gap) - (gap + 1) / 2, color="0.85", lw=0.8)
    cut = sum(t < SEEN for t in STRIP) * (size + gap) - (gap + 1) / 2
    axes.axvline(cut, color="#d55e00", lw=1.5)
    centres = np.arange(len(STRIP)) * (size + gap) + size / 2
    axes.set_xticks(centres, STRIP)
    axes.set_yticks(np.arange(3) * (size + gap) + size / 2, ["true", "VAE alone", "model"])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(f"digit {run.digit}, unseen exemplar {run.index}: observed left of the line, "
                   f"predicted right of it at {run.vs_mean:.2f} of the mean frame's error",
                   fontsize=10, loc="left")


def _draw_path(axes: Axes, run: Run, legend: bool) -> None:
    steps = np.arange(LENGTH)
    for i, colour in enumerate(DIMENSIONS[: run.state.shape[1]]):
        x, sd = run.state[:, i], run.sd[:, i]
        axes.fill_between(steps, x - 2 * sd, x + 2 * sd, color=colour, alpha=0.2, lw=0)
        axes.plot(steps, x, color=colour, lw=1.2)
        axes.plot(steps, run.encoded[:, i], ".", color=colour, ms=1.8, alpha=0.6)
    axes.plot([], [], color="0.3", label="mean")
    axes.fill_between([], [], color="0.3", alpha=0.25, lw=0, label="2 sd")
    axes.plot([], [], ".", color="0.3", ms=3, label="encoder of the true frame")
    axes.axvline(SEEN - 0.5, color="#d55e00", lw=1.5)
    reach = 1.4 * np.abs(run.encoded).max()
    axes.set(xlim=(0, LENGTH), ylim=(-reach, 1.4 * reach if legend else reach),
             xticks=range(0, LENGTH + 1, 50))
    axes.set_title("latent state: smoothed, then predicted", fontsize=10, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    if legend:
        axes.legend(fontsize=8, loc="upper left", ncols=3, framealpha=1, edgecolor="none")


def _draw_eigenvalues(axes: Axes, zoom: Axes, runs: Sequence[Run]) -> None:
    circle = np.exp(1j * np.linspace(0, 2 * np.pi, 721))
    for ax in (axes, zoom):
        ax.plot(circle.real, circle.imag, color="0.6", lw=1)
        ax.axhline(0, color="0.85", lw=0.8, zorder=0)
        for digit in sorted({run.digit for run in runs}):
            e = np.concatenate([run.eigenvalues for run in runs if run.digit == digit])
            ax.plot(e.real, e.imag, "o", color=COLOURS.get(digit, "0.3"), alpha=0.7, ms=6, mew=0,
                    label=f"digit {digit}")
        ax.spines[["top", "right"]].set_visible(False)
        ax.set_xlabel("real")
    for k in (1, 2, 3):
        ray = np.exp(1j * np.radians(k * STEP)) * np.array([0.96, 1.0])
        zoom.plot(ray.real, ray.imag, ":", color="0.5", lw=1, zorder=0)
        zoom.annotate(f"{k * STEP:.1f}°", (0.9765, np.tan(np.radians(k * STEP)) * 0.9765),
                      fontsize=8, color="0.35", va="bottom")
    axes.set(aspect="equal", xlim=(-1.1, 1.1), ylim=(-1.1, 1.1), ylabel="imaginary",
             xticks=(-1, 0, 1), yticks=(-1, 0, 1))
    axes.set_title("eigenvalues of A, all runs", fontsize=10, loc="left")
    axes.legend(fontsize=8, loc="center", bbox_to_anchor=(0.5, 0.7), frameon=False)
    zoom.set(xlim=(0.976, 1.003), ylim=(-0.02, 0.2), xticks=(0.98, 0.99, 1))
    zoom.set_title("near 1 (axes stretched)", fontsize=10, loc="left")


def _draw_errors(axes: Axes, runs: Sequence[Run]) -> None:
    names = list(dict.fromkeys(_name(run) for run in runs))
    offset = {s: o for s, o in zip(dict.fromkeys(r.seed for r in runs), (0, 0.18, -0.18, 0.3))}
    for run in runs:
        x, colour = names.index(_name(run)) + offset.get(run.seed, 0), COLOURS.get(run.digit, "0.3")
        axes.plot(x, run.vs_mean / run.vs_reconstruction, "_", color="0.2", ms=14, mew=1.8)
        axes.plot(x, run.vs_mean, "o", color=colour, ms=7, alpha=0.85, mew=0)
    mean = np.mean([run.vs_mean for run in runs])
    axes.axhline(1, color="0.4", lw=1, ls="--", label="the mean of the observed frames")
    axes.axhline(mean, color="#d55e00", lw=1.2, label=f"mean of the runs, {mean:.2f}")
    axes.plot([], [], "_", color="0.2", ms=14, mew=1.8, label="the VAE's own reconstruction")
    axes.plot([], [], "o", color="0.4", ms=7, label="predicted, one dot a seed")
    axes.set_xticks(range(len(names)), names)
    axes.set(xlabel="digit : unseen exemplar", ylabel="pixel error / mean frame's",
             ylim=(0, 1.45 * max(1.0, *(run.vs_mean for run in runs))))
    axes.set_title("error of 100 predicted frames", fontsize=10, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, loc="upper right", ncols=2, frameon=False)


def _exemplar(text: str) -> tuple[int, int]:
    try:
        digit, index = map(int, text.split(":"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected DIGIT:INDEX, such as 8:0") from None
    if digit not in range(10) or index not in range(40):
        raise argparse.ArgumentTypeError(f"{text!r}: expected a digit and an index below 40")
    return digit, index


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m examples.rotating_digits", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", "--seeds", dest="seeds", type=int, nargs="+", metavar="N",
                        help="seeds of the VAE's weights and training (default: 0 1 2)")
    parser.add_argument("--exemplars", type=_exemplar, nargs="+", default=list(CHOSEN),
                        metavar="DIGIT:INDEX", help="which of the 40 unseen exemplars of each digit"
                        " to predict (default: 8:0 1:0 0:0 8:1 1:1); the VAE knows 0, 1 and 8")
    parser.add_argument("--balanced", action="store_true",
                        help="a second table, of the first five unseen exemplars of 0, 1 and 8 "
                        "alike (15 in all)")
    parser.add_argument("--fast", action="store_true",
                        help="a smoke test: one seed and 300 training steps in place of 1000")
    parser.add_argument("--out", type=Path, default=Path("outputs/rotating_digits"), metavar="DIR",
                        help="where rotating_digits.png and summary.json go (default: %(default)s)")
    options = parser.parse_args(argv)
    options.seeds = options.seeds or ([0] if options.fast else [0, 1, 2])
    return options


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the study; returns what summary.json holds."""
    options = parse(argv)
    start, seconds_vae = time.perf_counter(), 0.0
    sequences, vmp, runs, balanced = training_set(), jp.VMP(lds, progress=False), [], []
    for seed in options.seeds:
        clock = time.perf_counter()
        vae, _, losses = train(DigitVAE(rngs=nnx.Rngs(seed)), sequences, jax.random.key(seed),
                               steps=300 if options.fast else 1000, label=f"VAE, seed {seed}")
        jax.block_until_ready(losses)
        seconds_vae += time.perf_counter() - clock
        runs += [fit(vmp, vae, seed, *exemplar) for exemplar in options.exemplars]
        if options.balanced:
            balanced += [fit(vmp, vae, seed, *exemplar) for exemplar in BALANCED]
    print(table(runs))
    if balanced:
        print("\nthe same for five exemplars of each digit\n" + table(balanced))
    draw(runs, options.out / "rotating_digits.png")
    fits = [run.seconds for run in (*runs, *balanced)]
    summary = {
        "seconds_total": time.perf_counter() - start,
        "seconds_vae": seconds_vae,
        "seconds_vmp": sum(fits),
        "ms_per_warm_fit": 1e3 * float(np.median(fits[1:] or fits)),
        "compilations": runs[-1].compilations,
        "seeds": options.seeds,
        "fast": options.fast,
        **_means(runs),
        "balanced": _means(balanced) if balanced else None,
        "runs": [{"seed": run.seed, "digit": run.digit, "exemplar": run.index,
                  "moduli": abs(run.turns).tolist(),
                  "degrees": np.degrees(np.angle(run.turns)).tolist(),
                  "vs_mean": run.vs_mean, "vs_reconstruction": run.vs_reconstruction}
                 for run in (*runs, *balanced)],
    }
    (options.out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    print(f"\n{summary['seconds_total']:.0f} s: VAEs {seconds_vae:.0f} s, message passing "
          f"{summary['seconds_vmp']:.1f} s of which {summary['ms_per_warm_fit']:.0f} ms an exemplar"
          f" once compiled; {options.out}/rotating_digits.png, summary.json")
    limit = 0.85 if options.fast else 0.75  # one briefly trained VAE varies more than three
    mean = summary["vs_mean"]["mean"]
    assert mean < limit, f"{mean:.3f} of the mean frame's error, expected below {limit}"
    return summary


if __name__ == "__main__":
    main()
