"""F, time and means beside NumPyro's own engines, on every program of the table that is right:
`python -m tests.peers.study --out study.jsonl`, and `--nuts` for means and spreads.

A line a program, appended to a file, so that a study that was cut off goes on. F of all engines is
the same thing, -ELBO by draws in nats: of VMP by 1,000 draws of q, of AutoMultivariateNormal (Adam,
3,000 steps, the better of two rates) by 1,000 draws of its guide. Seconds are of a first run, with
tracing and compiling, and of a second one; of SVI those of its better rate alone. Programs of
discrete latents do not run under SVI, and count for means and spreads alone, where NUTS sums them
out. NUTS begins anywhere; where a mean is off, two more chains begin at VMP's means, since labels
may be permuted and modes may be many, and the largest R-hat of a site says if they have mixed. Of
programs with discrete latents VMP keeps the best of eight starts.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from pathlib import Path
from typing import Any

import jax
import numpy as np
from numpyro.diagnostics import split_gelman_rubin
from numpyro.infer import MCMC, NUTS, SVI, Trace_ELBO, init_to_value
from numpyro.infer.autoguide import AutoMultivariateNormal
from numpyro.optim import Adam
from tqdm.auto import tqdm

from tests.caches import forget

from .judges import DRAWS, beside, energy, nuts, unconstrained
from .row import Row
from .rows import ROWS
from .test_peers import fit

RATES, STEPS = (0.1, 0.01), 3000
NEAR, MEANS = 0.1, 0.3          # nats a latent; sds of NUTS
MIXED = 1.05                    # the largest R-hat of chains that have
STARTS = 8                      # of programs with discrete latents, the best of which is kept


def ours(row: Row) -> tuple[Any, dict[str, Any]]:
    """The posterior of a row, and what it took."""
    took = []
    for _ in range(2):
        start = time.perf_counter()
        found = fit(row)
        took.append(time.perf_counter() - start)
    said = energy(found, row.model, row.args)
    return found, {"size": said["size"], "F": float(said["F"] + said["gap"]),
                   "error": float(said["error"]), "told": float(said["F"]), "seconds": took}


def theirs(row: Row) -> dict[str, Any]:
    """The better of two runs of SVI, in which a guide is one Gaussian of all latents."""
    best: dict[str, Any] = {"svi_F": float("inf")}
    for rate in RATES:
        start, took = time.perf_counter(), []
        guide = AutoMultivariateNormal(row.model)
        svi = SVI(row.model, guide, Adam(rate), Trace_ELBO())
        begun = svi.init(jax.random.key(0), *row.args)
        run = jax.jit(lambda state, svi=svi: jax.lax.fori_loop(
            0, STEPS, lambda _, s: svi.update(s, *row.args)[0], state))
        for _ in range(2):
            state = jax.block_until_ready(run(begun))
            took.append(time.perf_counter() - start)
            start = time.perf_counter()
        loss = float(Trace_ELBO(DRAWS).loss(jax.random.key(1), svi.get_params(state), row.model,
                                            guide, *row.args))
        if loss < best["svi_F"]:
            best = {"svi_F": loss, "svi_seconds": took, "svi_rate": rate}
    return best


def again(found: Any, row: Row) -> dict[str, tuple[float, float, float]]:
    """{site: largest difference of a mean in sds of NUTS, median ratio of sds, largest R-hat}, of
    two chains that begin at VMP's means."""
    space = unconstrained(row.model, row.args)
    drawn = space.flatten(found.sample(0, (4000,)))
    begin = init_to_value(values=space.unflatten(drawn.mean(0)))
    chains = MCMC(NUTS(row.model, target_accept_prob=0.9, init_strategy=begin), num_warmup=1000,
                  num_samples=2000, num_chains=2, chain_method="vectorized", progress_bar=False)
    chains.run(jax.random.key(1), *row.args)
    theirs = np.asarray(space.flatten(chains.get_samples()))
    mixed = np.asarray(split_gelman_rubin(theirs.reshape(2, -1, theirs.shape[-1])))
    names = np.array(space.names)
    return {n: (*said, float(mixed[names == n].max()))
            for n, said in beside(np.asarray(drawn), theirs, space.names).items()}


def sampled(found: Any, row: Row) -> dict[str, Any]:
    told: dict[str, Any] = {"nuts": nuts(found, row.model, row.args, float("inf"))}
    return told | ({"again": again(found, row)} if off(told) > MEANS else {})


