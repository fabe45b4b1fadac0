"""Write a NumPyro program, get exact compiled message passing, and plan by conditioning."""

from jopa_ppl import plots
from jopa_ppl.batches import PosteriorBatch
from jopa_ppl.checkpoints import Checkpoint, load_checkpoint, load_posterior
from jopa_ppl.compare import Comparison, compare
from jopa_ppl.compiling import compile, explain
from jopa_ppl.distributions import ArrayNormal
from jopa_ppl.earlier import given
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
from jopa_ppl.importance import correct
from jopa_ppl.inference.variational_em import VariationalEM
from jopa_ppl.inference.vmp import VMP
from jopa_ppl.networks import with_weights
from jopa_ppl.posterior import Posterior
from jopa_ppl.primitives import Amortized, latent, module, observe, plate, scan, sparse
from jopa_ppl.queries import condition
from jopa_ppl.validation import validate
from jopa_ppl.version import __version__ as __version__
from jopa_ppl.writing import save_checkpoint

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
