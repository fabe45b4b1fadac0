"""Discrete latents against enumeration: Markov chains, mixtures, switching dynamics, Dirichlets."""

from __future__ import annotations

from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from faults import refused
from numpy.testing import assert_allclose
from numpyro.infer.util import log_density
from scipy import special, stats

import jopa_ppl as jp
from jopa_ppl.errors import FileError, StructureError
from jopa_ppl.posterior import storage

P = np.array([[0.9, 0.1, 0.0], [0.05, 0.9, 0.05], [0.1, 0.1, 0.8]])
PI, M = np.array([0.5, 0.3, 0.2]), np.array([-1.0, 0.0, 2.0])
RNG = np.random.default_rng(0)
Y = RNG.normal(size=6)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def fit(model, *args, **options):
    return jp.VMP(model, progress=False, **{"max_iters": 1000, "tol": 1e-12, **options}).run(*args)


def hidden(y, first="latent"):
    z0 = jp.latent("z0", dist.Categorical(PI)) if first == "latent" else 1

    def step(z, y):
        z = jp.latent("z", dist.Categorical(jnp.asarray(P)[z]))
        jp.observe("y", dist.Normal(jnp.asarray(M)[z], 0.7), y)
        return z, None

    jp.scan(step, z0, y)


def logits(y):
    def step(z, y):
        z = jp.latent("z", dist.Categorical(logits=jnp.log(P + 1e-3)[z]))
        jp.observe("y", dist.Poisson(jnp.exp(M)[z]), y)
        return z, None

    jp.scan(step, jp.latent("z0", dist.DiscreteUniform(0, 2)), y)


def bernoulli(y):
    def step(z, y):
        z = jp.latent("z", dist.Bernoulli(jnp.where(z == 1, 0.8, 0.3)))
        jp.observe("y", dist.Normal(2.0 * z, 0.5 + z), y)
        return z, None

    jp.scan(step, 0, y)


def abreast(y):                 # a plate of chains
    def step(z, y):
        with jp.plate("many", 2):
            z = jp.latent("z", dist.Categorical(jnp.array([[0.9, 0.1], [0.2, 0.8]])[z]))
            jp.observe("y", dist.Normal(jnp.asarray(M)[z], 0.7), y)
        return z, None

    with jp.plate("many", 2):
        z0 = jp.latent("z0", dist.Categorical(jnp.array([0.6, 0.4])))
    jp.scan(step, z0, y)


def pooled(y):                  # of every element for itself
    with jp.plate("n", len(y)):
        z = jp.latent("z", dist.Categorical(PI))
        jp.observe("y", dist.Normal(jnp.asarray(M)[z], 1.0 + z), y)


def shared(y):                  # one value for all data
    k = jp.latent("k", dist.DiscreteUniform(1, 4))
    with jp.plate("n", len(y)):
        jp.observe("y", dist.Normal(0.1 * k, 1.0), y)


def sprinkler(wet):             # a network: what is seen makes its causes dependent
    rain = jp.latent("rain", dist.Bernoulli(0.2))
    kind = jp.latent("kind", dist.Categorical(jnp.array([[0.6, 0.3, 0.1], [0.9, 0.1, 0.0]])[rain]))
    jp.observe("wet", dist.Bernoulli(jnp.array([[0.1, 0.9, 0.5], [0.8, 0.99, 0.9]])[rain, kind]),
               wet)


def reports(y):                 # a cause of all elements, and one of each
    honest = jp.latent("honest", dist.Bernoulli(0.7))
    with jp.plate("n", len(y)):
        coin = jp.latent("coin", dist.Categorical(jnp.array([0.5, 0.3, 0.2])))
        jp.observe("y", dist.Normal(jnp.where(honest == 1, coin, 1.0), 0.8), y)


