"""Links that are nearly deterministic: right, or loud. Truth is in closed form."""

from __future__ import annotations

import re
import warnings

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import numpyro.distributions as dist
import optax
import pytest
from flax import nnx

import jopa_ppl as jp


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def total(y, scale):
    x = jp.latent("x", dist.Normal(jnp.zeros(4), 1.0).to_event(1))
    jp.observe("sum", dist.Normal(x.sum(), scale), y)


def walk(y, scale):
    x0 = jp.latent("x0", dist.Normal(0.0, 1.0))

    def step(x, y):
        x = jp.latent("x", dist.Normal(x, scale))
        jp.observe("y", dist.Normal(x, 1.0), y)
        return x, None

    jp.scan(step, x0, y)


def hierarchy(y, scale):
    """A tree: groups around a common mean, seen."""
    m = jp.latent("m", dist.Normal(0.0, 1.0))
    with jp.plate("groups", 5):
        b = jp.latent("b", dist.Normal(m, scale))
        jp.observe("y", dist.Normal(b, 1.0), y)


def trend(y, scale, damped=False):
    """A local linear trend whose level hardly moves of itself, with another latent precision."""
    tau = jp.latent("tau", dist.Gamma(2.0, 1.0))
    damping = jp.latent("damping", dist.Normal(1.0, 0.1)) if damped else 1.0
    level0 = jp.latent("level0", dist.Normal(0.0, 1.0))
    slope0 = jp.latent("slope0", dist.Normal(0.0, 1.0))

    def step(carry, y):
        level, slope = carry
        level = jp.latent("level", dist.Normal(damping * level + slope, scale))
        slope = jp.latent("slope", dist.Normal(slope, 0.1))
        jp.observe("y", dist.Normal(level, 1 / jnp.sqrt(tau)), y)
        return (level, slope), None

    jp.scan(step, (level0, slope0), y)


Y = np.linspace(-1, 3, 50)


def exact_total(scale):
    S = 4 + scale**2
    return {"x": (np.full(4, 2 / S), np.full(4, 1 - 1 / S))}, 0.5 * (np.log(2 * np.pi * S) + 4 / S)


def exact_common(prior, y):
    """Latents z ~ N(0, prior) seen one by one in unit noise."""
    S = prior + np.eye(len(y))
    mean, cov = prior @ np.linalg.solve(S, y), prior - prior @ np.linalg.solve(S, prior)
    return (mean, np.diag(cov)), 0.5 * (np.linalg.slogdet(2 * np.pi * S)[1]
                                        + y @ np.linalg.solve(S, y))


def exact_walk(scale):
    t = np.arange(1, 51)
    found, evidence = exact_common(1 + scale**2 * np.minimum.outer(t, t), Y)
    return {"x": found}, evidence


def exact_hierarchy(scale):
    found, evidence = exact_common(1 + scale**2 * np.eye(5), Y[:5])
    return {"b": found}, evidence


CASES = {"total": (total, exact_total, np.asarray(2.0)), "walk": (walk, exact_walk, Y),
         "hierarchy": (hierarchy, exact_hierarchy, Y[:5])}


