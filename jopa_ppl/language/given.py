"""Earlier beliefs in place of priors: `given`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array
from jax.scipy.linalg import cho_solve
from numpyro.primitives import Messenger

from jopa_ppl.errors import JopaError, ShapeError, SiteError, check_model
from jopa_ppl.language.distributions import ArrayNormal
from jopa_ppl.language.missing import filled
from jopa_ppl.language.query import _Query, check_known
from jopa_ppl.settings import ours


class JointBelief(NamedTuple):
    """A Gaussian belief over several sites: mean (*plates, n), covariance (*plates, n, n)."""

    mean: Array
    cov: Array


class Earlier(Protocol):
    """What `given` reads of a posterior (`jopa_ppl.Posterior` is one)."""

    def beliefs(self, sites: Sequence[str] | None = None) -> tuple[
            dict[tuple[str, ...], JointBelief], dict[str, dist.Distribution], tuple]: ...

    def known(self, name: str) -> Array | None: ...


@dataclass(frozen=True, eq=False, repr=False)
class Given(_Query, data=("joint", "single", "known")):
    """A model whose priors are earlier beliefs; made by `given`.

    `joint`: joint Gaussian beliefs keyed by their sites, ("A", "B"), with their event shapes in
    `shapes`; `single`: a distribution for every other site; `known`: the values of sites that were
    data in part, NaN elsewhere.
    """

    joint: dict[tuple[str, ...], JointBelief]
    single: dict[str, dist.Distribution]
    known: dict[str, Array]
    shapes: tuple
    held: bool

    @property
    def sites(self) -> set[str]:
        """What it holds beliefs about."""
        return {*self.single, *(n for members in self.joint for n in members)}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        handler = _Beliefs(self)
        with handler:
            out = self.fn(*args, **kwargs)
        wanted = self.sites
        check_known(wanted - handler.seen, handler.seen | wanted, "jp.given")
        return out


class _Beliefs(Messenger):
    """Replaces priors. A joint Gaussian enters as a chain of conditionals, each affine in the
    sites before it: exact in every engine."""

    def __init__(self, query: Given) -> None:
        super().__init__(None)
        self.query, self.seen, self.values = query, set(), {}
        self.group = {n: members for members in query.joint for n in members}
        self.shape = dict(query.shapes)

    def process_message(self, msg: dict) -> None:
        if msg["type"] != "sample":
            return
        name = msg["name"]
        self.seen.add(name)
        if name in self.query.single or name in self.group:
            if msg.get("_scan") is not None:
                raise SiteError("a belief about a site inside a scan", site=name,
                                found="a site that is drawn anew at every step",
                                expected="a site outside scans",
                                fix="give the belief to the first state, or condition the series")
        infer, known = dict(msg.get("infer") or {}), self.query.known.get(name)
        if msg["value"] is not None and not infer.get("jopa_partial"):
            return
        if name in self.query.single:
            fn = jax.tree.map(_default_float, self.query.single[name])
        elif name in self.group:
            fn = self._conditional(name)
        else:
            return
        shape = tuple(msg["fn"].shape())
        if tuple(fn.shape()) != shape:
            raise ShapeError("the belief does not fit the site", site=name,
                             found=f"a belief of shape {tuple(fn.shape())}", expected=shape,
                             fix="use a posterior of the same program and sizes")
        wanted, got = _values_of(msg["fn"]), _values_of(fn)
        if wanted != got:
            raise SiteError("the belief does not fit the site", site=name,
                            found=f"a belief over {got} values", expected=f"{wanted} values",
                            fix="give a belief of the prior's own kind: a Gaussian for a Gaussian")
        msg["fn"] = fn
        if known is not None:
            given, known = msg["value"], _default_float(known)
            msg["value"] = known if given is None else filled(given, known)
            msg["is_observed"], infer["jopa_partial"] = True, True
        infer["jopa_held"] = self.query.held
        msg["infer"] = infer

    def postprocess_message(self, msg: dict) -> None:
        if msg["type"] == "sample" and msg["name"] in self.group:
            self.values[msg["name"]] = msg["value"]

    def _conditional(self, name: str) -> ArrayNormal:
        members = self.group[name]
        belief = jax.tree.map(_default_float, self.query.joint[members])
        at, before, own = 0, [], None
        for member in members:
            shape, batch = self.shape[member]
            size = int(np.prod(shape[batch:], dtype=int))
            if member == name:
                own = (at, size, shape, batch)
                break
            before.append((member, at, size, batch))
            at += size
        start, size, shape, batch = own
        mean, cov = belief.mean[..., start:start + size], belief.cov
        block = cov[..., start:start + size, start:start + size]
        if before:
            gaps = [self.values[m].reshape((*self.values[m].shape[:b], n))
                    - belief.mean[..., a:a + n] for m, a, n, b in before]
            past = cov[..., :start, :start]
            across = cov[..., :start, start:start + size]
            gain = cho_solve((jnp.linalg.cholesky(past), True), across)
            mean = mean + jnp.einsum("...ij,...i->...j", gain, jnp.concatenate(gaps, -1))
            block = block - jnp.einsum("...ij,...ik->...jk", gain, across)
            block = 0.5 * (block + jnp.swapaxes(block, -1, -2))
        return ArrayNormal(mean.reshape(shape), block, len(shape) - batch)


def _values_of(fn: dist.Distribution) -> str:
    """What values a distribution is over: real, positive, positive definite, .."""
    support = fn.support
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    return type(support).__name__.strip("_").lower()


def _default_float(x: Any) -> Any:
    floating = hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.floating)
    return jnp.asarray(x, jnp.result_type(float)) if floating else x


@ours(double=False)
def given(model: Callable, posterior: Earlier | Mapping[str, dist.Distribution],
          sites: Sequence[str] | None = None, update: bool = False) -> Given:
    """Put earlier beliefs in place of priors.

    Args:
        model: the program.
        posterior: a `Posterior` (its global sites, jointly), or distributions by site name.
        sites: which sites; default: all global ones.
        update: False: the beliefs are used in full, mean and uncertainty, but not moved; True:
            they are the prior for new data (streaming: a window begins at the last state seen,
            examples/guide/streaming.md), and a run of which no observation reaches one of them
            warns (DataWarning). SVI and NUTS always treat them as priors.
            What was data in a part of a site (jp.condition with NaN) stays data.

    Of a model that has beliefs about no other sites, these take the place of those.

    Raises:
        SiteError: a site is not in the posterior, not global, or (when run) not in the program.
    """
    check_model(model)
    if isinstance(update, str) or update not in (True, False):
        raise JopaError("an option has the wrong type", found=f"update={update!r}",
                        expected="True or False", fix="see help(jp.given)")
    if isinstance(posterior, Mapping):
        chosen = dict(posterior)
        for name in sites or ():
            check_known({name} - set(chosen), {name, *chosen}, "jp.given(sites=)")
        single = {n: d for n, d in chosen.items() if sites is None or n in sites}
        for name, d in single.items():
            if not isinstance(d, dist.Distribution):
                raise SiteError("a belief is not a distribution", site=name,
                                found=type(d).__name__, expected="a NumPyro distribution",
                                fix=f"use jp.condition(model, {{'{name}': value}})")
        return Given(_without(model, set(single), {}), {}, single, {}, (), not update)
    if not hasattr(posterior, "beliefs"):
        raise JopaError("jp.given takes earlier beliefs", found=type(posterior).__name__,
                        expected="a Posterior, or a dict {name: distribution}",
                        fix="pass what VMP(..).run returned")
    joint, single, shapes = posterior.beliefs(sites)
    about = {*single, *(n for n, _ in shapes)}
    known = {n: posterior.known(n) for n in about}
    known = {n: value for n, value in known.items() if value is not None}
    sizes = dict(shapes)
    for members, (mean, cov) in joint.items():
        if not known.keys().isdisjoint(members):
            data = [_vectors(~jnp.isnan(known[n]) if n in known else jnp.zeros(sizes[n][0], bool),
                             sizes[n][1]) for n in members]
            joint[members] = JointBelief(mean, _with_data(cov, jnp.concatenate(data, -1)))
    for name in known.keys() & single.keys():
        fn = single[name]
        data = _vectors(~jnp.isnan(known[name]), fn.loc.ndim - fn.event_dim)
        single[name] = ArrayNormal(fn.loc, _with_data(fn.covariance, data), fn.event_dim)
    return Given(_without(model, about, known), joint, single, known, shapes, not update)


def _without(model: Callable, sites: set[str], known: Mapping[str, Array]) -> Callable:
    """The model under earlier beliefs, and data in part, that later ones take the place of."""
    while isinstance(model, Given) and model.sites <= sites and model.known.keys() <= known.keys():
        model = model.fn
    return model


def _vectors(array: Array, batch: int) -> Array:
    """All axes behind the first `batch` as one."""
    return array.reshape((*array.shape[:batch], -1))


def _with_data(cov: Array, known: Array) -> Array:
    """A covariance with 1 / 2 pi at elements that are data: there their density is one, so they
    add nothing to F."""
    return cov + known[..., None] * jnp.eye(cov.shape[-1], dtype=cov.dtype) / (2 * jnp.pi)