def pairs(y):                   # two of each element
    with jp.plate("n", len(y)):
        a = jp.latent("a", dist.Bernoulli(0.3))
        b = jp.latent("b", dist.Bernoulli(jnp.where(a == 1, 0.9, 0.2)))
        jp.observe("y", dist.Normal(a + 2.0 * b, 0.7), y)


def kinds(y):                   # two sites of a step, one of which is not carried
    def step(z, y):
        z = jp.latent("z", dist.Bernoulli(jnp.where(z == 1, 0.8, 0.3)))
        c = jp.latent("c", dist.Categorical(jnp.array([[0.6, 0.3, 0.1], [0.1, 0.1, 0.8]])[z]))
        jp.observe("y", dist.Normal(z + 0.5 * c, 0.7), y)
        return z, None

    jp.scan(step, jp.latent("z0", dist.Bernoulli(0.4)), y)


def second_order(y, first="constant"):
    table = jnp.array([[[0.9, 0.1], [0.4, 0.6]], [[0.3, 0.7], [0.2, 0.8]]])
    first = (0, 1) if first == "constant" else (
        jp.latent("za", dist.Bernoulli(0.4)), jp.latent("zb", dist.Bernoulli(0.7)))

    def step(carry, y):
        old, z = carry
        new = jp.latent("z", dist.Categorical(table[old, z]))
        jp.observe("y", dist.Normal(new * 1.0, 0.7), y)
        return (z, new), None

    jp.scan(step, first, y)


def coupled(y):                 # chains that move each other, and a cause of all steps
    side = jp.latent("side", dist.Bernoulli(0.3))

    def step(carry, y):
        a, b = carry
        a = jp.latent("a", dist.Bernoulli(jnp.array([[0.2, 0.7], [0.6, 0.9]])[a, side]))
        b = jp.latent("b", dist.Bernoulli(jnp.array([[0.3, 0.1], [0.5, 0.9]])[b, a]))
        jp.observe("y", dist.Normal(a + 2.0 * b, 0.7), y)
        return (a, b), None

    jp.scan(step, (0, 1), y)


GAPS = np.where(np.arange(6) == 2, np.nan, Y)
EXACT = {"a latent first": (hidden, (Y,)), "a constant first": (hidden, (Y, "constant")),
         "a gap": (hidden, (GAPS,)), "logits, counts": (logits, (np.arange(5.0),)),
         "coins": (bernoulli, (Y,)), "a plate": (abreast, (RNG.normal(size=(3, 2)),)),
         "elements": (pooled, (Y[:4],)), "one for all": (shared, (Y,)),
         "a network": (sprinkler, (1,)), "one cause of all": (reports, (Y[:4],)),
         "two of each": (pairs, (Y[:3],)), "two of each, a gap": (pairs, (GAPS[:3],)),
         "one cause, a gap": (reports, (GAPS[:4],)), "two sites of a step": (kinds, (Y[:4],)),
         "two sites, a gap at the end": (kinds, (GAPS[:3],)),
         "two steps back": (second_order, (Y,)),
         "two steps back, latents first": (second_order, (GAPS, "latent")),
         "chains that move each other": (coupled, (Y[:4],))}


def enumerated(model, args, found):
    """log p(data, z) of every z: {site: (count, *shape)}, (count,)."""
    values = {n: found.compiled.graph.program.sites[n].values for n in found.sites}
    shapes = {n: np.shape(found.mean(n)) for n in found.sites}
    sizes = {n: int(np.prod(shapes[n], dtype=int)) for n in found.sites}
    every = np.array(list(product(*(values[n] for n in found.sites for _ in range(sizes[n])))))
    ends = np.cumsum([0, *sizes.values()])
    draws = {n: jnp.asarray(every[:, a:b].reshape((-1, *shapes[n])))
             for n, a, b in zip(found.sites, ends, ends[1:])}
    seeded = numpyro.handlers.seed(model, 0)
    return draws, jax.vmap(lambda z: log_density(seeded, args, {}, z)[0])(draws)


