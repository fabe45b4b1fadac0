"""F and moments of many programs, to hold a redesign to: `python -m tests.record --write`, then
`python -m tests.record` after every move (`--against FILE` for another record than the default).

Every program of `programs.py`, its plan where it has actions, and random programs of `fuzz/`, in
float64. A difference is told in units of the belief: of a mean in spreads (or of itself, where that
is larger), of a variance as a ratio, of F in nats (or of itself).
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

import jopa_ppl as jp
from tests.caches import forget
from tests.fuzz.families import FAMILIES, written
from tests.programs import cases, lds, simulate

TOLERANCE = 1e-12
DEFAULT = Path(__file__).parents[1] / "outputs" / "record.npz"


def programs(seeds: int) -> Iterator[tuple[str, jp.VMP, tuple, dict]]:
    """(name, VMP, arguments) of all there is to record."""
    for name, case in cases().items():
        vmp = jp.VMP(case.model, max_iters=20, tol=0.0, progress=False)
        yield name, vmp, case.args, case.kwargs
    learned = jp.VMP(jp.condition(lds, {"u": simulate(8)[1]}), progress=False).run(
        simulate(8)[0], T=8, C=np.eye(2))
    goal = jp.sparse(6, {0: np.zeros(2), 5: np.ones(2)})
    for update in (False, True):
        planner = jp.VMP(jp.given(lds, learned, update=update), decide="u", progress=False)
        yield f"plan, update={update}", planner, (goal,), {"T": 6, "C": np.eye(2)}
    for family in sorted(FAMILIES):
        for seed in range(seeds):
            program = written(family, seed)
            vmp = jp.VMP(program.model(), max_iters=20, tol=0.0, progress=False)
            yield f"{family} {seed}", vmp, (program.data,), {}


def record(seeds: int) -> dict[str, np.ndarray]:
    """{program/quantity: value}; a program that is refused has its error's first line."""
    found: dict[str, np.ndarray] = {}
    count = len(cases()) + 2 + seeds * len(FAMILIES)
    for i, (name, vmp, args, kwargs) in enumerate(tqdm(programs(seeds), total=count)):
        try:
            posterior = vmp.run(*args, **kwargs)
        except jp.JopaError as error:
            found[f"{name}/refused"] = np.asarray(str(error).splitlines()[0])
            continue
        found[f"{name}/F"] = np.asarray(posterior.free_energy)
        for site in posterior.sites:
            found[f"{name}/{site}/mean"] = np.asarray(posterior.mean(site))
            found[f"{name}/{site}/variance"] = np.asarray(posterior.variance(site))
        if i % 20 == 19:
            forget()
    return found


def gap(key: str, old: np.ndarray, new: dict[str, np.ndarray], record: dict[str, np.ndarray]
        ) -> float:
    """How far a quantity moved."""
    value = new.get(key)
    if value is None or value.shape != old.shape or value.dtype.kind != old.dtype.kind:
        return np.inf
    if old.dtype.kind == "U":
        return 0.0 if value == old else np.inf
    scale = np.abs(old)
    if key.endswith("/F"):
        scale = np.maximum(scale, 1.0)
    elif key.endswith("/mean"):
        scale = scale + np.sqrt(record[key.removesuffix("mean") + "variance"])
    off = np.abs(value - old) / np.where(scale == 0, 1.0, scale)
    return float(np.nan_to_num(off, nan=np.inf).max(initial=0.0))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.record", description=__doc__)
    parser.add_argument("--write", action="store_true", help="make the record anew")
    parser.add_argument("--against", type=Path, default=DEFAULT, help="the file of the record")
    parser.add_argument("--seeds", type=int, default=20, help="random programs of a family")
    args = parser.parse_args()
    with jax.enable_x64(True), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        new = record(args.seeds)
    if args.write:
        args.against.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(args.against, **new)
        print(f"{len(new)} quantities in {args.against}")
        return
    old = dict(np.load(args.against))
    gaps = {key: gap(key, value, new, old) for key, value in old.items()}
    worst = sorted(gaps, key=gaps.get, reverse=True)[:10]
    for key in worst:
        print(f"{gaps[key]:.2g}  {key}")
    far = sum(g > TOLERANCE for g in gaps.values())
    print(f"{far} of {len(gaps)} quantities are further than {TOLERANCE} from the record")
    sys.exit(bool(far))


if __name__ == "__main__":
    main()
