"""Everything that is wrong with a bundle, without running anything: `ocirt validate`."""

from __future__ import annotations

from ocirt import bundle as bundles
from ocirt.errors import Error
from ocirt.validation import problems
from ocirt.validation.duplicates import duplicates
from ocirt.validation.problem import ERROR, Problem


def report(bundle: str, config_path: str | None = None) -> list[Problem]:
    """The problems of the bundle's configuration and of where its root filesystem should be; [] if all is well.

    What hides everything else (no bundle, no config.json, no JSON) is a single problem without a path.
    """
    try:
        directory = bundles.directory(bundle)
        raw = bundles.read_config(directory, config_path)
        config = bundles.parse_config(raw)
    except Error as error:
        return [Problem(ERROR, "", "", str(error), spec="bundle.md, Container Format")]
    found = problems(config, raw) + duplicates(raw)
    if not any(p.severity == ERROR and p.path.startswith("root") for p in found):
        try:
            bundles.find_rootfs(directory, config)
        except Error as error:
            found.append(Problem(ERROR, "root.path", "", str(error), spec="config.md, Root"))
    return found