@pytest.mark.parametrize("case", EXACT)
def test_one_block_against_enumeration(case):
    """F, marginals, the density of every path, the most probable one, and draws."""
    model, args = EXACT[case]
    found = fit(model, *args)
    draws, log = enumerated(model, args, found)
    evidence = special.logsumexp(np.asarray(log))
    weights = np.exp(np.asarray(log) - evidence)
    assert_allclose(found.free_energy[-1], -evidence, rtol=1e-10)
    assert_allclose(found.log_prob(draws)[weights > 1e-12], (log - evidence)[weights > 1e-12],
                    atol=1e-8)
    best = found.most_probable()
    assert_allclose(log_density(numpyro.handlers.seed(model, 0), args, {}, best)[0], log.max(),
                    rtol=1e-12)
    drawn = found.sample(0, 20_000)
    for name in found.sites:
        assert best[name].dtype == drawn[name].dtype == int
        mean = np.tensordot(weights, np.asarray(draws[name], float), 1)
        assert_allclose(found.mean(name), mean, atol=1e-10)
        spread = np.tensordot(weights, (np.asarray(draws[name]) - mean)**2, 1)
        assert_allclose(found.variance(name), spread, atol=1e-10)
        assert_allclose(drawn[name].mean(0), mean, atol=0.03)


def test_steps_that_nothing_reaches_follow_the_chain():
    whole, ahead = fit(hidden, Y), fit(hidden, np.r_[Y, np.full(4, np.nan)])
    assert_allclose(ahead.free_energy[-1], whole.free_energy[-1], rtol=1e-12)
    last = whole["z"].probs[-1]
    for k in range(5):
        assert_allclose(ahead["z"].probs[5 + k], last @ np.linalg.matrix_power(P, k), atol=1e-12)


def test_counts_are_conjugate_to_a_dirichlet():
    def program(y):
        p = jp.latent("p", dist.Dirichlet(jnp.array([1.0, 2.0, 0.5])))
        with jp.plate("n", len(y)):
            jp.observe("y", dist.Categorical(p), y)

    y = np.array([0, 1, 1, 2, 1, 0, 1])
    a, c = np.array([1.0, 2, 0.5]), np.bincount(y)
    norm = lambda a: special.gammaln(a).sum() - special.gammaln(a.sum())
    found = fit(program, y)
    assert_allclose(found.free_energy[-1], norm(a) - norm(a + c), rtol=1e-12)
    assert_allclose(found["p"].concentration, a + c, rtol=1e-12)


@pytest.mark.parametrize("one_event", [False, True])
def test_sets_of_probabilities_that_are_one_event_are_sets_all_the_same(one_event):
    def program(y):
        fn = dist.Dirichlet(jnp.array([[1.0, 2.0], [3.0, 0.5]]))
        p = jp.latent("p", fn.to_event(1) if one_event else fn)
        with jp.plate("n", len(y)):
            jp.observe("y", dist.Categorical(p[jnp.arange(len(y)) % 2]), y)

    found = fit(program, np.array([0, 1, 1, 1]))
    assert_allclose(found["p"].concentration, [[2.0, 3.0], [3.0, 2.5]], rtol=1e-12)


def test_totals_of_values_are_conjugate_to_a_dirichlet():
    """Multinomial counts, some missing: the density of totals, the belief of counts."""
    def program(y):
        p = jp.latent("p", dist.Dirichlet(jnp.array([1.0, 2.0, 0.5])))
        with jp.plate("n", len(y)):
            jp.observe("y", dist.Multinomial(7, p), y)

    y = np.array([[3.0, 4, 0], [np.nan] * 3, [1, 1, 5]])
    seen = y[[0, 2]]
    a, c = np.array([1.0, 2, 0.5]), seen.sum(0)
    norm = lambda a: special.gammaln(a).sum() - special.gammaln(a.sum())
    ways = special.gammaln(8) - special.gammaln(seen + 1).sum(-1)
    found = fit(program, y)
    assert_allclose(found.free_energy[-1], norm(a) - norm(a + c) - ways.sum(), rtol=1e-12)
    assert_allclose(found["p"].concentration, a + c, rtol=1e-12)


