"""The command line: `python -m jopa_ppl explain | validate | --version`."""

from __future__ import annotations

import argparse
import ast
import importlib
import inspect
import math
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import jopa_ppl as jp
from jopa_ppl.errors import JopaError, names
from jopa_ppl.posterior.storage import versions
from jopa_ppl.tools.explaining import explain_table
from jopa_ppl.tools.validate import THRESHOLDS

_INPUTS = """data and arguments: files.npz and NAME=VALUE
  A name that is an argument of the program is passed to it; any other is a site that becomes
  data (jp.condition), such as the actions that were taken. VALUE is a Python literal, an array
  from a list. NaN (None in a list) is what is missing."""

_EXPLAIN = f"""Print one line a site: its family, its role, its block and the message it sends
(exact, linearised, amortised); for what does not compile, the operation, file and line.

{_INPUTS}

examples:
  python -m jopa_ppl explain examples.quickstart:controlled_lds T=2 "y=[[0, 0], [1, 2]]"
  python -m jopa_ppl explain my.programs:lds data.npz T=200

exit status: 0 it compiles, 1 it does not, 2 bad input"""

_VALIDATE = f"""Hide the end of a series, predict it, and tell whether the learned model is fit to
plan with: a table of checks, each with what was found, what was wanted, and why it failed.

--model names the program: a file never says what is run. The name that the checkpoint was saved
with must be the same (the function's: its module may have moved). Networks declared with jp.module
take the checkpoint's weights.

{_INPUTS}

exit status: 0 passed, 1 failed, 2 could not be told (bad input)

examples:
  python -m jopa_ppl validate learned.safetensors data.npz T=200 --model my.programs:lds
  python -m jopa_ppl validate learned.safetensors data.npz T=200 --model my.programs:lds \\
      --horizon 20 --threshold k_step=0.5 --threshold coverage_50=0.4:0.6 \\
      --threshold reachability=none"""


class Inputs(NamedTuple):
    """Arguments of a program, and sites that are data."""

    arguments: dict[str, Any]
    sites: dict[str, Any]


def program(name: str) -> Callable:
    """The function "module:function".

    Raises:
        JopaError: there is no such module or function.
    """
    module, _, attributes = name.partition(":")
    way_out = "name it as MODULE:FUNCTION, importable from this directory"
    if not attributes or "<locals>" in attributes:
        raise JopaError("the program cannot be imported by its name", found=f"'{name}'",
                        expected="a function at the top of a module",
                        fix=way_out)
    try:
        found: Any = importlib.import_module(module)
        for attribute in attributes.split("."):
            found = getattr(found, attribute)
    except Exception as error:          # a module that is imported may fail in any way
        lost = isinstance(error, ImportError | AttributeError) or module.startswith(".")
        what = "there is no such program" if lost else "its module fails when it is imported"
        raise JopaError(what, found=f"'{name}': {error!r}", expected="MODULE:FUNCTION",
                        fix=way_out if lost else f"see `python -c 'import {module}'`") from error
    if not callable(found):
        raise JopaError("it is no program", found=f"'{name}', a {type(found).__name__}",
                        expected="a function", fix=way_out)
    return found


def inputs(model: Callable, texts: Sequence[str]) -> Inputs:
    """Read `file.npz` and `name=value`, and tell arguments from sites.

    Raises:
        JopaError: a file cannot be read, or a text is neither.
    """
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if equals and name.isidentifier():
            found[name] = _literal(value)
            continue
        try:
            with np.load(Path(text), allow_pickle=False) as file:
                # Numbers, such as a number of steps, shape the program: they must not be arrays.
                found |= {n: file[n] if file[n].ndim else file[n].item() for n in file.files}
        except Exception as error:      # a damaged archive breaks in many ways
            raise JopaError("the data cannot be read", found=f"'{text}': {error}",
                            expected="a file.npz of arrays, or NAME=VALUE",
                            fix="write it with numpy.savez(path, y=..., u=...)") from error
    own = inspect.signature(model).parameters
    return Inputs({n: x for n, x in found.items() if n in own},
                  {n: x for n, x in found.items() if n not in own})


def _literal(text: str) -> Any:
    try:
        value = ast.literal_eval(text)
        return np.asarray(value, np.float32) if isinstance(value, list) else value
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError) as error:
        if text.startswith("["):
            raise JopaError("it is no array", found=f"'{text:.60}': {error}",
                            expected="a list of numbers, its rows of one length",
                            fix="write None for what is missing") from error
        return text


