"""Programs some of whose latents are integrated out exactly: `jp.marginalised`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
from jax import Array, lax, random
from jax.flatten_util import ravel_pytree
from numpyro.infer import init_to_median, init_to_value
from numpyro.infer.util import potential_energy, unconstrain_fn
from numpyro.primitives import Messenger

from jopa_ppl.engine.signature import split_call
from jopa_ppl.errors import JopaError, StructureError, check_model
from jopa_ppl.infer.integrable import Split, freed, split
from jopa_ppl.infer.integrals import drawn, evidence, moments, told_by
from jopa_ppl.infer.quadrature import TOGETHER, Quadrature, integrated
from jopa_ppl.infer.vmp import VMP
from jopa_ppl.language.missing import from_masked
from jopa_ppl.language.query import _Query, condition
from jopa_ppl.language.replay import replay
from jopa_ppl.language.tracing import apart
from jopa_ppl.settings import ours

EVIDENCE = "log_evidence"       # the name of the factor


@dataclass(frozen=True, eq=False, repr=False)
class Marginalised(_Query, data=()):
    """A NumPyro program without some of its latents; made by `marginalised`."""

    over: tuple[str, ...] | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        args, kwargs = from_masked((args, kwargs))
        parts = self._split(args, kwargs)
        if parts is None:                   # nothing is observed: the program as it is
            return self.fn(*args, **kwargs)
        rest = _Rest(parts)
        with rest:
            self.fn(*args, **kwargs)
        leaves = self._leaves(parts, rest.values, args, kwargs)
        numpyro.factor(EVIDENCE, evidence(parts)(leaves))
        key = numpyro.prng_key()
        key = told_by(random.key(0) if key is None else key, rest.values)
        for name, value in self._drawn(parts, rest, leaves, key, args, kwargs).items():
            numpyro.deterministic(name, value)
        return None

    def explain(self, *args: Any, **kwargs: Any) -> str:
        """A table of what becomes of every site: integrated out, sampled (and why), or data."""
        parts = self._split(*from_masked((args, kwargs)))
        return "nothing is observed: the program as it is" if parts is None else str(parts)

    def log_evidence(self, values: Mapping[str, Array], *args: Any, **kwargs: Any) -> Array:
        """log p(data | values) in nats, the latents that are integrated out gone; `values`: by site
        that is sampled. Differentiable once, in reverse.

        Raises:
            JopaError: nothing is observed, or a site has no value.
        """
        args, kwargs = from_masked((args, kwargs))
        parts = self._split(args, kwargs)
        lost = sorted(set(parts.kept) - set(values)) if parts else []
        if parts is None or lost:
            raise JopaError("there is no evidence", site=lost[0] if lost else None,
                            found="no value" if lost else "nothing that is observed",
                            expected="data, and a value of every site that is sampled",
                            fix="see `explain` for which these are")
        traced = values, split_call(self.fn, args, kwargs).dynamic
        with ours(traced, double=False):
            return evidence(parts)(self._leaves(
                parts, {n: values[n] for n in parts.kept}, args, kwargs))

    def integrated(self, *args: Any, **kwargs: Any) -> tuple[str, ...]:
        """The latents that are integrated out for these arguments."""
        parts = self._split(*from_masked((args, kwargs)))
        return () if parts is None else parts.inner

    def start(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Options that make NUTS begin where VMP ends, with a mass matrix that stays:

            MCMC(NUTS(rest, **rest.start(y, T=T)), num_warmup=300, num_samples=500)

        L holds the spreads of VMP's belief in unconstrained space; the log density bends by
        -L' H L about its mean, by differences of gradients one spread away. The inverse mass matrix
        is L (L' H L)^-1 L'. (NumPyro's own adaptation draws variances towards 1e-3, far from those
        of dynamics that are well known.)

        Raises:
            As `jp.VMP.run`, where VMP does not take the program.
        """
        posterior = VMP(self.fn, progress=False).run(*args, **kwargs)
        args, kwargs = from_masked((args, kwargs))
        parts = self._split(args, kwargs)
        kept = parts.kept if parts else ()
        mean = {n: posterior.mean(n) for n in kept}
        cloud = posterior.sample(random.key(0), (1000,))
        return {"init_strategy": init_to_value(values=mean), "dense_mass": True,
                "adapt_mass_matrix": False, "inverse_mass_matrix": curvature(
                    self, self.fn, args, kwargs, mean, {n: cloud[n] for n in kept})}

    def quadrature(self, *args: Any, **kwargs: Any) -> Quadrature:
        """The posterior by quadrature over what is left, up to three numbers; all else is exact
        given these:

            found = jp.marginalised(model).quadrature(y)
            found.mean("x"), found.variance("q"), found.log_evidence

        log p(theta, data) is summed over a product of points about its mode in unconstrained space,
        along the axes of its curvature there, as far as it is within 20 nats of the mode, which is
        looked for from where `jp.VMP` ends, or from the priors' medians where it takes no such
        program.

        Raises:
            StructureError: more than three numbers are left, or nothing is observed.
            NumericalError: the density has no mode, or does not end.

        Source: Rue, Martino & Chopin 2009, "Approximate Bayesian inference for latent Gaussian
        models by using integrated nested Laplace approximations"; here the inner part is exact.
        """
        args, kwargs = from_masked((args, kwargs))
        parts = self._split(args, kwargs)
        if parts is None or not parts.kept:
            raise StructureError(
                "there is nothing to integrate over", found="no parameter that is left" if parts
                else "nothing that is observed", expected="one to three parameters, and data",
                fix="run jp.VMP, which is exact then" if parts else "pass the data")
        posterior, covariance = None, None
        try:
            posterior = VMP(self.fn, progress=False).run(*args, **kwargs)
        except StructureError:
            mean = medians(self.fn, args, kwargs, parts.kept)
        with ours():
            if posterior is not None:
                cloud = posterior.sample(random.key(0), (1000,))
                mean = {n: jnp.asarray(posterior.mean(n), float) for n in parts.kept}
                covariance = curvature(self, self.fn, args, kwargs, mean,
                                       {n: cloud[n] for n in parts.kept})
            total, error, points, weights = integrated(self, self.fn, args, kwargs, mean,
                                                       covariance)
        leaves = lambda values: self._leaves(parts, values, args, kwargs)

        def inner() -> dict[str, tuple[Array, Array]]:
            with ours():
                return lax.map(lambda values: moments(parts)(leaves(values)), points,
                               batch_size=TOGETHER)

        def draw(keys: Array, values: dict[str, Array]) -> dict[str, Array]:
            one = lambda key, values: drawn(parts)(key, leaves(values))
            return dict(zip(parts.inner, lax.map(lambda x: one(*x), (keys, values),
                                                 batch_size=TOGETHER)))

        return Quadrature(total, error, points, weights, parts.inner, inner, draw)

    def _split(self, args: tuple, kwargs: dict) -> Split | None:
        with apart():
            return split(self.fn, args, kwargs, self.over)

    def _leaves(self, parts: Split, values: dict[str, Array], args: tuple, kwargs: dict
                ) -> list[Array]:
        """The arrays of the program with the sampled sites as data."""
        given = {n: jnp.asarray(values[n]) for n in parts.kept}
        model = freed(self.fn)
        return split_call(condition(model, given) if given else model, args, kwargs).dynamic

    def _drawn(self, parts: Split, rest: _Rest, leaves: list[Array], key: Array, args: tuple,
               kwargs: dict) -> dict[str, Array]:
        """What was integrated out, drawn given all else; what follows from it, by the program."""
        still = lax.stop_gradient((leaves, rest.values))
        inner, outer = random.split(key)
        found = dict(zip(parts.inner, drawn(parts)(inner, still[0])))
        if not (parts.unseen or rest.following):
            return found
        given = {n: x[None] for n, x in {**still[1], **found}.items()}
        with apart():
            more = replay(self.fn, args, kwargs, given, outer, 1, keep_data=True)
        return found | {n: more[n][0] for n in (*parts.unseen, *rest.following)}


