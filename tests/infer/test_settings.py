"""The caller's JAX settings, and JAX's transformations around a run."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pytest
from flax import nnx

import jopa_ppl as jp
from tests.caches import forget

Y = np.array([0.5, np.nan, 1.5], np.float32)
NET = nnx.Linear(1, 1, rngs=nnx.Rngs(0))


def walk(y=None, u=None):
    def step(x, y):
        jp.observe("y", dist.Normal(x, 0.5), y)
        u = jp.latent("u", dist.Normal(0.0, 1.0))
        x = jp.latent("x", dist.Normal(0.9 * x + u, 0.3))
        return x, None

    jp.scan(step, jp.latent("x0", dist.Normal(0.0, 1.0)), y, length=3)


def noisy(y):
    m = jp.latent("m", dist.Normal(0.0, 2.0))
    t = jp.latent("t", dist.Gamma(2.0, 1.0))
    with jp.plate("n", 3):
        jp.observe("y", dist.Normal(m, 1 / jnp.sqrt(t)), y)


def decoded(y):
    net = jp.module("net", NET)
    with jp.plate("n", 3):
        x = jp.latent("x", dist.Normal(0.0, 1.0))
        jp.observe("y", dist.Normal(net(x[:, None])[:, 0], 1.0), y)


def everything():
    """What a user does, from data to a plan, in numbers."""
    posterior = jp.VMP(noisy, progress=False).run(Y, rng_key=1)
    draw = posterior.sample(2, (2,))
    found = [posterior.mean("m"), posterior.variance("t"), posterior["m"].loc,
             posterior.log_prob(draw), posterior.free_energy, draw["m"],
             posterior.predict(Y, num_samples=2)["y"]]
    given = jp.VMP(jp.given(noisy, posterior, update=True), progress=False).run(Y)
    known = jp.VMP(jp.condition(walk, {"u": np.array([0.1, np.nan, 0.2], np.float32)}),
                   progress=False).run(Y)
    goal = jp.sparse(3, {0: 0.0, -1: 1.0})
    plan = jp.VMP(walk, decide="u", progress=False).run(goal)
    found += [given.mean("m"), known.mean("x"), plan.mean("u"), plan.sample(0)["x"],
              known.at("x", -1).loc]
    return [np.asarray(x) for x in found]


def more():
    """What else answers in numbers: tables, predictions, many runs at once, evidence."""
    posterior = jp.VMP(noisy, progress=False).run(Y)
    walked = jp.VMP(walk, progress=False).run(Y)
    many = np.stack([Y, 2 * Y])
    goals = np.stack([np.asarray(jp.sparse(3, {0: 0.0, -1: g}), np.float32) for g in (1.0, 2.0)])
    found = jp.VMP(noisy, progress=False).run_batch(many, over="y")
    plans = jp.VMP(walk, decide="u", progress=False).run_batch(goals, over="y")
    evidence = jp.marginalised(noisy).log_evidence({"t": np.float32(2.0)}, Y)
    report = jp.validate(walk, walked, np.arange(3, dtype=np.float32), dynamics=None, horizon=1,
                         origins=1)
    tree = posterior.to_arviz(num_samples=2)
    posterior.summary(), str(report)
    return [np.asarray(x) for x in (
        found.mean("m"), found[0].mean("m"), plans.mean("u"), plans[1].free_energy, evidence,
        walked.state_at(-1).mean, walked["x"].variance, jp.correct(walked, 10).weights,
        tree.posterior["m"])]


def learned():
    em = jp.VariationalEM(decoded, optax.sgd(0.01), m_steps=1, progress=False)
    posterior, weights = em.run(0, 1, np.nan_to_num(Y))
    return [np.asarray(posterior.mean("x")), np.asarray(weights["net"]["kernel"])]


def told(capsys: pytest.CaptureFixture) -> str:
    """What tells about programs without a run."""
    for model in (noisy, walk, decoded):
        compiled = jp.compile(model, Y)
        print(compiled.graph, compiled.schedule)
        jp.explain(model, Y)
    return capsys.readouterr().out


@pytest.fixture(scope="module")
def wanted():
    return everything(), learned()


SETTINGS = {"jax_debug_nans": True, "jax_debug_infs": True, "jax_check_tracer_leaks": True,
            "jax_transfer_guard": "disallow", "jax_numpy_dtype_promotion": "strict",
            "jax_numpy_rank_promotion": "raise", "jax_debug_key_reuse": True,
            "jax_disable_jit": True, "jax_enable_x64": True,
            "jax_default_matmul_precision": "highest"}
ANEW = ("jax_default_matmul_precision",)        # compiles everything anew


FIRST = ("jax_debug_nans", "jax_check_tracer_leaks", "jax_transfer_guard",
         "jax_numpy_dtype_promotion")


@contextmanager
def under(*settings: str) -> Iterator[None]:
    """With the settings, and as before afterwards."""
    before = {s: getattr(jax.config, s) for s in settings}
    try:
        for s in settings:
            jax.config.update(s, SETTINGS[s])
        yield
        assert all(getattr(jax.config, s) == SETTINGS[s] for s in settings)
    finally:
        for s, value in before.items():
            jax.config.update(s, value)


def agree(found: list[np.ndarray], wanted: list[np.ndarray], double: bool = False) -> None:
    for a, b in zip(found, wanted, strict=True):
        if double and a.dtype == np.float64 and b.dtype == np.float32 and a.shape:
            continue              # draws in float64 are other draws
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("setting", [
    "jax_debug_nans", "jax_transfer_guard", "jax_numpy_dtype_promotion",
    *(pytest.param(s, marks=pytest.mark.slow) for s in (
        "jax_debug_infs", "jax_check_tracer_leaks", "jax_numpy_rank_promotion"))])
def test_tables_batches_and_reports_are_the_same_under_a_setting(setting):
    wanted = more()
    with under(setting):
        found = more()
    agree(found, wanted)


@pytest.mark.parametrize("setting", [pytest.param(s, marks=pytest.mark.slow if s in ANEW else ())
                                     for s in SETTINGS])
def test_every_answer_is_the_same_under_a_setting(setting, wanted):
    """Float64 inside, whatever is set: the numbers are those without the setting."""
    with under(setting):
        found = everything(), learned()
    for mine, theirs in zip(found, wanted):
        agree(mine, theirs, setting == "jax_enable_x64")


# What is compiled is kept whatever is set: only a program that nobody has run yet is traced and
# compiled under a setting.


@pytest.mark.parametrize("settings", [
    FIRST, *(pytest.param((s,), marks=pytest.mark.slow) for s in SETTINGS)], ids="+".join)
def test_programs_are_traced_and_compiled_under_settings(settings, wanted, capsys):
    table = told(capsys)
    forget()
    with under(*settings):
        assert told(capsys) == table
        found = everything(), learned()
    for mine, theirs in zip(found, wanted):
        agree(mine, theirs, "jax_enable_x64" in settings)


COUNTS = np.array([0.0, 2.0, 3.0, 1.0], np.float32)


def counts(y):
    x = jp.latent("x", dist.Normal(0.0, 1.0))
    s = jp.latent("s", dist.HalfNormal(1.0))
    with jp.plate("n", 4):
        jp.observe("y", dist.Poisson(jnp.exp(jp.latent("z", dist.Normal(x, s)))), y)


def mixture(y):
    p = jp.latent("p", dist.Dirichlet(jnp.ones(2)))
    with jp.plate("k", 2):
        m = jp.latent("m", dist.Normal(0.0, 3.0))
    with jp.plate("n", 4):
        jp.observe("y", dist.Normal(m[jp.latent("which", dist.Categorical(p))], 1.0), y)


def unknown(y):
    A = jp.latent("A", dist.Normal(jnp.eye(2), 0.7).to_event(2))
    W = jp.latent("W", dist.Wishart(4.0, rate_matrix=jnp.eye(2)))

    def step(x, y):
        jp.observe("y", dist.Normal(x, 0.3).to_event(1), y)
        return jp.latent("x", dist.MultivariateNormal(A @ x, precision_matrix=W)), None

    jp.scan(step, jp.latent("x0", dist.MultivariateNormal(jnp.zeros(2), jnp.eye(2))), y)


def bent(y):
    def step(x, y):
        jp.observe("y", dist.Normal(jnp.sin(x), 0.3), y)
        u = jp.latent("u", dist.Normal(0.0, 1.0))
        return jp.latent("x", dist.Normal(x + 0.3 * jnp.sin(x) + u, 0.1)), None

    jp.scan(step, jp.latent("x0", dist.Normal(0.0, 1.0)), y)


def solved(model: Callable, y: np.ndarray, site: str, **options) -> list:
    posterior = jp.VMP(model, progress=False, **options).run(y)
    return [posterior.mean(site), posterior.free_energy, posterior.sample(0)[site]]


def compared() -> list:
    comparison = jp.compare(noisy, np.nan_to_num(Y), engines=["vmp", "svi normal", "nuts"],
                            budget=5.0, progress=False)
    assert all(run.draws for run in comparison.runs.values()), str(comparison)
    return [comparison["vmp"].free_energy]


SERIES = np.array([[0.1, 0.2], [0.3, 0.1], [np.nan, 0.2], [0.2, 0.5]], np.float32)
KINDS = {
    "counts": lambda: solved(counts, COUNTS, "s"),
    "mixture": lambda: solved(mixture, COUNTS, "m"),
    "unknown matrices": lambda: solved(unknown, SERIES, "A"),
    "bent": lambda: solved(bent, SERIES[:, 0], "x"),
    "a bent plan": lambda: solved(bent, jp.sparse(4, {0: 0.0, -1: 0.8}), "u", decide="u"),
    "Funsor": lambda: solved(walk, Y, "x", chain="funsor"),
    "in parallel": lambda: solved(walk, Y, "x", chain="parallel"),
    "tables and batches": more,
    "engines": compared,
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_programs_of_every_kind_are_compiled_under_settings(kind):
    wanted = KINDS[kind]()
    forget()
    with under(*FIRST, "jax_debug_infs", "jax_numpy_rank_promotion", "jax_debug_key_reuse"):
        found = KINDS[kind]()
    agree(list(map(np.asarray, found)), list(map(np.asarray, wanted)))


def run_apart(script: str, **env: str) -> str:
    """A script in a process of its own."""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True,
                          timeout=300, env={**os.environ, **env})
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
def test_another_default_device():
    script = """
