"""Effective draws a second of NUTS on a whole program, and on it with its states integrated out.

    python -m tests.benchmarks.marginalised [--cases nile lds] [--repeats 3] [--warmup 300]

The README's LDS (d = 2, T = 200) and the Nile (T = 100). Both samplers start at the means of VMP,
run as many chains side by side and are timed once compiled, warm-up included, one after the other
in every repeat, so that only ratios are to be compared. The marginalised one warms up for 100
steps, its engine's default, as its mass matrix stands; the other for `--warmup` steps. The ESS is
the least over all elements of all sites, states included, as `jp.compare` reports it.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from numpyro.infer.initialization import init_to_value

import jopa_ppl as jp
from examples.quickstart import simulate
from jopa_ppl.engines import Program, UseMarginalised, UseNUTS
from models.local_level import NILE, local_level


class Case(NamedTuple):
    model: Callable
    args: tuple
    kwargs: dict


def nile() -> Case:
    y = ((NILE - 900) / 150).astype(np.float32)
    return Case(local_level, (y,), {"T": len(y)})


def lds() -> Case:
    """The program of the README, learned from 200 steps."""
    text = (Path(__file__).parents[2] / "README.md").read_text()
    namespace: dict = {}
    exec(re.search(r"```python\n(.*?)# learn", text, re.S).group(1), namespace)
    rng = np.random.default_rng(0)
    actions = rng.normal(size=(200, 1)).astype(np.float32)
    y = simulate(actions, rng)[:200].astype(np.float32)
    return Case(jp.condition(namespace["controlled_lds"], {"u": actions}), (y,), {"T": 200})


CASES = {"nile": nile, "lds": lds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--warmup", type=int, default=300)
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--chains", type=int, default=2)
    parser.add_argument("--budget", type=float, default=400.0, help="seconds a sampler may take")
    opts = parser.parse_args()
    for name in opts.cases:
        model, args, kwargs = CASES[name]()
        posterior = jp.VMP(model, progress=False).run(*args, **kwargs)
        start = init_to_value(values={n: posterior.mean(n) for n in posterior.sites})
        sizes = opts.warmup, opts.samples, opts.chains
        engines = {"whole": UseNUTS(*sizes, init=start), "marginalised": UseMarginalised(
            num_samples=opts.samples, num_chains=opts.chains)}
        ratios = []
        for i in range(opts.repeats):
            rates = {}
            for label, engine in engines.items():
                run = engine.run(Program(model, args, kwargs), jax.random.key(i), opts.budget, 0,
                                 False)
                rates[label] = (run.ess or 0.0) / run.warm
                print(f"{name} {label:13s} ESS {run.ess or 0:6.1f} in {run.warm:7.2f} s "
                      f"({run.cold:.1f} s the first time), {run.steps} leapfrog steps, r-hat "
                      f"{run.rhat or np.nan:.3f}, {run.divergences} divergences: "
                      f"{rates[label]:.3g} a second {run.note}", flush=True)
            ratios.append(rates["marginalised"] / rates["whole"] if rates["whole"] else np.inf)
        print(f"{name}: {np.median(ratios):.3g} times the effective draws a second "
              f"({min(ratios):.3g} to {max(ratios):.3g})", flush=True)


if __name__ == "__main__":
    main()
