"""Beliefs after inference: look at them, draw from them, give them to another program."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array
from numpyro.distributions.transforms import Transform

from jopa_ppl.beliefs import Belief
from jopa_ppl.compilation import once
from jopa_ppl.engine.compiled import Compiled
from jopa_ppl.engine.complete import complete
from jopa_ppl.engine.evidence import Evidence
from jopa_ppl.engine.marginals import Marginal, compiled_parts, marginals
from jopa_ppl.engine.signature import Call
from jopa_ppl.engine.state import State
from jopa_ppl.errors import JopaError, ShapeError, SiteError, is_step, names, whole
from jopa_ppl.language.given import JointBelief
from jopa_ppl.language.keys import as_key
from jopa_ppl.posterior import draws, prediction, unconstrained
from jopa_ppl.settings import is_traced, ours


def outward(x: Any) -> Any:
    """Arrays in the caller's default float, or integer."""
    kinds = ((jnp.floating, float), (jnp.signedinteger, int))
    found = [t for kind, t in kinds if hasattr(x, "dtype") and jnp.issubdtype(x.dtype, kind)]
    if not found or x.dtype == (wanted := jnp.result_type(found[0])):
        return x
    with ours(x, double=False):
        return jnp.asarray(x, wanted)


class Inferred:
    """What is known of the latents of a program after a run: marginals, joint draws, and beliefs
    for `jp.given`. `Posterior` is what users get of it.
    """

    header: dict[str, Any] | None = None

    @ours(double=False)
    def __init__(self, compiled: Compiled, call: Call, state: State, bound: Evidence,
                 history: Array, plan: Any = None, noise: Array | None = None,
                 sites: tuple[dict, dict] | None = None, starts: np.ndarray | None = None) -> None:
        self.compiled, self.call, self._sites, self.starts = compiled, call, sites, starts
        self.state, self.bound, self.plan = state, bound, plan
        self.num_iters = int(state.sweep)
        self.converged = bool(state.converged)
        self.free_energy = np.asarray(history)[:self.num_iters]
        self._predictions: dict[str, Marginal] = {}
        self._predictors: dict[str, Belief | None] = {}
        self.free_energy_noise = (np.zeros(self.num_iters) if noise is None
                                  else np.asarray(noise))

    # -- sites -----------------------------------------------------------------------------------

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the latent sites, in program order (leaves of a carry that follow from them
        are none)."""
        return tuple(n for n, v in self.compiled.graph.variables.items() if v.site.role != "carry")

    @property
    def global_sites(self) -> tuple[str, ...]:
        """Latent sites outside scans and plates, first states excluded."""
        graph = self.compiled.graph
        return tuple(n for n in self.sites if (graph.block_of(n).scan is None
                                                or n in graph.program.borders)
                     and graph.program.sites[n].scan is None
                     and not (graph.block_of(n).plates or graph.variables[n].plates))

    @property
    def transformed(self) -> tuple[str, ...]:
        """Latent sites that are no Gaussians themselves, x = T(u) of u that is."""
        return tuple(self._maps)

    _one = staticmethod(draws.draw_sites)          # a joint draw

    @cached_property
    def _parts(self) -> tuple[dict, dict]:
        """Arrays of every site's marginal, as `marginals.parts` tells them."""
        if self._sites is not None:
            return self._sites
        with ours():
            return compiled_parts(self.compiled, self.state, self.bound, self.plan)

    @cached_property
    def _marginals(self) -> dict[str, Marginal]:
        found = marginals(self.compiled.graph, self._parts[1])
        if not self._maps:
            return found
        with ours():
            of = lambda n, m: self.compiled.graph.block_of(n).distribution(n, m.parts, False)
            return {n: unconstrained.transformed(m, self._maps[n], of(n, m))
                    if n in self._maps else m for n, m in found.items()}

    @cached_property
    def _maps(self) -> dict[str, Transform]:
        """By site whose belief is about u, x = T(u): the T of this run."""
        with ours():
            return unconstrained.transforms(self.compiled.graph,
                                            lambda: self.compiled.data(self.call.dynamic))

    def _marginal(self, name: str) -> Marginal:
        if not isinstance(name, str):
            raise SiteError("a site is named by a string", found=repr(name),
                            expected=f"one of {names(self.sites)}",
                            fix="ask for one site at a time: {n: posterior.mean(n) for n in ..}")
        if name not in self._marginals:
            graph = self.compiled.graph
            if name in self._predictions:
                return self._predictions[name]
            site = graph.program.sites.get(name)
            told = site is None or (site.observed and not self._without_data(name))
            if self.call is not None and not told and (site.observed or name in graph.predicted):
                self._predictions[name], self._predictors[name] = prediction.predicted(
                    self, self.compiled, self.call, self.plan, name)
                return self._predictions[name]
            if site is not None:
                found = "data" if site.observed else "a site that is only predicted, and no program"
                raise SiteError("the site has no belief", site=name, found=found,
                                expected=f"one of {names(self.sites)}",
                                fix="draw it with posterior.predict(rng_key=0)")
            raise SiteError("unknown site", site=name, found=f"'{name}'",
                            expected=f"one of {names(self.sites)}", fix="check the spelling")
        return self._marginals[name]

    def _without_data(self, name: str) -> bool:
        """Whether all data of an observed site are missing, so that it is predicted as well."""
        own = [f.name for f in self.compiled.graph.factors if f.site.name == name]
        arrays = () if self.call is None else self.bound.arrays
        return bool(own) and all(n in arrays and not np.any(np.asarray(arrays[n].weight) > 0)
                                 for n in own)

    def __getitem__(self, name: str) -> dist.Distribution:
        return self._distribution(name, ())

    def at(self, name: str, step: int) -> dist.Distribution:
        """The belief about a site of a scan at one step, negative ones counted from the end.

        `jp.given(model, {"x0": filtered.at("x", -1)}, update=True)` goes on from a filtered state.

        Raises:
            SiteError: the site is not in a scan. ShapeError: there is no such step.
        """
        mean = self._marginal(name).mean
        if self.compiled.graph.program.sites[name].scan is None:
            raise SiteError("the site has no steps", site=name, found="a site outside of scans",
                            expected="a site of a scan", fix=f"use posterior['{name}']")
        if not is_step(step, len(mean)):
            raise ShapeError("there is no such step", site=name, found=f"step {step!r}",
                             expected=f"a whole number in [{-len(mean)}, {len(mean)})",
                             fix="check the horizon")
        return self._distribution(name, (step,))

    @ours(double=False)
    def _distribution(self, name: str, at: tuple[int, ...]) -> dist.Distribution:
        m = self._marginal(name)
        if not m.parts:
            return prediction.distribution(m, name, outward(m.mean[at]))
        parts = {k: outward(v[at]) for k, v in m.parts.items()}
        certain = bool((np.asarray(m.variance[at]) == 0).any())
        belief = self._predictors.get(name) or self.compiled.graph.block_of(name)
        found = belief.distribution(name, parts, certain)
        if name in self._maps:
            return dist.TransformedDistribution(found, jax.tree.map(outward, self._maps[name]))
        return found

    def mean(self, name: str) -> Array:
        """Posterior mean of a site, of the site's shape (time in front inside a scan).

        Of a site that is only predicted, its prediction's: exact where it is Gaussian and message
        passing can follow it, else by 2,000 draws (of a fixed key).
        """
        return outward(self._marginal(name).mean)

    def variance(self, name: str) -> Array:
        """Posterior variance of every element of a site (of a Wishart: of every entry)."""
        return outward(self._marginal(name).variance)

    # -- draws -----------------------------------------------------------------------------------

    def sample(self, rng_key: Array | int, sample_shape: tuple[int, ...] | int = ()
               ) -> dict[str, Array]:
        """Joint draws of all latent sites: {name: (*sample_shape, *site shape)}; a key or a seed.

        Sites of one block are drawn jointly (a trajectory as a whole); steps that no observation
        reaches follow the program, each draw with parameters of its own.
        """
        key = as_key(rng_key)
        refuse_single(key)
        single = not isinstance(sample_shape, tuple | list)
        sample_shape = (sample_shape,) if single else tuple(sample_shape)
        for size in sample_shape:
            whole("jp.Posterior.sample", 0, sample_shape=size)
        with ours(key):
            size = int(np.prod(sample_shape, dtype=int))
            count = max(size, 1)
            found = draws.sample(self.compiled, self._one, self.state, self.bound, self.plan, key,
                                 count)
            found = unconstrained.outside(found, self._maps)
            found = {n: found[n][:size].reshape((*sample_shape, *found[n].shape[1:]))
                     for n in self.sites}
        return {n: outward(x) for n, x in found.items()}

    def most_probable(self) -> dict[str, Array]:
        """The most probable joint values of the discrete latents, {name: site shape}: of a chain
        the path as a whole (Viterbi's algorithm on its belief), which may differ from the most
        probable value of every step by itself. Empty where no latent is discrete."""
        compiled, of_file = self.compiled, self.call is None
        blocks = tuple(b for b in compiled.graph.blocks if b.follows)

        def values(moments: dict[str, Any], bound: Any) -> dict[str, Array]:
            if not of_file:                     # there they are complete
                moments, _ = complete(compiled.engine, moments, bound, blocks)
            return {n: x for b in blocks for n, x in b.most_probable(moments[b.name]).items()}

        with ours():
            found = compiled.stage("most probable", lambda: jax.jit(
                values, compiler_options=once()))(self.state.moments, self.bound)
        return {n: outward(found[n]) for n in self.sites if n in found}

    # -- beliefs for `given` ---------------------------------------------------------------------

    def beliefs(self, sites: Sequence[str] | None = None
                ) -> tuple[dict[tuple[str, ...], JointBelief], dict[str, dist.Distribution], tuple]:
        """Beliefs about global sites: joint Gaussians by members, distributions for the rest."""
        graph = self.compiled.graph
        chosen = self.global_sites if sites is None else tuple(sites)
        joint, single, shapes = {}, {}, []
        for name in chosen:
            if name not in graph.variables:
                self._marginal(name)
            if graph.program.sites[name].scan is not None:
                raise SiteError("a site inside a scan cannot be given", site=name,
                                found="a site of a scan", expected=f"one of {self.global_sites}",
                                fix="give the first state: jp.given(model, {'x0': ...})")
            block = graph.block_of(name)
            members = block.jointly(tuple(n for n in chosen if n not in self._maps))
            if name not in members:
                with ours():
                    single[name] = self[name]
            elif name == members[0]:
                with ours():                        # a covariance needs all of its digits
                    joint[members] = JointBelief(
                        *block.joint(self._completed(block), members))
                shapes += [(n, (graph.variables[n].site.shape, len(graph.variables[n].local)))
                           for n in members]
        return joint, single, tuple(shapes)

    @ours(double=False)
    def known(self, name: str) -> Array | None:
        """The values of a site that was conditioned in part, NaN where it is latent; else None."""
        if not self.compiled.graph.program.sites[name].partial:
            return None
        present = getattr(self.bound, "present", None)
        if present is None:                 # a file tells what was data by its variance alone
            return jnp.where(self.variance(name) == 0, self.mean(name), jnp.nan)
        return jnp.where(self.compiled.graph.variables[name].values(present[name]),
                         self.mean(name), jnp.nan)

    def _completed(self, block: Belief) -> Any:
        """Moments of a block, what is not inferred in its place: data, or predicted."""
        clamps = getattr(self.bound, "clamps", None)        # a file's moments are complete
        own = clamps[block.name] if clamps is not None else ()
        parts = own.values() if isinstance(own, dict) else (own,) if own else ()
        if all((np.asarray(part.free) > 0).all() for part in parts):
            return self.state.moments[block.name]
        with ours():
            return complete(self.compiled.engine, self.state.moments, self.bound,
                            (block,))[0][block.name]


def refuse_single(values: Any) -> None:
    """Refuse what is traced in single precision: no part of a trace can be in float64."""
    if is_traced(values) and not jax.config.jax_enable_x64:
        raise JopaError("it computes in float64, inside a trace in float32",
                        found="a key or values traced by JAX", expected="arrays of numbers",
                        fix="call it outside of jit, vmap and grad (sample_shape= makes many "
                        "draws), or after jax.config.update('jax_enable_x64', True)")
