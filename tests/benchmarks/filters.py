"""Smoothers of curved systems beside dynamax's, and of hidden Markov chains:
`python -m tests.benchmarks.filters` (`pip install dynamax` first).

Of each system, data sets drawn from it: the log density of the true states under the smoothed
marginals, nats a step; their root mean square error; and the share of them within the 90 %
ellipsoid of their step. Of hidden Markov chains log evidences and marginals, which both have
exactly.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array, random
from scipy.stats import chi2

import jopa_ppl as jp

jax.config.update("jax_enable_x64", True)


class System(NamedTuple):
    """x_{t+1} ~ N(step(x_t), Q), y_t ~ N(seen(x_t), R), x_0 ~ N(first, spread^2 I)."""

    step: Callable[[Array], Array]
    seen: Callable[[Array], Array]
    Q: np.ndarray
    R: np.ndarray
    first: tuple[float, ...]
    spread: float

    def draw(self, length: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """States (length, d) and data (length, n)."""
        a, b, c = random.split(random.key(seed), 3)
        noise = random.multivariate_normal(a, jnp.zeros(len(self.Q)), self.Q, (length - 1,))
        x = [jnp.asarray(self.first) + self.spread * random.normal(b, (len(self.first),))]
        for e in noise:
            x.append(self.step(x[-1]) + e)
        x = jnp.stack(x)
        y = jax.vmap(self.seen)(x)
        y += random.multivariate_normal(c, jnp.zeros(len(self.R)), self.R, (length,))
        return np.asarray(x), np.asarray(y)

    def program(self, y: Array, *, T: int) -> None:
        """The program; the first state is seen as well."""
        x0 = jp.latent("x0", dist.Normal(jnp.asarray(self.first), self.spread).to_event(1))
        jp.observe("y0", dist.MultivariateNormal(self.seen(x0), jnp.asarray(self.R)), y[0])

        def step(x: Array, y: Array) -> tuple[Array, None]:
            x = jp.latent("x", dist.MultivariateNormal(self.step(x), jnp.asarray(self.Q)))
            jp.observe("y", dist.MultivariateNormal(self.seen(x), jnp.asarray(self.R)), y)
            return x, None

        jp.scan(step, x0, y[1:], length=T - 1)


def pendulum() -> System:
    """An angle whose sine is seen."""
    dt = 0.05
    return System(lambda x: jnp.array([x[0] + dt * x[1], x[1] - 9.81 * dt * jnp.sin(x[0])]),
                  lambda x: jnp.sin(x[:1]),
                  0.1 * np.array([[dt**3 / 3, dt**2 / 2], [dt**2 / 2, dt]]), np.eye(1) * 0.1,
                  (1.5, 0.0), 0.3)


def lorenz(dt: float = 0.02) -> System:
    """Lorenz's system of 1963, its first coordinate seen."""
    def slope(x: Array) -> Array:
        return jnp.array([10 * (x[1] - x[0]), x[0] * (28 - x[2]) - x[1],
                          x[0] * x[1] - 8 / 3 * x[2]])

    return System(lambda x: x + dt * slope(x), lambda x: x[:1], dt * np.eye(3), np.eye(1) * 2.0,
                  (1.0, 1.0, 20.0), 2.0)


