"""Old evidence that counts less: a model whose priors are raised to a power."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from numpyro.primitives import Messenger

from jopa_ppl.language.query import _Query


class _Power(Messenger):
    def __init__(self, sites: frozenset[str], power: Any) -> None:
        super().__init__(None)
        self.sites, self.power = sites, power

    def process_message(self, msg: dict) -> None:
        if msg["type"] == "sample" and msg["name"] in self.sites:
            msg["scale"] = self.power if msg["scale"] is None else msg["scale"] * self.power


@dataclass(frozen=True, eq=False, repr=False)
class Forgetting(_Query, data=("power",)):
    """A model whose priors of some global sites are raised to a power."""

    power: Any
    sites: frozenset[str]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with _Power(self.sites, self.power):
            return self.fn(*args, **kwargs)
