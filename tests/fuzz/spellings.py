"""Random ways to write an affine function of an array, as source text.

A value has the axes of its plates in front and its event last. Every spelling takes the text of a
value, acts on its event alone and lets the axes in front broadcast.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

Shape = tuple[int, ...]


class Value(NamedTuple):
    """A value of the program: its text, the plates it lies in, and its event's shape."""

    text: str
    plates: tuple[str, ...]
    event: Shape


class Arrays:
    """Random data of a program: closed over ("k1") or passed to it ("D['d1']")."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.closed: dict[str, np.ndarray] = {}
        self.passed: dict[str, np.ndarray] = {}

    def text(self, array: np.ndarray, passed: bool | None = None) -> str:
        """The text of an array that becomes data of the program."""
        if self.rng.random() < 0.6 if passed is None else passed:
            name = f"d{len(self.passed)}"
            self.passed[name] = array
            return f"D['{name}']"
        name = f"k{len(self.closed)}"
        self.closed[name] = array
        return name

    def numbers(self, shape: Shape, low: float = 0.3, high: float = 1.2, signs: bool = True
                ) -> np.ndarray:
        """Numbers of a few digits, away from zero."""
        found = np.round(self.rng.uniform(low, high, shape), 2)
        return found * self.rng.choice([-1.0, 1.0], shape) if signs else found

    def some(self, shape: Shape, **limits: float) -> str:
        return self.text(self.numbers(shape, **limits))

    def positive(self, shape: Shape, low: float = 0.4, high: float = 1.6) -> str:
        return self.text(self.numbers(shape, low, high, signs=False))

    def index(self, count: int, shape: Shape) -> str:
        return self.text(self.rng.integers(0, count, shape))

    def flags(self, shape: Shape) -> str:
        """Which of two to take, both somewhere where there is room: what data reach is read from a
        program's text, so that a latent that no element takes would be no fair question."""
        flags = np.asarray(self.rng.random(shape) < 0.6)
        flags.flat[0] |= not flags.any()
        if flags.size > 1:
            flags.flat[-1] &= not flags.all()
        return self.text(flags)


def _same(a: Arrays, x: str, n: int) -> list[Callable[[], str]]:
    """From a vector of n to a vector of n."""
    i, j = a.rng.integers(n, size=2)
    return [
        lambda: x,
        lambda: f"{a.some((n,))} * {x}",
        lambda: f"{x} / {a.positive((n,))}",
        lambda: f"({x} + {a.some((n,))})",
        lambda: f"{x}[..., ::-1]",
        lambda: f"jnp.cumsum({x}, -1)",
        lambda: f"jnp.roll({x}, 1, -1)",
        lambda: f"{x}[..., {a.index(n, (n,))}]",
        lambda: f"jnp.take({x}, {a.index(n, (n,))}, axis=-1)",
        lambda: f"{x}.at[..., {i}].add({x}[..., {j}])",
        lambda: f"{x}.at[..., {i}].set(0.4)",
        lambda: f"jnp.where({a.flags((n,))}, {x}, 0.3 * {x} - 0.2)",
        lambda: f"jnp.where({a.flags((n,))}, {x}, 0.0)",
        lambda: f"jnp.diff({x}, axis=-1, prepend=0.0)",
        lambda: f"jnp.pad({x}, [(0, 0)] * ({x}.ndim - 1) + [(1, 0)])[..., :{n}]",
        lambda: f"jnp.linalg.solve({a.text(np.eye(n) * 2 + a.numbers((n, n), 0.1, 0.4))}, "
                f"{x}[..., None])[..., 0]",
        lambda: f"-{x}",
        lambda: f"({x} - {x}.mean(-1, keepdims=True))",
        lambda: f"jnp.flip({x}, -1)",
        lambda: f"jnp.tril(jnp.ones(({n}, {n}))) @ {x}[..., None] @ jnp.ones(1)",
        lambda: f"jax.jit(lambda z: 0.5 * z)({x})",
    ]


def _matrix(a: Arrays, x: str, n: int, m: int) -> list[Callable[[], str]]:
    """From a vector of n to a vector of m."""
    M = lambda: a.some((m, n))
    found = [
        lambda: f"{x} @ {M()}.T",
        lambda: f"jnp.einsum('ij,...j->...i', {M()}, {x})",
        lambda: f"({M()} @ {x}[..., None])[..., 0]",
        lambda: f"jnp.sum({M()} * {x}[..., None, :], -1)",
        lambda: f"jnp.tensordot({x}, {M()}, [[-1], [1]])",
        lambda: f"jnp.matmul({x}, {a.some((n, m))})",
        lambda: f"jnp.stack([{', '.join(_scalar_text(a, x, n) for _ in range(m))}], -1)",
        lambda: f"jnp.concatenate([{x}, {_pick(a, f'({x} + 0.1)', n)}[..., None]], -1)"
                f" @ {a.some((n + 1, m))}",
        lambda: f"jnp.swapaxes({x}[..., None] * {a.some((n, m))}, -1, -2).sum(-1)",
    ]
    return found


