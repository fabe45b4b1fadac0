"""Every error a user can meet: what was found, what was expected, and the way out."""

from __future__ import annotations

import operator
from copy import copy

import numpy as np


class JopaError(ValueError):
    """Base of all errors of jopa_ppl: names the site, what was found, what was expected, a way out.

    Nothing has changed when it is raised: posteriors and models are immutable.
    """

    def __init__(self, what: str, *, site: str | None = None, found: object = None,
                 expected: object = None, fix: str | None = None) -> None:
        self.what, self.site, self.found = what, site, found
        self.expected, self.fix = expected, fix
        super().__init__(self._text())

    def _text(self) -> str:
        lines = [self.what if self.site is None else f"site '{self.site}': {self.what}"]
        for label, text in (("found", self.found), ("expected", self.expected),
                            ("way out", self.fix)):
            if text is not None:
                lines.append(f"  {label + ':':<10}{text}")
        return "\n".join(lines)

    def inside(self, where: str) -> JopaError:
        """The same error, which tells where it happened."""
        new = copy(self)
        new.what = f"{self.what}, in {where}"
        new.args = (new._text(),)
        return new


class StructureError(JopaError):
    """The program is not conjugate where message passing needs it to be."""


class ShapeError(JopaError):
    """An array has the wrong shape or dtype, or a series the wrong length."""


class DataError(JopaError):
    """The data hold infinities, nothing at all, or something no message can be made of."""


class SiteError(JopaError, KeyError):
    """A site name is used twice, or is not one of the program's."""

    __str__ = ValueError.__str__


class PriorError(JopaError):
    """A prior is not a proper distribution (not positive definite, too few degrees of freedom)."""


class StaleError(JopaError):
    """What a posterior needs its program for, after the program has changed since the run."""


class NumericalError(JopaError):
    """The free energy stopped being finite, or rounding has eaten the result; `posterior` holds
    the last finite state."""

    def __init__(self, what: str, *, posterior: object = None, **kwargs: object) -> None:
        self.posterior = posterior
        super().__init__(what, **kwargs)  # type: ignore[arg-type]


class FileError(JopaError):
    """A saved posterior or checkpoint cannot be read, or belongs to something else."""


class ConvergenceWarning(UserWarning):
    """The sweeps ended before the free energy had settled."""


class NumericalWarning(UserWarning):
    """Rounding has taken digits of the result; it says how many, and which site took them."""


class DataWarning(UserWarning):
    """Some of the data have been left out, or say nothing of what they were to update."""


def names(found: object, most: int = 12) -> str:
    """A readable list of names: 'A', 'B' and 'W'."""
    items = [f"'{n}'" for n in found]  # type: ignore[attr-defined]
    if not items:
        return "none"
    if len(items) > most:
        return ", ".join(items[:most]) + f" and {len(items) - most} more"
    return ", ".join(items[:-1]) + (" and " if len(items) > 1 else "") + items[-1]


def _is_real(value: object) -> bool:
    """Whether it is a number, and no truth value."""
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


def within(see: str, low: float, high: float, **options: object) -> None:
    """Refuse options that are not real numbers, low <= option < high.

    Raises:
        JopaError: one is not.
    """
    for name, value in options.items():
        if not (_is_real(value) and low <= value < high):
            raise JopaError("an option is out of range", found=f"{name}={value!r}",
                            expected=f"a number, {low} <= {name} < {high}",
                            fix=f"see help({see})")


def share(see: str, **options: object) -> None:
    """Refuse options that are no share of one, 0 < option <= 1.

    Raises:
        JopaError: one is not.
    """
    for name, value in options.items():
        if not (_is_real(value) and 0 < value <= 1):
            raise JopaError("an option is out of range", found=f"{name}={value!r}",
                            expected=f"a number, 0 < {name} <= 1", fix=f"see help({see})")


def check_model(model: object) -> None:
    """Refuse what is no program.

    Raises:
        JopaError: it is not callable.
    """
    if not callable(model):
        raise JopaError("the model is not callable", found=type(model).__name__,
                        expected="a NumPyro program (a function)", fix="pass the function")


def is_step(step: object, length: int) -> bool:
    """Whether it is one of `length` steps, negative ones counted from the end."""
    return is_whole(step) and -length <= operator.index(step) < length       # type: ignore


def is_whole(value: object) -> bool:
    """Whether it is a whole number, of Python, NumPy or JAX, and no bool."""
    try:
        operator.index(value)          # type: ignore
    except TypeError:
        return False
    return np.asarray(value).dtype != bool


def whole(see: str, least: int = 1, **options: object) -> None:
    """Refuse options that are not whole numbers from `least` on; `see` is where they are told of.

    Raises:
        JopaError: one is not.
    """
    for name, value in options.items():
        if (not isinstance(value, int | np.integer) or isinstance(value, bool)
                or not least <= value < 2**31):
            raise JopaError("an option is out of range", found=f"{name}={value!r}",
                            expected=f"a whole number, at least {least}, of 32 bits",
                            fix=f"see help({see})")