def off(told: dict[str, Any]) -> float:
    return max(said[0] for said in told["nuts"].values())


def study(row: Row, by_nuts: bool) -> dict[str, Any]:
    """What the engines say of one row; what failed, in words."""
    told: dict[str, Any] = {"name": row.name}
    space = unconstrained(row.model, row.args)
    if not space.names:
        return told | {"failed": "no continuous latents: its judge sums over all values"}
    if space.discrete:
        row = row._replace(options={"starts": STARTS, **row.options})
    found, mine = ours(row)
    told |= mine
    for what, run in (("svi", lambda: theirs(row)),
                      ("nuts", lambda: sampled(found, row) if by_nuts else {})):
        try:
            told |= run()
        except Exception as error:      # whatever engines of others make of a program
            told[f"no_{what}"] = f"{type(error).__name__}: {error}"[:200]
    return told


def reason(told: dict[str, Any]) -> tuple[str, str]:
    """How a program stands whose means are off where NUTS begins anywhere."""
    if "again" not in told:
        return "not run again", ""
    site, (far, ratio, mixed) = max(told["again"].items(), key=lambda kv: kv[1][0])
    line = f"again {site}: {far:.2f}, ratio {ratio:.2f}, R-hat {mixed:.2f}"
    if far <= MEANS:
        return "within, where NUTS begins at VMP's means", line
    return ("NUTS has not mixed" if mixed > MIXED else "off"), line


def summary(rows: list[dict[str, Any]]) -> str:
    """The shares, and the exceptions."""
    both = [r for r in rows if np.isfinite(r.get("svi_F", np.nan))]
    over = {r["name"]: (r["F"] - r["svi_F"]) / r["size"] for r in both}
    near = [n for n, nats in over.items() if nats <= NEAR]
    ratio = np.array([np.divide(r["svi_seconds"], r["seconds"]) for r in both]).reshape(-1, 2)
    lines = [f"{len(rows)} programs, {len(both)} of which run under SVI as well",
             f"F within {NEAR} nat a latent of AutoMultivariateNormal's or below: {len(near)} of "
             f"{len(both)}",
             *(f"{what} in less time: {(x > 1).sum()}; ratio of seconds, median {np.median(x):.1f}"
               for what, x in zip(("a first run", "a second run"), ratio.T))]
    lines += [f"    above: {n}: {over[n]:.2f} nats a latent" for n in over if n not in near]
    with_nuts = [r for r in rows if "nuts" in r]
    if with_nuts:
        far = [r for r in with_nuts if off(r) > MEANS]
        spread = [float(np.median([s for _, s in r["nuts"].values()])) for r in with_nuts]
        lines += [f"means within {MEANS} of NUTS's sds: {len(with_nuts) - len(far)} of "
                  f"{len(with_nuts)}; ratio of sds, median {np.median(spread):.2f}, least "
                  f"{min(spread):.2f}"]
        verdicts: dict[str, list[str]] = {"within, where NUTS begins at VMP's means": [],
                                          "NUTS has not mixed": [], "off": [], "not run again": []}
        for r in far:
            verdict, line = reason(r)
            verdicts[verdict].append(f"        {r['name']}: {off(r):.2f} sds; {line}")
        for verdict, told in verdicts.items():
            lines += [f"    {verdict}: {len(told)}", *told]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.peers.study", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("study.jsonl"), help="a line a program")
    parser.add_argument("--nuts", action="store_true", help="means and spreads beside NUTS, too")
    parser.add_argument("--only", nargs="+", default=None, help="rows of these names")
    parser.add_argument("--told", action="store_true", help="what the file says; nothing is run")
    args = parser.parse_args()
    done = ([json.loads(line) for line in args.out.read_text().splitlines()]
            if args.out.exists() else [])
    wanted = [r for r in ROWS if (args.only is None or r.name in args.only)
              and r.name not in {d["name"] for d in done}]
    with jax.enable_x64(True), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for row in tqdm([] if args.told else wanted, unit="program"):
            try:
                done.append(study(row, args.nuts))
            except Exception as error:
                done.append({"name": row.name, "failed": f"{type(error).__name__}: {error}"[:200]})
            with args.out.open("a") as file:
                file.write(json.dumps(done[-1]) + "\n")
            forget()
    print(summary([d for d in done if "failed" not in d]))
    for d in done:
        if "failed" in d:
            print(f"    not run: {d['name']}: {d['failed']}")


if __name__ == "__main__":
    main()