def attempt(vmp, y, scale):
    """(posterior, what it was warned of, None), or (None, [], the refusal)."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            found = vmp.run(y, np.asarray(scale))
        except jp.NumericalError as error:
            return None, [], error
    return found, [str(w.message) for w in caught
                   if issubclass(w.category, jp.NumericalWarning)], None


def error_beside(p, beliefs, evidence):
    """The largest error, in units of what may come back without a word: 1e-6 of a belief's spread,
    1e-4 nats (where there is an evidence to compare with)."""
    error = 0.0 if evidence is None else abs(p.free_energy[-1] - evidence) / 1e-4
    for name, (mean, variance) in beliefs.items():
        gap = np.abs(np.asarray(p.mean(name)) - mean) / np.sqrt(variance)
        spread = np.abs(np.sqrt(np.asarray(p.variance(name)) / variance) - 1)
        error = max(error, gap.max() / 1e-6, spread.max() / 1e-6)
    return error


def safe_scale(text):
    """The scale that an error or a warning says is safe."""
    return float(re.search(r"expected: scales above (\S+),", text).group(1))


TIGHT = {"total": "sum", "hierarchy": "b"}       # the site whose scale is tiny; "walk" has none


@pytest.mark.parametrize("case", CASES)
def test_no_number_is_wrong_without_a_word(case):
    program, exact, y = CASES[case]
    vmp, silent, warned, refused = jp.VMP(program, progress=False), 0, 0, 0
    for scale in np.logspace(0, -13, 27):
        beliefs, evidence = exact(scale)
        p, told, refusal = attempt(vmp, y, scale)
        text = told[0] if told else str(refusal)
        if refusal is not None:
            refused += 1
            assert refusal.site == TIGHT[case]
        elif not told:
            silent += 1
            assert error_beside(p, beliefs, evidence) < 1, scale
            continue
        else:
            warned += 1
            of_spread, nats = map(float, re.search(
                r"error (\S+) of its spread, (\S+) nats", text).groups())
            error = error_beside(p, beliefs, evidence)
            assert error < max(10 * of_spread / 1e-6, 10 * nats / 1e-4, 1), (scale, error)
        # It names the site and its scale; the scale that it says is safe is, and says the same.
        assert f"site '{TIGHT[case]}'" in text and f"a scale of {scale:.2g} beside" in text, text
        safe = safe_scale(text)
        assert scale < safe < 1e-3
        p, told, refusal = attempt(vmp, y, safe)
        assert refusal is None and not told, (scale, safe, told, refusal)
        assert error_beside(p, *exact(safe)) < 1 and error_beside(p, beliefs, None) < 1, scale
    if case == "walk":          # noise of states is drawn apart
        assert silent == 27
    else:
        assert silent >= 9 and warned and refused >= 8


def test_an_alarm_fails_every_test_that_does_not_expect_one():
    with pytest.raises(jp.NumericalWarning):
        warnings.warn("digits", jp.NumericalWarning, stacklevel=1)


def test_the_way_out_is_safe():
    with pytest.raises(jp.NumericalError) as caught:
        jp.VMP(hierarchy, progress=False).run(Y[:5], np.asarray(1e-8))
    safe = float(re.search(r"scale of (\S+) says the same", str(caught.value)).group(1))
    with warnings.catch_warnings():
        warnings.simplefilter("error", jp.NumericalWarning)
        p = jp.VMP(hierarchy, progress=False).run(Y[:5], np.asarray(safe))
    np.testing.assert_allclose(p.mean("m"), Y[:5].sum() / 6, rtol=1e-5)


def weighed(y, scale, width, unit):
    """A sum in some unit, of latents seen one by one, which their priors may say nothing of."""
    x = jp.latent("x", dist.Normal(jnp.zeros(4), width).to_event(1))
    jp.observe("one", dist.Normal(x, 1.0).to_event(1), jnp.arange(4.0))
    jp.observe("sum", dist.Normal(unit * x.sum(), scale * unit), y * unit)


@pytest.mark.parametrize("unit", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("width", [1.0, 1e6])
def test_the_safe_scale_is_told_in_the_unit_of_its_site_and_no_wider_than_need_be(unit, width):
    """What is eaten is not read for it: a scale that is not safe, or vague, was named once."""
    run = lambda scale: attempt(jp.VMP(lambda y, s: weighed(y, s, width, unit), progress=False),
                                np.asarray(2.0), scale)
    J = 1 + width**-2
    mean = np.arange(4.0) / J + (2.0 - 6.0 / J) / 4
    for scale in (1e-6, 1e-8, 3e-9, 1e-11):
        _, told, refusal = run(scale)
        text = told[0] if told else str(refusal)
        assert f"a scale of {scale * unit:.2g} beside" in text, text
        safe = safe_scale(text) / unit
        assert 1e-5 < safe < 1e-3, text
        found, told, refusal = run(safe)
        assert refusal is None and not told
        np.testing.assert_allclose(found.mean("x"), mean, atol=1e-6)
        np.testing.assert_allclose(found.variance("x"), 0.75 / J, rtol=1e-6)


def test_a_program_of_several_blocks_is_loud_too():
    y = np.cumsum(np.random.default_rng(0).normal(size=30)) / 5
    with pytest.raises(jp.NumericalError, match="level"):
        jp.VMP(trend, progress=False).run(y, np.asarray(1e-8), True)
    with warnings.catch_warnings():
        warnings.simplefilter("error", jp.NumericalWarning)
        jp.VMP(trend, progress=False).run(y, np.asarray(1e-3), True)
        # Where no other block multiplies the level, its noise is drawn apart.
        tight, loose = (jp.VMP(trend, progress=False).run(y, np.asarray(s)) for s in (1e-8, 1e-4))
    np.testing.assert_allclose(tight.mean("level"), loose.mean("level"), atol=1e-6)


def test_values_that_are_large_beside_their_scale():
    def mean(y):
        m = jp.latent("m", dist.Normal(0.0, 1e12))
        with jp.plate("n", 4):
            jp.observe("y", dist.Normal(m, 1e-3), y)

    offset = 1.7e9                    # seconds since 1970, timed to a millisecond
    with pytest.warns(jp.NumericalWarning, match="subtract an offset"):
        jp.VMP(mean, progress=False).run(offset + np.array([0.0, 0.1, 0.2, 0.3]))


def test_precisions_and_offsets_that_do_no_harm():
    def scan(y):
        x0 = jp.latent("x0", dist.Normal(1e3, 1.0))

        def step(x, y):
            jp.observe("y", dist.Normal(x, 1e-4), y)
            return jp.latent("x", dist.Normal(x, 0.1)), None

        jp.scan(step, x0, y)

    y = 1e3 + np.cumsum(0.1 * np.random.default_rng(0).normal(size=100))
    with warnings.catch_warnings():
        warnings.simplefilter("error", jp.NumericalWarning)
        p = jp.VMP(scan, progress=False).run(y)
    np.testing.assert_allclose(np.asarray(p.mean("x"))[:-1], y[1:], atol=1e-5)
    assert p.num_iters <= 2


@pytest.mark.parametrize("width", [1e6, 1e7, 1e8, 1e10])
def test_a_wide_prior_is_no_fault_where_the_posterior_is_narrow(width):
    def program(y):
        x = jp.latent("x", dist.Normal(0.0, width))
        z = jp.latent("z", dist.Normal(x, 1.0))
        jp.observe("y", dist.Normal(z, 0.1), y)

    p = jp.VMP(program, progress=False).run(np.asarray(3.0))
    np.testing.assert_allclose(p.mean("x"), 3.0, rtol=1e-9)
    np.testing.assert_allclose(p.variance("x"), 1.01, rtol=1e-9)


# -- plans and training ----------------------------------------------------------------------------


def push(y, scale):
    def step(x, y):
        u = jp.latent("u", dist.Normal(0.0, 1.0))
        x = jp.latent("x", dist.Normal(0.9 * x + u, 1e-2))
        jp.observe("y", dist.Normal(x, scale), y)
        return x, None

    jp.scan(step, 0.3, y)


def test_a_plan_for_a_tight_goal():
    """Against the QP in closed form: H = 1 + b b' / scale^2, a rank-one change of the identity."""
    T = 6
    b = 0.9 ** np.arange(T)[::-1]
    vmp, y = jp.VMP(push, decide="u", progress=False), jp.sparse(T, {-1: 2.0})
    silent = warned = refused = 0
    for scale in np.logspace(0, -10, 21):
        exact = b * (2 - 0.9**T * 0.3) / (scale**2 + b @ b)
        plan, told, refusal = attempt(vmp, y, scale)
        text = told[0] if told else str(refusal)
        if refusal is not None:
            refused += 1
            assert refusal.site == "y"
        elif not told:
            silent += 1
            assert np.abs(plan.mean("u") - exact).max() < 1e-6      # of a prior one wide
            continue
        else:
            warned += 1
            assert np.abs(plan.mean("u") - exact).max() < 1e-2
        assert "site 'y'" in text and "'u'" in text and f"a scale of {scale:.2g} that" in text
        plan, told, refusal = attempt(vmp, y, safe_scale(text))
        assert refusal is None and not told, (scale, told, refusal)
        assert np.abs(plan.mean("u") - exact).max() < 2e-6
    assert silent >= 9 and warned and refused >= 6