def _threshold(text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    if value.lower() == "none":
        return name, None
    try:
        bounds = tuple(map(float, value.split(":")))
    except ValueError:
        bounds = ()
    if len(bounds) not in (1, 2) or any(map(math.isnan, bounds)):
        raise argparse.ArgumentTypeError(
            f"'{text}': expected NAME=BOUND, NAME=LOW:HIGH or NAME=none")
    return name, bounds[0] if len(bounds) == 1 else bounds


def explain(options: argparse.Namespace) -> int:
    """`python -m jopa_ppl explain`: 0 when the program compiles, else 1."""
    model = program(options.program)
    read = inputs(model, options.inputs)
    _complete(model, read)
    text = explain_table(_conditioned(model, read), (), read.arguments)
    print(text)
    return 1 if "does not compile" in text.partition("\n")[0] else 0


def validate(options: argparse.Namespace) -> int:
    """`python -m jopa_ppl validate`: 0 when every check passed, else 1."""
    model = program(options.model)
    checkpoint = jp.load_checkpoint(options.checkpoint, model)
    posterior = checkpoint.posterior or jp.load_posterior(options.checkpoint)
    read = inputs(model, options.inputs)
    _complete(model, read)
    if checkpoint.weights:
        model = jp.with_weights(model, checkpoint.weights)
    dynamics = None if options.dynamics == "none" else tuple(options.dynamics.split(","))
    report = jp.validate(
        _conditioned(model, read), posterior, **read.arguments, site=options.site,
        horizon=options.horizon, origins=options.origins, dynamics=dynamics,
        thresholds=dict(options.threshold), num_samples=options.samples,
        rng_key=options.seed)
    print(f"'{options.checkpoint}', {options.model}\n\n{report}")
    return 0 if report.passed else 1


def _conditioned(model: Callable, read: Inputs) -> Callable:
    return jp.condition(model, read.sites) if read.sites else model


def _complete(model: Callable, read: Inputs) -> None:
    own = inspect.signature(model).parameters
    missing = [n for n, p in own.items() if p.default is p.empty and n not in read.arguments
               and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if missing:
        raise JopaError(f"the program needs {names(missing)}",
                        found=f"arguments {names(read.arguments)}", expected=f"{names(own)}",
                        fix=f"add {missing[0]}=VALUE, or an array of that name to a file.npz; a "
                            f"network needs a default, {missing[0]}=None, for which the program "
                            "builds it (its weights come from the checkpoint)")


def parser() -> argparse.ArgumentParser:
    """All options."""
    top = argparse.ArgumentParser(
        prog="python -m jopa_ppl", description=jp.__doc__.partition("\n")[0],
        epilog="`python -m jopa_ppl COMMAND --help` shows examples.")
    found = ", ".join(f"{n} {v}" for n, v in versions().items())
    top.add_argument("--version", action="version",
                     version=f"{found}, flax {version('flax')}, Python {sys.version.split()[0]}")
    commands = top.add_subparsers(metavar="COMMAND", required=True)
    raw = argparse.RawDescriptionHelpFormatter
    one = commands.add_parser("explain", help="what a program is compiled to",
                              description=_EXPLAIN, formatter_class=raw)
    one.add_argument("program", metavar="MODULE:FUNCTION", help="the program")
    one.add_argument("inputs", nargs="*", metavar="INPUT", help="file.npz or NAME=VALUE")
    one.set_defaults(run=explain)

    two = commands.add_parser("validate", help="is a learned model fit to plan with?",
                              description=_VALIDATE, formatter_class=raw)
    two.add_argument("checkpoint", metavar="CHECKPOINT",
                     help="what posterior.save or jp.save_checkpoint wrote")
    two.add_argument("inputs", nargs="+", metavar="DATA", help="file.npz or NAME=VALUE")
    two.add_argument("--model", metavar="MODULE:FUNCTION", required=True,
                     help="the program; imported from this directory, whatever the file says")
    two.add_argument("--site", default="y", help="the observed site (default: %(default)s)")
    two.add_argument("--horizon", type=int, default=10, metavar="STEPS",
                     help="steps that are predicted (default: %(default)s)")
    two.add_argument("--origins", type=int, default=10, metavar="N",
                     help="times to predict from (default: %(default)s)")
    two.add_argument("--dynamics", default="A,B", metavar="A,B",
                     help="sites of the dynamics, or 'none' (default: %(default)s)")
    two.add_argument("--threshold", action="append", default=[], type=_threshold,
                     metavar="CHECK=BOUND",
                     help="a bound, LOW:HIGH, or none to leave the check out; checks: "
                     + ", ".join([*THRESHOLDS, "rank", "reachability"]))
    two.add_argument("--samples", type=int, default=100, metavar="N",
                     help="draws of every prediction (default: %(default)s)")
    two.add_argument("--seed", type=int, default=0, help="of the draws (default: %(default)s)")
    two.set_defaults(run=validate)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit status (2: bad input, told on stderr)."""
    options = parser().parse_args(argv)
    try:
        return options.run(options)
    except JopaError as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
