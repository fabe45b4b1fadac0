"""What XLA's flag for small loops does on a CPU, in processes with and without it, side by side:
`python -m tests.benchmarks.flags`.

Chains of several sizes, large matrices (a Kalman filter of 64 numbers), a convolutional network's
gradient, and the learning of an LDS. A ratio above 1 says that the flag makes it faster.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import numpy as np

FLAG = "--xla_backend_extra_options=xla_cpu_small_while_loop_byte_threshold=65536"


def cases() -> Iterator[tuple[str, Callable[[], object]]]:
    """Names and calls, which block until they are done."""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    import jopa_ppl as jp
    from examples.quickstart import controlled_lds
    from jopa_ppl.linalg.chain import marginals

    jax.config.update("jax_enable_x64", True)
    rng = np.random.default_rng(0)
    for d, T in ((2, 100), (2, 10_000), (4, 1_000), (16, 1_000), (64, 200)):
        diag = np.broadcast_to(4 * np.eye(d), (T, d, d))
        off = np.broadcast_to(0.3 * rng.normal(size=(d, d)) / d, (T - 1, d, d))
        chain = jax.jit(lambda J, v, off=off: marginals(J, off, v, "sequential"))
        vector = rng.normal(size=(T, d))
        yield (f"chain, d = {d}, T = {T}",
               lambda f=chain, J=diag, v=vector: jax.block_until_ready(f(J, v)))

    net = nnx.Sequential(nnx.Conv(1, 16, (3, 3), rngs=nnx.Rngs(0)), nnx.relu,
                         nnx.Conv(16, 1, (3, 3), rngs=nnx.Rngs(1)))
    images = jnp.asarray(rng.normal(size=(32, 32, 32, 1)), jnp.float32)
    slope = nnx.jit(nnx.grad(lambda net, x: jnp.mean((net(x) - x) ** 2)))
    yield "gradient of a convolutional network", lambda: jax.block_until_ready(slope(net, images))

    u = rng.normal(size=(200, 1))
    y = np.cumsum(rng.normal(size=(200, 4)), 0) / 10
    learn = jp.VMP(jp.condition(controlled_lds, {"u": u}), progress=False, tol=0, max_iters=20)
    yield "an LDS learned, d = 4, T = 200, 20 sweeps", lambda: learn.run(y, T=200, d=4)


def measure(repeats: int = 15) -> dict[str, float]:
    """Median milliseconds of each case in this process."""
    import warnings
    warnings.simplefilter("ignore")
    found = {}
    for name, run in cases():
        times = []
        for i in range(repeats + 1):
            start = time.perf_counter()
            run()
            if i:
                times.append(1e3 * (time.perf_counter() - start))
        found[name] = float(np.median(times))
    return found


def main() -> None:
    if sys.argv[1:] == ["--measure"]:
        print(json.dumps(measure()))
        return
    runs = []
    for _ in range(3):
        runs.append([])
        for flags in ("", FLAG):
            out = subprocess.run([sys.executable, "-m", "tests.benchmarks.flags", "--measure"],
                                 env={**os.environ, "XLA_FLAGS": flags}, check=True,
                                 capture_output=True, text=True).stdout
            runs[-1].append(json.loads(out.splitlines()[-1]))
    print(f"{'':45}{'without, ms':>12}{'with, ms':>10}{'ratio':>7}")
    for name in runs[0][0]:
        a, b = (np.median([r[i][name] for r in runs]) for i in (0, 1))
        ratio = np.median([r[0][name] / r[1][name] for r in runs])
        print(f"{name:45}{a:12.2f}{b:10.2f}{ratio:7.2f}")


if __name__ == "__main__":
    main()
