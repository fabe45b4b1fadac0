"""What watching for rounding costs a sweep, in one run: `python -m tests.benchmarks.rounding`.

The same programs with and without the precisions that tell how many digits a belief has lost
(`jopa_ppl.engine.rounding.digits`): medians of alternating runs of a fixed number of sweeps.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from unittest import mock

import numpy as np

import jopa_ppl as jp
from examples.quickstart import controlled_lds
from jopa_ppl.beliefs import Belief, MatrixBelief, TreeBelief
from jopa_ppl.beliefs.gaussian import GaussianBelief
from jopa_ppl.engine.engine import Engine

SIZES = ((2, 100), (4, 1_000), (8, 1_000))
SWEEPS = 60


@contextmanager
def unwatched() -> Iterator[None]:
    """While no message says how precise it is."""
    with ExitStack() as stack:
        for form in (GaussianBelief, MatrixBelief, TreeBelief):
            stack.enter_context(mock.patch.object(form, "precisions", Belief.precisions))
        stack.enter_context(mock.patch.object(
            Engine, "unwatched", lambda self, _: [()] * len(self.blocks)))
        yield


def learn(d: int, T: int, watched: bool) -> Callable[[], float]:
    """CPU seconds a sweep of a run that is compiled with or without what is watched."""
    rng = np.random.default_rng(0)
    u, y = rng.normal(size=(T, 1)), rng.normal(size=(T, d)).cumsum(0)
    # Another tolerance is another program, so that each is compiled for itself.
    vmp = jp.VMP(jp.condition(controlled_lds, {"u": u}), max_iters=SWEEPS,
                 tol=1e-14 if watched else 2e-14, progress=False)
    seen = nullcontext() if watched else unwatched()

    def run() -> float:
        begun = time.process_time()
        posterior = vmp.run(y, T=T, d=d)
        return (time.process_time() - begun) / posterior.num_iters

    with seen:
        run()
    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=30, help="timed runs of each")
    repeats = parser.parse_args().repeats
    print("    d       T  sweep, ms  unwatched, ms  ratio")
    for d, T in SIZES:
        both = [learn(d, T, watched) for watched in (True, False)]
        times = np.array([[run() for run in both] for _ in range(repeats)])
        mine, plain = 1e3 * np.median(times, 0)
        ratio = np.median(times[:, 0] / times[:, 1])
        print(f"{d:5d} {T:7d}  {mine:9.3f}  {plain:13.3f}  {ratio:.3f}")


if __name__ == "__main__":
    main()
