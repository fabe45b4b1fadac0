"""Random programs: `program(seed, family)` writes one as Python source, which can be read and run.

Everything is drawn from `np.random.default_rng(seed)`, so that a seed is a program.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.contrib.control_flow import scan as numpyro_scan

import jopa_ppl as jp
from tests.fuzz.spellings import Arrays, Shape, Value, atom, event

HEAD = """import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro import plate, sample
import jopa_ppl as jp
from jopa_ppl import latent, observe, scan
"""


SMALL = 20           # seeds below it make programs of few sites
_CHOICE = r"jnp\.where\((?:(k\d+)|D\['(d\d+)'\])"      # closed over, passed


@dataclass
class Program:
    """A program and the query about it: `text` defines `program(D)` and its arrays."""

    seed: int
    family: str
    text: str
    data: dict[str, np.ndarray]
    inside: set[str] = field(default_factory=set)        # sites of a scan
    known: dict[str, np.ndarray] = field(default_factory=dict)      # jp.condition
    given: dict[str, str] = field(default_factory=dict)             # jp.given: distributions
    update: bool = True
    quadratic: bool = True                               # all latents Gaussian, none multiplied

    def __str__(self) -> str:
        """The whole of it, to be run by itself."""
        lines = [HEAD, self.text, f"D = {_printed(self.data)}", "model = program"]
        if self.given:
            beliefs = ", ".join(f"'{n}': {text}" for n, text in self.given.items())
            lines.append(f"model = jp.given(model, {{{beliefs}}}, update={self.update})")
        if self.known:
            lines.append(f"model = jp.condition(model, {_printed(self.known)})")
        lines.append("posterior = jp.VMP(model, tol=1e-20, max_iters=2000).run(D)")
        return "\n".join([f"# seed {self.seed}, {self.family}", *lines])

    def function(self, **names: Any) -> Callable:
        """`program`, with its primitives under the given names."""
        space = {"jax": jax, "jnp": jnp, "np": np, "numpyro": numpyro, "dist": dist,
                 "plate": numpyro.plate, "sample": numpyro.sample, **names}
        exec(compile(self.text, f"<{self.family} {self.seed}>", "exec"), space)
        return space["program"]

    def call(self, latent: None, scan: Callable) -> None:
        """Run it in plain NumPyro, with a scan of one's own."""
        plain = numpyro.sample
        self.function(latent=plain, observe=plain, scan=scan)(self.data)

    def choices(self, most: int = 32) -> Iterator[Program]:
        """The program with every `jnp.where` on one side, in all ways or `most` of them, and other
        numbers (some add up to 0): what its text may depend on."""
        count = len(re.findall(_CHOICE, self.text))
        rng = np.random.default_rng(self.seed)
        for sides in (product((True, False), repeat=count) if 2 ** count <= most
                      else rng.random((most, count)) < 0.5):
            yield self._chosen(sides)

    def _chosen(self, sides: Iterable[bool]) -> Program:
        text, rng = self.text, np.random.default_rng(self.seed)
        data = {n: x * rng.uniform(0.9, 1.1, x.shape) if x.dtype == float and x.ndim < 2 else x
                for n, x in self.data.items()}
        for (closed, passed), side in zip(re.findall(_CHOICE, text), sides):
            value = bool(side)
            if closed:
                text = re.sub(rf"(?m)^{closed} = (.*)$", rf"{closed} = np.full_like(\1, {value})",
                              text)
            else:
                data[passed] = np.full_like(data[passed], value)
        return replace(self, text=text, data=data)

    def model(self) -> Callable:
        """The program under the library's primitives, or NumPyro's, and its queries."""
        scan = jp.scan if self.seed % 2 else numpyro_scan
        model = self.function(latent=jp.latent, observe=jp.observe, scan=scan)
        if self.given:
            model = jp.given(model, self.beliefs(), update=self.update)
        return jp.condition(model, self.known) if self.known else model

    def beliefs(self) -> dict[str, dist.Distribution]:
        return {n: eval(text, {"np": np, "jnp": jnp, "dist": dist})
                for n, text in self.given.items()}


def _printed(arrays: Mapping[str, np.ndarray]) -> str:
    return "{" + ", ".join(f"'{n}': {literal(x)}" for n, x in arrays.items()) + "}"


def literal(array: np.ndarray) -> str:
    """The text of a small array."""
    array = np.asarray(array)
    text = repr(array.tolist()).replace("nan", "np.nan")
    return f"np.array({text}{', np.float32' if array.dtype == np.float32 else ''})"


