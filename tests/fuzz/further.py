"""What else a posterior answers, against the dense joint: draws, densities, predictions, files."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from numpyro.contrib.control_flow import scan as numpyro_scan
from numpyro.infer.util import log_density
from scipy.stats import multivariate_normal

import jopa_ppl as jp
from tests.fuzz.grammar import Program
from tests.fuzz.truth import LogJoint, quadratic

DRAWS = 3000


def further(program: Program, joint: LogJoint, posterior: Any) -> list[str]:
    """Faults of draws, densities, predictions and files, in words."""
    faults = _numpyro_agrees(program, joint) + _files(posterior)
    exact_block = len(posterior.compiled.graph.blocks) == 1 and posterior.compiled.schedule.exact
    if program.quadratic and exact_block and not posterior.compiled.schedule.held:
        faults += _draws(joint, posterior)
        if not program.known and not program.given:
            faults += _given(program, joint, posterior)
    return faults


def _given(program: Program, joint: LogJoint, posterior: Any) -> list[str]:
    """The same data once more, the beliefs about the globals being their priors now."""
    names = [n for n in posterior.global_sites if n in joint.sites]
    if not names:
        return []
    exact = quadratic(joint.total, np.zeros(joint.size))
    at = np.concatenate([joint.coordinates(n) for n in names])
    belief = multivariate_normal(exact.mean[at], exact.cov[np.ix_(at, at)])

    def f(points: np.ndarray) -> np.ndarray:
        priors = joint.elements(points)
        own = sum(priors[n].reshape(len(points), -1).sum(1) for n in names)
        return joint.total(points) - own + belief.logpdf(points[:, at]).reshape(len(points))

    again = jp.VMP(jp.given(program.model(), posterior, update=True), progress=False).run(
        program.data)
    new, faults = quadratic(f, exact.mean), []
    for name in again.sites:
        here, mean = joint.coordinates(name), np.asarray(again.mean(name)).ravel()
        off = np.abs(mean - new.mean[here]) / np.sqrt(np.diag(new.cov)[here])
        wide = np.asarray(again.variance(name)).ravel() / np.diag(new.cov)[here] - 1
        if max(off.max(), np.abs(wide).max()) > 1e-6:
            faults.append(f"{name}, given: {mean} for {new.mean[here]}")
    if not np.isclose(again.free_energy[-1], -new.evidence, rtol=1e-7, atol=1e-7):
        faults.append(f"given: free energy {again.free_energy[-1]} for {-new.evidence}")
    return faults


def _numpyro_agrees(program: Program, joint: LogJoint) -> list[str]:
    """Its own log density of the program, where nothing is given: a check of the truth itself."""
    if program.known or program.given:
        return []
    point = np.random.default_rng(0).normal(size=joint.size)
    for name, site in joint.sites.items():
        if site.family != "gaussian":
            point[joint.at[name]] = (np.eye(site.shape[-1]) if site.family == "wishart" else
                                     1.0 + point[joint.at[name]]**2)
    model = program.function(latent=jp.observe, observe=jp.observe, sample=jp.observe,
                             scan=numpyro_scan)
    values = {n: jnp.asarray(point[joint.at[n]]) for n in joint.sites}
    try:
        found = float(log_density(model, (program.data,), {}, values)[0])
    except ValueError:              # its scan cannot stack a masked multivariate Normal
        return []
    want = float(joint.total(point[None])[0])
    fine = np.isclose(found, want, rtol=1e-10, atol=1e-10)
    return [] if fine else [f"log density {want}, NumPyro says {found}"]


def _files(posterior: Any) -> list[str]:
    """A posterior that was saved and loaded says the same."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "posterior.safetensors"
        posterior.save(path)
        loaded = jp.load_posterior(path)
    faults = []
    for name in posterior.sites:
        for what in ("mean", "variance"):
            a, b = (np.asarray(getattr(p, what)(name)) for p in (posterior, loaded))
            if not np.allclose(a, b, rtol=1e-10, atol=1e-12):
                faults.append(f"{name}: {what} {b} once loaded, {a} before")
    return faults


def _draws(joint: LogJoint, posterior: Any) -> list[str]:
    """Joint draws have the joint moments, their densities are the dense ones, predicted sites
    follow the program."""
    exact = quadratic(joint.total, np.zeros(joint.size))
    draws = {n: np.asarray(x) for n, x in posterior.sample(0, DRAWS).items()}
    faults, flat = [], np.full((DRAWS, joint.size), np.nan)
    for name, x in draws.items():
        at = joint.at[name]
        flat[:, at[at >= 0]] = x[:, at >= 0]
        if not np.allclose(x[:, at < 0], joint.data[name][at < 0], rtol=1e-10):
            faults.append(f"{name}: draws of what is known differ from it")
    here = np.flatnonzero(~np.isnan(flat[0]))
    if len(here):
        faults += _moments_of("draws", flat[:, here], exact.mean[here],
                              exact.cov[np.ix_(here, here)])
        few = {n: x[:5] for n, x in draws.items()}
        want = multivariate_normal(exact.mean[here], exact.cov[np.ix_(here, here)],
                                   allow_singular=True).logpdf(flat[:5, here])
        try:
            found = np.asarray(posterior.log_prob(few))
        except jp.JopaError as error:               # NumPyro's scan cannot stack a MatrixNormal
            assert "MatrixNormal" in str(error)
        else:
            if not np.allclose(found, want, rtol=1e-7, atol=1e-7):
                faults.append(f"log_prob {found} for {want}")
    # Sites that nothing depends on are drawn by `predict`, jointly with the others.
    predicted = posterior.predict(rng_key=2, num_samples=DRAWS)
    flat = np.full((DRAWS, joint.size), np.nan)
    for name in joint.sites:
        at, x = joint.at[name], np.asarray(predicted[name])
        flat[:, at[at >= 0]] = x[:, at >= 0]
    return faults + _moments_of("predictions", flat, exact.mean, exact.cov)


def _moments_of(what: str, draws: np.ndarray, mean: np.ndarray, cov: np.ndarray) -> list[str]:
    """Whether draws have a mean and a covariance, within six standard errors."""
    if not draws.shape[1]:
        return []
    white = np.linalg.solve(np.linalg.cholesky(cov), (draws - mean).T)
    off = np.abs(white.mean(1)).max() * np.sqrt(len(draws))
    wide = np.abs(np.cov(white, bias=True).reshape(len(mean), -1) - np.eye(len(mean)))
    wide = wide.max() * np.sqrt(len(draws) / 2)
    return [] if off < 6 and wide < 6 else [f"{what}: {off:.1f} and {wide:.1f} standard errors off"]
