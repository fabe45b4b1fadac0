"""Beliefs about sites that are only predicted: nothing observed depends on them."""

from __future__ import annotations

from typing import Any, Protocol

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array, random

from jopa_ppl.beliefs import Belief
from jopa_ppl.engine.compiled import Compiled, run
from jopa_ppl.engine.marginals import Marginal, compiled_parts, marginals
from jopa_ppl.engine.outcome import after
from jopa_ppl.engine.signature import Call
from jopa_ppl.errors import JopaError, SiteError
from jopa_ppl.language.given import Earlier, given
from jopa_ppl.language.keys import as_key
from jopa_ppl.language.query import condition
from jopa_ppl.language.replay import replay
from jopa_ppl.settings import ours

DRAWS = 2000


class Drawn(Earlier, Protocol):
    """What a prediction reads of a posterior: beliefs about its `global_sites`, and joint draws."""

    @property
    def global_sites(self) -> tuple[str, ...]: ...

    def sample(self, rng_key: Array, sample_shape: tuple[int, ...]) -> dict[str, Array]: ...


def predicted(posterior: Drawn, run_of: Compiled, call: Call, plan: Any, name: str
              ) -> tuple[Marginal, Belief | None]:
    """The prediction of a site, from the beliefs about what it depends on, and the belief that
    names its distribution (None of draws); `run_of`, `call`, `plan`: what they came from.

    A Gaussian site's is what message passing predicts for a latent that nothing observed reaches,
    the beliefs about global sites held. Any other's has, over draws z of all that it depends on,

        mean = E[m(z)],   variance = E[v(z)] + Var[m(z)]         m, v: of the site given z

    by 2,000 draws with a key of their own.
    """
    program = run_of.graph.program
    site = program.sites[name]
    model, args, kwargs = call.program()
    if site.rules.location and plan is None:
        lead = (program.length_of(site),) if site.is_series else ()
        held = given(model, posterior) if posterior.global_sites else model
        unseen = condition(held, {name: np.full((*lead, *site.shape), np.nan)})
        options = run_of.options._replace(decide=(), blocks=None)
        try:
            compiled, own, ran = run(unseen, options, args, kwargs, as_key(None), progress=False)
            after(compiled, own, ran.told, ran.history, lambda: posterior)
            with ours():
                _, shaped = ran.sites or compiled_parts(
                    compiled, ran.told._replace(moments=ran.moments), ran.bound, ran.plan)
            return marginals(compiled.graph, shaped)[name], compiled.graph.block_of(name)
        except JopaError:       # it sees what message passing cannot follow: draws can
            pass
    draw_key, run_key = random.split(random.key(0))
    found = replay(model, args, kwargs, posterior.sample(draw_key, (DRAWS,)), run_key, DRAWS,
                   moments=True)
    mean, variance = (np.asarray(x, np.float64) for x in found[name])
    return Marginal(site.described, mean.mean(0), variance.mean(0) + mean.var(0), {}), None


def distribution(m: Marginal, name: str, mean: Array) -> dist.Distribution:
    """The distribution of a prediction by draws, where its mean tells all of it.

    Raises:
        SiteError: it does not.
    """
    if m.family.startswith("Bernoulli"):
        return dist.Bernoulli(jnp.clip(mean, 0.0, 1.0))
    raise SiteError("no distribution is told of its prediction", site=name, found=m.family,
                    expected="a Gaussian, or a Bernoulli: others may be mixtures without a name",
                    fix=f"use posterior.mean('{name}') and .variance('{name}'), or draws: "
                        "posterior.predict(rng_key=0)")