# -- several blocks: what draws say of F, and a bound --------------------------------------------


def mixture(y):
    w = jp.latent("w", dist.Dirichlet(jnp.ones(2)))
    with jp.plate("K", 2):
        mu, tau = jp.latent("mu", dist.Normal(0, 3.0)), jp.latent("tau", dist.Gamma(2.0, 1.0))
    with jp.plate("n", len(y)):
        z = jp.latent("z", dist.Categorical(w))
        jp.observe("y", dist.Normal(mu[z], 1 / jnp.sqrt(tau[z])), y)


def coins(y):
    w = jp.latent("w", dist.Beta(1.0, 1.0))
    mu = jp.latent("mu", dist.Normal(jnp.array([-1.0, 1.0]), 1.0))
    with jp.plate("n", len(y)):
        z = jp.latent("z", dist.Bernoulli(w))
        jp.observe("y", dist.Normal(mu[z], 0.5), y)


def spammers(y):                # an answer is the truth or a habit: labels choose its probabilities
    with jp.plate("people", 3):
        habit = jp.latent("habit", dist.Dirichlet(jnp.ones(2)))
    with jp.plate("items", len(y), dim=-2):
        c = jp.latent("c", dist.Bernoulli(0.5))
        with jp.plate("people", 3):
            s = jp.latent("s", dist.Bernoulli(0.3))
            truth = jnp.array([[0.9, 0.1], [0.1, 0.9]])[c]
            jp.observe("y", dist.Categorical(jnp.where(s[..., None] == 1, habit, truth)), y)


def survival(y):                # what is dead stays dead and is not seen: probabilities of zero
    phi = jp.latent("phi", dist.Uniform(0.0, 1.0))
    rho = jp.latent("rho", dist.Uniform(0.0, 1.0))

    def step(z, y):
        with jp.plate("animals", 6):
            z = jp.latent("z", dist.Bernoulli(phi * z))
            jp.observe("y", dist.Bernoulli(rho * z), y)
        return z, None

    jp.scan(step, jnp.ones(6, int), y)


def counts(y):
    A = jp.latent("A", dist.Dirichlet(jnp.ones((2, 2))))
    rate = jp.latent("rate", dist.Gamma(jnp.array([2.0, 20.0]), 1.0))

    def step(z, y):
        z = jp.latent("z", dist.Categorical(A[z]))
        jp.observe("y", dist.Poisson(rate[z]), y)
        return z, None

    jp.scan(step, 0, y)


def switching(y):
    A = jp.latent("A", dist.Dirichlet(jnp.array([[9.0, 1.0], [1.0, 9.0]])))
    a = jp.latent("a", dist.Normal(jnp.array([0.9, -0.5]), 0.5))
    tau = jp.latent("tau", dist.Gamma(2.0, 0.1))

    def step(carry, y):
        z, x = carry
        z = jp.latent("z", dist.Categorical(A[z]))
        x = jp.latent("x", dist.Normal(a[z] * x, 1 / jnp.sqrt(tau)))
        jp.observe("y", dist.Normal(x, 0.1), y)
        return (z, x), None

    first = (jp.latent("z0", dist.Categorical(jnp.ones(2) / 2)),
             jp.latent("x0", dist.Normal(0.0, 1.0)))
    jp.scan(step, first, y)