import jax, numpy as np, tests.infer.test_settings as t
jax.config.update("jax_default_device", jax.devices()[1])
found = t.everything()
assert t.jp.VMP(t.noisy, progress=False).run(t.Y).mean("m").devices() == {jax.devices()[1]}
"""
    run_apart(script, XLA_FLAGS="--xla_force_host_platform_device_count=2")


# -- transformations around a run ----------------------------------------------------------------


def one(y):
    m = jp.latent("m", dist.Normal(0.0, 2.0))
    jp.observe("y", dist.Normal(m, 1.0), y)


def test_a_run_on_values_that_a_transformation_closes_over_is_done_at_once():
    """E[m | y = 1] = 4 / 5."""
    y = jnp.asarray(1.0)

    def use(x):
        posterior = jp.VMP(one, progress=False).run(y)
        drawn = posterior.sample(0)["m"] * 0
        return x * posterior.mean("m") + drawn

    assert jax.jit(use)(2.0) == pytest.approx(1.6)
    assert jax.grad(use)(2.0) == pytest.approx(0.8)
    np.testing.assert_allclose(jax.vmap(use)(jnp.arange(3.0)), [0.0, 0.8, 1.6], rtol=1e-6)
    assert use(2.0) == pytest.approx(1.6)          # nothing traced was kept


def test_draws_can_be_jitted_and_their_density_differentiated_in_float64():
    posterior = jp.VMP(one, progress=False).run(1.0)
    key, traced = jax.random.key(3), jax.jit(lambda k: posterior.sample(k, (4,))["m"])
    slope = jax.grad(lambda m: posterior.log_prob({"m": m}).sum())
    with jax.enable_x64(True):
        draws = posterior.sample(key, (4,))["m"]
        np.testing.assert_allclose(traced(key), draws, rtol=1e-12)
        np.testing.assert_allclose(slope(draws), -(draws - 0.8) / 0.8, rtol=1e-10)
    for call in (lambda: traced(key), lambda: slope(jnp.ones(4))):
        with pytest.raises(jp.JopaError, match=r"float64(.|\n)*sample_shape"):
            call()


def test_the_evidence_of_a_program_that_holds_traced_values():
    """log N(1; u, 1 + 4), and its slope in u."""
    def shifted(y):
        m = jp.latent("m", dist.Normal(0.0, 2.0))
        u = jp.latent("u", dist.Normal(0.0, 1.0))
        jp.observe("y", dist.Normal(m + u, 1.0), y)

    def evidence(u):
        return jp.marginalised(jp.condition(shifted, {"u": u})).log_evidence({}, 1.0)

    wanted = lambda u: dist.Normal(u, 5**0.5).log_prob(1.0)         # u scores itself, beside it
    for how in (jax.jit, jax.grad):
        np.testing.assert_allclose(how(evidence)(0.3), how(wanted)(0.3), rtol=1e-5)
    us = jnp.arange(2.0)
    np.testing.assert_allclose(jax.vmap(evidence)(us), jax.vmap(wanted)(us), rtol=1e-5)


def test_what_is_traced_outside_is_refused():
    def scaled(s):
        def program():
            m = jp.latent("m", dist.Normal(0.0, s))
            jp.observe("y", dist.Normal(m, 1.0), 1.0)
        return jp.VMP(program, progress=False).run().mean("m")

    keyed = lambda key: jp.VMP(one, progress=False).run(1.0, rng_key=key).mean("m")
    for call in (lambda: jax.grad(scaled)(1.0), lambda: jax.jit(scaled)(1.0),
                 lambda: jax.vmap(scaled)(jnp.ones(2)), lambda: jax.jit(keyed)(jax.random.key(0)),
                 lambda: jax.jit(lambda y: jp.VMP(one).run(y).mean("m"))(1.0),
                 lambda: jax.jit(lambda y: jp.VMP(one).run_batch(y, over="y").mean("m"))(
                     jnp.ones(2))):
        with pytest.raises(jp.JopaError, match="trace"):
            call()
    assert float(scaled(2.0)) == pytest.approx(0.8)


# -- copies ----------------------------------------------------------------------------------------


def test_copies_of_a_posterior_and_of_a_vmp():
    vmp = jp.VMP(noisy, progress=False)
    posterior = vmp.run(Y)
    assert copy.copy(posterior) is copy.deepcopy(posterior) is posterior
    for other in (copy.copy(vmp), copy.deepcopy(vmp), pickle.loads(pickle.dumps(vmp))):
        assert other.run(Y).compiled is posterior.compiled
    held = copy.deepcopy(jp.given(noisy, posterior, update=True))
    assert jp.VMP(held, progress=False).run(Y).converged


def test_a_pickled_posterior_is_what_a_file_holds():
    for posterior in (jp.VMP(noisy, progress=False).run(Y), jp.VMP(walk, progress=False).run(Y)):
        other = pickle.loads(pickle.dumps(posterior))
        for name in posterior.sites:
            np.testing.assert_allclose(other.mean(name), posterior.mean(name), rtol=1e-6)
            np.testing.assert_allclose(other.variance(name), posterior.variance(name), rtol=1e-6)
        np.testing.assert_array_equal(other.free_energy, posterior.free_energy)
        again = pickle.loads(pickle.dumps(other))
        np.testing.assert_array_equal(again.mean(name), other.mean(name))
        with pytest.raises(jp.JopaError, match="cannot predict by itself"):
            other.predict()


def test_an_import_starts_no_device():
    """Whoever forks before the first run may import first."""
    run_apart("""
import jopa_ppl, jopa_ppl.models.swing, jopa_ppl.models.vae
import jax._src.xla_bridge as bridge
assert not bridge._backends
""")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_process_that_was_forked_after_jax_is_told_so():
    script = """
import os, warnings, numpy as np, jopa_ppl as jp, tests.infer.test_settings as t
warnings.simplefilter("ignore")
posterior = jp.VMP(t.one, progress=False).run(1.0)
if child := os.fork():
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
else:
    for call in (lambda: jp.VMP(t.one).run(1.0), lambda: posterior.mean("m"),
                 lambda: posterior.sample(0), posterior.predict):
        try:
            call()
        except jp.JopaError as error:
            assert "forked" in str(error) and "spawn" in str(error)
        else:
            os._exit(1)
    os._exit(7)
"""
    run_apart(script)
    early = """
import os, sys, jopa_ppl as jp
import numpyro.distributions as dist
def one(y):
    m = jp.latent("m", dist.Normal(0.0, 2.0))
    jp.observe("y", dist.Normal(m, 1.0), y)
if child := os.fork():
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
os._exit(0 if abs(float(jp.VMP(one, progress=False).run(1.0).mean("m")) - 0.8) < 1e-6 else 1)
"""
    run_apart(early)
