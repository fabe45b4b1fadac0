"""No run answers for a program that is no longer there: whatever it reads may change in between.

x ~ N(0, sd^2), y ~ N(x, 1): E[x | y] = sd^2 y / (1 + sd^2), in closed form.
"""

from __future__ import annotations

import functools
import gc
import operator
import os
import random
import sys
import types
import weakref
from contextvars import ContextVar
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from flax import nnx

import jopa_ppl as jp
from jopa_ppl.engine import signature
from jopa_ppl.engine.compiled import COMPILED

Y = np.float32(2.0)
SD = 1.0
module = types.ModuleType("users_own")
module.SD = 1.0
sys.modules["users_own"] = module


def exact(sd: float) -> float:
    return float(Y) * sd**2 / (1 + sd**2)


def site(sd):
    x = jp.latent("x", dist.Normal(0.0, sd))
    jp.observe("y", dist.Normal(x, 1.0), Y)


def from_global():
    site(SD)


def helper():
    return SD


def jitted():
    return SD


def double(x, _):
    return x + SD, None


jitted_helper = jax.jit(jitted)


class Model:
    sd = 1.0
    scale = 1.0

    def __init__(self, sd=1.0):
        self.sd, self.table, self.posterior = sd, {"sd": [sd]}, None

    def __call__(self):
        site(self.width() * self.table["sd"][0] / self.sd)

    def width(self):
        return self.sd * self.scale

    def program(self):
        self()

    def by_name(self, name="sd"):
        site(getattr(self, name))


def spread(compiled):
    """The prior's standard deviation that a compiled program computes with."""
    program = compiled.graph.program
    with jax.enable_x64(True):
        return float(program.evaluate([program.sites["x"].outputs["scale"]], {})[0])


def is_seen(model, change, *args):
    """A VMP that was compiled, and a new one, answer for what is there after a change."""
    vmp = jp.VMP(model, progress=False)
    before = spread(vmp.compile(*args))
    change()
    after = spread(vmp.compile(*args)), spread(jp.VMP(model).compile(*args))
    np.testing.assert_allclose([before, *after], [1.0, 0.1, 0.1], rtol=1e-6)


width = Model.width


def set_global(value):
    global SD
    SD = value


@pytest.fixture(autouse=True)
def restore():
    yield
    set_global(1.0)
    module.SD, Model.scale, Model.sd, Model.width = 1.0, 1.0, 1.0, width


def nested(sd):
    inner = lambda: (lambda: site(SD))()
    return inner


def imports_it():
    import users_own
    site(users_own.SD)


GLOBALS = {
    "named in the program": from_global, "in a function it calls": lambda: site(helper()),
    "in a lambda inside": nested(0), "in a jitted function": lambda: site(jitted_helper()),
    "in the body of a loop": lambda: site(jax.lax.scan(double, 0.0, None, length=1)[0]),
    "through vmap": lambda: site(jax.vmap(lambda x: x * SD)(jnp.ones(1))[0]),
    "in a comprehension": lambda: site(sum(SD for _ in range(1))),
    "a partial's function": functools.partial(from_global)}


def test_the_numbers_of_a_run_are_those_of_the_program_that_is_there():
    model = Model()
    vmp = jp.VMP(model.program, progress=False)
    found = [float(vmp.run().mean("x"))]
    model.sd, model.table = 0.1, {"sd": [0.1]}
    found += [float(v.run().mean("x")) for v in (vmp, jp.VMP(model.program))]
    np.testing.assert_allclose(found, [exact(1.0), exact(0.1), exact(0.1)], rtol=1e-6)


@pytest.mark.parametrize("where", GLOBALS)
def test_a_global_that_changes_is_seen(where):
    is_seen(GLOBALS[where], lambda: set_global(0.1))


def test_a_global_of_a_module_that_is_imported_by_name_is_seen():
    is_seen(lambda: site(module.SD), lambda: setattr(module, "SD", 0.1))
    module.SD = 1.0
    is_seen(imports_it, lambda: setattr(module, "SD", 0.1))


def test_attributes_are_seen_wherever_they_are_kept():
    for call in (lambda m: m.program, lambda m: m, lambda m: m.by_name,
                 lambda m: functools.partial(Model.program, m), lambda m: lambda: m.program()):
        model = Model()
        is_seen(call(model), lambda model=model: (setattr(model, "sd", 0.1), setattr(
            model, "table", {"sd": [0.1]})))
    model = Model()
    is_seen(model.program, lambda: model.table["sd"].__setitem__(0, 0.1))
    model = Model()
    is_seen(model.program, lambda: setattr(Model, "scale", 0.1))
    Model.scale = 1.0
    model = Model()
    is_seen(model.program, lambda: setattr(Model, "width", lambda self: 0.1))