class Precision(NamedTuple):
    """A Gamma or Wishart latent that later noises may be made of."""

    value: Value
    family: str


class Writer:
    """Writes a program line by line; keeps the values that later sites may use."""

    small = False

    def __init__(self, rng: np.random.Generator, sizes: dict[str, tuple[int, int]]) -> None:
        self.rng, self.a = rng, Arrays(rng)
        self.sizes = sizes                     # plate: (size, dim)
        self.lines: list[str] = []
        self.indent = "    "
        self.count = 0
        self.latents: list[Value] = []         # seen by means
        self.scalars: list[Value] = []         # observed without gaps: data of later sites
        self.inside: set[str] = set()
        self.in_scan = False
        self.xs: list[str] = []                # series that enter the scan
        self.shapes: dict[str, Shape] = {}     # of Gaussian latents
        self.events: dict[str, Shape] = {}
        self.precisions: list[Precision] = []
        self.products: list[Value] = []        # latents that may multiply others
        self.quadratic, self.lacks_data = True, True
        self.shapes_of_events: list[Shape] = [(), (), (2,), (2,), (3,), (2, 2)]

    # -- helpers -----------------------------------------------------------------------------

    def chance(self, p: float) -> bool:
        return bool(self.rng.random() < p)

    def pick(self, options: list) -> Any:
        return options[self.rng.integers(len(options))]

    def name(self, prefix: str) -> str:
        self.count += 1
        return f"{prefix}{self.count}"

    def write(self, line: str) -> None:
        self.lines.append(self.indent + line)

    def batch(self, plates: tuple[str, ...]) -> Shape:
        rank = max((-self.sizes[p][1] for p in plates), default=0)
        shape = [1] * rank
        for p in plates:
            size, dim = self.sizes[p]
            shape[rank + dim] = size
        return tuple(shape)

    def some_plates(self, none: float = 0.4) -> tuple[str, ...]:
        """Plates for a site: none, one, or two that are nested."""
        if not self.sizes or self.chance(none):
            return ()
        names = list(self.sizes)
        if len({d for _, d in self.sizes.values()}) == len(names) and self.chance(0.5):
            return tuple(names)
        return (self.pick(names),)

    def some_event(self) -> Shape:
        return self.pick(self.shapes_of_events)

    # -- means -------------------------------------------------------------------------------

    def to_batch(self, v: Value, plates: tuple[str, ...]) -> str:
        """The text of a value whose axes in front broadcast against those of the plates."""
        text = v.text
        extra = [p for p in v.plates if p not in plates]
        if not extra:
            return text
        rank, want = len(self.batch(v.plates)), len(self.batch(plates))
        if "n" in self.sizes and v.plates != plates and len(plates) == 1:
            index, size = "D['group']", self.sizes["p"][0]
            if v.plates == ("p",):
                return f"{text}[{index}]" if self.chance(0.7) else f"jnp.take({text}, {index}, 0)"
            return (f"jnp.zeros({(size, *v.event)}).at[{index}].add({text})" if self.chance(0.5)
                    else f"jax.ops.segment_sum({text}, {index}, {size})")
        for p in extra:
            size, dim = self.sizes[p]
            axis, i = rank + dim, self.rng.integers(size)
            text = self.pick([
                f"{text}.sum({axis}, keepdims=True)", f"{text}.mean({axis}, keepdims=True)",
                f"jax.lax.slice_in_dim({text}, {i}, {i + 1}, axis={axis})",
                f"jnp.take({text}, jnp.array([{i}]), axis={axis})"])
        return text + "[0]" * (rank - want) if rank > want else text

    def term(self, v: Value, plates: tuple[str, ...], shape: Shape) -> str:
        """An affine function of one value, of the given event shape."""
        return event(self.a, self.to_batch(v, plates), v.event, shape)

    def mean(self, plates: tuple[str, ...], shape: Shape, parents: list[Value],
             data: list[str] | None = None) -> str:
        """A sum of terms in the parents, of constants and data, in some spelling."""
        terms = [self.term(v, plates, shape) for v in parents]
        if self.products and parents and self.chance(0.7):
            terms[0] = self.product(self.pick(self.products), parents[0], plates, shape)
        if self.scalars and self.chance(0.3):
            y = self.pick(self.scalars)
            fits = set(y.plates) <= set(plates) and not y.event
            if fits:
                extra = y.text + "[..., None]" * len(shape)
                # What is observed multiplies a latent, or is added.
                if terms and self.chance(0.5):
                    terms[0] = f"{atom(terms[0])} * {extra}"
                else:
                    terms.append(f"{self.a.numbers(())} * {extra}")
        if self.chance(0.5) or not terms:
            full = (*self.batch(plates), *shape) if self.chance(0.4) else shape
            terms.append(self.a.some(full))
        terms += data or []
        text = terms[0]
        for t in terms[1:]:
            options = [f"{text} + {t}", f"{t} + {atom(text)}", f"{text} - {atom(t)}",
                       f"jnp.add({text}, {t})"]
            if np.prod(shape) > 1:
                options.append(f"jnp.where({self.a.flags(shape)}, {text}, {t})")
            if not shape:
                options.append(f"jnp.stack(jnp.broadcast_arrays({text}, {t}), -1)"
                               f" @ {self.a.some((2,))}")
            text = options[self.rng.integers(len(options))]
        if self.chance(0.15):
            text = f"{self.pick(['0.5', '-1.5', '2.0'])} * {atom(text)}"
        return text

    def product(self, A: Value, v: Value, plates: tuple[str, ...], shape: Shape) -> str:
        """The text of a product of two latents where they fit, else of the second alone."""
        fits = A.text != v.text and set(A.plates) <= set(plates)
        if fits and not A.event:
            self.quadratic = False
            return f"{A.text}{'[..., None]' * len(shape)} * {atom(self.term(v, plates, shape))}"
        if fits and shape and shape == A.event[:1] and len(A.event) == 2:
            self.quadratic = False
            x = atom(self.term(v, plates, A.event[1:]))
            options = [f"({A.text} @ {x}[..., None])[..., 0]",
                       f"({A.text} * {x}[..., None, :]).sum(-1)",
                       f"jnp.einsum('...ij,...j->...i', {A.text}, {x})"]
            return self.pick(options if A.plates else [*options, f"{x} @ {A.text}.T"])
        return self.term(v, plates, shape)

    def parents(self, most: int = 2, least: int = 0) -> list[Value]:
        count = min(len(self.latents), int(self.rng.integers(least, most + 1)))
        order = self.rng.permutation(len(self.latents))[:count]
        return [self.latents[i] for i in order]

    # -- distributions -------------------------------------------------------------------------

    def matrix(self, n: int, plates: tuple[str, ...], kind: str) -> str:
        """The text of positive definite matrices, or of their factors."""
        batch = self.batch(plates) if plates and self.chance(0.25) else ()
        root = np.tril(self.a.numbers((*batch, n, n), 0.1, 0.5))
        root = root + np.eye(n) * np.round(self.rng.uniform(0.4, 1.2), 2)
        root = np.where(np.eye(n) > 0, np.maximum(root, 0.2), root)
        return self.a.text(root if kind == "scale_tril"
                           else np.round(root @ np.swapaxes(root, -1, -2), 4))

    def gaussian(self, mean: str, plates: tuple[str, ...], shape: Shape, narrow: bool = False
                 ) -> str:
        """The text of a Gaussian with known noise."""
        high = 0.9 if narrow else 1.6
        if self.precisions and self.chance(0.6):
            found = self.unknown_noise(mean, plates, shape)
            if found:
                self.quadratic = False
                return found
        if len(shape) == 2 and self.chance(0.5):
            n, m = shape
            rows, columns = (self.a.text(np.tril(self.a.numbers((k, k), 0.1, 0.4))
                                         + np.eye(k)) for k in (n, m))
            full = f"jnp.broadcast_to({mean}, {(*self.batch(plates), n, m)})"
            return f"dist.MatrixNormal({full}, {rows}, {columns})"
        if len(shape) == 1 and self.chance(0.5):
            kind = self.pick(["covariance_matrix", "precision_matrix", "scale_tril"])
            matrix = self.matrix(shape[0], plates, kind)
            full = (*self.batch(plates), *shape)
            loc = f"jnp.broadcast_to({mean}, {full})" if self.chance(0.3) else (
                f"{atom(mean)} + jnp.zeros({shape})")
            return f"dist.MultivariateNormal({loc}, {kind}={matrix})"
        size = self.pick([(), shape, (*self.batch(plates), *shape)])
        scale = self.a.positive(size, high=high)
        if self.chance(0.3):
            scale = f"jnp.sqrt({scale})"
        if not shape:
            return f"dist.Normal({mean}, {scale})"
        return f"dist.Normal({atom(mean)} + jnp.zeros({shape}), {scale}).to_event({len(shape)})"

    def unknown_noise(self, mean: str, plates: tuple[str, ...], shape: Shape) -> str:
        """A Gaussian whose precision is latent; nothing where none fits."""
        fit = [p for p in self.precisions if set(p.value.plates) <= set(plates) and (
            p.value.event in ((), shape) if p.family == "gamma"
            else p.value.event == shape * 2 and len(shape) == 1)]
        if not fit or len(shape) == 2:
            return ""
        p = self.pick(fit)
        loc = f"{atom(mean)} + jnp.zeros({shape})" if shape else mean
        c = self.a.positive(())
        if p.family == "wishart":
            matrix = self.pick([p.value.text, p.value.text, f"{c} * {p.value.text}"])
            return f"dist.MultivariateNormal({loc}, precision_matrix={matrix})"
        if len(shape) == 1 and not p.value.event and self.chance(0.4):
            t = f"{p.value.text}[..., None, None]"
            kind = self.pick(["covariance_matrix", "precision_matrix", "scale_tril"])
            matrix = self.matrix(shape[0], (), kind)
            by = {"precision_matrix": f"{t} * {matrix}", "covariance_matrix": f"{matrix} / {t}",
                  "scale_tril": f"{matrix} / jnp.sqrt({t})"}
            return f"dist.MultivariateNormal({loc}, {kind}={by[kind]})"
        t = p.value.text + "[..., None]" * (len(shape) - len(p.value.event))
        if len(fit) > 1 and self.chance(0.2):
            other = self.pick([q for q in fit if q is not p])
            if other.family == "gamma":
                t = f"({t} * {other.value.text}" + "[..., None]" * (
                    len(shape) - len(other.value.event)) + ")"
        scale = self.pick([f"1 / jnp.sqrt({t})", f"{t}**-0.5", f"jax.lax.rsqrt({c} * {t})",
                           f"jnp.sqrt(1 / {t})", f"jnp.sqrt({c} / {t})", f"jnp.power({t}, -0.5)",
                           f"{c} / jnp.sqrt({t})"])
        return f"dist.Normal({loc}, {scale})" + f".to_event({len(shape)})" * bool(shape)

    def precision(self) -> None:
        """A latent precision: a Gamma (of one or more elements) or a Wishart."""
        self.quadratic = False
        plates = self.some_plates(0.7)
        name = self.name("t")
        if self.chance(0.3):
            kind = self.pick(["rate_matrix", "scale_matrix", "scale_tril"])
            dof = np.round(self.rng.uniform(2.5, 5.0), 2)
            fn = f"dist.Wishart({dof}, {kind}={self.matrix(2, (), kind)})"
            self.precisions.append(Precision(Value(name, plates, (2, 2)), "wishart"))
        else:
            shape = self.pick([(), (), (2,)])
            a, b = self.a.positive(shape, 1.5, 4.0), self.a.positive(shape, 0.5, 2.0)
            rates = [p for p in self.precisions if p.family == "gamma"
                     and set(p.value.plates) <= set(plates) and not p.value.event]
            if rates and not shape and self.chance(0.3):
                b = f"{b} * {self.pick(rates).value.text}"
            fn = self.pick([f"dist.Gamma({a}, {b})", f"dist.Gamma({a}, rate={b})",
                            f"dist.Exponential({b})"]) + f".to_event({len(shape)})" * bool(shape)
            self.precisions.append(Precision(Value(name, plates, shape), "gamma"))
        self.site(self.pick(["latent", "sample"]), name, plates, fn)

    # -- sites ---------------------------------------------------------------------------------

    def site(self, role: str, name: str, plates: tuple[str, ...], fn: str, obs: str | None = None,
             within: list[str] | None = None) -> None:
        """A sample statement within its plates (and handlers)."""
        contexts = list(within or [])
        for p in plates:
            size, dim = self.sizes[p]
            explicit = dim != -1 or len(plates) > 1 or self.chance(0.3)
            contexts.append(f"plate('{p}', {size}{f', dim={dim}' if explicit else ''})")
        if self.chance(0.3) and len(plates) > 1:
            contexts = contexts[::-1]
        before = self.indent
        if contexts:
            self.write(f"with {', '.join(contexts)}:")
            self.indent += "    "
        tail = f", obs={obs}" if obs else ""
        if obs and role == "observe" and self.chance(0.5):
            tail = f", {obs}"
        self.write(f"{name} = {role}('{name}', {fn}{tail})")
        self.indent = before
        if self.in_scan:
            self.inside.add(name)

    def latent(self, prefix: str, plates: tuple[str, ...], shape: Shape, mean: str,
               seen: bool = True) -> Value:
        name = self.name(prefix)
        self.site(self.pick(["latent", "sample"]), name, plates, self.gaussian(mean, plates, shape))
        self.shapes[name], self.events[name] = (*self.batch(plates), *shape), shape
        value = Value(name, plates, shape)
        if seen:
            self.latents.append(value)
        return value

    def gaps(self, data: np.ndarray, rank: int, share: float = 0.5) -> np.ndarray:
        """Data with some of it missing: elements, events, all of a row, or a tail."""
        data = np.array(data)
        if not data.size or not self.chance(share):
            return data
        kind = self.pick(["elements", "events", "rows", "tail"])
        if kind == "elements":
            data[self.rng.random(data.shape) < 0.3] = np.nan
        elif kind == "events":
            lead = data.shape[:data.ndim - rank]
            data[self.rng.random(lead) < 0.3] = np.nan
        elif data.ndim and len(data) > 1:
            rows = self.rng.random(len(data)) < 0.4 if kind == "rows" else (
                np.arange(len(data)) >= self.rng.integers(1, len(data)))
            data[rows] = np.nan
        return data

    def observed(self, plates: tuple[str, ...], shape: Shape, mean: str, lead: Shape = (),
                 fn: str | None = None) -> str:
        """An observed site; returns the text of its data (of `lead` steps, where there are)."""
        name = self.name("y")
        data = np.round(self.rng.normal(size=(*lead, *self.batch(plates), *shape)) * 1.5, 2)
        if not self.lacks_data:
            data = self.gaps(data, len(shape))
        self.lacks_data = False
        within = []
        if self.chance(0.12):
            within.append(f"numpyro.handlers.scale(scale={self.a.positive(())})")
        elif self.chance(0.12) and plates:
            within.append(f"numpyro.handlers.scale(scale={self.a.positive(self.batch(plates))})")
        fn = fn or self.gaussian(mean, plates, shape, narrow=True)
        if self.chance(0.1) and not self.lacks_data:
            flags = self.a.flags(self.batch(plates))
            if self.chance(0.5):
                within.append(f"numpyro.handlers.mask(mask={flags})")
            else:
                fn = f"{fn}.mask({flags})"
        obs = self.a.text(data, passed=True)
        if lead:
            obs = self.series(obs)
        self.site(self.pick(["observe", "observe", "sample"]), name, plates, fn, obs, within)
        if not np.isnan(data).any():
            self.scalars.append(Value(name, plates, shape))
        return name

    def series(self, text: str) -> str:
        """The text of one step's share of a series that is passed to the scan."""
        self.xs.append(text)
        return f"now[{len(self.xs) - 1}]"

    def finish(self, seed: int, family: str, **fields: Any) -> Program:
        arrays = [f"{n} = {literal(x)}" for n, x in self.a.closed.items()]
        body = self.lines if self.lines else ["    pass"]
        text = "\n".join([*arrays, "", "def program(D):", *body, ""])
        return Program(seed, family, text, self.a.passed, self.inside, quadratic=self.quadratic,
                       **fields)


def plates_of(rng: np.random.Generator) -> dict[str, tuple[int, int]]:
    """The plates of a program: none, one, two nested, or groups and their units."""
    kind = rng.integers(5)
    sizes = [int(n) for n in rng.integers(2, 4, 2)]
    return [{}, {"p": (sizes[0], -1)}, {"p": (sizes[0], -2), "r": (sizes[1], -1)},
            {"p": (sizes[0], -1), "n": (sizes[1] + 2, -1)}, {"p": (sizes[0], -1)}][kind]


def writer(seed: int) -> Writer:
    """An empty program; the first seeds, which every test run compiles, stay small."""
    rng = np.random.default_rng(seed)
    w = Writer(rng, plates_of(rng))
    w.small = seed < SMALL
    if "n" in w.sizes:
        w.a.passed["group"] = rng.integers(0, w.sizes["p"][0], w.sizes["n"][0])
    return w