def marginalised(model: Callable, *, over: str | Sequence[str] | None = None) -> Marginalised:
    """The model with the latents that are exact given the others integrated out.

        p(theta) p(y | theta),    log p(y | theta) = -F of the block(s) z given theta, solved

    It is an ordinary NumPyro program: the other latents theta are sampled by their own priors,
    `numpyro.factor` adds log p(y | theta), and z ~ p(z | y, theta) is drawn back given each draw of
    theta, as deterministic sites of the old names:

        rest = jp.marginalised(model)
        mcmc = MCMC(NUTS(rest, **rest.start(y, T=T)), num_warmup=300, num_samples=500)
        mcmc.run(jax.random.key(0), y, T=T)
        mcmc.get_samples()["x"]              # states, one trajectory a draw of the rest

    (`NUTS(rest)` does; `start` makes it begin where VMP ends.)

    The gradient goes through the numbers of the factors alone, z's belief held fixed (the envelope
    theorem). It is computed in float64 whatever floats the caller has, under `jit`, `vmap` and
    reverse-mode derivatives; it has no second derivative. The noise of z is a function of theta
    and of the key: a draw of theta that NUTS repeats has the same z. Where nothing is observed it
    is the model itself.

    Args:
        model: a NumPyro program (jp.condition and jp.given wrap it, inside of this; beliefs that
            these hold are priors here, as to every sampler).
        over: the sites to integrate out. Default: discrete ones, then Gaussian ones, the largest
            first, as far as they are exact together given the rest (states and actions, say, but
            not the dynamics that multiply them); `.explain(*args)` tells which, and why no more.

    Returns:
        A program with `.explain(*args)`, `.integrated(*args)`, `.log_evidence(values, *args)`,
        `.start(*args)` and, of up to three numbers that are left, `.quadrature(*args)`.
        Parameters (`numpyro.param`, `jp.module`) are constants.

    Raises (when run):
        StructureError: nothing can be integrated out, or not what `over` names; SiteError: a name
        of `over` is no latent. As `jp.VMP.run`, where the program cannot be read.

    Source: Lai, Burroni, Guan & Sheldon 2023, "Automatically marginalized MCMC in probabilistic
    programming"; the envelope theorem for gradients of F.
    """
    check_model(model)
    sites = (over,) if isinstance(over, str) else over
    fine = sites is None or (isinstance(sites, Sequence) and len(sites) > 0
                             and all(isinstance(n, str) for n in sites))
    if not fine:
        raise JopaError("over= takes names of sites", found=repr(over),
                        expected="such as over=('x0', 'x')", fix="leave it out for the default")
    return Marginalised(model, None if sites is None else tuple(sites))


