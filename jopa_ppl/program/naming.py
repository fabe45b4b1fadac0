"""Names of sites: any text will do that tables can keep apart."""

from __future__ import annotations

from collections.abc import Container, Mapping

from jopa_ppl.errors import SiteError
from jopa_ppl.program.program import Site


def free_name(taken: Container[str], wanted: str) -> str:
    """A name that no site has: the wanted one, or with primes behind it."""
    while wanted in taken:
        wanted += "'"
    return wanted


def check_name(name: object) -> None:
    """Refuse what is no name.

    Raises:
        SiteError: it is no string, or is empty.
    """
    if not isinstance(name, str) or not name:
        raise SiteError("the name cannot be used", site=name, found=repr(name),
                        expected="a string that is not empty", fix=f"call it '{name or 'x'}'")


def check_labels(sites: Mapping[str, Site]) -> None:
    """Refuse names that the program's other names make ambiguous in tables and schedules.

    Raises:
        SiteError: "x[t]" or "x[0]" beside a site "x" of a scan, a plate "x.0" beside an array "x".
    """
    for name, site in sites.items():
        base, bracket, _ = name.rpartition("[")
        if bracket and name.endswith("]") and base in sites and sites[base].scan is not None:
            raise SiteError("the name is that of a step", site=name,
                            found=f"'{name}' beside the site '{base}' of a scan",
                            expected="names that are no other site's with a step in brackets",
                            fix=f"call it '{name.replace('[', '_')[:-1]}'")
        for plate in site.plates:
            base, dot, axis = plate.name.rpartition(".")
            if dot and axis.isdigit() and base in sites:
                raise SiteError("the plate's name is that of an axis of a site", site=plate.name,
                                found=f"plate '{plate.name}' beside the site '{base}'",
                                expected="another name", fix=f"call it '{base}_{axis}'")