def _pick(a: Arrays, x: str, n: int) -> str:
    return f"{x}[..., {a.rng.integers(n)}]"


def _scalar_text(a: Arrays, x: str, n: int) -> str:
    return choose(a, [lambda: _pick(a, x, n), lambda: f"{x}.sum(-1)",
                      lambda: f"{x} @ {a.some((n,))}"])


def _to_scalar(a: Arrays, x: str, n: int) -> list[Callable[[], str]]:
    v = lambda: a.some((n,))
    return [
        lambda: _pick(a, x, n), lambda: _pick(a, x, n),
        lambda: f"{x}.sum(-1)",
        lambda: f"{x}.mean(axis=-1)",
        lambda: f"{x} @ {v()}",
        lambda: f"jnp.dot({x}, {v()})",
        lambda: f"jnp.inner({x}, {v()})",
        lambda: f"jnp.einsum('...i,i->...', {x}, {v()})",
        lambda: f"jnp.tensordot({x}, {v()}, 1)",
        lambda: f"({x} * {v()}).sum(-1)",
        lambda: f"({_pick(a, x, n)} - 0.5 * {_pick(a, x, n)})",
        lambda: f"jnp.take({x}, {a.index(n, ())}, axis=-1)",
    ]


def _from_scalar(a: Arrays, x: str, n: int) -> list[Callable[[], str]]:
    v = lambda: a.some((n,))
    return [
        lambda: f"{x}[..., None] * {v()}",
        lambda: f"jnp.stack([{', '.join(f'{1 - 1.5 * i} * {x}' for i in range(n))}], -1)",
        lambda: f"jnp.einsum('...,j->...j', {x}, {v()})",
        lambda: f"jnp.multiply.outer({x}, {v()})",
        lambda: f"jnp.broadcast_to({x}[..., None], (*jnp.shape({x}), {n}))",
        lambda: f"jnp.expand_dims({x}, -1) / {a.positive((n,))}",
        lambda: f"jnp.zeros((*jnp.shape({x}), {n})).at[..., {a.rng.integers(n)}].add({x})",
    ]


def _scalars(a: Arrays, x: str) -> list[Callable[[], str]]:
    return [
        lambda: x, lambda: x,
        lambda: f"{a.numbers(())} * {x}",
        lambda: f"{a.some(())} * {x}",
        lambda: f"{x} / {a.positive(())}",
        lambda: f"({a.numbers(())} - {x})",
        lambda: f"jnp.where({a.flags(())}, {x}, 0.2 * {x})",
        lambda: f"jnp.stack([{x}, {a.numbers(())} * {x}]).sum(0)",
        lambda: f"jnp.sum({x}[..., None] * {a.some((2,))}, -1)",
        lambda: f"jax.jit(lambda z: 2 * z - 0.3)({x})",
    ]


def choose(a: Arrays, options: list[Callable[[], str]]) -> str:
    return options[a.rng.integers(len(options))]()


def atom(x: str) -> str:
    """The text in brackets, where it is more than a name."""
    return x if x.isidentifier() else f"({x})"


def event(a: Arrays, x: str, start: Shape, end: Shape) -> str:
    """The text of an affine map of the event of x, from one shape to another."""
    x = atom(x)
    if len(start) == 2:
        n, m = start
        if start == end:
            return choose(a, [lambda: x, lambda: f"{a.some((n, m))} * {x}",
                              lambda: f"{a.some((n, n))} @ {x}", lambda: f"{x} @ {a.some((m, m))}",
                              lambda: f"{x}[..., ::-1, :]", lambda: f"{x}[..., ::-1]"])
        flat, which = [
            (lambda: f"{x} @ {a.some((m,))}", n),
            (lambda: f"{x}.reshape((*{x}.shape[:-2], {n * m}))", n * m),
            (lambda: f"{x}[..., {a.rng.integers(n)}, :]", m),
            (lambda: f"{x}[..., {a.rng.integers(m)}]", n),
            (lambda: f"{x}.sum(-2)", m),
            (lambda: f"jnp.swapaxes({x}, -1, -2).sum(-2)", n),
            (lambda: f"jnp.diagonal({x}, axis1=-2, axis2=-1)", min(n, m)),
            (lambda: f"jnp.einsum('...ij,i->...j', {x}, {a.some((n,))})", m),
            (lambda: f"jnp.einsum('...ij->...i', {x})", n),
        ][a.rng.integers(9)]
        return event(a, flat(), (which,), end)
    if len(end) == 2:
        n, m = end
        if a.rng.random() < 0.5:
            return f"{atom(event(a, x, start, (n,)))}[..., None] * {a.some((n, m))}"
        part = atom(event(a, x, start, (n * m,)))
        return f"{part}.reshape((*jnp.shape({part})[:-1], {n}, {m}))"
    if not start:
        return choose(a, _from_scalar(a, x, end[0]) if end else _scalars(a, x))
    if not end:
        return choose(a, _to_scalar(a, x, start[0]))
    if start == end and a.rng.random() < 0.7:
        return choose(a, _same(a, x, start[0]))
    return choose(a, _matrix(a, x, start[0], end[0]))
