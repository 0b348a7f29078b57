"""ocirt validate"""

from __future__ import annotations

from ocirt import bundle
from ocirt.commands import Options, indented, write
from ocirt.errors import Error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ocirt.validation import Problem


def run(options: Options) -> int:
    """Report everything that is wrong with a bundle, without running anything; 1 if there is an error."""
    from ocirt.validation import ERROR

    found = find(options.bundle or ".", options.config)
    valid = all(problem.severity != ERROR for problem in found)
    if options.format == "json":
        write(indented({"valid": valid, "problems": [problem.as_dict() for problem in found]}) + "\n")
    else:
        lines = [f"{problem.severity}: {problem}" for problem in found]
        write("\n".join([*lines, "valid" if valid else "not valid"]) + "\n")
    return 0 if valid else 1


def find(path: str, config_path: str | None) -> list[Problem]:
    """All problems of the bundle's configuration and of where its root file system should be."""
    from ocirt.validation import ERROR, Problem, problems

    try:
        directory = bundle.directory(path)
        raw = bundle.read_config(directory, config_path)
        config = bundle.parse_config(raw)
    except Error as error:
        return [Problem(ERROR, "", "", str(error))]
    found = problems(config, raw)
    if not any(problem.severity == ERROR and problem.path.startswith("root") for problem in found):
        try:
            bundle.find_rootfs(directory, config)
        except (Error, KeyError) as error:  # a configuration without root has been reported
            if isinstance(error, Error):
                found.append(Problem(ERROR, "root.path", "", str(error), spec="config.md, Root"))
    return found