def test_the_way_out_of_a_tight_goal_is_safe():
    vmp, y = jp.VMP(push, decide="u", progress=False), jp.sparse(6, {-1: 2.0})
    with pytest.raises(jp.NumericalError) as caught:
        vmp.run(y, np.asarray(1e-9))
    safe = float(re.search(r"scale of (\S+) asks for the same", str(caught.value)).group(1))
    with warnings.catch_warnings():
        warnings.simplefilter("error", jp.NumericalWarning)
        assert abs(vmp.run(y, np.asarray(safe)).mean("x")[-1] - 2) < 1e-6


def test_training_is_told_before_it_goes_on():
    class Shift(nnx.Module):
        def __init__(self, rngs):
            self.by = nnx.Param(jnp.zeros(1))

    def program(y, scale):
        net = jp.module("net", Shift(nnx.Rngs(0)))

        def step(x, y):
            x = jp.latent("x", dist.Normal(x, scale).to_event(1))
            jp.observe("y", dist.Normal(x + net.by[...], 1.0).to_event(1), y)
            return x, None

        jp.scan(step, jp.latent("x0", dist.Normal(jnp.zeros(1), 1.0).to_event(1)), y)

    em = jp.VariationalEM(program, optax.adam(1e-2), m_steps=1, progress=False,
                          messages={"y": "linearise"})
    with pytest.raises(jp.NumericalError, match="rounding") as caught:
        em.run(0, 1, Y[:, None], np.asarray(1e-9))
    assert len(caught.value.posterior.free_energy) == 1


