"""Discrete latents without time: mixtures, annotators, tables, networks of a few variables."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array
from numpyro import plate, sample

RNG = np.random.default_rng(18)
REALS = np.r_[RNG.normal(-2, 0.5, 15), RNG.normal(1.5, 0.5, 25)]
PAIRS = np.concatenate([RNG.normal(size=(12, 2)) * 0.5 - 1.5,
                        RNG.normal(size=(18, 2)) @ np.array([[0.5, 0.4], [0, 0.3]]) + 1.5])
BITS = (RNG.random((30, 4)) < np.where(np.arange(30)[:, None] < 12, [0.9, 0.8, 0.2, 0.1],
                                       [0.2, 0.1, 0.7, 0.9])).astype(float)
WAITS = np.r_[RNG.gamma(2.0, 0.5, 15), RNG.gamma(9.0, 1.0, 20)]
THROWS = RNG.choice(3, 30, p=[0.5, 0.3, 0.2])
TOTALS = np.array([8.0, 5.0, 2.0])
WORD_COUNTS = RNG.multinomial(6, [0.4, 0.2, 0.2, 0.1, 0.1], 5).astype(float)
DOCUMENT = np.repeat(np.arange(4), 8)
WORDS = np.array([RNG.choice(5, p=[[0.4, 0.4, 0.1, 0.05, 0.05], [0.05, 0.05, 0.1, 0.4, 0.4]][
    int(RNG.random() < [0.1, 0.9, 0.5, 0.2][d])]) for d in DOCUMENT])
TRUTH = RNG.choice(2, 12, p=[0.4, 0.6])
SAID = np.where(RNG.random((12, 4)) < 0.8, TRUTH[:, None], 1 - TRUTH[:, None])
ANGLES = np.r_[RNG.vonmises(-1.0, 5.0, 12), RNG.vonmises(1.5, 5.0, 18)]
TORUS = np.stack([ANGLES, np.r_[RNG.vonmises(0.5, 5.0, 12), RNG.vonmises(-1.0, 5.0, 18)]], -1)
ZEROS = np.where(RNG.random(40) < 0.3, 0, RNG.poisson(3.0, 40)).astype(float)
COAT = (RNG.random(30) < 0.5).astype(float)
HEAT = 0.5 + 1.5 * COAT + 0.4 * RNG.normal(size=30)
GONE = np.arange(30) % 4 == 0


def gaussian(y: Array) -> None:
    """Weights, means and precisions unknown."""
    w = sample("w", dist.Dirichlet(jnp.ones(2)))
    with plate("K", 2):
        mu = sample("mu", dist.Normal(0.0, 3.0))
        tau = sample("tau", dist.Gamma(2.0, 1.0))
    with plate("n", len(y)):
        z = sample("z", dist.Categorical(w))
        sample("y", dist.Normal(mu[z], 1 / jnp.sqrt(tau[z])), obs=y)


def gaussian_scale(y: Array) -> None:
    """One LogNormal sd for all."""
    w = sample("w", dist.Dirichlet(jnp.full(2, 0.5)))
    sd = sample("sd", dist.LogNormal(0.0, 2.0))
    with plate("K", 2):
        mu = sample("mu", dist.Normal(0.0, 10.0))
    with plate("n", len(y)):
        z = sample("z", dist.Categorical(w))
        sample("y", dist.Normal(mu[z], sd), obs=y)


def integrated(y: Array) -> None:
    """The same with the labels summed out by a mixture distribution."""
    w = sample("w", dist.Dirichlet(jnp.full(2, 0.5)))
    sd = sample("sd", dist.LogNormal(0.0, 2.0))
    mu = sample("mu", dist.Normal(jnp.array([-1.0, 1.0]), 3.0).to_event(1))
    with plate("n", len(y)):
        sample("y", dist.MixtureSameFamily(dist.Categorical(w), dist.Normal(mu, sd)), obs=y)


def vectors(y: Array) -> None:
    """Vectors, a Wishart precision for each kind."""
    w = sample("w", dist.Dirichlet(jnp.ones(2)))
    with plate("K", 2):
        mu = sample("mu", dist.Normal(jnp.zeros(2), 3.0).to_event(1))
        W = sample("W", dist.Wishart(4.0, rate_matrix=jnp.eye(2)))
    with plate("n", len(y)):
        z = sample("z", dist.Categorical(w))
        sample("y", dist.MultivariateNormal(mu[z], precision_matrix=W[z]), obs=y)


def bits(y: Array) -> None:
    """Products of Bernoullis."""
    w = sample("w", dist.Dirichlet(jnp.ones(2)))
    with plate("K", 2):
        p = sample("p", dist.Beta(jnp.ones(4), 1.0).to_event(1))
    with plate("n", len(y)):
        z = sample("z", dist.Categorical(w))
        sample("y", dist.Bernoulli(p[z]).to_event(1), obs=y)


def positive(y: Array) -> None:
    """A mixture of Gammas, shapes and rates unknown."""
    w = sample("w", dist.Dirichlet(jnp.ones(2)))
    with plate("K", 2):
        shape = sample("shape", dist.Gamma(4.0, 1.0))
        rate = sample("rate", dist.Gamma(2.0, 1.0))
    with plate("n", len(y)):
        z = sample("z", dist.Categorical(w))
        sample("y", dist.Gamma(shape[z], rate[z]), obs=y)


def universal(y: Array) -> None:
    """Two nodes of different noise under one switch of a Beta weight."""
    w = sample("w", dist.Beta(1.0, 1.0))
    mu = sample("mu", dist.Normal(jnp.array([-1.0, 1.0]), 1.0))
    with plate("n", len(y)):
        z = sample("z", dist.Bernoulli(w))
        sample("y", dist.Normal(mu[z], jnp.array([0.5, 0.8])[z]), obs=y)


def zero_inflated(y: Array) -> None:
    gate = sample("gate", dist.Beta(2.0, 2.0))
    rate = sample("rate", dist.Gamma(2.0, 0.5))
    with plate("n", len(y)):
        sample("y", dist.ZeroInflatedPoisson(gate, rate), obs=y)


def zero_inflated_labels(y: Array) -> None:
    """The same with the gate's side a latent."""
    gate = sample("gate", dist.Beta(2.0, 2.0))
    rate = sample("rate", dist.Gamma(2.0, 0.5))
    with plate("n", len(y)):
        off = sample("off", dist.Bernoulli(gate))
        sample("y", dist.Poisson(jnp.where(off == 1, 1e-6, rate)), obs=y)


