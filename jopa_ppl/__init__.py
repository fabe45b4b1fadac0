"""Write a NumPyro program, get exact compiled message passing, and plan by conditioning."""

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
from jopa_ppl.infer.batches import PosteriorBatch
from jopa_ppl.infer.importance import correct
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
    "module",
    "observe",
    "plate",
    "plots",
    "save_checkpoint",
    "scan",
    "sparse",
    "validate",
    "with_weights",
]
