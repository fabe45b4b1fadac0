"""Run a program once, under handlers, and keep its sites and the jaxprs of their parameters.

A scan's body is run once too, with the carry and one slice of the inputs as placeholders, so that
the sites of a step and their dependence on the carry become visible.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from jax import Array
from jax.extend.core import ClosedJaxpr
from numpyro.contrib.control_flow.cond import cond_wrapper
from numpyro.ops.pytree import PytreeTrace
from numpyro.primitives import Messenger

from jopa_ppl.arrays import native
from jopa_ppl.errors import ShapeError, SiteError, StructureError
from jopa_ppl.language.blame import named_faults
from jopa_ppl.language.missing import data_of, from_masked
from jopa_ppl.language.precision import constants_in_double, counts_in_full, in_double
from jopa_ppl.language.primitives import WEIGHTS
from jopa_ppl.language.scan_lengths import check_lengths
from jopa_ppl.program.after_scan import inline
from jopa_ppl.program.continued import with_continued_scans
from jopa_ppl.program.drawn_apart import with_draws_apart
from jopa_ppl.program.fused import with_fused_scans
from jopa_ppl.program.in_body import InBody
from jopa_ppl.program.latent_data import with_latent_data
from jopa_ppl.program.latent_inputs import with_latent_inputs
from jopa_ppl.program.loops import with_loops
from jopa_ppl.program.naming import check_labels, check_name
from jopa_ppl.program.parameters import describe
from jopa_ppl.program.program import Plate, Program, Scan, Site, status_of
from jopa_ppl.program.recursions import with_recursions
from jopa_ppl.program.scan_inputs import check_inputs
from jopa_ppl.program.spellings import only_value, respelled, walked


class _Tracer(Messenger):
    """Outermost handler: gives every latent a placeholder and records every site."""

    def __init__(self, inputs: dict[str, Array] | None) -> None:
        super().__init__(None)
        self.inputs = inputs
        self.shapes: dict[str, jax.ShapeDtypeStruct] = {}
        self.sites: dict[str, tuple[Site, dict[str, Array]]] = {}
        self.scans: list[tuple[Scan, dict[str, list[Array]]]] = []
        self.networks = False

    def placeholder(self, key: str, like: Array) -> Array:
        like = in_double(like)
        self.shapes[key] = jax.ShapeDtypeStruct(jnp.shape(like), jnp.result_type(like))
        return like if self.inputs is None else self.inputs[key]

    def process_message(self, msg: dict) -> None:
        if msg["type"] == "control_flow":
            self._cond(msg) if msg["fn"] is cond_wrapper else self._scan(msg)
        elif msg["type"] == "sample":
            self._sample(msg)
        elif msg["type"] == "plate" and msg["value"] is None:
            raise StructureError(
                f"plate '{msg['name']}' is subsampled", found="subsample_size={1} of {0}".format(
                    *msg["args"]), expected="a plate of all its elements",
                fix="leave subsample_size out: VMP sums over the data once a sweep "
                    "(jp.VariationalEM(batch=..) has minibatches), or run SVI")
        elif msg["type"] == "param":
            self.networks |= msg["name"].endswith(WEIGHTS)

    def _sample(self, msg: dict) -> None:
        name = msg["name"]
        check_name(name)
        fn = msg["fn"] = counts_in_full(respelled(msg))
        msg["value"] = counts_in_full(native(from_masked(msg["value"])))
        if msg["value"] is None and (point := only_value(fn)) is not None:
            msg["value"] = point            # as numpyro.deterministic
            return
        if msg.get("_scan") is None and (walk := walked(msg)) is not None:
            msg["value"] = walk
            return
        if name in self.sites:
            raise SiteError("the name is used twice", site=name, found="two sites of one name",
                            expected="distinct names", fix="rename one of them")
        if msg["kwargs"].get("sample_shape"):
            raise StructureError("sample_shape is not supported by VMP", site=name,
                                 found=f"sample_shape={msg['kwargs']['sample_shape']}",
                                 expected="()", fix="use fn.expand(...) or a plate")
        if 0 in fn.shape():
            raise ShapeError("the site is empty", site=name, found=f"shape {tuple(fn.shape())}",
                             expected="at least one value", fix="leave out the arrays of no size")
        scan = msg.get("_scan")
        observed = msg["value"] is not None
        infer = msg.get("infer") or {}
        plated = len(fn.event_shape) + max((-f.dim for f in msg["cond_indep_stack"]), default=0)
        rank = max(infer.get("jopa_rank", len(fn.shape())), plated)
        partial = bool(infer.get("jopa_partial"))
        described = describe(name, fn, msg["value"], msg.get("scale"), rank, partial, data_of(msg),
                             scan is not None)
        # A likelihood that is only seen through its message has no latent values: gaps are gaps.
        partial &= described.likelihood is None or (
            bool(described.rules.noise) and not described.amortized
            and not described.rules.by_density)
        if partial and not described.rules.location:
            raise StructureError(
                "it is conditioned in part", site=name, found=f"{described.family} with NaN in its "
                "data, or data for some steps", expected="a Gaussian, or all of its values",
                fix="pass every value, or leave the site out of jp.condition")
        batch = tuple(fn.batch_shape)
        plates = tuple(sorted(
            (Plate(f.name, f.dim + len(batch), f.size) for f in msg["cond_indep_stack"]),
            key=lambda p: p.axis))
        if described.rules.by_matrix and not described.amortized:
            whole = tuple(fn.shape())
            batch = whole[:len(whole) - len(described.event_shape)]
        site = Site(name, described.family, status_of(observed, partial), scan, batch,
                    described.event_shape, plates, {}, held=infer.get("jopa_held") is True,
                    updated=infer.get("jopa_held") is False, amortized=described.amortized,
                    role="observed" if observed else "latent", described=described.kind,
                    likelihood=described.likelihood, transform=described.transform,
                    values=described.values,
                    shown=tuple(fn.event_shape) if described.transform is not None else None)
        self.sites[name] = (site, described.params)
        if observed:
            kind = "latent" if site.partial else "known"
            like = jnp.asarray(msg["value"])
        else:
            kind, like = "latent", jnp.zeros(site.shape, int if fn.is_discrete else float)
        if not observed or jnp.issubdtype(like.dtype, jnp.floating):
            msg["value"] = self.placeholder(f"{kind}/{name}", like)
        if site.likelihood is not None and not observed:
            score = site.likelihood._replace(value=msg["value"])
            self.sites[name] = (replace(site, likelihood=score), described.params)
        if site.transform is not None:
            msg["value"] = site.transform.tree.unflatten(site.transform.leaves)(msg["value"])
        msg["intermediates"] = []

    def _cond(self, msg: dict) -> None:
        """NumPyro's cond without sites is that of JAX; its sites would be those of one branch."""
        _, *branches, operand = msg["args"]
        for branch in branches:
            with (numpyro.handlers.block(), numpyro.handlers.seed(rng_seed=0),
                  numpyro.handlers.trace() as found):
                branch(operand)
            for name in (n for n, site in found.items() if site["type"] == "sample"):
                raise StructureError(
                    "a site in a branch of NumPyro's cond is not supported by VMP", site=name,
                    found="numpyro.contrib.control_flow.cond with sites in its branches",
                    expected="sites outside of it",
                    fix=f"draw '{name}' once, with what the branches differ in as its parameters: "
                        "dist.Normal(jnp.where(pred, a, b), scale), pred made of data")

    def _scan(self, msg: dict) -> None:
        f, init, xs, length, reverse = msg["args"][:5]
        init, xs = from_masked((init, xs))
        if reverse:
            raise StructureError("a reversed scan is not supported by VMP", found="reverse=True",
                                 expected="reverse=False", fix="flip the series in time")
        check_lengths(f, init, xs, length)
        length = int(np.shape(jax.tree.leaves(xs)[0])[0] if length is None else length)
        index = len(self.scans)
        leaves, tree = jax.tree.flatten(xs)
        series = {f"xs/{index}/{i}": jnp.asarray(leaf) for i, leaf in enumerate(leaves)}
        slices = [self.placeholder(k, v[0]) for k, v in series.items()]
        init_leaves, carry_tree = jax.tree.flatten(init)
        init_leaves = [jnp.asarray(leaf) for leaf in init_leaves]
        carry = [self.placeholder(f"carry/{index}/{i}", leaf)
                 for i, leaf in enumerate(init_leaves)]
        body = InBody(self.placeholder, index, length, msg["kwargs"].get("substitute_stack") or [])
        with body:
            carry_out, ys = f(carry_tree.unflatten(carry), tree.unflatten(slices))
        out_leaves, out_tree = jax.tree.flatten(carry_out)
        if out_tree != carry_tree or any(jnp.shape(a) != jnp.shape(b)
                                         for a, b in zip(out_leaves, init_leaves)):
            raise ShapeError(
                "the carry of the scan changes its shape",
                found=str(jax.tree.map(jnp.shape, carry_out)),
                expected=str(jax.tree.map(jnp.shape, init)),
                fix="return a carry of the same structure as the first one")
        labels = tuple(jax.tree_util.keystr(path, simple=True, separator=".")
                       for path, _ in jax.tree_util.tree_flatten_with_path(init)[0])
        scan = Scan(index, length, (), (), {}, tuple(body.sites), leaves=labels)
        self.scans.append((scan, {
            "init": init_leaves, "carry": [jnp.asarray(x) for x in out_leaves],
            "xs": {**series, **body.xs}}))
        after = [self.placeholder(f"after/{index}/{i}", leaf)
                 for i, leaf in enumerate(out_leaves)]
        y_leaves, y_tree = jax.tree.flatten(ys)
        stacked = [self.placeholder(f"ys/{index}/{i}", jnp.broadcast_to(y, (length, *jnp.shape(y))))
                   for i, y in enumerate(y_leaves)]
        self.scans[-1][1]["ys"] = [jnp.asarray(y) for y in y_leaves]
        # What NumPyro's scan expects back; its trace is empty, the sites are recorded already.
        msg["value"] = ((length, None, carry_tree.unflatten(after)),
                        (PytreeTrace({}), y_tree.unflatten(stacked)))


