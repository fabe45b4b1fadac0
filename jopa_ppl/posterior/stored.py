"""Posteriors on disk: safetensors with a JSON header, never pickle.

The header tells the program's name, its sites and blocks, the schedule, the free energy and the
versions that wrote it; the tensors, in float64, are

    blocks/<block>/<statistic>   the belief of every block, as inference left it
    sites/<site>/<parameter>     the marginal of every site, predicted steps included
    smoothed/<block>             where a chain was smoothed (elsewhere it is data, or predicted)

Data are not kept.
"""

from __future__ import annotations

import copyreg
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, random
from numpyro.distributions.transforms import Transform

from jopa_ppl.beliefs import KINDS, Belief, Clamp, Variable
from jopa_ppl.beliefs.gaussian import square_root
from jopa_ppl.compilation import Stages, once
from jopa_ppl.engine.engine import Engine
from jopa_ppl.engine.marginals import in_shape
from jopa_ppl.engine.state import State
from jopa_ppl.errors import JopaError
from jopa_ppl.graph.factor import Factor, Graph
from jopa_ppl.graph.shown import ShownGraph
from jopa_ppl.posterior import draws, unconstrained
from jopa_ppl.posterior.posterior import Posterior
from jopa_ppl.posterior.storage import check, expect, flat
from jopa_ppl.posterior.write import Kept, describe
from jopa_ppl.program.carry import CarryForm, Reader
from jopa_ppl.program.program import Plate, Program, Scan, Site, Window, status_of
from jopa_ppl.program.refs import Ref
from jopa_ppl.program.segments import Segment
from jopa_ppl.settings import ours

# What a header holds (`storage.expect`).
_NAMES, _PLATES = [str], [(str, int, int)]
_FORM = {
    "program": str, "num_iters": int, "converged": bool, "schedule": str,
    "free_energy": [float | int], "free_energy_noise": [float | int],
    "sites": [{**dict.fromkeys(("name", "family", "role"), str), "scan": int | None,
               **dict.fromkeys(("observed", "partial", "held", "amortized"), bool),
               "batch_shape": [int], "event_shape": [int], "plates": _PLATES}],
    "scans": [{"index": int, "length": int, "sites": _NAMES, "order": int,
               "seeds": [(str, (str, int))]}],
    "latents": [{"name": str, "family": str, "local": _PLATES}],
    "blocks": [{"name": str, "kind": str, "variables": _NAMES, "head": _NAMES, "scan": int | None,
                "order": int, "plates": _NAMES, "held": bool}],
    "factors": [{"site": str, "latents": [(str, int | None, str)], "plates": _PLATES,
                 "context": list}],
    "borders": _NAMES, "predicted": _NAMES, "sizes": {...: int},
    "transforms": {...: {"map": str, "shape": [int], "loc": [float | int],
                         "scale": [float | int]}}}


class _Restored(Stages):
    """Stands for the compiled program of a stored posterior."""

    def __init__(self, graph: Graph, engine: Engine, schedule: str) -> None:
        super().__init__()
        self.graph, self.engine, self.schedule = graph, engine, schedule


def _one(engine: Engine, moments: dict, kept: Kept, plan: None, key: Array) -> dict[str, Array]:
    """One joint draw of every site; predicted steps from their marginals."""
    shared, inside = random.split(key)
    _, values = draws.draw_parameters(engine, moments, shared)
    for i, block in enumerate(engine.graph.blocks):
        if block.scan is None:
            continue
        m, free = moments[block.name], kept.smoothed[block.name]
        joint, alone = random.split(random.fold_in(inside, i))
        _, found = block.draw(m, joint, Clamp(free, m.mean))
        for j, name in enumerate(block.variables):
            own, v = kept.sites[name], block.latents[name]
            eps = random.normal(random.fold_in(alone, j), own["mean"].shape, own["mean"].dtype)
            single = own["mean"] + jnp.einsum("...nm,...m->...n", square_root(own["cov"]), eps)
            found[name] = jnp.where(v.values(block.steps(free, name, 1)), found[name],
                                    v.values(single))
        values |= found
    return values


