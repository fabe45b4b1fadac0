"""Beliefs after inference with all that is made of them: densities, predictions, tables, files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array, random

from jopa_ppl.engine.signature import Call
from jopa_ppl.errors import JopaError, ShapeError, SiteError, is_step, names, whole
from jopa_ppl.language import replay as predictive
from jopa_ppl.language.keys import as_key
from jopa_ppl.language.missing import from_masked
from jopa_ppl.posterior import density, unconstrained
from jopa_ppl.posterior import write as writing
from jopa_ppl.posterior.forecast import extended
from jopa_ppl.posterior.inferred import Inferred, outward, refuse_single
from jopa_ppl.posterior.labels import elementwise, in_columns
from jopa_ppl.posterior.state import StateBelief, state
from jopa_ppl.settings import ours, under_ours


def later(actions: np.ndarray, steps: int) -> np.ndarray:
    """Actions (T, ..) of `steps` later, the last ones repeated."""
    return actions[np.minimum(np.arange(len(actions)) + steps, len(actions) - 1)]


class Posterior(Inferred):
    """Beliefs about the latents of a program. Immutable.

    `posterior["A"]` is a NumPyro distribution; sites of a scan carry time in front, (T, ...).
    Latents that no observation reaches are predicted from the beliefs about the others; so are
    sites that nothing observed depends on, by `mean`, `variance` and `[name]` (see
    `jopa_ppl.posterior.prediction`).

    Attributes:
        free_energy: (sweeps,) in nats, = -ELBO with every normaliser in it.
        free_energy_noise: its Monte-Carlo standard error; zero but for `jp.VariationalEM`.
        starts: (starts,) F that each start of `jp.VMP(starts=..)` came to, infinite of those that
            failed; None of one start, and of a file.
        converged: whether it settled within `tol`; num_iters: sweeps done (steps of EM).
        header: of the file that it was read from, None where it was not.
    """

    def _kept(self) -> Call:
        """The call of the run. Raises JopaError: it was loaded from a file."""
        if self.call is None:
            raise JopaError("its program with its data was not kept", found="a loaded posterior",
                            expected="one that was run", fix="run the program again")
        return self.call

    @ours(double=False)
    def state_at(self, step: int) -> StateBelief:
        """The joint belief about what the scan carries before one of its steps (negative ones are
        counted from the end), by the sites of the first states: of x_{t+1} = f(x_t, x_{t-1}), about
        both poses. A program goes on from there by

            jp.given(model, posterior.state_at(-1), update=True)

        Raises:
            ShapeError: there is no such step. StructureError: the first states are no earlier
            values of what the steps draw. JopaError: it was loaded from a file.
        """
        self._kept()
        scans = self.compiled.graph.program.scans
        length = scans[0].length if scans else 0
        if not is_step(step, length):
            raise ShapeError("there is no such step", found=f"step {step!r}",
                             expected=f"a whole number in [{-length}, {length})",
                             fix="check the horizon")
        with ours():
            return state(self.compiled, self.state.moments, self.bound, step % length)

    @property
    def start(self) -> Any:
        """Of a plan that was found along paths, what it began with: one of
        "given", "prior", "high" and "low" (moved off the prior), or an array of them, one for each
        element of the chain's plates; else None."""
        if self.plan is None or self.plan.start is None:
            return None
        found = np.array(self.compiled.decision.starts)[np.asarray(self.plan.start)]
        return found if found.ndim else str(found)

    def shifted(self, steps: int = 1) -> dict[str, np.ndarray]:
        """The actions of a plan `steps` later, {site: (T, ..)}: where a plan of that time may begin
        (`init=` of `jp.VMP.run`). The last ones are repeated.

        Raises:
            JopaError: it is no plan.
        """
        if self.plan is None:
            raise JopaError("only plans are shifted", found="a posterior", expected="a plan",
                            fix="pass decide= to VMP")
        whole("shifted", 0, steps=steps)
        actions = {n: np.asarray(self.mean(n)) for n in self.compiled.options.decide}
        return {n: later(u, steps) for n, u in actions.items()}

    # -- densities -------------------------------------------------------------------------------

    def log_prob(self, values: Mapping[str, Array]) -> Array:
        """log q of joint draws, in nats: {site: (*sample_shape, *site shape)} -> (*sample_shape,).

        With NumPyro's `log_density` of the same draws: F = E_q[log q - log p], and log p - log q
        are importance weights. Steps that no observation reaches count with the program's density.

        Raises:
            SiteError: a latent site has no value. JopaError: the posterior is a plan, or was loaded
            from a file.
        """
        if self.plan is not None:
            raise JopaError("a plan has no density", found="decide=...", expected="a posterior",
                            fix="run VMP without decide=")
        lost = [n for n in self.sites if n not in values]
        if lost:
            raise SiteError("a latent site has no value", site=lost[0], found=names(values),
                            expected=names(self.sites), fix="pass what `sample` returned")
        refuse_single(dict(values))
        first = self.sites[0]
        shape = np.shape(values[first])
        lead = shape[:len(shape) - self._marginal(first).mean.ndim]
        with ours(values):
            kind = {n: int if v.site.rules.discrete else float
                    for n, v in self.compiled.graph.variables.items()}
            flat = {n: jnp.asarray(values[n], kind[n]).reshape(
                (-1, *np.shape(values[n])[len(lead):])) for n in self.sites}
            inside, change = unconstrained.inside(flat, self._maps, 1)
            found = density.log_prob(self.compiled, self.state.moments, self.bound, self.call,
                                     inside, flat)
            found = (found - change).reshape(lead)
        return outward(found)

    def free_energy_error(self, num_samples: int = 400, rng_key: Array | int | None = None
                          ) -> tuple[float, float]:
        """How far F lies from E_q[log q - log p] by draws of q, and the standard error of that.

        Zero within it where every message is exact. Of messages that are not, F holds expectations
        by quadrature or, of "linearise", none: a difference of some tenths of a nat and more says
        that F compares no models, and -log p(data) may lie above it.

        Raises:
            JopaError: as `log_prob`.
        """
        key = as_key(rng_key)
        whole("jp.Posterior.free_energy_error", num_samples=num_samples)
        with ours(key):
            drawn = self.sample(key, (num_samples,))
            losses = np.asarray(self.log_prob(drawn) - density.log_joint(
                self.compiled, self.call, drawn))
        return (float(losses.mean() - self.free_energy[-1]),
                float(losses.std(ddof=1) / np.sqrt(num_samples)))

    # -- predictions -----------------------------------------------------------------------------

    def predict(self, *args: Any, rng_key: Array | int | None = None, num_samples: int = 100,
                **kwargs: Any) -> dict[str, Array]:
        """Posterior predictive draws of every site of the program, observed ones included.

        Without arguments: for the steps of this run. With arguments (those of the model): the
        program is run on them, with draws of the global sites; data that are passed stay as they
        are, what is missing in them (None, or single entries NaN) is drawn from its site.

        Returns:
            {name: (num_samples, *site shape)}; time in front of the site shape inside a scan.
        """
        key = as_key(rng_key)
        whole("jp.Posterior.predict", num_samples=num_samples)
        with ours(key, double=False):
            draw_key, run_key = random.split(key)
        found = self.sample(draw_key, (num_samples,))
        model, own_args, own_kwargs = self.call.program()
        if args or kwargs:
            found = {n: found[n] for n in self.global_sites}
            own_args, own_kwargs = from_masked((args, kwargs))
        return predictive.replay(model, own_args, own_kwargs, found, run_key, num_samples,
                                 keep_data=bool(args or kwargs), draw_gaps=True)

    @under_ours
    def forecast(self, steps: int, *, rng_key: Array | int | None = None, num_samples: int = 1000,
                 length: str = "T") -> dict[str, Array]:
        """Draws of what comes after the last step, data and latents, with beliefs about what is
        global as they are: series go on with NaN, smoothed anew with the states to come.

            draws = posterior.forecast(12)["y"]                     # (1000, 12, ..)
            low, middle, high = np.quantile(draws, [0.05, 0.5, 0.95], axis=0)

        Args:
            length: the keyword argument that tells the program its number of steps.

        Returns:
            {name: (num_samples, steps, ..)} of every site of the scan.

        Raises:
            DataError: `length` is not the number of steps; an input of the scan is no data (its
            values to come are needed: run the program on longer arrays, NaN where data are to
            come). StructureError: there is no scan, or more than one. StaleError: the program has
            changed.
        """
        whole("jp.Posterior.forecast", steps=steps, num_samples=num_samples)
        longer = self._extended(steps, length)
        (scan,) = self.compiled.graph.program.scans
        found = longer.predict(rng_key=rng_key, num_samples=num_samples)
        return {n: x[:, scan.length:] for n, x in found.items() if n in scan.sites}

    def _extended(self, steps: int, length: str = "T") -> Posterior:
        """Beliefs about a run that goes on for some steps, with those about what is global, but
        for globals that are one with the states: about these it is what it was, as nothing more
        is seen."""
        kept, block = self._kept(), self.compiled.graph.block_of
        apart = tuple(n for n in self.global_sites if block(n).scan is None)
        compiled, call, ran = extended(self.compiled, kept, self, apart, steps, length)
        return Posterior(compiled, call, ran.told._replace(moments=ran.moments), ran.bound,
                         ran.history, sites=ran.sites)

    # -- tables and files ------------------------------------------------------------------------

    @under_ours
    def summary(self) -> str:
        """A table of all global sites, elementwise: mean, standard deviation, 90 % interval."""
        rows = [("site", "mean", "sd", "5 %", "95 %")]
        for name in self.sites:
            if self.compiled.graph.program.sites[name].scan is not None:
                continue
            mean = np.asarray(self.mean(name))
            sd = np.sqrt(np.asarray(self.variance(name)))
            draws_ = np.asarray(self[name].sample(random.key(0), (2000,)))
            low, high = np.quantile(draws_, [0.05, 0.95], axis=0)
            rows += elementwise(name, mean, sd, low, high)
        status = "converged" if self.converged else "not converged"
        end = f"{self.free_energy[-1]:.6g}" if self.num_iters else "none"
        return (f"{in_columns(rows)}\nfree energy {end} nats after {self.num_iters} sweeps, "
                f"{status}")

    def __repr__(self) -> str:
        return (f"Posterior(sites={list(self.sites)}, num_iters={self.num_iters}, "
                f"converged={self.converged})")

    def __copy__(self) -> Posterior:
        return self          # it never changes

    def __deepcopy__(self, memo: dict) -> Posterior:
        return self

    def to_arviz(self, num_samples: int = 500, rng_key: Array | int | None = None,
                 dims: Mapping[str, Sequence[str]] | None = None,
                 groups: Sequence[str] | None = None) -> Any:
        """The posterior as ArviZ's DataTree (1.x) or InferenceData (0.x).

        `dims` names the axes of sites, `groups` what it holds; see `posterior.arviz.to_arviz`.
        """
        # With ArviZ, xarray and Matplotlib: slow to import, and for this alone.
        from jopa_ppl.posterior.arviz import to_arviz
        key = as_key(rng_key)
        return to_arviz(self, num_samples, key, dims, groups)

    def save(self, path: str | PathLike, weights: Any = None) -> None:
        """Write the beliefs, and weights {module: nested dict of arrays}, to a safetensors file.

        Read them with `jp.load_posterior`, or both with `jp.load_checkpoint`.
        """
        writing.save_checkpoint(path, self, weights)
