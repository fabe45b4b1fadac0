"""What does VMP give, what would SVI or NUTS have given, how far apart are they, at what cost?

    python -m examples.vmp_vs_svi

The same unmodified programs under every engine:

    nile      local level with two unknown precisions, T = 100
    lds       controlled LDS, d = 4, T = 200, unknown A, B, W, 5 % of the frames missing
    pendulum  frames of Gymnasium's Pendulum-v1, its torques up to 10 N m in place of 2, seen
              through a briefly trained VAE; second-order dynamics with unknown A, B, c, W

Free energies are -ELBO of one and the same log joint. On the pendulum SVI scores the frames through
the decoder while VMP takes the encoder's messages ("vmp linearise": the decoder's own, linearised);
there VMP's belief is scored through the decoder too, by Monte Carlo, so that the numbers can be
subtracted. NUTS starts at VMP's means: on the LDS
its warm-up from the priors' means alone takes minutes. Every repeat compiles afresh. Writes a
picture a case, comparison.txt and summary.json to outputs/vmp_vs_svi/.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import numpyro.distributions as dist
from numpyro.infer.initialization import init_to_mean, init_to_value

import jopa_ppl as jp
from examples._arm import collect
from jopa_ppl.engines import UseNUTS, UseSVI, UseVMP
from jopa_ppl.models.vae import train
from models.lds import controlled_lds
from models.local_level import NILE, local_level
from models.second_order import dynamics

GUIDES = ("normal", "multivariate", "chain", "coupled")


class Case(NamedTuple):
    """A program, its data, seconds for each guide, and the seconds that NUTS may take (0: none)."""

    model: Callable
    args: tuple
    kwargs: dict
    svi: float
    nuts: float
    guides: tuple[str, ...]
    shown: tuple[str, tuple[int, ...]]
    more: tuple[UseVMP, ...] = ()


class Sensor:
    """Stands in for a VAE: the state seen in noise."""

    def likelihood(self, x: jax.Array) -> dist.Distribution:
        return dist.Normal(x, 0.3).to_event(1)


def nile(fast: bool, seed: int) -> Case:
    """The local level model on the Nile series, in units of 150 around 900."""
    y = ((NILE - 900) / 150).astype(np.float32)
    return Case(local_level, (y,), {"T": len(y)}, 0.5 if fast else 2.0, 30.0, GUIDES,
                ("level", ()))


def lds(fast: bool, seed: int) -> Case:
    """Two damped planes turning by 20 and 50 degrees a step, pushed by one action."""
    rng = np.random.default_rng(seed)
    T, A, B = 60 if fast else 200, np.zeros((4, 4)), np.array([0.5, -0.5, 0.3, 0.8])
    for i, angle in enumerate(np.radians([20, 50])):
        c, s = np.cos(angle), np.sin(angle)
        A[2 * i:2 * i + 2, 2 * i:2 * i + 2] = 0.95 * np.array([[c, -s], [s, c]])
    u, x, y = rng.normal(size=(T, 1)).astype(np.float32), rng.normal(size=4), []
    for t in range(T):
        y.append(x + 0.3 * rng.normal(size=4))
        x = A @ x + B * u[t] + 0.2 * rng.normal(size=4)
    y = np.array(y, np.float32)
    y[rng.random(T) < 0.05] = np.nan
    return Case(jp.condition(controlled_lds, {"u": u}), (y,),
                {"T": T, "d": 4, "du": 1, "vae": Sensor()}, 1.0 if fast else 5.0,
                0.0 if fast else 400.0, GUIDES, ("A", (0, 0)))


def pendulum(fast: bool, seed: int) -> Case:
    """Frames of 24 x 24 pixels from 4 episodes, a VAE trained for a few hundred steps."""
    data = collect(4, seed, 10.0, processes=False)          # JAX has threads by now
    vae, _ = train(data.frames, jax.random.key(seed), steps=60 if fast else 300, inits=2,
                   progress=False)
    frames, torques = (x[:, :30].swapaxes(0, 1) for x in data)
    kwargs = {"T": 30, "trajectories": 4, "vae": vae, "action_scale": 10.0}
    return Case(jp.condition(dynamics, {"u": torques}), (frames,), kwargs,
                1.0 if fast else 6.0, 0.0, ("normal", "chain", "coupled"), ("A", (0, 0)),
                (UseVMP(max_iters=100, messages={"y": "linearise"}, name="vmp linearise"),))


CASES = {"nile": nile, "lds": lds, "pendulum": pendulum}


def afresh(case: Case) -> Case:
    """The same program as new functions, with nothing compiled."""
    jax.clear_caches()
    model = case.model
    inner = model.fn if isinstance(model, type(jp.condition(local_level, {}))) else model

    def program(*args: Any, **kwargs: Any) -> None:
        inner(*args, **kwargs)

    return case._replace(model=program if inner is model else jp.condition(program, model.values))


def measure(case: Case, repeats: int, seed: int) -> list[jp.Comparison]:
    """`repeats` comparisons; NUTS runs in the first one and, where it is quick, in all."""
    found, begin = [], init_to_mean
    if case.nuts:
        posterior = jp.VMP(case.model).run(*case.args, **case.kwargs)
        begin = init_to_value(values={n: posterior.mean(n) for n in posterior.sites})
    for i in range(repeats):
        fresh = afresh(case)
        engines: list[Any] = [UseVMP(max_iters=1000), *case.more, *map(UseSVI, case.guides)]
        budget = {e.name: case.svi for e in engines}
        if case.nuts and (i == 0 or found[0]["nuts"].warm < 5):
            engines.append(UseNUTS(200, 300, max_tree_depth=8, init=begin))
            budget["nuts"] = case.nuts
        found.append(jp.compare(fresh.model, *fresh.args, engines=engines, budget=budget,
                                rng_key=jax.random.key(seed + i), progress=False, **fresh.kwargs))
    return found


def summarise(comparisons: list[jp.Comparison]) -> dict[str, Any]:
    """Medians (and least, greatest) over repeats, by engine."""
    def spread(values: list[float]) -> dict[str, float | None]:
        """None: not reached (JSON has no infinity)."""
        found = {"median": np.median(values), "least": np.min(values), "greatest": np.max(values)}
        return {k: float(v) if np.isfinite(v) else None for k, v in found.items()}

    found: dict[str, Any] = {}
    for name in comparisons[0].runs:
        runs = [c[name] for c in comparisons if name in c.runs]
        row = {"repeats": len(runs), "first_result_s": spread([r.cold for r in runs]),
               "warm_s": spread([r.warm for r in runs]), "steps": runs[0].steps}
        if name != "nuts":
            row["free_energy"] = spread([r.free_energy for r in runs])
            row["free_energy_mc_error"] = runs[0].error
        else:
            row |= {"divergences": runs[0].divergences, "rhat": runs[0].rhat, "ess": runs[0].ess,
                    "note": runs[0].note}
        if name.startswith("svi"):
            vmps = [c["vmp"] for c in comparisons]
            row["seconds_to_within_1_nat"] = spread(
                [r.reach(v.free_energy + 1) for r, v in zip(runs, vmps)])
            row["gap_at_100_x_vmp_time"] = spread(
                [gap_at(r, 100 * v.warm) - v.free_energy for r, v in zip(runs, vmps)])
            row["gap_at_the_end"] = spread(
                [r.free_energy - v.free_energy for r, v in zip(runs, vmps)])
        row["against_nuts"] = {s: g._asdict() for s, g in comparisons[0].gaps(name).items()}
        found[name] = row
    return found


def gap_at(run: Any, seconds: float) -> float:
    """The free energy at the last look before `seconds`; the first look if there was none."""
    return float(run.bounds[max(np.searchsorted(run.times, seconds, side="right") - 1, 0)])


def draw(name: str, comparison: jp.Comparison, shown: tuple, path: Path) -> None:
    """Free energy against time, and one marginal of every engine."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    comparison.plot_free_energy(left).set_title(name)
    comparison.plot_marginals(*shown, ax=right).set_title(f"{name}: one marginal")
    figure.savefig(path, dpi=120)