class StoredPosterior(Posterior):
    """A posterior read from a file: everything but `predict` and `log_prob` of joint draws.

    `sample` draws every block jointly, chains where they are smoothed; the predicted steps after
    the last observation are drawn from their marginals, one by one.
    """

    def __init__(self, header: dict[str, Any], graph: Graph, engine: Engine, moments: dict,
                 kept: Kept) -> None:
        history = np.asarray(header["free_energy"], np.float64)
        if header["num_iters"] and not len(history):
            raise ValueError("sweeps without a free energy")        # within `storage.damaged`
        state = State(moments, history[-1:].sum(), header["num_iters"], -1, header["converged"])
        super().__init__(_Restored(graph, engine, header["schedule"]), None, state, kept, history,
                         noise=header.get("free_energy_noise"))
        self.header = header

    _one = staticmethod(_one)

    @cached_property
    def _maps(self) -> dict[str, Transform]:
        with ours():
            return {n: unconstrained.read(t) for n, t in self.header["transforms"].items()}

    @cached_property
    def _parts(self) -> tuple[dict, dict]:
        with ours():
            shaped = self.compiled.stage("marginals", lambda: jax.jit(
                partial(in_shape, self.compiled.graph), compiler_options=once()))
            return self.bound.sites, shaped(self.bound.sites)

    def predict(self, *args: Any, **kwargs: Any) -> dict[str, Array]:
        """Not without the model: raises JopaError."""
        raise JopaError(
            "a loaded posterior cannot predict by itself",
            found=f"beliefs about '{self.header['program']}', without its model and arguments",
            expected="the model and its arguments",
            fix="run it again from these beliefs, jp.VMP(jp.given(model, posterior)).run(...), "
                "and call predict on the result")


# -- reading -----------------------------------------------------------------------------------


def restore(header: dict[str, Any], tensors: dict[str, np.ndarray]) -> StoredPosterior:
    """The posterior of a file that `storage.read` read, within `storage.damaged`.

    Raises:
        FileError: the tensors are not those of its program; or whatever a damaged header breaks.
    """
    with ours():
        header = upgraded(header)
        header = {"free_energy_noise": [], "transforms": {}, "borders": [], **header}
        expect(header, _FORM)
        graph = _graph(header)
        engine = Engine(graph)
        tree = {"blocks": {b.name: jax.eval_shape(b.zero) for b in graph.blocks},
                **Kept({n: dict.fromkeys(graph.block_of(n).parts, 0) for n in graph.variables},
                       {b.name: 0 for b in graph.blocks if b.scan is not None})._asdict()}
        wanted = flat(tree)
        shapes = {n: getattr(leaf if hasattr(leaf, "shape") else tensors.get(n), "shape", ())
                  for n, leaf in wanted.items()}
        check(shapes, tensors, "the file", f"of '{header['program']}'",
              "save the posterior again")
        for name in wanted:
            kind = bool if name.startswith("smoothed/") else np.float64
            if tensors[name].dtype != kind:
                raise TypeError(f"tensor '{name}' holds {tensors[name].dtype}")
        leaves = [jnp.asarray(tensors[n]) for n in wanted]
        tree = jax.tree.unflatten(jax.tree.structure(tree), leaves)
        for name, v in graph.variables.items():
            lead = (graph.program.length_of(v.site),) if v.site.is_series else ()
            shaped = partial(graph.block_of(name).shaped, name)
            found = jax.eval_shape(shaped, tree["sites"][name])[:2]
            if any(x.shape != (*lead, *v.site.shape) for x in found):
                raise TypeError(f"the marginal of '{name}' has the shape {found[0].shape}")
        for name, free in tree["smoothed"].items():
            if free.shape != tree["blocks"][name].mean.shape:
                raise TypeError(f"'smoothed/{name}' has the shape {free.shape}")
        return StoredPosterior(header, graph, engine, tree["blocks"],
                               Kept(tree["sites"], tree["smoothed"]))


def upgraded(header: dict[str, Any]) -> dict[str, Any]:
    """The header in today's format: in the first one what a factor reads was text, "x@-1"."""
    if header.get("format") != 1:
        return header

    def ref(text: str) -> list:
        site, at, back = text.partition("@")
        return [*Ref(site, -int(back) if at else None)]

    return {**header, "format": 2, "factors": [
        {**f, "latents": [ref(text) for text in f["latents"]]} for f in header["factors"]]}