def angles(y: Array) -> None:
    """Directions: locations on the circle and concentrations by kind."""
    w = sample("w", dist.Dirichlet(jnp.ones(2)))
    with plate("K", 2):
        loc = sample("loc", dist.VonMises(0.0, 0.1))
        conc = sample("conc", dist.Gamma(3.0, 1.0))
    with plate("n", len(y)):
        z = sample("z", dist.Categorical(w))
        sample("y", dist.VonMises(loc[z], conc[z]), obs=y)


def torus(y: Array) -> None:
    """Pairs of directions that are correlated."""
    w = sample("w", dist.Dirichlet(jnp.ones(2)))
    with plate("K", 2):
        phi, psi = sample("phi", dist.VonMises(0.0, 0.1)), sample("psi", dist.VonMises(0.0, 0.1))
        a, b = sample("a", dist.Gamma(3.0, 1.0)), sample("b", dist.Gamma(3.0, 1.0))
        share = sample("share", dist.Beta(1.0, 10.0))
    with plate("n", len(y)):
        z = sample("z", dist.Categorical(w))
        sample("y", dist.SineBivariateVonMises(
            phi[z], psi[z], a[z], b[z], weighted_correlation=share[z]), obs=y)


def throws(y: Array) -> None:
    p = sample("p", dist.Dirichlet(jnp.array([1.0, 2.0, 0.5])))
    with plate("n", len(y)):
        sample("y", dist.Categorical(p), obs=y)


def totals(y: Array) -> None:
    p = sample("p", dist.Dirichlet(jnp.array([1.0, 2.0, 0.5])))
    sample("y", dist.Multinomial(15, p), obs=y)


def topics(document: Array, words: Array) -> None:
    """A topic for every word, proportions by document, words by topic."""
    with plate("topics", 2):
        phi = sample("phi", dist.Dirichlet(jnp.full(5, 0.5)))
    with plate("documents", 4):
        theta = sample("theta", dist.Dirichlet(jnp.ones(2)))
    with plate("words", len(words)):
        z = sample("z", dist.Categorical(theta[document]))
        sample("w", dist.Categorical(phi[z]), obs=words)