@pytest.mark.parametrize("scale", [1e-2, 1e-7, 1e-12, 0.0])
def test_a_stiff_chain_of_the_second_order_is_exact(scale):
    """Its older values become recursions, so that states follow from noise drawn apart."""
    def steady(y, scale):
        x0 = jp.latent("x0", dist.Normal(0.0, 1.0))
        x1 = jp.latent("x1", dist.Normal(x0, 0.4))

        def step(carry, y):
            last, x = carry
            jp.observe("y", dist.Normal(x, 1.0), y)
            return (x, jp.latent("x", dist.Normal(2 * x - last, scale))), None

        jp.scan(step, (x0, x1), y)

    n = len(Y)
    root = np.zeros((n + 1, 2 + n))             # x1, x.. from x0, x1 - x0 and the shocks
    root[0, :2] = 1, 0.4
    before = np.eye(1, 2 + n)[0]
    for t in range(n):
        root[t + 1] = 2 * root[t] - (root[t - 1] if t else before)
        root[t + 1, 2 + t] += scale
    cov = root @ root.T
    seen = cov[:n, :n] + np.eye(n)
    mean = cov[:, :n] @ np.linalg.solve(seen, Y)
    loss = 0.5 * (Y @ np.linalg.solve(seen, Y) + np.linalg.slogdet(seen)[1]
                  + n * np.log(2 * np.pi))
    found, told, refused = attempt(jp.VMP(steady, progress=False), Y, scale)
    assert refused is None and not told
    np.testing.assert_allclose(found.free_energy[-1], loss, atol=1e-8)
    np.testing.assert_allclose(found.mean("x"), mean[1:], rtol=1e-5, atol=1e-6)


def test_dynamics_that_bend_are_told_by_name_as_well():
    """What ties a block is found along its path, where a mean is not affine."""
    def bending(y, scale):
        a = jp.latent("a", dist.Normal(jnp.zeros(2), 0.3).to_event(1))
        x0 = jp.latent("x0", dist.Normal(0.0, 1.0))

        def step(x, y):
            jp.observe("y", dist.Normal(x, 1.0), y)
            mean = x + a @ jnp.stack([jnp.sin(x), jnp.cos(x)])
            return jp.latent("x", dist.Normal(mean, scale)), None

        jp.scan(step, x0, y)

    vmp = jp.VMP(bending, messages={"x": "linearise"}, progress=False)
    _, told, refused = attempt(vmp, Y, 1e-9)
    assert "site 'x'" in (told[0] if told else str(refused))


def correlated(y, covariance, scale):
    x = jp.latent("x", dist.MultivariateNormal(jnp.zeros(len(y)), covariance_matrix=covariance))
    jp.observe("y", dist.Normal(x, scale).to_event(1), y)


def exact_correlated(y, covariance, scale):
    """In 60 digits."""
    with mpmath.workdps(60):
        C, z = mpmath.matrix(covariance.tolist()), mpmath.matrix(y.tolist())
        S = C + mpmath.mpf(scale)**2 * mpmath.eye(len(y))
        half = mpmath.lu_solve(S, z)
        shrink = mpmath.inverse(S)
        mean = C * half
        variance = [C[i, i] - (C[i, :] * shrink * C[:, i])[0] for i in range(len(y))]
        nats = (len(y) * mpmath.log(2 * mpmath.pi) + mpmath.log(mpmath.det(S))
                + (z.T * half)[0]) / 2
        return (np.array([*map(float, mean)]), np.array([*map(float, variance)])), float(nats)


def pair(gap, *y):
    return np.array(y), np.array([[1.0, 1 - gap], [1 - gap, 1.0]])


def kernel(jitter, size=12):
    t = np.linspace(0, 1, size)
    return (np.random.default_rng(0).normal(size=size),
            np.exp(-2 * (t[:, None] - t)**2) + jitter * np.eye(size))


SINGULAR = {        # data and covariance, and whether digits are lost
    "data that contradict it": (pair(5e-12, 30.0, -20.0), True),
    "data far from it": (pair(1e-10, 3000.0, -2000.0), True),
    "data near to it": (pair(1e-14, 1.0, 1.5), True),
    "a kernel of little jitter": (kernel(1e-13), True),
    "a kernel as people write it": (kernel(1e-6, 40), False),
    "hardly singular": (pair(1e-6, 30.0, -20.0), False),
}


@pytest.mark.parametrize("case", SINGULAR)
def test_what_cancels_in_a_covariance_that_is_nearly_singular_is_told(case):
    (y, covariance), loses = SINGULAR[case]
    (mean, variance), nats = exact_correlated(y, covariance, 0.1)
    with jax.enable_x64(True), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = jp.VMP(correlated, progress=False).run(y, covariance, np.float64(0.1))
    error = (np.abs(found.mean("x") - mean) / np.sqrt(variance)).max()
    told = [str(w.message) for w in caught if issubclass(w.category, jp.NumericalWarning)]
    assert bool(told) == loses, told
    of_spread, of_f = map(float, re.search(r"error (\S+) of its spread, (\S+) nats",
                                           told[0]).groups()) if told else (1e-6, 1e-4)
    assert error < of_spread and abs(found.free_energy[-1] - nats) < of_f