def _graph(header: dict[str, Any]) -> ShownGraph:
    """The sites, blocks and eliminated factors of the program, as far as beliefs need them."""
    for r in header["sites"]:
        expect({"values": [], "described": "", "window": [0, 0, 0], **r},
               {"values": [int], "described": str, "window": (int, int, int)})
    sites = {r["name"]: _site(_read_record(r)) for r in header["sites"]}
    scans = tuple(Scan(r["index"], r["length"], (), (), {}, tuple(r["sites"]))
                  for r in header["scans"])
    forms = {r["index"]: CarryForm(r["order"], (), tuple((n, Ref(*at)) for n, at in r["seeds"]))
             for r in header["scans"]}
    variables = {r["name"]: Variable(**_read_record(r), site=sites[r["name"]])
                 for r in header["latents"]}
    factors, lengths = [], {s.index: s.length for s in scans}
    for r in header["factors"]:
        site, plates = sites[r["site"]], tuple(Plate(*p) for p in r["plates"])
        factors.append(Factor(
            site, Segment.read(r["context"], lengths), site.family, plates,
            tuple(Ref(*x) for x in r["latents"]), knowns=(), noise=(), varying=frozenset(),
            varying_in_time=False, noise_varying=False, products=(), noise_key="",
            part=r.get("part", "")))
    blocks = tuple(_block(_read_record(r), variables, factors, forms, header)
                   for r in header["blocks"])
    program = Program(header["program"], sites, scans, None, (), {},
                      borders=tuple(header["borders"]))
    reader = Reader(program)
    reader.forms = forms                # as they were found, from a jaxpr that files do not hold
    return ShownGraph(program, reader, variables, tuple(factors), blocks,
                      tuple(header["predicted"]), header["sizes"])


def _site(record: dict[str, Any]) -> Site:
    known = [record.pop(k) for k in ("observed", "partial")]
    window = record.pop("window", None)
    return Site(**record, status=status_of(*known), outputs={},
                window=None if window is None else Window(*window))


def _block(record: dict[str, Any], variables: dict[str, Variable], factors: list[Factor],
           forms: dict[int, CarryForm], header: dict[str, Any]) -> Belief:
    kind, scan, order = (record.pop(k) for k in ("kind", "scan", "order"))
    layout = record.pop("layout", {})           # older files have none, and need none
    expect(layout, KINDS[kind].layout_form, f"the layout of {record['name']!r}")
    if "over" in layout and layout["length"] not in [
            r["length"] for r in header["scans"] if r["index"] == layout["over"]]:
        raise TypeError(f"{record['name']!r} has other steps than its scan")
    latents = {n: variables[n] for n in (*record["head"], *record.pop("variables"))}
    if not KINDS[kind].takes(latents):
        raise TypeError(f"block {list(latents)} holds latents of another family than its own")
    about = {**record, "sizes": header["sizes"], **{k: layout[k] for k in KINDS[kind].layout_form}}
    if scan is not None:
        (length,) = (r["length"] for r in header["scans"] if r["index"] == scan)
        about |= {"scan": scan, "order": order, "length": length, "seeds": dict(forms[scan].seeds)}
    else:
        del about["head"]
    return KINDS[kind].read(latents, factors, about)


def _read_record(record: dict[str, Any]) -> dict[str, Any]:
    """JSON's lists as the tuples and plates they were."""
    def value(x: Any) -> Any:
        if not isinstance(x, list):
            return x
        return tuple(Plate(*i) if isinstance(i, list) else i for i in x)

    return {k: value(x) for k, x in record.items()}


def _reduced(posterior: Posterior) -> tuple:
    """Pickled as `save` writes it: what comes back is what `jp.load_posterior` returns."""
    header, tensors = describe(posterior)
    return restore, (header, {n: np.asarray(x) for n, x in tensors.items()})


for _kind in (Posterior, StoredPosterior):
    copyreg.pickle(_kind, _reduced)
