"""What an agent is given: beliefs, an action space, observations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jopa_ppl.errors import DataError, JopaError, ShapeError, names
from jopa_ppl.posterior.posterior import Posterior


def frame_of(observation: Any, to_frame: Callable[[Any], NDArray] | None, copies: int | None,
             shape: tuple[int, ...] | None) -> NDArray:
    """An observation as the program has it, NaN in its `shape` where it is lost: float32 of
    images, else float64.

    Args:
        observation: what the environment gave; None where it is lost.
        to_frame: observation -> array; None: it is one already.
        copies: how many environments run side by side, in front; None: one, without that axis.
        shape: of the frames before; None of the first.

    Raises:
        DataError: the first one is lost. ShapeError: it is a dict, it is not of as many copies, or
            has another shape than those before it.
    """
    if observation is None:
        if shape is None:
            raise DataError("the first frame is lost", found="None", expected="an observation",
                            fix="pass NaN in its shape")
        return np.full(shape, np.nan)
    found = observation
    if to_frame is None and isinstance(observation, dict):
        raise ShapeError("observations are arrays", found=f"a dict of {names(observation)}",
                         expected="an array, as the program observes it",
                         fix="to_frame=lambda seen: seen['image'], say")
    if to_frame is not None:
        found = (to_frame(observation) if copies is None
                 else np.stack([to_frame(x) for x in observation]))
    image = np.ndim(found) - (copies is not None) > 1
    frame = np.asarray(found, np.float32 if image else float)
    if copies is not None and len(frame) != copies:
        raise ShapeError("there are other copies than the agent has", found=len(frame),
                         expected=copies, fix=f"jp.Agent(copies={len(frame)})")
    if shape is not None and frame.shape != shape:
        raise ShapeError("observations have changed their shape", found=frame.shape,
                         expected=shape, fix="wrap the environment so that all are alike")
    return frame


def shared(posterior: Posterior) -> list[str]:
    """The latents that all steps share, first states left out."""
    graph = posterior.compiled.graph
    return [n for n in posterior.global_sites if graph.block_of(n).scan is None]


def beliefs(posterior: Any) -> None:
    """Refuse what are no beliefs about a program's dynamics.

    Raises:
        JopaError: it is neither a posterior nor a mapping, or a plan.
    """
    if not isinstance(posterior, Posterior | Mapping):
        raise JopaError("the posterior holds no beliefs", found=type(posterior).__name__,
                        expected="a posterior of jp.VMP or jp.VariationalEM, or distributions by "
                                 "site name", fix="jp.Agent(model, {}, ..) begins with the priors")
    if isinstance(posterior, Posterior) and posterior.plan is not None:
        raise JopaError("a plan holds beliefs about what is hoped for", found="a plan",
                        expected="what was learned from data",
                        fix="pass the posterior that the plan was made with")


def real(space: Any) -> Any:
    """An action space, where it is a Box of real numbers."""
    if not (hasattr(space, "low") and hasattr(space, "high")
            and np.issubdtype(space.dtype, np.floating)):
        raise JopaError("actions are real numbers", found=f"an action space {space!r}",
                        expected="a gymnasium.spaces.Box",
                        fix="wrap the environment so that its actions are a Box")
    return space