def test_what_a_program_closes_over_is_seen_when_it_changes_in_place():
    array, numbers, chosen, counts = np.ones(2), [1.0], {1.0}, {"sd": 1.0}
    is_seen(lambda: site(array[0]), lambda: array.fill(0.1))
    is_seen(lambda: site(numbers[0]), lambda: numbers.__setitem__(0, 0.1))
    is_seen(lambda: site(next(iter(chosen))), lambda: (chosen.clear(), chosen.add(0.1)))
    is_seen(lambda: site(counts["sd"]), lambda: counts.update(sd=0.1))
    wide = np.ones(3)[::2]
    is_seen(lambda: site(jnp.asarray(wide)[1]), lambda: wide.fill(0.1))

    sd = 1.0

    def change():
        nonlocal sd
        sd = 0.1

    is_seen(lambda: site(sd), change)

    def default(sd=1.0, *, scale=1.0):
        site(sd * scale)

    is_seen(default, lambda: setattr(default, "__defaults__", (0.1,)))
    default.__defaults__ = (1.0,)
    is_seen(default, lambda: default.__kwdefaults__.update(scale=0.1))


def test_a_set_an_object_and_a_frozen_record_as_arguments():
    chosen = {1.0}
    is_seen(lambda s: site(next(iter(s))), lambda: (chosen.clear(), chosen.add(0.1)), chosen)
    model = Model()
    is_seen(lambda m: site(m.sd), lambda: setattr(model, "sd", 0.1), model)

    @dataclass(frozen=True)
    class Options:
        sd: float

    vmp = jp.VMP(lambda options: site(options.sd), progress=False)
    runs = [vmp.compile(Options(sd)) for sd in (1.0, 0.1, 1.0)]
    np.testing.assert_allclose(list(map(spread, runs)), [1.0, 0.1, 1.0], rtol=1e-6)
    assert runs[0] is runs[2] is not runs[1]


class Equal:
    """Two that compare equal and are not the same program."""

    def __init__(self, sd):
        self.sd = sd

    def __eq__(self, other):
        return True

    def __hash__(self):
        return 0


def test_arguments_that_only_compare_equal_are_told_apart():
    vmp = jp.VMP(lambda m: site(m.sd), progress=False)
    found = [spread(vmp.compile(Equal(sd))) for sd in (1.0, 0.1)]
    np.testing.assert_allclose(found, [1.0, 0.1], rtol=1e-6)


def test_a_network_that_is_trained_in_place_is_seen():
    net = nnx.Linear(1, 1, use_bias=False, rngs=nnx.Rngs(0))
    net.kernel[...] = jnp.ones((1, 1))

    def train():
        net.kernel[...] = jnp.full((1, 1), 0.1)

    is_seen(lambda: site(net(jnp.ones(1))[0]), train)
    net.kernel[...] = jnp.ones((1, 1))
    is_seen(lambda: site(jp.module("net", net)(jnp.ones(1))[0]), train)


def test_what_no_walk_can_see_is_traced_again_at_every_run(tmp_path):
    path = tmp_path / "sd"
    path.write_text("1.0")

    def from_file():
        with open(path) as file:
            site(float(file.read()))

    is_seen(from_file, lambda: path.write_text("0.1"))
    vmp = jp.VMP(from_file, progress=False)
    assert vmp.compile() is vmp.compile()       # traced, and found to be the same

    os.environ["USERS_SD"] = "1.0"
    is_seen(lambda: site(float(os.environ["USERS_SD"])),
            lambda: os.environ.__setitem__("USERS_SD", "0.1"))
    del os.environ["USERS_SD"]


def test_changing_back_finds_what_was_compiled_before():
    vmp = jp.VMP(from_global, progress=False)
    first = vmp.run()
    set_global(0.1)
    second = vmp.run()
    set_global(1.0)
    assert vmp.run().compiled is first.compiled is not second.compiled
    assert first.compiled.traces == 1


def test_what_does_not_matter_compiles_nothing():
    """A counter, a cache, an attribute that the program does not name."""
    calls = []

    def counted(y):
        calls.append(1)
        site(SD)

    vmp = jp.VMP(counted, progress=False)
    compiled = vmp.run(Y).compiled
    count = len(calls)
    assert all(vmp.run(Y).compiled is compiled for _ in range(3))
    assert len(calls) == count and compiled.traces == 1

    model, runs = Model(), []
    for _ in range(3):
        model.posterior = jp.VMP(model.program, progress=False).run()
        runs.append(model.posterior.compiled)
    assert runs[0] is runs[1] is runs[2] and runs[0].traces == 1


