"""Families of distributions, one row each: what a factor of that family is to the proof.

A new one is a row here, a reader of its NumPyro distribution in `parameters`, a row of
`jopa_ppl.engine.densities` for its expected log density and, where it may be latent and is no
Gaussian, a belief (`jopa_ppl.beliefs`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Family:
    """What the proof may ask of a family.

    Attributes:
        name: as tables and files call it.
        belief: the family of the belief about a latent of it; "" where it can have none.
        location: the parameter that may be affine in each Gaussian latent, and that an action or a
            state enters by; "" where there is none.
        constant: the parameter that has to be data; "" where there is none.
        noise: its other parameter, in every way an author may give it, by the exponent with which
            that one enters the precision (of a Gamma or Wishart: the rate). It may be a product of
            data and of latents of the families `made_of`.
        noun: what errors call it.
        elementwise: whether its elements are independent (and missing one by one).
        by_matrix: whether every batch axis counts as a plate, its noise being a matrix.
        enters_as: of a latent in others' noise, the parameters it may be; () for any.
        freely: whether a latent of it may be read in unconstrained space, where not conjugate.
        discrete: whether it takes one of a few values, a factor with it standing once for each.
        of_elements: whether the parameter has to be an element of a latent, unchanged.
        by_density: whether it is told by its density alone, where it is not conjugate.
        certain: whether it follows from its mean without noise (what its noise is told as is no
            noise, and counts for nothing).
    """

    name: str
    belief: str = ""
    location: str = ""
    constant: str = ""
    noise: Mapping[str, int] = field(default_factory=dict)
    made_of: tuple[str, ...] = ()
    noun: str = "the precision"
    elementwise: bool = True
    by_matrix: bool = False
    enters_as: tuple[str, ...] = ()
    freely: bool = False
    of_elements: bool = False
    by_density: bool = False
    discrete: bool = False
    certain: bool = False

    @property
    def first(self) -> str:
        """The parameter beside the noise."""
        return self.location or self.constant

    @property
    def counted(self) -> bool:
        """Whether it is of values by their probabilities: data, Dirichlet latents, or any."""
        return "probs" in self.noise

    @property
    def scored(self) -> bool:
        """Whether a latent of it is told by its density alone, in unconstrained space."""
        return bool(self.belief) and not self.noise and not self.constant

    def noise_key(self, parameters: Iterable[str]) -> str:
        """Which way its author gave the noise."""
        return next(k for k in self.noise if k in parameters)


class OfFamily:
    """What is of a family, `rules` its row."""

    family: str

    @property
    def rules(self) -> Family:
        return FAMILIES[self.family]


PRECISIONS = ("gamma", "wishart")
FAMILIES = {row.name: row for row in (
    Family("normal", "gaussian", "loc", noise={"scale": -2}, made_of=PRECISIONS),
    Family("mvn", "gaussian", "loc", made_of=PRECISIONS, elementwise=False, by_matrix=True,
           noise={"precision_matrix": 1, "covariance_matrix": -1, "scale_tril": -2}),
    Family("gamma", "gamma", constant="concentration", noise={"rate": 1}, made_of=("gamma",),
           noun="the rate", freely=True),
    Family("wishart", "wishart", constant="concentration", noun="the matrix", elementwise=False,
           noise={"rate_matrix": 1, "scale_matrix": -1, "scale_tril": -2}, by_matrix=True,
           enters_as=("precision_matrix",)),
    Family("recursion", "gaussian", "loc", noise={"scale": -2}, certain=True),
    Family("transformed", "gaussian", "value"),
    Family("categorical", "categorical", noise={"probs": 1}, made_of=("dirichlet",),
           noun="the probabilities", by_matrix=True, discrete=True),
    Family("bernoulli", "categorical", noise={"probs": 1}, made_of=("beta",),
           noun="the probability", by_matrix=True, discrete=True, of_elements=True,
           by_density=True),
    Family("binomial", noise={"probs": 1}, made_of=("beta",), noun="the probability",
           of_elements=True, by_density=True),
    Family("poisson", noise={"rate": 1}, made_of=("gamma",), noun="the rate", by_density=True),
    Family("multinomial", noise={"probs": 1}, made_of=("dirichlet",), noun="the probabilities",
           by_matrix=True, elementwise=False),
    Family("dirichlet", "dirichlet", constant="concentration", by_matrix=True, elementwise=False,
           enters_as=("probs",), freely=True),
    Family("beta", "beta", constant="concentration", enters_as=("probs",), freely=True),
    Family("unknown"), Family("amortized"))}
