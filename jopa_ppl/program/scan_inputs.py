"""The inputs of a scan are data: what is made of latents is refused, by name."""

from __future__ import annotations

from jopa_ppl.errors import StructureError, names
from jopa_ppl.program.program import Program


def check_inputs(program: Program) -> None:
    """Refuse inputs of scans that are made of latents, or of what another scan returned.

    Raises:
        StructureError: names the latent, the input and the scan.
    """
    for scan in program.scans:
        for i, output in enumerate(scan.xs.values()):
            latents, scans = _made_of(program, output)
            if not (latents or scans):
                continue
            inside = f"the steps of {names(scan.sites)}" if scan.sites else "the steps"
            expected = "inputs that are made of data and observed values alone"
            if scans:
                site = next(iter((*latents, *program.scans[min(scans)].sites)), None)
                raise StructureError(
                    "what a scan returns cannot be the input of another scan", site=site,
                    found=f"an input (leaf {i}) of {inside} is made of it", expected=expected,
                    fix="make it one scan with both states in its carry, (x, z), so that every "
                        "step draws both; a site that sees the last carry alone is observed "
                        "outside of scans; a recursion of data alone is a jax.lax.scan")
            name = next(iter(latents))
            raise StructureError(
                "a latent cannot be the input of a scan", site=name,
                found=f"an input (leaf {i}) of {inside} is made of {names(latents)}",
                expected=expected,
                fix=f"one for each step: draw it in the step, {name} = jp.latent('{name}', ..); "
                    f"one for all of them: use {name} in the step as it is ({name} * t, with the "
                    "data t as the input)")


def _made_of(program: Program, output: int) -> tuple[dict[str, None], set[int]]:
    """The latents and the scans that an output of the program is made of."""
    latents: dict[str, None] = {}
    scans: set[int] = set()
    todo, seen = [output], set()
    while todo:
        for key in sorted(program.needs([todo.pop()]) - seen):
            seen.add(key)
            kind, _, name = key.partition("/")
            if kind == "latent":
                latents[name] = None
            elif kind in ("after", "ys", "carry"):
                index, i = map(int, name.split("/"))
                scan = program.scans[index]
                if kind != "carry":
                    scans.add(index)
                todo += [scan.ys[i]] if kind == "ys" else [scan.carry[i], scan.init[i]]
            elif kind == "xs":
                todo.append(program.scans[int(name.split("/")[0])].xs[key])
    return latents, scans
