"""Threads: programs are traced one at a time, and run side by side."""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import jopa_ppl as jp

Y = np.ones(3, np.float32)


def make(k: int) -> Callable:
    def program(y):
        m = jp.latent(f"m{k}", dist.Normal(0.0, 1.0 + k))
        t = jp.latent(f"t{k}", dist.Gamma(2.0, 1.0))
        with jp.plate(f"n{k}", 3):
            jp.observe(f"y{k}", dist.Normal(m, 1 / jnp.sqrt(t)), y)
    return program


def side_by_side(work: Callable[[int], None], count: int = 3) -> None:
    """Run `work(k)` in threads that switch as often as Python lets them; raise what they raise."""
    faults, interval = [], sys.getswitchinterval()

    def guarded(k):
        try:
            work(k)
        except BaseException as error:
            faults.append(error)

    sys.setswitchinterval(1e-4)
    try:
        threads = [threading.Thread(target=guarded, args=(k,)) for k in range(count)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
    finally:
        sys.setswitchinterval(interval)
    if faults:
        raise faults[0]


@pytest.mark.parametrize("traces", [4, pytest.param(60, marks=pytest.mark.slow)])
def test_threads_that_trace_different_programs_do_not_mix_their_sites(traces):
    found = Counter()

    def work(k):
        for _ in range(traces):
            sites = tuple(jp.VMP(make(k)).compile(Y).graph.program.sites)
            found[sites == (f"m{k}", f"t{k}", f"y{k}")] += 1

    side_by_side(work)
    assert found == {True: 3 * traces}
    assert not numpyro.primitives._PYRO_STACK


def test_threads_that_run_one_program_and_others_give_what_one_thread_gives():
    programs = [make(k) for k in range(2)]
    alone = [[float(jp.VMP(p, progress=False).run(Y + i).mean(f"m{k}")) for i in range(3)]
             for k, p in enumerate(programs)]
    compiled = [jp.VMP(p).compile(Y) for p in programs]

    def work(_):
        for i in range(6):
            for k, p in enumerate(programs):
                posterior = jp.VMP(p, progress=False).run(Y + i % 3)
                assert posterior.compiled is compiled[k]
                assert float(posterior.mean(f"m{k}")) == alone[k][i % 3]

    side_by_side(work)
    assert all(c.traces == 1 for c in compiled)


def test_threads_that_meet_at_a_new_program_compile_it_once():
    program, found = make(5), []
    side_by_side(lambda _: found.append(jp.VMP(program).compile(Y)))
    assert len(found) == 3 and len(set(map(id, found))) == 1


def test_predictions_of_threads_do_not_mix():
    posteriors = [jp.VMP(make(k), progress=False).run(Y) for k in range(2)]
    wanted = [p.predict(num_samples=4) for p in posteriors]

    def work(k):
        found = posteriors[k].predict(num_samples=4)
        assert set(found) == set(wanted[k])
        np.testing.assert_array_equal(found[f"y{k}"], wanted[k][f"y{k}"])

    side_by_side(work, 2)


class Odd(Exception):
    pass


def test_a_failure_inside_a_program_leaves_no_handlers_behind():
    def enters_and_fails(y):
        numpyro.handlers.seed(rng_seed=0).__enter__()
        numpyro.handlers.block().__enter__()
        raise Odd

    def forgets(y):
        numpyro.handlers.block(hide=["z"]).__enter__()
        make(0)(y)

    outer = numpyro.handlers.seed(rng_seed=3)
    with outer:
        for _ in range(2):
            with pytest.raises(Odd):
                jp.VMP(enters_and_fails).compile(Y)
            with pytest.raises((AssertionError, jp.JopaError)):
                jp.VMP(forgets).compile(Y)
        assert numpyro.primitives._PYRO_STACK == [outer]
    assert not numpyro.primitives._PYRO_STACK
    assert tuple(jp.VMP(make(1)).compile(Y).graph.program.sites) == ("m1", "t1", "y1")


def test_a_threads_own_precision_is_kept():
    posterior, found = jp.VMP(make(0), progress=False).run(Y), {}

    def work(k):
        with jax.enable_x64(k == 0):
            found[k] = posterior.mean("m0").dtype

    side_by_side(work, 2)
    assert found == {0: jnp.float64, 1: jnp.float32}