class _Rest(Messenger):
    """Lets through the sites that stay, and hides the others from the handlers around.

    `values`: of the latents that stay; `following`: deterministic sites, which may depend on what
    was hidden.
    """

    def __init__(self, parts: Split) -> None:
        super().__init__(None)
        self.parts, self.values, self.following = parts, {}, []

    def process_message(self, msg: dict) -> None:
        name = msg.get("name")
        if msg["type"] == "control_flow":
            msg["kwargs"]["substitute_stack"].append(("substitute", self._anything))
        elif msg["type"] == "deterministic":
            self.following.append(name)
            msg["stop"] = True
        elif msg["type"] == "param" or (msg["type"] == "sample" and name in self.parts.hidden):
            msg["stop"] = True
            if msg["value"] is None:
                msg["value"] = self._anything(msg)

    def _anything(self, msg: dict) -> Array | None:
        """A value for a latent that is hidden: nothing that stays depends on it."""
        if msg["type"] != "sample" or msg["value"] is not None:
            return None
        fn, name = msg["fn"], msg["name"]
        msg["is_observed"] |= name in self.parts.hidden     # no strategy starts from it
        if name in self.parts.inner:
            return jnp.zeros(fn.shape(), int if fn.is_discrete else float)
        return fn.sample(random.key(0)) if name in self.parts.unseen else None

    def postprocess_message(self, msg: dict) -> None:
        if msg["type"] == "sample" and msg["name"] in self.parts.kept:
            self.values[msg["name"]] = msg["value"]


def medians(model: Callable, args: tuple, kwargs: dict, sites: Sequence[str]
            ) -> dict[str, Array]:
    """Of the priors of some sites, each given those before it."""
    start = numpyro.handlers.substitute(numpyro.handlers.seed(model, 0),
                                        substitute_fn=init_to_median(num_samples=50))
    with apart():
        found = numpyro.handlers.trace(start).get_trace(*args, **kwargs)
    return {n: found[n]["value"] for n in sites}


def curvature(rest: Callable, model: Callable, args: tuple, kwargs: dict, mean: dict[str, Array],
              cloud: dict[str, Array]) -> Array:
    """The inverse mass matrix about a mean, (n, n) in unconstrained space (`Marginalised.start`).

    Args:
        rest: what is sampled; model: a program with the same priors.
        cloud: draws of a belief about the same sites, whose spreads are the lengths to look along.
    """
    inside = partial(unconstrain_fn, numpyro.handlers.seed(model, 0), args, kwargs)
    points = jax.jit(jax.vmap(lambda v: ravel_pytree(inside(v))[0]))(cloud)
    middle, shape = ravel_pytree(inside(mean))
    root = jnp.linalg.cholesky(jnp.atleast_2d(jnp.cov(points.T)))
    potential = partial(potential_energy, numpyro.handlers.seed(rest, 0), args, kwargs)
    slope = jax.jit(jax.vmap(jax.grad(lambda z: potential(shape(middle + root @ z)))))
    n, eye = len(middle), jnp.eye(len(middle))
    ends = slope(jnp.concatenate([eye, -eye]))
    bend = 0.5 * (ends[:n] - ends[n:])
    bend = jnp.where(jnp.isfinite(bend).all(), bend, eye)       # else that of the belief
    values, vectors = jnp.linalg.eigh(0.5 * (bend + bend.T))
    whole = root @ vectors / jnp.sqrt(jnp.clip(values, 0.01, 100.0))
    return whole @ whole.T