def trace_program(model: Callable, args: tuple, kwargs: dict, dynamic: list[Array],
                  rebuild: Callable[[list[Array]], tuple[Callable, tuple, dict]]) -> Program:
    """The program that `model(*args, **kwargs)` is, run once on placeholders for its arrays.

    Args:
        model, args, kwargs: the program, and what it is called with.
        dynamic: the arrays in all of these, its data.
        rebuild: other arrays in their place -> model, args, kwargs.

    Raises:
        SiteError, ShapeError, StructureError: the program cannot be read (see the message).
    """
    def run(tracer: _Tracer, leaves: list[Array]) -> None:
        program, a, k = in_double(rebuild(leaves))
        # The seed only serves draws that no handler answers; every site has a placeholder.
        # NumPyro's checks of arguments would run op by op here; the engine checks them in its run.
        with (tracer, numpyro.handlers.seed(rng_seed=0), numpyro.validation_enabled(False),
              named_faults()):
            program(*a, **k)

    data = {f"data/{i}": jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x))
            for i, x in enumerate(dynamic)}
    first = _Tracer(None)

    def discover(leaves: list[Array]) -> Array:
        run(first, leaves)
        return jnp.zeros(())

    jax.eval_shape(discover, list(data.values()))
    shapes = {**first.shapes, **data}
    keys = tuple(shapes)
    second: list[_Tracer] = []
    slots: dict = {}

    def collect(*flat: Array) -> list[Array]:
        values = dict(zip(keys, flat))
        tracer = _Tracer(values)
        run(tracer, [values[k] for k in data])
        second.append(tracer)
        outputs: list[Array] = []

        def put(array: Array) -> int:
            return keep(in_double(jnp.asarray(array)))

        def keep(array: Array) -> int:
            outputs.append(array)
            return len(outputs) - 1

        slots["sites"] = {
            name: replace(site, outputs={k: put(v) for k, v in params.items()},
                          likelihood=site.likelihood and site.likelihood.mapped(keep),
                          transform=site.transform and site.transform.mapped(put))
            for name, (site, params) in tracer.sites.items()}
        slots["scans"] = tuple(
            replace(scan, init=tuple(map(put, parts["init"])),
                    carry=tuple(map(put, parts["carry"])), ys=tuple(map(put, parts["ys"])),
                    xs={k: put(v) for k, v in parts["xs"].items()})
            for scan, parts in tracer.scans)
        return outputs

    jaxpr = constants_in_double(jax.make_jaxpr(collect)(*shapes.values()))
    program = Program(getattr(model, "__name__", type(model).__name__), slots["sites"],
                      slots["scans"], _kept(jaxpr), keys,
                      {k: tuple(s.shape) for k, s in shapes.items()}, second[-1].networks)
    check_labels(program.sites)
    program = with_fused_scans(with_latent_inputs(with_latent_data(program)))
    check_inputs(program)
    program = inline(with_loops(with_draws_apart(program)))
    return with_recursions(with_continued_scans(program))


def _kept(closed: ClosedJaxpr) -> ClosedJaxpr:
    """A jaxpr with its constants copied: NumPy's arrays can be changed in place afterwards."""
    def own(x: Any) -> Any:
        if isinstance(x, ClosedJaxpr):
            return _kept(x)
        return tuple(map(own, x)) if type(x) is tuple else x

    consts = [x if isinstance(x, jax.Array) else jnp.array(x, x.dtype) for x in closed.consts]
    eqns = [e.replace(params={k: own(v) for k, v in e.params.items()})
            if any(type(v) is tuple or isinstance(v, ClosedJaxpr) for v in e.params.values()) else e
            for e in closed.jaxpr.eqns]
    return ClosedJaxpr(closed.jaxpr.replace(eqns=eqns), consts)
