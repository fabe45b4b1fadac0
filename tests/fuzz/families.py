"""The families of random programs: trees, scans, and both with unknown precisions and products."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from tests.fuzz.grammar import Program, Writer, literal, writer
from tests.fuzz.spellings import Shape, Value


def tree(seed: int) -> Program:
    """Gaussians in plates, each with a mean that is affine in some before it."""
    w = writer(seed)
    for _ in range(w.rng.integers(1, 3 if w.small else 4)):
        plates, shape = w.some_plates(), w.some_event()
        w.latent("z", plates, shape, w.mean(plates, shape, w.parents()))
    for _ in range(w.rng.integers(1, 2 if w.small else 3)):
        plates, shape = w.some_plates(0.3), w.some_event()
        w.observed(plates, shape, w.mean(plates, shape, w.parents(least=1)))
        if w.chance(0.3):
            plates, shape = w.some_plates(), w.some_event()
            w.latent("z", plates, shape, w.mean(plates, shape, w.parents(least=1)))
    return queries(w, w.finish(seed, "tree"))


# -- scans -----------------------------------------------------------------------------------------


class Chain:
    """A latent of a step and its past: `lags`, the latest first, in the carry."""

    def __init__(self, name: str, shape: Shape, order: int) -> None:
        self.name, self.shape, self.order = name, shape, order
        self.lags = [f"{name}_{j + 1}" for j in range(order)]


def scan(seed: int) -> Program:
    """One to three chains of order one to three, with actions, inputs and data in their steps."""
    w = writer(seed)
    w.sizes = {n: s for n, s in w.sizes.items() if n == "p" and s[1] == -1}
    w.a.passed.pop("group", None)
    inside_scan(w, int(w.rng.integers(1, 5)), 2 if w.small else 3)
    return queries(w, w.finish(seed, "scan"))


def continued(seed: int) -> Program:
    """Two or three scans, each of which begins with what the one before it ended with."""
    w = writer(seed)
    w.sizes = {n: s for n, s in w.sizes.items() if n == "p" and s[1] == -1}
    w.a.passed.pop("group", None)
    plates = ("p",) if w.sizes and w.chance(0.7) else ()
    ended: list[Value] = []
    for i in range(w.pick([2, 2, 2, 3])):
        w.xs, end = [], f"end{i}"
        chains = inside_scan(w, int(w.rng.integers(1, 4)), 2, plates, ended, end)
        ended = [Value(f"{end}[{j}][{k}]", plates, c.shape) for j, c in enumerate(chains)
                 for k in range(c.order)]
    return w.finish(seed, "continued")


def inside_scan(w: Writer, T: int, most: int = 3, plates: tuple[str, ...] | None = None,
                ended: Sequence[Value] = (), end: str = "end") -> list[Chain]:
    """A scan; with `plates`, one of several, that begins with what another one `ended` with."""
    alone = plates is None
    if plates is None:
        plates = ("p",) if w.sizes and w.chance(0.7) else ()
    for _ in range(w.rng.integers(0, 2 if w.small else 3)):
        own = plates if w.chance(0.5) else ()
        shape = w.some_event()
        w.latent("g", own, shape, w.mean(own, shape, w.parents()))
    orders = [1, 1, 1, 1, 2] if w.small else [1, 1, 1, 1, 2, 3]
    chains = [Chain(w.name("x"), w.pick([(), (), (2,)]), w.pick(orders))
              for _ in range(w.pick([1, 1, 1, 2, 2, 3][:2 * most]))]
    outer, firsts, init = list(w.latents), [], []
    for c in chains:
        leaves = [f"{w.term(w.pick(ended), plates, c.shape)} + jnp.zeros("
                  f"{(*w.batch(plates), *c.shape)})" if ended and (not firsts or w.chance(0.8))
                  else first_state(w, plates, c, firsts) for _ in c.lags]
        init.append(f"({', '.join(leaves)},)")
    w.latents = outer
    carry = [f"({', '.join(c.lags)},)" for c in chains]
    extras: list[tuple[str, str, str]] = []              # data in the carry: name, first, next
    if w.chance(0.3):
        extras.append(("k", w.pick(["0.0", "1.0"]), "k + 1.0"))
    if w.chance(0.2):
        extras.append(("s", "jnp.ones(())", f"0.7 * s + {w.a.some(())}"))
    w.write("def step(carry, now):")
    w.indent += "    "
    head = len(w.lines)
    visible = steps(w, T, plates, chains, extras)
    after = [f"({', '.join([c.name, *c.lags[:-1]])},)" for c in chains]
    outs = w.pick(["None", chains[0].name, chains[0].name, f"({chains[0].name}, {visible.text})"])
    whole = ", ".join([*after, *(e[2] for e in extras)])
    w.write(f"return ({whole},), {outs}")
    w.lines.insert(head, f"{w.indent}({', '.join([*carry, *(e[0] for e in extras)])},) = carry")
    w.indent = "    "
    first = ", ".join([*init, *(e[1] for e in extras)])
    series = f"({', '.join(w.xs)},)" if w.xs else "None"
    length = f", length={T}" if not w.xs or w.chance(0.5) else ""
    w.write(f"{end}, out = scan(step, ({first},), {series}{length})")
    w.in_scan, w.latents, w.scalars = False, outer, []
    if alone:
        after_scan(w, T, plates, chains[0], outs)
    return chains


def first_state(w: Writer, plates: tuple[str, ...], c: Chain, firsts: list[Value]) -> str:
    """The text of a leaf of the first carry."""
    full = (*w.batch(plates), *c.shape)
    alike = [v for v in firsts if v.event == c.shape]
    kind = w.pick(["own", "own", "own", "own", "constant", "shared", "affine"])
    if kind == "constant":
        return w.pick([f"jnp.zeros({full})", f"jnp.asarray({w.a.some(full)})"])
    if kind == "shared" and alike:
        return w.pick(alike).text
    if kind == "affine" and firsts:
        return f"{w.term(w.pick(firsts), plates, c.shape)} + jnp.zeros({full})"
    mean = w.mean(plates, c.shape, w.parents(1) if w.chance(0.4) else [])
    firsts.append(w.latent("h", plates, c.shape, mean))
    return firsts[-1].text


def steps(w: Writer, T: int, plates: tuple[str, ...], chains: list[Chain],
          extras: list[tuple[str, str, str]]) -> Value:
    """The sites of one step; returns the last value that is visible."""
    w.in_scan = True
    outer = [v for v in w.latents if w.chance(0.25)]
    now = {c.name: [Value(n, plates, c.shape) for n in c.lags] for c in chains}
    apart = w.chance(0.4)

    def data(shape: Shape) -> list[str]:
        terms = [f"{w.a.numbers(())} * {e[0]}" for e in extras if w.chance(0.5)]
        if w.chance(0.25):
            terms.append(w.series(w.a.some((T, *shape))))
        return terms

    def sense(share: float) -> None:
        if w.chance(share):
            w.latents = [v for values in now.values() for v in values[:2]]
            shape = w.some_event()
            mean = w.mean(plates, shape, w.parents(2, 1), data(shape))
            w.observed(plates, shape, mean, (T,))

    sense(0.5)
    actions = []
    if w.chance(0.4):
        shape = w.pick([(), (1,), (2,)])
        w.latents = []
        actions.append(w.latent("u", plates, shape, w.mean(plates, shape, [], data(shape))))
        w.shapes[actions[0].text] = (T, *w.shapes[actions[0].text])
    for c in chains:
        own = [v for v in now[c.name] if w.chance(0.7)] or now[c.name][-1:]
        others = [] if apart else [values[0] for n, values in now.items()
                                   if n != c.name and w.chance(0.5)]
        more = [v for v in (*actions, *outer) if w.chance(0.6)]
        mean = w.mean(plates, c.shape, [*own, *others, *more], data(c.shape))
        w.site(w.pick(["latent", "sample"]), c.name, plates, w.gaussian(mean, plates, c.shape))
        w.shapes[c.name] = (T, *w.batch(plates), *c.shape)
        now[c.name] = [Value(c.name, plates, c.shape), *now[c.name]]
        if w.chance(0.15):
            sense(1.0)
    sense(1.0 if w.lacks_data else 0.4)
    return now[chains[-1].name][0]


def after_scan(w: Writer, T: int, plates: tuple[str, ...], c: Chain, outs: str) -> None:
    """Sites that see the stacked outputs of the scan step by step, or its last carry."""
    if outs == c.name and w.chance(0.4):
        shape = w.pick([(), (2,)]) if not plates else ()
        lead = (T, *w.batch(plates))
        mean = w.term(Value("out", (), c.shape), (), shape)
        data = w.gaps(np.round(w.rng.normal(size=(*lead, *shape)), 2), len(shape))
        scale = w.a.positive(w.pick([(), shape, (*lead, *shape)]), high=0.9)
        fn = f"dist.Normal({mean}, {scale})" + f".to_event({len(shape)})" * bool(shape)
        w.sizes = {n: (s, -1) for n, (s, _) in w.sizes.items()} | {"time": (T, -1 - len(plates))}
        within = ("time", *plates) if plates or w.chance(0.5) else ()
        if not within and not shape and w.chance(0.5):
            fn += ".to_event(1)"
        w.site(w.pick(["observe", "sample"]), w.name("y"), within, fn, w.a.text(data, passed=True))
    if w.chance(0.2):
        shape = w.some_event()
        w.observed(plates, shape, w.mean(plates, shape, [Value("end[0][0]", plates, c.shape)]))


# -- unknown precisions and products -------------------------------------------------------------


def learned(seed: int) -> Program:
    """A small tree or scan whose noise is unknown, and some of whose latents multiply others."""
    w = writer(seed)
    w.sizes = {n: (2, d) for n, (_, d) in w.sizes.items() if n == "p" and d == -1}
    w.a.passed.pop("group", None)
    w.shapes_of_events = [(), (), (2,)]
    for _ in range(w.rng.integers(0, 3)):
        w.precision()
    if w.chance(0.6):
        plates, shape = w.some_plates(0.8), w.pick([(), (), (2, 2)])
        w.products.append(w.latent("A", plates, shape, w.mean(plates, shape, []), seen=False))
    if w.chance(0.5):
        inside_scan(w, int(w.rng.integers(1, 5)), most=2)
    else:
        for _ in range(w.rng.integers(1, 3)):
            plates, shape = w.some_plates(), w.some_event()
            w.latent("z", plates, shape, w.mean(plates, shape, w.parents()))
        for _ in range(w.rng.integers(1, 3)):
            plates, shape = w.some_plates(0.3), w.some_event()
            w.observed(plates, shape, w.mean(plates, shape, w.parents(least=1)))
    return queries(w, w.finish(seed, "learned"))


# -- queries ---------------------------------------------------------------------------------------


def queries(w: Writer, program: Program) -> Program:
    """Conditions on some of the latents, and beliefs about others."""
    names = list(w.shapes)
    if names and w.chance(0.35):
        for name in w.rng.permutation(names)[:w.rng.integers(1, 3)]:
            shape = w.shapes[name]
            value = np.array(np.round(w.rng.normal(size=shape), 2))
            kind = w.pick(["whole", "elements", "elements", "short", "rows"])
            if kind == "elements":
                value[w.rng.random(shape) < 0.5] = np.nan
            elif kind == "rows" and shape:
                value[w.rng.random(len(value)) < 0.5] = np.nan
            elif kind == "short" and name in program.inside and len(value) > 1:
                value = value[:w.rng.integers(1, len(value))]
            program.known[str(name)] = value
    free = [n for n in names if n not in program.known and n not in program.inside]
    if free and w.chance(0.2):
        name = w.pick(free)
        shape = w.shapes[name]
        mean, sd = w.a.numbers(shape), w.a.numbers(shape, signs=False)
        rank = len(w.events.get(name, ()))
        tail = f".to_event({rank})" if rank else ""
        program.given[name] = f"dist.Normal({literal(mean)}, {literal(sd)}){tail}"
        program.update = w.chance(0.6)
    return program


FAMILIES: dict[str, Callable[[int], Program]] = {"tree": tree, "scan": scan, "learned": learned,
                                                "continued": continued}


def written(family: str, seed: int) -> Program:
    """The program of a seed."""
    return FAMILIES[family](seed)


def single(seed: int) -> bool:
    """Whether a seed runs in float32, as callers do by default."""
    return seed % 8 == 7