def main(argv: list[str] | None = None) -> dict:
    """Run the chosen cases; returns what summary.json holds."""
    parser = argparse.ArgumentParser(prog="python -m examples.vmp_vs_svi", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES),
                        help="which programs, see above (all)")
    parser.add_argument("--repeats", type=int, default=5,
                        help="of every engine, compiled afresh each time (5)")
    parser.add_argument("--seed", type=int, default=0, help="of data, training and draws (0)")
    parser.add_argument("--fast", action="store_true",
                        help="a smoke test: one repeat, a smaller LDS without NUTS, a worse VAE")
    parser.add_argument("--out", type=Path, default=Path("outputs/vmp_vs_svi"), metavar="DIR",
                        help="where pictures, comparison.txt and summary.json go (%(default)s)")
    args = parser.parse_args(argv)
    jax.config.update("jax_enable_compilation_cache", False)      # else "cold" would not be
    args.out.mkdir(parents=True, exist_ok=True)
    begun, summary, text = time.perf_counter(), {"seed": args.seed}, ""
    for name in args.cases:
        case = CASES[name](args.fast, args.seed)
        comparisons = measure(case, 1 if args.fast else args.repeats, args.seed)
        summary[name] = summarise(comparisons)
        draw(name, comparisons[0], case.shown, args.out / f"{name}.png")
        part = f"{name}, first repeat\n{comparisons[0]}\n\n"
        print(part)
        text += part
    summary["seconds_total"] = time.perf_counter() - begun
    (args.out / "comparison.txt").write_text(text)
    (args.out / "summary.json").write_text(json.dumps(summary, indent=2))
    return summary


if __name__ == "__main__":
    main()
