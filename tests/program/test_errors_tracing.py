"""What cannot be traced is refused by its name, with a way out that works when followed."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from faults import message, refused
from fitting import run
from numpy.testing import assert_allclose
from numpyro.contrib.control_flow import cond
from oracles import dense_gaussian
from scipy import stats

import jopa_ppl as jp

T = 4
Y, TIMES = np.array([0.3, -0.2, 0.9, 1.1]), np.arange(4.0)


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def exact(model, args, shapes):
    """Means as those of the joint posterior; and -log p(y) where there is one block."""
    found, truth = run(model, *args), dense_gaussian(model, args, {}, shapes)
    for site in shapes:
        assert_allclose(found.mean(site), truth.mean[site], rtol=1e-8, atol=1e-11)
    if len(found.compiled.graph.blocks) == 1:
        assert_allclose(found.free_energy[-1], -truth.evidence, rtol=1e-9)


# -- inputs of scans that are made of latents ------------------------------------------------------


def plated(y):
    with jp.plate("time", T):
        u = jp.latent("u", dist.Normal(0.0, 1.0))

    def step(x, now):
        x = jp.latent("x", dist.Normal(0.9 * x + now[1], 0.3))
        jp.observe("y", dist.Normal(x, 0.5), now[0])
        return x, None

    jp.scan(step, 0.0, (y, u))


def in_the_step(y):
    def step(x, y):
        u = jp.latent("u", dist.Normal(0.0, 1.0))
        x = jp.latent("x", dist.Normal(0.9 * x + u, 0.3))
        jp.observe("y", dist.Normal(x, 0.5), y)
        return x, None

    jp.scan(step, 0.0, y)


def slope(y, t, close_over):
    b = jp.latent("b", dist.Normal(0.0, 1.0))

    def step(x, now):
        drift = b * now[1] if close_over else now[1]
        x = jp.latent("x", dist.Normal(0.9 * x + drift, 0.3))
        jp.observe("y", dist.Normal(x, 0.5), now[0])
        return x, None

    jp.scan(step, 0.0, (y, t if close_over else b * t))


def stacked(y, last=False):
    def first(x, _):
        x = jp.latent("x", dist.Normal(0.9 * x, 0.3))
        return x, x

    end, xs = jp.scan(first, 0.0, None, length=T)

    def second(z, now):
        z = jp.latent("z", dist.Normal(0.5 * z + now[1], 0.2))
        jp.observe("y", dist.Normal(z, 0.5), now[0])
        return z, None

    jp.scan(second, 0.0, (y, end * TIMES if last else xs))


def in_one_scan(y):
    def step(carry, y):
        x, z = carry
        x = jp.latent("x", dist.Normal(0.9 * x, 0.3))
        z = jp.latent("z", dist.Normal(0.5 * z + x, 0.2))
        jp.observe("y", dist.Normal(z, 0.5), y)
        return (x, z), None

    jp.scan(step, (0.0, 0.0), y)


def ends(y, w, outside):
    """What is seen is a multiple of where a walk ended."""
    def first(x, _):
        return jp.latent("x", dist.Normal(0.9 * x, 0.3)), None

    end, _ = jp.scan(first, 1.0, None, length=T)
    if outside:
        jp.observe("y", dist.Normal(end * w, 0.5).to_event(1), y)
    else:
        jp.scan(lambda c, now: (c, jp.observe("y", dist.Normal(now[1], 0.5), now[0])), 0.0,
                (y, end * w))


def test_latents_are_inputs_of_a_scan_but_for_its_end():
    for program in (plated, in_the_step):
        exact(program, (Y,), {"u": (T,), "x": (T,)})
    for close_over in (False, True):
        exact(lambda y, c=close_over: slope(y, TIMES, c), (Y,), {"b": (), "x": (T,)})
    for program in (stacked, in_one_scan):
        exact(program, (Y,), {"x": (T,), "z": (T,)})
    refused(jp.StructureError, stacked, Y, True, site="x", says=("make it one scan",))
    refused(jp.StructureError, ends, Y, 1.0 + TIMES, False, site="x", says=("outside of scans",))
    exact(lambda y: ends(y, 1.0 + TIMES, True), (Y,), {"x": (T,)})


def test_observed_values_are_inputs_of_a_scan():
    def program(y, u):
        with jp.plate("time", T):
            u = jp.observe("u", dist.Normal(0.0, 1.0), u)

        def step(x, now):
            x = jp.latent("x", dist.Normal(0.9 * x + now[1], 0.3))
            jp.observe("y", dist.Normal(x, 0.5), now[0])
            return x, None

        jp.scan(step, 0.0, (y, u))

    exact(program, (Y, TIMES), {"x": (T,)})
    conditioned = jp.condition(plated, {"u": TIMES})
    assert_allclose(run(conditioned, Y).mean("x"), run(program, Y, TIMES).mean("x"), rtol=1e-10)
    gap = np.where(TIMES == 1, np.nan, TIMES)
    inside, outside = (run(jp.condition(p, {"u": gap}), Y) for p in (in_the_step, plated))
    for site in ("u", "x"):
        assert_allclose(outside.mean(site), inside.mean(site), atol=1e-10)
        assert_allclose(outside.variance(site), inside.variance(site), atol=1e-10)
    assert_allclose(outside.free_energy[-1], inside.free_energy[-1], atol=1e-10)


# -- carries ---------------------------------------------------------------------------------------


def second_order(y, register):
    x0, x1 = (jp.latent(n, dist.Normal(0.0, 1.0)) for n in ("x0", "x1"))

    def step(past, y):
        x = jp.latent("x", dist.Normal(0.5 * past[0] + 0.3 * past[1], 1.0))
        jp.observe("y", dist.Normal(x, 1.0), y)
        return (jnp.concatenate([x[None], past[:-1]]) if register else (x, *past[:-1])), None

    jp.scan(step, jnp.stack([x1, x0]) if register else (x1, x0), y)


def test_past_values_in_one_array_are_no_recursion():
    for register in (True, False):
        exact(lambda y, register=register: second_order(y, register), (Y,),
              {"x0": (), "x1": (), "x": (T,)})

    def recursion(y):
        def step(c, y):
            jp.observe("y", dist.Normal(c, 1.0), y)
            return 0.5 * c, None

        jp.scan(step, jp.latent("c0", dist.Normal(0.0, 1.0)), y)

    exact(recursion, (Y,), {"c0": ()})


# -- data made of latents, branches, sizes ---------------------------------------------------------


def test_latents_are_data_of_gaussians_alone():
    def program(y, apart):
        x = jp.latent("x", dist.Normal(0.0, 1.0))
        jp.observe("y", dist.Normal(x, 1.0), y)
        if apart:
            jp.observe("z", dist.Normal(1.0 - x, 0.5), 0.0)
        else:
            jp.observe("z", dist.Normal(1.0, 0.5), x)

    for apart in (True, False):
        exact(lambda y, apart=apart: program(y, apart), (0.3,), {"x": ()})

    def counted(y):
        x = jp.latent("x", dist.Normal(0.0, 1.0))
        jp.observe("y", dist.Normal(x, 1.0), y)
        jp.observe("z", dist.Poisson(2.0), x)

    refused(jp.StructureError, counted, 0.3, site="z", says=("'x'",))


def test_branches_of_numpyro():
    def program(y, tell, sites):
        x = jp.latent("x", dist.Normal(0.0, 1.0))

        def seen(scale):
            if sites:
                return lambda x: numpyro.sample("z", dist.Normal(scale * x, 1.0))
            return lambda x: scale * x

        z = cond(tell > 0, seen(2.0), seen(3.0), x)
        z = z if sites else jp.latent("z", dist.Normal(z, 1.0))
        jp.observe("y", dist.Normal(z, 0.5), y)

    refused(jp.StructureError, program, 0.3, np.array(1.0), True, site="z", says=("cond",))
    for tell, scale in ((1.0, 2.0), (-1.0, 3.0)):
        found = run(program, 0.3, np.array(tell), False)
        assert_allclose(found.mean("x"), scale * 0.3 / (scale**2 + 1.25), rtol=1e-9)
    drawn = found.predict(rng_key=0, num_samples=5)
    assert drawn["z"].shape == (5,)

    def chosen(y, tell):            # the way out
        x = jp.latent("x", dist.Normal(0.0, 1.0))
        z = jp.latent("z", dist.Normal(jnp.where(tell > 0, 2.0 * x, 3.0 * x), 1.0))
        jp.observe("y", dist.Normal(z, 0.5), y)

    assert_allclose(run(chosen, 0.3, np.array(-1.0)).mean("x"), found.mean("x"), rtol=1e-10)


def test_sizes_may_be_numpys_whole_numbers():
    def program(y, *, T):
        with jp.plate("n", T):
            x = jp.latent("x", dist.Normal(0.0, 1.0))
            jp.observe("y", dist.Normal(x, 1.0), y)

    def walk(y, *, T):
        def step(x, y):
            x = jp.latent("x", dist.Normal(x, 1.0))
            jp.observe("y", dist.Normal(x, 1.0), y)
            return x, None

        jp.scan(step, 0.0, y, length=T)

    for model in (program, walk):
        vmp = jp.VMP(model, progress=False)
        compiled = vmp.compile(Y, T=T)
        for size in (np.int64(T), np.uint8(T), Y.shape[0]):
            assert vmp.compile(Y, T=size) is compiled


# -- names -----------------------------------------------------------------------------------------


def named(y, *names, plate="n"):
    total = sum((1 + i) * jp.latent(n, dist.Normal(0.0, 1.0 + i)) for i, n in enumerate(names))
    with jp.plate(plate, T):
        jp.observe("y", dist.Normal(total, 1.0), y)
        jp.observe("z", dist.Normal(jp.latent(names[0] + "2", dist.Normal(0.0, 1.0)), 1.0), y)


def test_names_that_are_no_names_are_refused():
    def program(y, name):
        jp.observe("y", dist.Normal(jp.latent(name, dist.Normal(0.0, 1.0)), 1.0), y)

    for name in ("", 3, None):
        message(jp.SiteError, lambda name=name: run(program, 0.3, name), "string")


STRANGE = ("outer/inner", "m'", "a[0]", "#step", "x@-1", "~carry", "a,b", '"a,b"')


def test_other_names_are_names(tmp_path):
    """Outside of scans, in plates of any name, given and saved."""
    plain = tuple(f"m{i}_" for i in range(len(STRANGE)))
    wanted, found = run(named, Y, *plain), run(named, Y, *STRANGE, plate="a@b,/~!'")
    assert_allclose(found.free_energy, wanted.free_energy, rtol=1e-12)
    found.save(tmp_path / "found.safetensors")
    loaded = jp.load_posterior(tmp_path / "found.safetensors")
    again, after = (run(jp.given(named, belief, sites=names, update=True), Y, *names)
                    for belief, names in ((loaded, STRANGE), (wanted, plain)))
    for name, other in zip(STRANGE, plain):
        assert_allclose(loaded.mean(name), wanted.mean(other), rtol=1e-12)
        assert_allclose(again.mean(name), after.mean(other), rtol=1e-10)
    assert set(found.to_arviz(num_samples=2).posterior.data_vars) == {
        n.replace("/", ".") for n in (*STRANGE, STRANGE[0] + "2")}


def test_blocks_of_one_name_are_kept_apart():
    """The fault's numbers: `a@1` and `a,b` dropped out, or ended `given` in a KeyError."""
    def program(y, single, first, second):
        jp.observe("y0", dist.Normal(jp.latent(single, dist.Normal(0.0, 1.0)), 1.0), y[0])
        total = (jp.latent(first, dist.Normal(0.0, 1.0)) + jp.latent(second, dist.Normal(0.0, 1.0)))
        jp.observe("y1", dist.Normal(total, 1.0), y[1])

    y = np.array([1.0, 3.0])
    for sites in (("a,b", "a", "b"), ("a@1", "a", "@")):
        found = run(program, y, *sites)
        again = run(jp.given(program, found, update=True), y, *sites)
        assert_allclose([found.mean(n) for n in sites], [0.5, 1.0, 1.0], rtol=1e-12)
        assert_allclose([again.mean(n) for n in sites], [2 / 3, 1.2, 1.2], rtol=1e-10)
        exact = -sum(stats.norm(0, np.sqrt(v)).logpdf(x) for v, x in zip((2.0, 3.0), y))
        assert_allclose(found.free_energy[-1], exact, rtol=1e-12)


