"""Times of the 4-dimensional LDS and of a plan, cold and warm: `python -m tests.benchmarks.lds`."""

from __future__ import annotations

import time

import numpy as np

import jopa_ppl as jp
from examples.quickstart import controlled_lds


def timed(run, repeats: int) -> tuple[float, float]:
    """Seconds of the first call, and the median of the next ones."""
    start = time.perf_counter()
    run()
    first, later = time.perf_counter() - start, []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        later.append(time.perf_counter() - start)
    return first, float(np.median(later))


def main() -> None:
    rng = np.random.default_rng(0)
    d, T, H = 4, 200, 20
    A = np.linalg.qr(rng.normal(size=(d, d)))[0] * 0.97
    B, x, y = rng.normal(size=(d, 1)), np.zeros(d), []
    u = rng.normal(size=(T, 1)).astype(np.float32)
    for t in range(T):
        y.append(x + 0.05 * rng.normal(size=d))
        x = A @ x + B @ u[t] + 0.1 * rng.normal(size=d)
    y = np.array(y, np.float32)

    def learn():
        return jp.VMP(jp.condition(controlled_lds, {"u": u}), progress=False).run(y, T=T, d=d)

    first, warm = timed(learn, 20)
    learned = learn()
    goal = np.asarray(jp.sparse(H, {0: np.zeros(d), -1: np.full(d, 0.5)}))

    def plan():
        return jp.VMP(jp.given(controlled_lds, learned), decide="u").run(goal, T=H, d=d).state

    cold, fast = timed(plan, 100)
    print(f"learn, d = {d}, T = {T}, {learned.num_iters} sweeps: "
          f"first {first:.1f} s, warm {1e3 * warm:.1f} ms, "
          f"{1e3 * warm / learned.num_iters:.2f} ms a sweep")
    print(f"plan, horizon {H}: first {cold:.1f} s, warm {1e3 * fast:.2f} ms")


if __name__ == "__main__":
    start = time.perf_counter()
    main()
    print(f"all, imports aside: {time.perf_counter() - start:.1f} s")
