"""ocirt validate"""

from __future__ import annotations

from ocirt import bundle
from ocirt.commands import Options, indented, write


def run(options: Options) -> int:
    """Report everything that is wrong with a bundle, without running anything; 1 if there is an error."""
    found = bundle.report(options.bundle or ".", options.config)
    valid = all(problem.severity != "error" for problem in found)
    if options.format == "json":
        write(indented({"valid": valid, "problems": [problem.as_dict() for problem in found]}) + "\n")
    else:
        lines = [f"{problem.severity}: {problem}" for problem in found]
        write("\n".join([*lines, "valid" if valid else "not valid"]) + "\n")
    return 0 if valid else 1