def test_a_stream_of_nested_beliefs_compiles_once():
    def drift(y):
        x = jp.latent("x", dist.Normal(0.0, 1.0))
        a = jp.latent("a", dist.Normal(0.0, SD))
        jp.observe("y", dist.Normal(x + a, 1.0), y)

    posterior, compiled = None, set()
    for i in range(10):
        model = drift if posterior is None else jp.given(
            jp.given(drift, posterior, sites=["x"], update=True), posterior, sites=["a"],
            update=True)
        posterior = jp.VMP(model, progress=False).run(np.float32(i % 3))
        compiled.add(posterior.compiled)
    assert len(compiled) == 2 and all(c.traces == 1 for c in compiled)


def test_an_old_posterior_does_not_answer_for_a_new_program():
    """What needs no program answers for the one that ran; what needs it says that it is gone."""
    def series(y):
        def step(x, y):
            x = jp.latent("x", dist.Normal(x, SD))
            jp.observe("y", dist.Normal(x, 1.0), y)
            return x, None

        jp.scan(step, jp.latent("x0", dist.Normal(0.0, 1.0)), y)

    posterior = jp.VMP(series, progress=False).run(jp.sparse(2, {0: Y}))
    draw = posterior.sample(0)
    before = posterior.log_prob(draw), posterior.mean("x"), posterior.predict(num_samples=3)
    set_global(0.1)
    np.testing.assert_array_equal(posterior.mean("x"), before[1])
    np.testing.assert_array_equal(posterior.sample(0)["x"], draw["x"])
    for call in (posterior.predict, lambda: posterior.log_prob(draw)):
        with pytest.raises(jp.StaleError, match="'SD' of module"):
            call()
    set_global(1.0)
    np.testing.assert_array_equal(posterior.log_prob(draw), before[0])
    assert posterior.predict(num_samples=3)["y"].shape == before[2]["y"].shape


def test_predictions_follow_a_jitted_function_back_and_forth():
    def predicted():
        jp.observe("z", dist.Normal(100 * jitted_helper(), 1e-3))
        site(1.0)

    vmp = jp.VMP(predicted, progress=False)
    for sd in (1.0, 0.1, 1.0):
        set_global(sd)
        np.testing.assert_allclose(vmp.run().predict(num_samples=5)["z"], 100 * sd, atol=0.1)


def test_a_buffer_that_is_filled_anew_does_not_change_a_posterior():
    buffer = np.array([1.0, 2.0, np.nan])

    def program(y):
        m = jp.latent("m", dist.Normal(0.0, 1.0))
        with jp.plate("n", 3):
            jp.observe("y", dist.Normal(m, 1e-3), y)

    posterior = jp.VMP(program, progress=False).run(buffer)
    buffer[:] = 50.0
    scored = posterior.to_arviz(num_samples=5, groups=["observed_data"])
    np.testing.assert_array_equal(scored["observed_data"]["y"], [1.0, 2.0, np.nan])

    width = np.ones(1)                     # constants are copied too: its sweeps compile later
    lazy = jp.VMP(lambda: site(jax.jit(lambda: width[0] * jnp.asarray(width))()[0]), progress=False)
    compiled = lazy.compile()
    width[0] = 0.1
    with jax.enable_x64(True):
        state = compiled.first([], jax.random.key(0), 5)[1]
    np.testing.assert_allclose(next(iter(state.moments.values())).mean, exact(1.0), rtol=1e-6)


def test_variational_em_and_validate_see_changes_too():
    optax = pytest.importorskip("optax")
    net = nnx.Linear(1, 1, rngs=nnx.Rngs(0))

    def program(y):
        net_ = jp.module("net", net)
        with jp.plate("n", 4):
            x = jp.latent("x", dist.Normal(0.0, SD))
            jp.observe("y", dist.Normal(net_(x[:, None])[:, 0], 1.0), y)

    y = np.arange(4, dtype=np.float32)
    em = jp.VariationalEM(program, optax.sgd(0.0), m_steps=1, progress=False)
    found = {}
    for sd in (1.0, 0.1, 1.0):
        set_global(sd)
        found.setdefault(sd, []).append(em.run(0, 1, y)[0].free_energy[-1])
    assert found[1.0][0] == found[1.0][1] != found[0.1][0]
    assert len(em._learners) == 2


def test_the_cache_is_bounded_and_lets_arrays_go(monkeypatch):
    monkeypatch.setattr(COMPILED, "size", 3)
    monkeypatch.setattr(signature.TRACED, "size", 3)
    COMPILED.entries.clear()
    signature.TRACED.entries.clear()
    gone = []

    def one(i):
        big = np.full(1000, float(i + 1))
        gone.append(weakref.ref(big))
        return lambda: site(big[0])

    for i in range(6):
        jp.VMP(one(i)).compile()
    gc.collect()
    assert len(COMPILED.entries) == 3 and len(signature.TRACED.entries) == 3
    assert sum(ref() is not None for ref in gone) <= 3


