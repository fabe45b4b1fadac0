"""Shapes, dtypes, lengths, names and options that do not fit end in one clear error."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from faults import ACTIONS, FRAMES, N, T, Y, act, mean_only, message, refused
from numpyro.contrib.control_flow import scan

import jopa_ppl as jp
from jopa_ppl.errors import (
    DataError,
    JopaError,
    ShapeError,
    SiteError,
    StructureError,
)

# -- shapes and dtypes ---------------------------------------------------------------------------


def test_events_and_conditions_are_never_broadcast():
    """What `obs=` says of a batch is, as NumPyro does it: tests/language/test_broadcast.py."""
    refused(ShapeError, act, np.ones((T, 1)), site="y", says=("(1,)", "(2,)"))
    refused(ShapeError, mean_only, np.ones(2), site="y", says=("(2,)", "3"))
    refused(ShapeError, mean_only, np.ones((2, 3)), site="y")
    refused(ShapeError, jp.condition(act, {"u": np.ones((T, 2))}), FRAMES, site="u",
            says=("(4, 2)", "(1,)"))
    refused(ShapeError, jp.condition(act, {"x0": np.ones(1)}), FRAMES, site="x0",
            says=("(1,)", "(2,)"))
    refused(ShapeError, jp.given(mean_only, {"m": dist.Normal(jnp.zeros(2), 1.0)}), Y, site="m",
            says=("(2,)",))


def test_empty_arrays():
    def per_row(X, y):
        w = jp.latent("w", dist.Normal(0.0, 1.0))
        with numpyro.plate("rows", X.shape[0]):
            jp.observe("y", dist.Normal(X * w, 1.0), y)

    def plateless(X, y):
        w = jp.latent("w", dist.Normal(0.0, 1.0))
        jp.observe("y", dist.Normal(X * w, 1.0).to_event(1), y)

    def own_assertion(y):
        assert len(y), "rows are needed"

    none = np.ones(0)
    refused(ShapeError, per_row, none, none, site="rows", says=("plate is empty", "size 0"))
    refused(ShapeError, plateless, none, none, site="y", says=("empty", "(0,)"))
    refused(ShapeError, mean_only, none, site="y", says=("plates", "(n, 3", "(0,)"))
    refused(ShapeError, mean_only, np.ones(N + 2), site="y", says=("plates", "(5,)"))
    with pytest.raises(AssertionError, match="rows are needed"):
        jp.VMP(own_assertion).run(none)


def test_dtypes():
    refused(ShapeError, mean_only, Y + 1j, says=("complex",))
    refused(ShapeError, mean_only, np.array(["a"] * N), says=("dtype",))
    message(ShapeError, lambda: jp.condition(act, {"u": ACTIONS + 1j}), "complex", site="u")
    message(ShapeError, lambda: jp.condition(act, {"u": np.array("left")}), "dtype", site="u")
    message(DataError, lambda: jp.condition(act, {"u": None}), "None", site="u")


def test_lengths_of_series():
    refused(ShapeError, jp.condition(act, {"u": np.ones((T + 1, 1))}), FRAMES, site="u",
            says=("longer", "5 steps", "at most 4"))
    refused(ShapeError, jp.condition(act, {"u": np.ones((0, 1))}), FRAMES, site="u",
            says=("empty",))
    refused(ShapeError, act, FRAMES, run={"T": T + 1}, site="y",
            says=("xs of length 4", "length=5"))
    refused(ShapeError, act, np.ones((0, 2)), run={"T": 0}, site="y", says=("empty", "length=0"))
    refused(ShapeError, act, 0.5, site="y", says=("xs without an axis",))
    refused(ShapeError, act, FRAMES[0, 0], site="y", says=("xs without an axis",))
    refused(ShapeError, act, run={"T": float(T)}, says=("length=4.0", "int"))
    refused(ShapeError, act, run={"T": None}, site="y",
            says=("xs=None, length=None", "'y', 'u' and 'x'", "length=T"))

    def plain(y):
        scan(lambda x, y: (numpyro.sample("x", dist.Normal(x, 1.0), obs=y), None), 0.0, y, length=T)
    refused(ShapeError, plain, np.zeros(T + 1), site="x", says=("length 5", "length=4"))
    numpyro_error = lambda: numpyro.handlers.seed(act, 0)(FRAMES, T=T + 1)      # no VMP about
    message(ShapeError, numpyro_error, "xs of length 4", site="y")


def test_series_of_unequal_lengths_are_told_apart():
    def program(frames, gains, *, T=None):
        def step(x, now):
            jp.observe("y", dist.Normal(x, 1.0), now["frames"])
            return jp.latent("x", dist.Normal(2 * now["gains"][0] * x, 1.0)), None
        jp.scan(step, jp.latent("x0", dist.Normal(0.0, 1.0)),
                {"frames": frames, "gains": (gains,)}, length=T)

    whole, short = np.zeros(T), np.ones(T - 1)
    told = ("xs['frames'] of length 4 (read by 'y')", "xs['gains'][0] of length 3 (read by 'x')")
    refused(ShapeError, program, whole, short, site="x", says=told)
    refused(ShapeError, program, whole, short, run={"T": T}, site="x", says=(*told, "length=4"))
    refused(ShapeError, program, whole, short, run={"T": T - 1}, site="y",
            says=(*told, "length=3"))
    refused(ShapeError, program, np.zeros(0), np.zeros(0), site="y", says=("xs['gains'][0]",))


def broken(carry, x):
    raise RuntimeError


@pytest.mark.parametrize("body", [lambda c, x: (c, None), broken])
@pytest.mark.parametrize(("xs", "length", "says"), [
    ((np.ones(2), np.ones(3)), None, ("xs[0] of length 2", "xs[1] of length 3")),
    (1.0, None, ("xs without an axis",)), (None, None, ("length=T",)),
    (np.array(["a", "b"]), 3, ("xs of length 2", "length=3"))])
def test_lengths_of_a_scan_whose_body_names_no_site(body, xs, length, says):
    error = message(ShapeError, lambda: jp.scan(body, 0.0, xs, length), *says)
    assert error.site is None


def test_a_carry_keeps_its_shape():
    def program():
        def step(x, y):
            jp.observe("y", dist.Normal(x, 1.0), y)
            return jnp.ones(2) * jp.latent("x", dist.Normal(x, 1.0)), None
        jp.scan(step, jp.latent("x0", dist.Normal(0.0, 1.0)), jnp.zeros(T))

    refused(ShapeError, program, says=("carry", "(2,)"))


def test_sparse():
    message(ShapeError, lambda: jp.sparse(5, {}), "at least one value")
    message(ShapeError, lambda: jp.sparse(-1, {0: 1.0}), "at least one step")
    message(ShapeError, lambda: jp.sparse(5, {5: 1.0}), "out of range", "step 5", "[-5, 5)")
    message(ShapeError, lambda: jp.sparse(5, {1.5: 1.0}), "no whole number", "step 1.5")
    message(ShapeError, lambda: jp.sparse(5, {4: 1.0, -1: 2.0}), "named twice")
    message(ShapeError, lambda: jp.sparse(5, {0: np.ones(2), 1: np.ones(3)}), "(2,)", "(3,)")


# -- names ---------------------------------------------------------------------------------------


def test_names():
    def twice():
        jp.latent("a", dist.Normal(0.0, 1.0))
        jp.observe("a", dist.Normal(0.0, 1.0), 0.5)

    refused(SiteError, twice, site="a", says=("twice",))
    refused(SiteError, jp.condition(mean_only, {"mm": 1.0}), Y, site="mm",
            says=("jp.condition", "'m'"))
    refused(SiteError, jp.condition(act, {"U": ACTIONS}), FRAMES, site="U", says=("'u'",))
    refused(SiteError, jp.given(mean_only, {"q": dist.Normal(0.0, 1.0)}), Y, site="q",
            says=("jp.given", "'m'"))
    message(SiteError, lambda: jp.given(mean_only, {"m": dist.Normal(0, 1)}, sites=["q"]),
            "jp.given", site="q")
    message(SiteError, lambda: jp.given(mean_only, {"m": 3.0}), "float", site="m")
    refused(SiteError, jp.given(mean_only, {"m": dist.Gamma(1.0, 1.0)}), Y, site="m",
            says=("positive", "real"))
    refused(SiteError, jp.given(act, {"x": dist.Normal(jnp.zeros(2), 1.0).to_event(1)}), FRAMES,
            site="x", says=("scan", "first state"))
    refused(SiteError, mean_only, says=("nothing is observed", "jp.condition"))


def test_decisions():
    def idle(y):
        def step(x, y):
            jp.observe("y", dist.Normal(x, 1.0), y)
            jp.latent("u", dist.Normal(0.0, 1.0))
            return jp.latent("x", dist.Normal(x, 1.0)), None
        jp.scan(step, jp.latent("x0", dist.Normal(0.0, 1.0)), y)

    refused(SiteError, act, FRAMES, decide="v", site="v", says=("decide=", "'u'"))
    refused(SiteError, act, FRAMES, decide="y", site="y", says=("data",))
    refused(SiteError, jp.condition(act, {"u": ACTIONS}), FRAMES, decide="u", site="u",
            says=("data", "condition"))
    refused(SiteError, idle, np.zeros(T), decide="u", site="u",
            says=("nothing observed depends", "jp.sparse"))
    refused(StructureError, act, FRAMES, decide="x0", says=("'x0'", "inside a scan"))
    refused(DataError, act, jp.sparse(T, {0: FRAMES[0]}), decide="u", site="u",
            says=("after the first decision", "jp.sparse"))


@pytest.mark.parametrize("options", [{"max_iters": 0}, {"tol": -1.0}, {"damping": 1.0},
                                     {"damping": -0.1}, {"chain": "fast"}])
def test_options_out_of_range(options):
    message(JopaError, lambda: jp.VMP(mean_only, **options), *map(str, options.values()))


def test_the_model_is_a_function():
    message(JopaError, lambda: jp.VMP(3), "int", "callable")


def test_queries_take_data_and_beliefs():
    message(JopaError, lambda: jp.condition(act, None), "NoneType", "dict")
    message(JopaError, lambda: jp.given(act, "beliefs"), "str", "Posterior")


@pytest.mark.parametrize("options", [{"blocks": "x"}, {"blocks": ["x0", "x"]}, {"blocks": 3},
                                     {"blocks": [[1]]}, {"decide": 3}, {"decide": (3,)}])
def test_options_take_names_of_sites(options):
    message(JopaError, lambda: jp.VMP(act, **options), "tuples of site names", *options)


@pytest.mark.parametrize("transform", [jax.jit, jax.vmap])
def test_vmp_is_called_outside_of_jit_and_vmap(transform):
    vmp = jp.VMP(mean_only, progress=False)
    message(JopaError, lambda: transform(lambda y: vmp.run(y).mean("m"))(np.ones((2, N))),
            "compiles itself", "outside of jit and vmap", "plate")
