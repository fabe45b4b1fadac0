"""The table of record: models that other systems ship, and which rows stand for each.

A model is right when each of its rows is; a row that is not, or not written, may be stood for by
one written otherwise, whose name goes on after a colon.
"""

from __future__ import annotations

from typing import NamedTuple

from .row import BAYESPY, DOCS, DYNAMAX, EX, JOPA, NB, RXINFER, STATS, TEST


class Peer(NamedTuple):
    """A model, or several under one name, of a peer's."""

    name: str
    source: str
    needs: tuple[str, ...]      # names of rows


# {source: names}; a name of several models is followed by the rows that stand for it.
_TABLE: dict[str, tuple[str | tuple[str, tuple[str, ...]], ...]] = {
    EX: (
        "minipyro", "ar2 (scan, condition)", "ar2 (python loop)", "var2 (LKJ)", "holt_winters",
        "holt_winters, smoothing fixed", "stochastic_volatility",
        "gp (LogNormal hyperparameters)", "gp, kernel fixed, noise learnt",
        "gp, amplitude learnt (K/k)", "hsgp (birthdays)", "horseshoe (normal)",
        "horseshoe (bernoulli)", "sparse_regression", "baseball: pooled (Beta-Binomial)",
        "baseball: partially pooled logit", "ucbadmit", "bnn", "stein_bnn",
        ("covtype / hmcecs / proportion_test (logistic)", ("logistic_regression",)),
        "dais_demo (GP classification)", "funnel",
        ("gaussian_shells / neutra", ("gaussian_shells / neutra",)),
        "hmm (semi-supervised)",
        ("hmm_enum (5 models)",
         ("hmm_enum: batches", "hmm_enum: emissions of the last tone", "hmm_enum: factorial",
          "hmm_enum: coupled", "hmm_enum: second order")),
        ("capture_recapture (5 models)",
         ("capture_recapture: constant", "capture_recapture: by time",
          "capture_recapture: random effects", "capture_recapture: by animal",
          "capture_recapture: by group")),
        ("annotation (6 models)",
         ("annotation: multinomial", "annotation: Dawid-Skene", "annotation: MACE",
          "annotation: hierarchical Dawid-Skene", "annotation: item difficulty",
          "annotation: logistic random effects")),
        "toy_mixture", "ssbvm_mixture", "prodlda", "zero_inflated_poisson", "mortality",
        "ode (Lotka-Volterra)", "thompson_sampling",
        ("cvae, vae", ("cvae", "vae")),
        "stein_dmm",
    ),
    NB: (
        "hsgp, hyperparameters fixed",
        ("bayesian_regression (4 models)",
         ("bayesian_regression: intercept", "bayesian_regression: age",
          "bayesian_regression: marriage", "bayesian_regression: age and marriage")),
        "bayesian_regression, measurement error", "hierarchical linear regression",
        ("... with smoking levels", ("hierarchical linear regression, smoking levels",)),
        "bad_posterior_geometry: two MVN", "bayesian_cuped (joint)",
        "bayesian_imputation (obs with latents)", "discrete_imputation",
        ("consensus_mc (a exp(-rx)+o)", ("consensus_mc",)),
        ("effect_handlers: regression, scope, scale, do",
         ("effect_handlers: regression", "effect_handlers: scope", "effect_handlers: scale",
          "effect_handlers: do")),
        "hierarchical_forecasting", "time_series_forecasting (SGT)", "gmm",
        ("logistic_regression, hierarchical_stacking",
         ("logistic_regression", "hierarchical_stacking")),
        ("lotka_volterra_multiple, ordinal, tbip, truncated, censoring, VIP, gpjax, nnx, "
         "circulant_gp",
         ("lotka_volterra_multiple", "ordinal", "tbip", "truncated", "censoring", "VIP", "gpjax",
          "nnx", "circulant_gp")),
    ),
    DOCS: (
        "eight schools", "eight schools, LocScaleReparam, tau fixed",
    ),
    TEST: (
        "test_scan (running mean carry)", "test_scan_svi (plated walk)", "test_scan_plate_mask",
        "test_scan_mvn", "test_scan_promote (obs=1.0)", "test_cond",
        "test_scan_reparam (LogNormal states)",
    ),
    DYNAMAX: (
        "LGSSM smoother, all parameters, inputs", "LGSSM time-varying", "LGSSM filter",
        "kf_tracking", "LGSSM with singular Q", "LGSSM learning (EM / Gibbs)",
        "MNIW prior (A | W)", "LGSSM, batch of sequences", "kf_linreg", "SLDS, regimes known",
        "SLDS",
        ("HMMs (Gaussian, Bernoulli, Poisson, AR, linreg, GMM, ... 11)",
         ("HMMs: Gaussian", "HMMs: Gaussian, full covariances",
          "HMMs: Gaussian, a shared covariance", "HMMs: Gaussian, diagonal", "HMMs: Bernoulli",
          "HMMs: categorical", "HMMs: multinomial", "HMMs: Poisson", "HMMs: Gamma",
          "HMMs: mixture emissions", "HMMs: autoregressive", "HMMs: linear regression",
          "HMMs: logistic regression")),
        "EKF/UKF pendulum",
        ("EKF/UKF spiral, EKF MLP", ("EKF/UKF spiral", "EKF/UKF spiral, EKF MLP: network")),
        "CMGF Bernoulli SSM", "CMGF Poisson SSM",
        ("CMGF logistic regression", ("logistic_regression",)),
        "CMGF MLP classification",
    ),
    BAYESPY: (
        "regression", "quickstart", "pca (ARD, missing)", "lssm (ARD, missing)",
        "lssm, time-varying dynamics", "lssm, switching dynamics",
        "robust regression (scale mixture)", "robust LSSM (Gamma per step)", "Gaussian-Wishart",
        "Gamma-Gamma", "gamma_shape",
        ("mog, bmm, gmm", ("mog", "bmm", "gmm")),
        ("categorical, multinomial", ("categorical", "multinomial")),
        "lda",
        ("hmm, additive_fhmm", ("hmm", "additive_fhmm")),
        ("annealing, saving, stochastic_inference, collapsed_cg, pattern_search, black_box",
         ("annealing", "saving", "stochastic_inference", "collapsed_cg", "pattern_search",
          "black_box")),
        ("maximum_likelihood (GP)", ("gp (LogNormal hyperparameters)",)),
    ),
    RXINFER: (
        "Kalman filtering and smoothing, mlgssm, RTS vs BIFM", "ulgssm (deterministic drift)",
        ("Bayesian Linear Regression, Bike rental",
         ("Bayesian Linear Regression", "Bike rental")),
        "mv iid Wishart", "mv iid inverse Wishart", "Autoregressive Models (observed)",
        "Latent AR(2), scalars in the carry", "Latent AR(2), vector carry", "Latent VAR",
        "GP regression by SSM", "Structural dynamics (augmented KF)",
        "Bayesian structured time series", "Incomplete data", "Solving linear systems",
        ("Infinite data stream, forgetting factors",
         ("Infinite data stream", "forgetting factors")),
        "Coin toss", "Litter model", "Probit SSM", "HGF", "CVI: nonlinear, noise learnt",
        "CVI: nonlinear, noise fixed", "Nonlinear sensor fusion",
        ("Gaussian / Gamma / universal mixtures",
         ("Gaussian mixture", "Gamma mixture", "universal mixture")),
        ("HMM, POMDP, T-maze, Bayesian networks, Ising, Bayesian trust",
         ("HMM", "POMDP", "T-maze", "Bayesian networks", "Ising", "Bayesian trust")),
        ("Binomial / multinomial regression, contextual bandits",
         ("Binomial regression", "Multinomial regression", "contextual bandits")),
        ("Invertible NN, Flux/Lux, VAE dynamics, LLM, text node",
         ("Invertible NN", "Flux/Lux", "VAE dynamics", "LLM, text node")),
        ("Mountain car, drone, robotic arm, multi-agent, Lorenz, ODE",
         ("Mountain car", "drone", "robotic arm", "multi-agent", "Lorenz",
          "ode (Lotka-Volterra)")),
        ("Assessing people skills, chance constraints, collision",
         ("Assessing people skills", "chance constraints", "collision")),
        "RSLDS",
    ),
    STATS: (
        "local level (Nile)", "local level, gaps", "local level, P1=1e12", "local linear trend",
        "smooth trend", "seasonal dummy (4), vector carry", "seasonal dummy (12)",
        "trend + trigonometric seasonal 12 (CO2)", "level + damped cycle", "level + regression",
        "time-varying regression", "DynamicFactor", "DynamicFactor, learnt",
        "VARMAX(1,0) + measurement error", "ARMA(1,1)", "ARMA, innovations form",
        ("AutoReg(4), (12) observed", ("AutoReg(4)", "AutoReg(12)")),
        "latent AR(4) + noise, vector carry",
    ),
    JOPA: (
        "controlled LDS: learn", "plan",
    ),
}

TABLE = tuple(Peer(entry, source, (entry,)) if isinstance(entry, str)
              else Peer(entry[0], source, entry[1])
              for source, entries in _TABLE.items() for entry in entries)
