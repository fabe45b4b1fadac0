"""Rows that are not right, and why: refused, or short of their judge."""

from __future__ import annotations

UNRUN = "not run yet"

WHY: dict[str, str] = {
    "funnel": "refused: a program without observed sites",
    "funnel: small": "refused: a program without observed sites",
    "HGF": "NumericalError: the log variance runs to -60, a scale of 5e-14",
    "horseshoe (normal)": "1000 sweeps not settled; spreads .7 off their own best",
    "mv iid inverse Wishart": "refused: InverseWishart",
    "test_cond": "refused: a site in a branch of cond",
    "Litter model: shape unknown": "spreads of the scale 1.5 times their own best",
    "stochastic_volatility": "1000 sweeps not settled",
    "gmm: labels summed out": "refused: MixtureSameFamily as a likelihood",
                        # -- unrun
    **dict.fromkeys((
        "robust LSSM (Gamma per step): Student-t", "tbip", "bnn", "CMGF MLP classification",
        "ode (Lotka-Volterra): rates", "ucbadmit", "time_series_forecasting (SGT)", "ssbvm_mixture",
        "ssbvm_mixture: one angle", "zero_inflated_poisson: the gate latent",
        "prodlda: a logistic normal, no network", "lda: topics told apart by their priors",
        "discrete_imputation: what is missing apart",
        "capture_recapture: constant: a table of probabilities", "stein_bnn",
        "lotka_volterra_multiple: by Euler's steps",
    ), UNRUN),
}
