"""Write a NumPyro program, get exact compiled message passing, and plan by conditioning.

The house, bottom first; what is on a floor imports from its own floor and from those below it
(`tests/test_layout.py` checks every import):

    errors, arrays, settings, ..    what all use: errors with a way out, JAX's settings
    linalg      the mathematics: chains, trees, matrices, expected squares, scores. Knows no program
    language    what a program is written in: sites, scans, `condition`, `given`, networks
    proof       how an output of a jaxpr depends on its inputs, primitive by primitive
    program     a program run once: sites, parameters, what a step looks back to
    beliefs     a belief a form, each with its own mathematics
    graph       factors, which are proved to be what, and which latents share a belief
    engine      what runs: numbers of a run, what data reach, the energy, sweeps, plans, faults
    posterior   what a run is looked at with: marginals, draws, densities, ArviZ, files
    infer       what users call: `VMP`, batches, `VariationalEM`, importance weights
    tools, plots, compare, engines    what is made with posteriors
    models      networks and programs to begin with, which `import jopa_ppl` does not import

One way for data: a program is written (language), run once (program), proved (proof), laid out
(graph, beliefs), filled with numbers (`engine.evidence`), swept (`engine.engine`), looked at
(posterior) and used (tools). Each folder's own docstring says where a thing of its kind goes:

    another form of Gaussian, another family of beliefs      `jopa_ppl.beliefs`
    another kernel for chains, another rule for messages     `jopa_ppl.linalg`
    another primitive of JAX in a proof                      `jopa_ppl.proof`
    another distribution for sites                           `jopa_ppl.program`
    another group for ArviZ, another entry of files          `jopa_ppl.posterior`
"""

from jopa_ppl import plots
from jopa_ppl.compare import Comparison, compare
from jopa_ppl.errors import (
    ConvergenceWarning,
    DataError,
    DataWarning,
    FileError,
    JopaError,
    NumericalError,
    NumericalWarning,
    PriorError,
    ShapeError,
    SiteError,
    StaleError,
    StructureError,
)
from jopa_ppl.infer.agent import Agent
from jopa_ppl.infer.batches import PosteriorBatch
from jopa_ppl.infer.importance import correct, psis
from jopa_ppl.infer.marginalised import marginalised
from jopa_ppl.infer.rollout import Rollout, rollout
from jopa_ppl.infer.variational_em import VariationalEM
from jopa_ppl.infer.vmp import VMP
from jopa_ppl.language.distributions import ArrayNormal
from jopa_ppl.language.given import given
from jopa_ppl.language.networks import with_weights
from jopa_ppl.language.primitives import Amortized, latent, module, observe, plate, scan, sparse
from jopa_ppl.language.query import condition
from jopa_ppl.posterior.posterior import Posterior
from jopa_ppl.posterior.read import Checkpoint, load_checkpoint, load_posterior
from jopa_ppl.posterior.write import save_checkpoint
from jopa_ppl.tools.compiling import compile, explain
from jopa_ppl.tools.validate import validate
from jopa_ppl.version import __version__ as __version__

__docformat__ = "google"

__all__ = [
    "VMP",
    "Agent",
    "Amortized",
    "ArrayNormal",
    "Checkpoint",
    "Comparison",
    "ConvergenceWarning",
    "DataError",
    "DataWarning",
    "FileError",
    "JopaError",
    "NumericalError",
    "NumericalWarning",
    "Posterior",
    "PosteriorBatch",
    "PriorError",
    "Rollout",
    "ShapeError",
    "SiteError",
    "StaleError",
    "StructureError",
    "VariationalEM",
    "compare",
    "compile",
    "condition",
    "correct",
    "explain",
    "given",
    "latent",
    "load_checkpoint",
    "load_posterior",
    "marginalised",
    "module",
    "observe",
    "plate",
    "plots",
    "psis",
    "rollout",
    "save_checkpoint",
    "scan",
    "sparse",
    "validate",
    "with_weights",
]
