"""Rows that are not right, and why: refused, or short of their judge."""

from __future__ import annotations

UNRUN = "not run yet"

WHY: dict[str, str] = {
    "funnel": "refused: a program without observed sites",
    "funnel: small": "refused: a program without observed sites",
    "horseshoe (normal)": "1000 sweeps not settled; spreads .7 off their own best",
    "test_cond": "refused: a site in a branch of cond",
    "prodlda: a logistic normal, no network":
        "F .70 nats off: twelve latents of a Multinomial by the points of a cubature",
    "CMGF MLP classification": "its F is that of a line at weights of zero, where the line is flat "
                               "and nothing is learnt",
    "time_series_forecasting (SGT)": "F .81 nats off: a power of a smoothed level, as a line in "
                                     "four latents",
    "ucbadmit": "refused: a latent's covariance made of LKJCholesky",
    "tbip": "F 350 nats off: along elements a product of latents is a line, which at 0 sees no "
            "spread; .6 nats by cubature",
    "ssbvm_mixture": UNRUN,
}
