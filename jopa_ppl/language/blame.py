"""What a user's program may trip over while it is traced: errors that say where and what to do."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import jax
import numpyro
from flax.errors import TraceContextError

from jopa_ppl.errors import ShapeError, StructureError
from jopa_ppl.language.sources import raised_at

CONCRETE = (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError,
            jax.errors.TracerIntegerConversionError)


@contextmanager
def named_faults() -> Iterator[None]:
    """Turns what NumPyro asserts, and JAX's refusal of concrete values, into named errors.

    Raises:
        ShapeError: a plate without elements. StructureError: the program's Python code asks for the
            value of a latent or of its data, has a scan inside a plate, or a network with state.
    """
    try:
        yield
    except AssertionError as error:
        frame = list(traceback.walk_tb(error.__traceback__))[-1][0]
        if frame.f_code is not numpyro.plate.__init__.__code__:
            raise
        raise ShapeError("the plate is empty", site=frame.f_locals["name"],
                         found=f"size {frame.f_locals['size']}", expected="at least one element",
                         fix="pass arrays that hold something") from None
    except NotImplementedError as error:
        frame = list(traceback.walk_tb(error.__traceback__))[-1][0]
        if frame.f_code is not numpyro.plate.process_message.__code__:
            raise
        raise StructureError("a scan inside a plate is not supported by NumPyro",
                             site=frame.f_locals["self"].name, found="scan in the plate",
                             expected="the plate in the body of the scan",
                             fix="move it into the step: def step(carry, x): with "
                                 "numpyro.plate(..): ..; series then lead with time") from None
    except TraceContextError as error:
        raise StructureError(
            "a network changes its own state while it runs",
            found=str(error).partition("\n")[0], expected="a call that changes nothing",
            fix="call network.eval() first: dropout is then off and batch statistics are constants"
        ) from error
    except CONCRETE as error:
        raise StructureError(
            "the program asks for a number while it is traced",
            found=f"Python's if, float() or int(), or a NumPy function, on a latent or on data, at "
                  f"{raised_at(error.__traceback__)}",
            expected="operations of jax.numpy, which traces can follow",
            fix="use jnp for np and jnp.where for if; pass numbers that shape the program (sizes, "
                "flags) as Python numbers") from error