@pytest.mark.slow
def test_a_thousand_runs_of_nested_beliefs_compile_once():
    def drift(y):
        x = jp.latent("x", dist.Normal(0.0, 1.0))
        a = jp.latent("a", dist.Normal(0.0, SD))
        jp.observe("y", dist.Normal(x + a, 1.0), y)

    posterior, compiled = jp.VMP(drift, progress=False).run(Y), set()
    for i in range(1000):
        model = jp.given(jp.given(drift, posterior, sites=["x"], update=True), posterior,
                         sites=["a"], update=True)
        posterior = jp.VMP(model, progress=False).run(np.float32(i % 3))
        compiled.add(posterior.compiled)
    assert len(compiled) == 1 and compiled.pop().traces == 1


@pytest.mark.parametrize("change", ["a column", "a value"])
def test_a_table_of_pandas_that_changed_is_seen(change):
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame({"y": [1.0, 1.0, 1.0]})

    def program():
        w = numpyro.sample("w", dist.Normal(0.0, 1.0))
        with numpyro.plate("n", len(table)):
            numpyro.sample("y", dist.Normal(w, 1.0), obs=table["y"].to_numpy())

    assert np.isclose(jp.VMP(program).run().mean("w"), 0.75)
    if change == "a column":
        table.loc[:, "y"] = 2.0
    else:
        table.iat[0, 0] = 4.0
    assert np.isclose(jp.VMP(program).run().mean("w"), 1.5)


@pytest.mark.parametrize("f", [jax.nn.relu, jax.nn.softplus, jax.nn.log_sigmoid,
                               lambda x: jnp.logaddexp(x, 0.0),
                               lambda x: jax.scipy.special.xlogy(x, x)])
def test_functions_with_their_own_derivatives_are_told_apart(f):
    x = np.array([0.5, 1.5])

    def program(y):
        w = numpyro.sample("w", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(w * f(jnp.asarray(x)), 1.0).to_event(1), obs=y)

    features = np.asarray(f(jnp.asarray(x)))
    found = jp.VMP(program).run(x)
    assert np.isclose(found.mean("w"), features @ x / (1 + features @ features), rtol=1e-5)


class Listed(list):
    def scale(self):
        return self.sd


class Defaulting(dict):
    def __missing__(self, _):
        return self.sd


class Marked(np.ndarray):
    sd = 1.0


class Meta(type):
    @property
    def sd(cls):
        return cls.hidden


class Held(metaclass=Meta):
    hidden = 1.0


def test_attributes_of_containers_references_and_metaclasses_are_seen():
    listed, table, array, model = Listed([1]), Defaulting(), np.ones(1).view(Marked), Model()
    for x in (listed, table, array):
        x.sd = 1.0
    is_seen(lambda: site(listed.scale()), lambda: setattr(listed, "sd", 0.1))
    is_seen(lambda: site(table["any"]), lambda: setattr(table, "sd", 0.1))
    is_seen(lambda: site(array.sd), lambda: setattr(array, "sd", 0.1))
    reference = weakref.ref(model)
    is_seen(lambda: site(reference().sd), lambda: setattr(model, "sd", 0.1))
    held = ContextVar("held", default=1.0)
    is_seen(lambda: site(held.get()), lambda: held.set(0.1))
    kept = ContextVar("kept", default=[1.0])  # noqa: B039
    is_seen(lambda: site(kept.get()[0]), lambda: kept.get().__setitem__(0, 0.1))
    model.sd, of = 1.0, operator.methodcaller("__getattribute__", "sd")
    is_seen(lambda: site(of(model)), lambda: setattr(model, "sd", 0.1))
    is_seen(lambda: site(Held.sd), lambda: setattr(Held, "hidden", 0.1))


def test_a_program_that_draws_is_traced_at_every_run():
    scales = iter([0.95**k for k in range(99)])
    rng, drawn = np.random.default_rng(0), np.random.uniform

    def seeded():
        return np.random.default_rng(0).uniform(0.5, 1.0)

    for scale in (lambda: next(scales), random.random, lambda: rng.uniform(0.1, 1.0),
                  lambda: np.random.uniform(0.1, 1.0), lambda: drawn(0.1, 1.0)):
        vmp = jp.VMP(lambda scale=scale: site(scale()))
        assert vmp.run().mean("x") != vmp.run().mean("x")
    vmp = jp.VMP(lambda: site(seeded()))
    first = vmp.run()
    assert vmp.run().compiled is first.compiled
