"""The table's models with discrete latents."""

from __future__ import annotations

from functools import partial

import numpy as np

from . import hidden as H
from . import mixtures as M
from . import switching as S
from .exact import differ, enumerated, mixed, paths
from .judges import grid
from .row import BAYESPY, DYNAMAX, EX, NB, RXINFER, Row

DISCRETE: tuple[Row, ...] = (
    # -- mixtures
    Row("gmm", NB, M.gaussian_scale, (M.REALS,), mixed()),
    Row("gmm: labels summed out", NB, M.integrated, (M.REALS,)),
    Row("mog", BAYESPY, M.vectors, (M.PAIRS,), mixed()),
    Row("bmm", BAYESPY, M.bits, (M.BITS,), mixed()),
    Row("Gaussian mixture", RXINFER, M.gaussian, (M.REALS,), mixed()),
    Row("Gamma mixture", RXINFER, M.positive, (M.WAITS,), mixed()),
    Row("universal mixture", RXINFER, M.universal, (M.REALS,), mixed()),
    Row("toy_mixture", EX, M.layers, (M.BITS,), mixed()),
    Row("ssbvm_mixture", EX, M.torus, (M.TORUS,), mixed()),
    Row("ssbvm_mixture: one angle", EX, M.angles, (M.ANGLES,), mixed()),
    Row("zero_inflated_poisson", EX, M.zero_inflated, (M.ZEROS,), grid()),
    Row("zero_inflated_poisson: the gate latent", EX, M.zero_inflated_labels, (M.ZEROS,),
        mixed()),
    Row("prodlda: a logistic normal, no network", EX, M.topics_logistic, (M.WORD_COUNTS,)),
    # -- counts of categories
    Row("categorical", BAYESPY, M.throws, (M.THROWS,), grid()),
    Row("multinomial", BAYESPY, M.totals, (M.TOTALS,), grid()),
    Row("lda", BAYESPY, M.topics, (M.DOCUMENT, M.WORDS), differ("phi", mixed())),
    Row("lda: topics told apart by their priors", BAYESPY, M.topics_apart, (M.DOCUMENT, M.WORDS),
        differ("phi", mixed())),
    # -- annotators
    Row("annotation: multinomial", EX, M.annotators_pooled, (M.SAID,), mixed()),
    Row("annotation: Dawid-Skene", EX, M.dawid_skene, (M.SAID,), mixed()),
    Row("annotation: MACE", EX, M.spammers, (M.SAID,), mixed()),
    Row("annotation: hierarchical Dawid-Skene", EX, M.hierarchical_annotators, (M.SAID,),
        mixed()),
    Row("annotation: item difficulty", EX, M.difficulty, (M.SAID.astype(float),), mixed()),
    Row("annotation: logistic random effects", EX, M.logistic_effects,
        (M.SAID.astype(float),), mixed()),
    # -- tables and networks of a few variables
    Row("discrete_imputation", NB, M.absent_in_place, (M.COAT, M.HEAT, M.GONE), mixed()),
    Row("discrete_imputation: what is missing apart", NB, partial(M.absent, gone=M.GONE),
        (M.COAT, M.HEAT), mixed()),
    Row("Bayesian networks", RXINFER, M.sprinkler, (1,), enumerated()),
    Row("Ising", RXINFER, M.spins, (np.array([1.0, -0.5, 0.8, 0.1]),), enumerated()),
    Row("Bayesian trust", RXINFER, M.trust, (np.array([1, 1, 0, 1, 1]),), enumerated()),
    # -- hidden Markov models
    Row("HMMs: Gaussian", DYNAMAX, H.gaussian, (H.REALS,), mixed()),
    Row("HMMs: Gaussian, full covariances", DYNAMAX, H.gaussian_full, (H.PAIRS,), mixed()),
    Row("HMMs: Gaussian, a shared covariance", DYNAMAX, H.gaussian_shared, (H.PAIRS,), mixed()),
    Row("HMMs: Gaussian, diagonal", DYNAMAX, H.gaussian_diagonal, (H.PAIRS,), mixed()),
    Row("HMMs: Bernoulli", DYNAMAX, H.bernoulli, (H.BITS,), mixed()),
    Row("HMMs: categorical", DYNAMAX, H.categorical, (H.WORDS,), mixed()),
    Row("HMMs: multinomial", DYNAMAX, H.multinomial, (H.BAGS,), mixed()),
    Row("HMMs: Poisson", DYNAMAX, H.poisson, (H.EVENTS,), mixed()),
    Row("HMMs: Gamma", DYNAMAX, H.gamma, (H.WAITS,), mixed()),
    Row("HMMs: mixture emissions", DYNAMAX, H.mixture_emissions, (H.REALS,), mixed()),
    Row("HMMs: autoregressive", DYNAMAX, H.autoregressive, (S.SWINGS,), mixed()),
    Row("HMMs: linear regression", DYNAMAX, H.linear_regression, (H.DRIVE, H.DRIVEN), mixed()),
    Row("HMMs: logistic regression", DYNAMAX, H.logistic_regression, (H.DRIVE, H.CHOICES),
        mixed()),
    Row("HMM", RXINFER, H.gaussian_known, (H.REALS[:12],), enumerated()),
    Row("hmm", BAYESPY, H.categorical, (H.WORDS,), mixed()),
    Row("additive_fhmm", BAYESPY, H.additive, (H.SUMS,), mixed()),
    Row("hmm (semi-supervised)", EX, H.semi_supervised, (H.STATES, H.WORDS, H.WORDS[::-1]),
        mixed()),
    Row("hmm_enum: batches", EX, H.tones, (H.TONES,), mixed()),
    Row("hmm_enum: emissions of the last tone", EX, H.tones_again, (H.BITS[:, 0],), mixed()),
    Row("hmm_enum: factorial", EX, H.factorial, (H.BITS[:, 0],), mixed()),
    Row("hmm_enum: coupled", EX, H.coupled, (H.BITS[:, 0],), mixed()),
    Row("hmm_enum: second order", EX, H.second_order, (H.BITS[:, 0],), mixed()),
    Row("POMDP", RXINFER, S.acted, (np.array([0, 1, 1, 0, 1]), np.array([0, 1, 1, 2, 2])),
        enumerated()),
    Row("T-maze", RXINFER, S.maze, (1,), enumerated()),
    # -- survival
    Row("capture_recapture: constant", EX, S.survival, (S.CAUGHT,), mixed()),
    Row("capture_recapture: constant: a table of probabilities", EX, S.survival_where,
        (S.CAUGHT,), mixed()),
    Row("capture_recapture: by time", EX, S.survival_by_time, (S.CAUGHT,), mixed()),
    Row("capture_recapture: random effects", EX, S.survival_random, (S.CAUGHT,), mixed()),
    Row("capture_recapture: by animal", EX, S.survival_by_animal, (S.CAUGHT,), mixed()),
    Row("capture_recapture: by group", EX, S.survival_by_group, (S.SEX, S.CAUGHT), mixed()),
    # -- switching dynamics
    Row("SLDS", DYNAMAX, S.switching, (S.BLURRED,), mixed()),
    Row("switching dynamics, known parameters", DYNAMAX, S.switching_known, (S.BLURRED[:9],),
        paths(1.0, 0.3)),
    Row("lssm, switching dynamics", BAYESPY, S.switching_vectors, (S.TURNS,), mixed()),
    Row("RSLDS", RXINFER, S.recurrent, (S.BLURRED,), mixed()),
)