def walk(y, names):
    for name in names:
        b = jp.latent(name + "b", dist.Normal(0.0, 1.0))

        def step(x, y, name=name, b=b):
            u = jp.latent(name + "u", dist.Normal(0.0, 1.0))
            x = jp.latent(name, dist.Normal(0.9 * x + u + b, 0.5))
            jp.observe(name + "y", dist.Normal(x, 1.0), y)
            return x, x

        _, xs = jp.scan(step, jp.latent("carry" + name, dist.Normal(0.0, 1.0)), y)
        jp.observe(name + "z", dist.Normal(xs, 1.0).to_event(1), Y)


def test_other_names_are_names_in_a_scan():
    strange, plain = ("outer/inner", "m'", "0", "x@-1"), ("x", "m", "v", "w")
    found, wanted = (run(jp.condition(walk, {n + "u": TIMES for n in names[:2]}), Y, names)
                     for names in (strange, plain))
    assert_allclose(found.free_energy[-1], wanted.free_energy[-1], rtol=1e-10)
    for name, other in zip(strange, plain):
        assert_allclose(found.mean(name), wanted.mean(other), rtol=1e-9)


def test_scopes_of_numpyro_are_names():
    def inner(y):
        m = jp.latent("m", dist.Normal(0.0, 1.0))
        jp.observe("y", dist.Normal(m, 1.0), y)

    def program(y):
        with numpyro.handlers.scope(prefix="outer"):
            inner(y)

    found = run(program, 1.0)
    assert found.sites == ("outer/m",)
    assert_allclose(found.mean("outer/m"), 0.5, rtol=1e-12)


def test_names_that_would_be_those_of_steps_are_refused():
    def program(y, name):
        jp.latent(name, dist.Normal(0.0, 1.0))

        def step(x, y):
            x = jp.latent("x", dist.Normal(x, 0.5))
            jp.observe("y", dist.Normal(x, 1.0), y)
            return x, None

        jp.scan(step, 0.0, y)

    for name in ("x[t]", "x[0]"):
        refused(jp.SiteError, program, Y, name, site=name, says=("'x'",))
    run(program, Y, "z[0]")

    def plated(y):
        with jp.plate("x.0", 2), jp.plate("n", 3):
            x = jp.latent("x", dist.Normal(0.0, 1.0))
            jp.observe("y", dist.Normal(x, 1.0), y)

    refused(jp.SiteError, plated, np.ones((3, 2)), site="x.0")