def ours(system: System, rule: str) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Means and covariances of the states given data."""
    rules = dict.fromkeys(("x", "y", "y0"), rule)

    def smooth(y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        found = jp.VMP(system.program, messages=rules, progress=False).run(y, T=len(y))
        first, later = found["x0"], found["x"]
        cov = [d.covariance_matrix
               for d in (first, later)]
        return (np.concatenate([found.mean("x0")[None], found.mean("x")]),
                np.concatenate([cov[0][None], cov[1]]))

    return smooth


def theirs(system: System, kind: str) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """The same by dynamax's smoother of this kind."""
    from dynamax import nonlinear_gaussian_ssm as ssm

    d = len(system.first)
    params = ssm.ParamsNLGSSM(jnp.asarray(system.first), system.spread**2 * jnp.eye(d),
                              system.step, jnp.asarray(system.Q), system.seen,
                              jnp.asarray(system.R))
    run = jax.jit(lambda y: ssm.extended_kalman_smoother(params, y) if kind == "extended" else
                  ssm.unscented_kalman_smoother(params, y, ssm.UKFHyperParams()))

    def smooth(y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        found = run(jnp.asarray(y))
        return np.asarray(found.smoothed_means), np.asarray(found.smoothed_covariances)

    return smooth


def score(x: np.ndarray, mean: np.ndarray, cov: np.ndarray) -> tuple[float, float, float]:
    """Log density of the states a step, root mean square error, share in the 90 % ellipsoid."""
    gap, d = x - mean, x.shape[-1]
    square = np.einsum("ti,ti->t", gap, np.linalg.solve(cov, gap[..., None])[..., 0])
    logdet = np.linalg.slogdet(2 * np.pi * cov)[1]
    return (float(np.mean(-0.5 * (square + logdet))), float(np.sqrt((gap**2).mean())),
            float(np.mean(square < chi2.ppf(0.9, d))))


def curved(length: int, sets: int) -> None:
    for name, system in {"pendulum": pendulum(), "lorenz": lorenz()}.items():
        runs = {f"ours, {rule}": ours(system, rule) for rule in ("linearise", "cubature")}
        runs |= {f"dynamax, {kind}": theirs(system, kind) for kind in ("extended", "unscented")}
        data = [system.draw(length, seed) for seed in range(sets)]
        print(f"{name}, T = {length}, {sets} data sets: nats a step (median; worst), error, "
              "in 90 %")
        for label, smooth in runs.items():
            rows = np.array([score(x, *smooth(y)) for x, y in data])
            print(f"  {label:20} {np.median(rows[:, 0]):8.3f} {rows[:, 0].min():10.3f}"
                  f" {np.median(rows[:, 1]):8.4f} {rows[:, 2].mean():6.2f}")


def hidden(length: int, seed: int = 0) -> None:
    """A chain of three regimes: F = -log p, marginals and the most probable path."""
    from dynamax import hidden_markov_model as hmm

    rng = np.random.default_rng(seed)
    P, first = rng.dirichlet(np.full(3, 2.0), 3) * 0.3 + 0.7 * np.eye(3), rng.dirichlet(np.ones(3))
    places, z = np.array([-1.0, 0.0, 1.5]), [int(rng.integers(3))]
    for _ in range(length - 1):
        z.append(int(rng.choice(3, p=P[z[-1]])))
    y = places[z] + 0.7 * rng.normal(size=length)

    def program(y: Array, *, T: int) -> None:
        z0 = jp.latent("z0", dist.Categorical(jnp.asarray(first)))
        jp.observe("y0", dist.Normal(jnp.asarray(places)[z0], 0.7), y[0])

        def step(z: Array, y: Array) -> tuple[Array, None]:
            z = jp.latent("z", dist.Categorical(jnp.asarray(P)[z]))
            jp.observe("y", dist.Normal(jnp.asarray(places)[z], 0.7), y)
            return z, None

        jp.scan(step, z0, y[1:], length=T - 1)

    found = jp.VMP(program, progress=False).run(y, T=length)
    log = jnp.asarray(dist.Normal(places, 0.7).log_prob(y[:, None]))
    one = hmm.hmm_smoother(jnp.asarray(first), jnp.asarray(P), log)
    best = hmm.hmm_posterior_mode(jnp.asarray(first), jnp.asarray(P), log)
    mine = np.concatenate([found["z0"].probs[None], found["z"].probs])
    path = found.most_probable()
    path = np.concatenate([np.atleast_1d(path["z0"]), path["z"]])
    print(f"hidden Markov chain, T = {length}: log evidences differ by "
          f"{abs(-found.free_energy[-1] - float(one.marginal_loglik)):.1e} nats of "
          f"{float(one.marginal_loglik):.1f}, marginals by "
          f"{np.abs(mine - np.asarray(one.smoothed_probs)).max():.1e}, most probable paths in "
          f"{int((path != np.asarray(best)).sum())} steps")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.filters", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", type=int, default=100, help="steps of a data set (100)")
    parser.add_argument("--sets", type=int, default=20, help="data sets of a system (20)")
    args = parser.parse_args()
    hidden(1000)
    curved(args.length, args.sets)


if __name__ == "__main__":
    main()
