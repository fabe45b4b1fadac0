"""Judge many random programs: `python -m tests.fuzz.run --seeds 2000`, or show one: `--show 17`."""

from __future__ import annotations

import argparse
import time
from collections import Counter

from tqdm import tqdm

from tests.caches import forget
from tests.fuzz.counting import in_time
from tests.fuzz.families import FAMILIES, single, written
from tests.fuzz.judge import judge


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.run", description=__doc__)
    parser.add_argument("--family", choices=sorted(FAMILIES), nargs="*", default=sorted(FAMILIES),
                        help="kinds of programs")
    parser.add_argument("--seeds", type=int, default=60, help="programs in all")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after them")
    parser.add_argument("--seconds", type=int, default=180, help="a program at most (180)")
    parser.add_argument("--deep", action="store_true",
                        help="draws, densities, predictions and files as well")
    parser.add_argument("--show", type=int, help="print the program of a seed and judge it")
    args = parser.parse_args()
    if args.show is not None:
        for family in args.family:
            program = written(family, args.show)
            print(program, "\n\n#", *judge(program, single(args.show), args.deep))
        return
    counts: Counter[str] = Counter()
    begun = time.perf_counter()
    for i in tqdm(range(args.seeds), mininterval=30):
        family, seed = args.family[i % len(args.family)], args.first + i // len(args.family)
        verdict = in_time(written(family, seed), single(seed), args.deep, args.seconds)
        counts[verdict.kind] += 1
        if verdict.kind != "right":
            print(f"{verdict.kind}: --family {family} --show {seed}: {verdict.text}", flush=True)
        if i % 20 == 19:
            forget()
        spent = time.perf_counter() - begun
        if spent > 60 * args.minutes:
            break
    kinds = ("right", "refused", "wrong", "warned", "eaten", "unjudged")
    print(", ".join(f"{counts[kind]} {kind}" for kind in kinds)
          + f"; {spent / (i + 1):.2f} s a program")


if __name__ == "__main__":
    main()