def topics_apart(document: Array, words: Array) -> None:
    """The same with priors of the topics that differ a little."""
    prior = jnp.full((2, 5), 0.5).at[0, 0].add(0.01).at[1, 4].add(0.01)
    with plate("topics", 2):
        phi = sample("phi", dist.Dirichlet(prior))
    with plate("documents", 4):
        theta = sample("theta", dist.Dirichlet(jnp.ones(2)))
    with plate("words", len(words)):
        z = sample("z", dist.Categorical(theta[document]))
        sample("w", dist.Categorical(phi[z]), obs=words)


def topics_logistic(counts: Array) -> None:
    """Proportions a softmax of Gaussians, words a product of experts, a network left out."""
    beta = sample("beta", dist.Normal(jnp.zeros((2, 5)), 1.0).to_event(2))
    with plate("documents", len(counts)):
        theta = sample("theta", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
        sample("w", dist.Multinomial(logits=jax.nn.softmax(theta) @ beta,
                                     total_count=6), obs=counts)


def annotators_pooled(said: Array) -> None:
    """All annotators alike."""
    pi = sample("pi", dist.Dirichlet(jnp.ones(2)))
    with plate("classes", 2):
        zeta = sample("zeta", dist.Dirichlet(jnp.ones(2)))
    with plate("items", len(said), dim=-2):
        c = sample("c", dist.Categorical(pi))
        with plate("positions", said.shape[1]):
            sample("y", dist.Categorical(zeta[c]), obs=said)


def dawid_skene(said: Array) -> None:
    """A table of confusion for each annotator."""
    pi = sample("pi", dist.Dirichlet(jnp.ones(2)))
    with plate("annotators", said.shape[1], dim=-2), plate("classes", 2):
        beta = sample("beta", dist.Dirichlet(jnp.ones(2) + 2 * jnp.eye(2)))
    with plate("items", len(said), dim=-2):
        c = sample("c", dist.Categorical(pi))
        with plate("positions", said.shape[1]):
            sample("y", dist.Categorical(beta[jnp.arange(said.shape[1]), c]), obs=said)


def spammers(said: Array) -> None:
    """Each answer is the truth, or a spammer's habit."""
    who = jnp.arange(said.shape[1])                 # as shipped, where it differs by item
    with plate("annotators", said.shape[1]):
        habit = sample("habit", dist.Dirichlet(jnp.full(2, 10.0)))
        theta = sample("theta", dist.Beta(0.5, 0.5))
    with plate("items", len(said), dim=-2):
        c = sample("c", dist.DiscreteUniform(0, 1))
        with plate("positions", said.shape[1]):
            s = sample("s", dist.Bernoulli(1 - theta[who]))
            probs = jnp.where(s[..., None] == 0, jnp.eye(2)[c], habit[who])
            sample("y", dist.Categorical(probs), obs=said)


def hierarchical_annotators(said: Array) -> None:
    """Logits of confusion drawn around common ones."""
    pi = sample("pi", dist.Dirichlet(jnp.ones(2)))
    with plate("classes", 2):
        mean = sample("mean", dist.Normal(jnp.array([2.0, -2.0]), 1.0).to_event(1))
        sd = sample("sd", dist.HalfNormal(1.0))
        with plate("annotators", said.shape[1], dim=-2):
            logit = sample("logit", dist.Normal(mean[:, 0], sd))
    right = jnp.stack([logit, -logit], -1)
    with plate("items", len(said), dim=-2):
        c = sample("c", dist.Categorical(pi))
        with plate("positions", said.shape[1]):
            sample("y", dist.Categorical(logits=right[jnp.arange(said.shape[1]), c]), obs=said)


def difficulty(said: Array) -> None:
    """Logits of confusion drawn for each item."""
    pi = sample("pi", dist.Dirichlet(jnp.ones(2)))
    with plate("classes", 2):
        eta = sample("eta", dist.Normal(jnp.array([-2.0, 2.0]), 1.0))
        sd = sample("sd", dist.HalfNormal(1.0))
    with plate("items", len(said), dim=-2):
        c = sample("c", dist.Categorical(pi))
        theta = sample("theta", dist.Normal(eta[c], sd[c]))
        with plate("positions", said.shape[1]):
            sample("y", dist.Bernoulli(logits=theta), obs=said)


def logistic_effects(said: Array) -> None:
    """An effect of the annotator and one of the item."""
    pi = sample("pi", dist.Dirichlet(jnp.ones(2)))
    zeta = sample("zeta", dist.Normal(jnp.array([-2.0, 2.0]), 1.0).to_event(1))
    sd = sample("sd", dist.HalfNormal(1.0))
    with plate("annotators", said.shape[1], dim=-1):
        beta = sample("beta", dist.Normal(0.0, sd))
    with plate("items", len(said), dim=-2):
        c = sample("c", dist.Categorical(pi))
        theta = sample("theta", dist.Normal(0.0, 1.0))
        with plate("positions", said.shape[1]):
            sample("y", dist.Bernoulli(logits=zeta[c] + beta + theta), obs=said)


def layers(y: Array) -> None:
    """A class, a kind given the class, bits given the kind."""
    pi = sample("pi", dist.Dirichlet(jnp.ones(2)))
    with plate("K", 2):
        share = sample("share", dist.Dirichlet(jnp.ones(2) + 2 * jnp.eye(2)))
        p = sample("p", dist.Beta(jnp.array([3.0, 3.0, 1.0, 1.0]), 2.0).to_event(1))
    with plate("n", len(y)):
        c = sample("c", dist.Categorical(pi))
        z = sample("z", dist.Categorical(share[c]))
        sample("y", dist.Bernoulli(p[z]).to_event(1), obs=y)


def absent(coat: Array, heat: Array, gone: np.ndarray) -> None:
    """A binary regressor, latent where it is missing."""
    p = sample("p", dist.Beta(1.0, 1.0))
    a, b = sample("a", dist.Normal(0.0, 1.0)), sample("b", dist.Normal(0.0, 1.0))
    sd = sample("sd", dist.Exponential(1.0))
    with plate("seen", int((~gone).sum())):
        sample("x", dist.Bernoulli(p), obs=coat[~gone])
        sample("y", dist.Normal(a + b * coat[~gone], sd), obs=heat[~gone])
    with plate("gone", int(gone.sum())):
        x = sample("x_gone", dist.Bernoulli(p))
        sample("y_gone", dist.Normal(a + b * x, sd), obs=heat[gone])


def absent_in_place(coat: Array, heat: Array, gone: np.ndarray) -> None:
    """The same with what is missing put in its place among the rest."""
    p = sample("p", dist.Beta(1.0, 1.0))
    a, b = sample("a", dist.Normal(0.0, 1.0)), sample("b", dist.Normal(0.0, 1.0))
    sd = sample("sd", dist.Exponential(1.0))
    with plate("n", len(coat)):
        x = sample("x", dist.Bernoulli(p).mask(False))
        x = jnp.where(gone, x, coat)
        sample("seen", dist.Bernoulli(p), obs=x)
        sample("y", dist.Normal(a + b * x, sd), obs=heat)


def sprinkler(wet: int, cloudy: int | None = None) -> None:
    """Clouds, a sprinkler, rain, and whether the grass is wet."""
    c = sample("c", dist.Bernoulli(0.5), obs=cloudy)
    s = sample("s", dist.Bernoulli(jnp.array([0.5, 0.1])[c]))
    r = sample("r", dist.Bernoulli(jnp.array([0.2, 0.8])[c]))
    sample("wet", dist.Bernoulli(jnp.array([[0.01, 0.9], [0.9, 0.99]])[s, r]), obs=wet)


def spins(field: Array) -> None:
    """A ring of four spins that like to agree."""
    z = [sample(f"z{i}", dist.Bernoulli(0.5)) for i in range(4)]
    for i in range(4):
        agree = z[i] == z[(i + 1) % 4]
        sample(f"bond{i}", dist.Bernoulli(jnp.where(agree, 0.7, 0.3)), obs=1)
        sample(f"y{i}", dist.Normal(2.0 * z[i] - 1.0, 1.0), obs=field[i])


def trust(heads: Array) -> None:
    """Whether a source is honest, and what it says of coins."""
    honest = sample("honest", dist.Bernoulli(0.7))
    with plate("n", len(heads)):
        coin = sample("coin", dist.Bernoulli(0.6))
        sample("told", dist.Bernoulli(jnp.where(honest == 1, 0.1 + 0.8 * coin, 0.5)), obs=heads)