def swung(T):
    rng, x, out = np.random.default_rng(3), 1.0, []
    for t in range(T):
        x = (0.95 if (t // 15) % 2 == 0 else -0.8) * x + 0.3 * rng.normal()
        out.append(x + 0.1 * rng.normal())
    return np.array(out)


MANY = {mixture: np.r_[RNG.normal(-2, 0.5, 15), RNG.normal(1.5, 0.5, 25)],
        coins: np.r_[RNG.normal(-1, 0.5, 20), RNG.normal(2, 0.5, 10)],
        counts: RNG.poisson(np.where(np.arange(40) // 10 % 2 == 0, 2, 15)).astype(float),
        spammers: RNG.integers(0, 2, (5, 3)),
        survival: np.cumprod(RNG.random((5, 6)) < 0.8, 0) * (RNG.random((5, 6)) < 0.6) * 1.0,
        switching: swung(60)}


@pytest.mark.parametrize("model", MANY, ids=lambda m: m.__name__)
def test_draws_say_the_same_of_f(model):
    found = fit(model, MANY[model], tol=1e-8)
    gap, error = found.free_energy_error(1000)
    assert found.converged and abs(gap) < 4 * error + 0.02
    assert (np.diff(found.free_energy) < 1e-6 * np.abs(found.free_energy[:-1])).all()


def test_what_generated_the_data_is_found():
    found = fit(mixture, MANY[mixture])
    order = np.argsort(found.mean("mu"))
    assert_allclose(np.asarray(found.mean("mu"))[order], [-2, 1.5], atol=0.5)
    assert_allclose(np.asarray(found.mean("w"))[order], [15 / 40, 25 / 40], atol=0.1)
    assert_allclose(fit(counts, MANY[counts]).mean("rate"), [2, 15], rtol=0.3)
    assert_allclose(fit(switching, MANY[switching]).mean("a"), [0.95, -0.8], atol=0.2)


def test_switching_dynamics_against_the_mixture_over_paths():
    """F is above -log p(data), which sums over all paths of z the evidence of a Gaussian chain."""
    y, A, a, s = swung(7), np.array([[0.8, 0.2], [0.3, 0.7]]), np.array([0.9, -0.5]), 0.3

    def program(y):
        def step(carry, y):
            z, x = carry
            z = jp.latent("z", dist.Categorical(jnp.asarray(A)[z]))
            x = jp.latent("x", dist.Normal(jnp.asarray(a)[z] * x, s))
            jp.observe("y", dist.Normal(x, 0.1), y)
            return (z, x), None

        jp.scan(step, (0, jp.latent("x0", dist.Normal(0.0, 1.0))), y)

    total = []
    for path in product(range(2), repeat=7):
        L = np.eye(8)
        for t, z in enumerate(path):
            L[t + 1] = a[z] * L[t]
            L[t + 1, t + 1] = 1.0
        cov = (L @ np.diag([1.0, *[s**2] * 7]) @ L.T)[1:, 1:] + 0.01 * np.eye(7)
        prior = np.log([A[i, j] for i, j in zip((0, *path), path)]).sum()
        total.append(prior + stats.multivariate_normal(np.zeros(7), cov).logpdf(y))
    evidence = special.logsumexp(total)
    found = fit(program, y)
    assert found.converged and -1e-9 < found.free_energy[-1] + evidence < 0.5


def test_a_forecast_of_switching_dynamics_mixes_the_regimes():
    """One step ahead its moments are those of the draws, each of which is in one regime."""
    y = np.r_[swung(20), np.nan]
    found = fit(switching, y, tol=1e-8)
    drawn = found.sample(0, 4000)
    x = drawn["x"][:, -1]
    assert_allclose(found.mean("x")[-1], x.mean(), atol=5 * x.std() / 63)
    assert_allclose(np.sqrt(found.variance("x")[-1]), x.std(), rtol=0.1)
    assert_allclose(found.mean("z")[-1], drawn["z"][:, -1].mean(), atol=0.05)


@pytest.mark.parametrize("K", [16, 48])
def test_a_chain_of_many_states_has_its_evidence(K):
    """By the forward algorithm in logs; 2,304 joint values of two states."""
    rng = np.random.default_rng(K)
    move, mean = rng.dirichlet(np.ones(K), K), rng.normal(0, 3, K)
    y = rng.normal(0, 3, 30)

    def program(y):
        def step(z, y):
            z = jp.latent("z", dist.Categorical(jnp.asarray(move)[z]))
            jp.observe("y", dist.Normal(jnp.asarray(mean)[z], 0.5), y)
            return z, None

        jp.scan(step, 3, y)

    log = np.where(np.arange(K) == 3, 0.0, -np.inf)
    for value in y:
        log = special.logsumexp(log[:, None] + np.log(move), 0) + stats.norm.logpdf(
            value, mean, 0.5)
    found = fit(program, y)
    assert_allclose(found.free_energy[-1], -special.logsumexp(log), rtol=1e-10)
    assert_allclose(found["z"].probs[-1], special.softmax(log), atol=1e-9)


def test_regimes_of_an_autoregression():
    """Each step reads the data before it, in every regime: by the forward algorithm."""
    y, slope = np.random.default_rng(2).normal(size=8), M

    def program(y):
        def step(carry, y):
            z, before = carry
            z = jp.latent("z", dist.Categorical(jnp.asarray(P)[z]))
            seen = jp.observe("y", dist.Normal(jnp.asarray(slope)[z] * before, 0.7), y)
            return (z, seen), None

        jp.scan(step, (0, jnp.asarray(0.3)), y)

    log, before = np.where(np.arange(3) == 0, 0.0, -np.inf), 0.3
    with np.errstate(divide="ignore"):
        moves = np.log(P)
    for value in y:
        log = special.logsumexp(log[:, None] + moves, 0) + stats.norm.logpdf(
            value, slope * before, 0.7)
        before = value
    assert_allclose(fit(program, y).free_energy[-1], -special.logsumexp(log), rtol=1e-10)


@pytest.mark.parametrize("handler, powers", [
    (lambda z: numpyro.handlers.scale(scale=1.0 + z), (1.0, 2.0)),
    (lambda z: numpyro.handlers.mask(mask=z == 1), (0.0, 1.0))], ids=["scale", "mask"])
def test_weights_that_a_discrete_latent_chooses(handler, powers):
    def program(y):
        with jp.plate("n", 6):
            z = jp.latent("z", dist.Bernoulli(0.3))
            with handler(z):
                jp.observe("y", dist.Normal(1.0, 1.0), y)

    log = np.outer(powers, stats.norm.logpdf(Y, 1.0, 1.0)) + np.log([[0.7], [0.3]])
    found = fit(program, Y)
    assert_allclose(found.free_energy[-1], -special.logsumexp(log, 0).sum(), rtol=1e-12)
    assert_allclose(found.mean("z"), special.softmax(log, 0)[1], rtol=1e-10)


# -- what has no message -------------------------------------------------------------------------


def test_too_many_joint_values_are_refused():
    many = jnp.full((9, 9), 1 / 9)

    def program(y):
        def step(carry, y):
            one, two = carry
            z = jp.latent("z", dist.Categorical(many[(one + two) % 9]))
            jp.observe("y", dist.Normal(1.0 * z, 1.0), y)
            return (z, one), None

        jp.scan(step, (0, 0), y)

    refused(StructureError, program, Y, site="z", says=("back 2 steps", "4096"))


def test_counts_without_an_end_are_refused():
    def program(y):
        n = jp.latent("n", dist.Poisson(2.0))
        jp.observe("y", dist.Normal(1.0 * n, 1.0), y)

    refused(StructureError, program, 0.5, site="n", says=("Poisson",))


def test_the_most_probable_path_is_one_where_steps_by_themselves_are_none():
    """Of two ways to a third regime each is less probable than to stay, both together more: step
    by step the most probable regimes are 0, 2, and no way leads from 0 to 2."""
    moves = jnp.array([[0.4, 0.3, 0.0, 0.3], [0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 1.0, 0.0],
                       [0.0, 0.0, 1.0, 0.0]])

    def program(y):
        def step(z, y):
            z = jp.latent("z", dist.Categorical(moves[z]))
            jp.observe("y", dist.Normal(jnp.zeros(4)[z], 1.0), y)
            return z, None

        jp.scan(step, 0, y)

    found = fit(program, np.zeros(2))
    alone = np.argmax(found["z"].probs, -1)
    assert list(alone) == [0, 2] and moves[0, 2] == 0
    path = np.asarray(found.most_probable()["z"])
    assert moves[0, path[0]] * moves[path[0], path[1]] == 0.3 and path[1] == 2


FILED = {**EXACT, **{m.__name__: (m, (y,)) for m, y in MANY.items()}}
QUICK = ("a gap", "one cause, a gap", "two steps back, latents first", "mixture")


@pytest.mark.parametrize("case", [pytest.param(c, marks=() if c in QUICK else pytest.mark.slow)
                                  for c in FILED])
def test_beliefs_come_back_from_files(case, tmp_path):
    model, args = FILED[case]
    found = fit(model, *args, tol=1e-3)
    found.save(tmp_path / "f")
    read = jp.load_posterior(tmp_path / "f")
    assert read.sites == found.sites and read.free_energy[-1] == found.free_energy[-1]
    one, other = found.sample(0, 2000), read.sample(1, 2000)
    for name in found.sites:
        assert_allclose(read.mean(name), found.mean(name), atol=1e-12)
        assert_allclose(read.variance(name), found.variance(name), atol=1e-12)
        spread = np.sqrt(np.asarray(found.variance(name))) + 1e-9
        assert_allclose((other[name].mean(0) - one[name].mean(0)) / spread, 0, atol=0.2)
    assert jax.tree.all(jax.tree.map(np.array_equal, read.most_probable(), found.most_probable()))
    assert read.most_probable().keys() <= set(found.sites)


@pytest.mark.parametrize("change", [
    {"lags": {}}, {"lags": {"z": 10**6}}, {"lags": {"z": -1}}, {"lags": {"z": "1"}},
    {"starts": {"z0": ["y", 1]}}, {"starts": {"z0": ["z", 10**9]}}, {"length": 10**15},
    {"starts": {"elsewhere": ["z", 1]}}, {"over": None}, {"over": 99}, {"length": 5},
    {"starts": {"z0": ["z", 1], "z": ["z", 1]}}, {"starts": {"z0": ["z", 2]}}])
def test_layouts_that_no_chain_has_are_refused(change, tmp_path):
    fit(hidden, Y).save(tmp_path / "f")
    header, tensors = storage.read(tmp_path / "f")
    header["blocks"][0]["layout"] |= change
    storage.write(tmp_path / "f", header, tensors)
    with pytest.raises(FileError):
        jp.load_posterior(tmp_path / "f")


@pytest.mark.parametrize("change", [{"values": [0.5, 1.5, 2.0]}, {"values": "abc"},
                                    {"described": 5}])
def test_sites_of_another_form_are_refused(change, tmp_path):
    fit(hidden, Y).save(tmp_path / "f")
    header, tensors = storage.read(tmp_path / "f")
    for site in header["sites"]:
        site |= change
    storage.write(tmp_path / "f", header, tensors)
    with pytest.raises(FileError):
        jp.load_posterior(tmp_path / "f")


def test_elements_that_see_others_are_refused():
    def shuffled(y):
        with jp.plate("n", len(y)):
            z = jp.latent("z", dist.Categorical(PI))
            jp.observe("y", dist.Normal(jnp.asarray(M)[z[::-1]], 1.0), y)

    def bare(y):
        z = jp.latent("z", dist.Categorical(PI).expand([len(y)]))
        jp.observe("y", dist.Normal(jnp.asarray(M)[z], 1.0), y)

    for program in (shuffled, bare):
        refused(StructureError, program, Y, site="y", says=("'z'", "numpyro.plate"))
