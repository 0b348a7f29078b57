"""ocirt features"""

from __future__ import annotations

from ocirt.commands import Options, indented, write
from ocirt.features import features


def run(options: Options) -> int:
    """Print what this runtime can do, as features.md of the specification has it."""
    write(indented(features()) + "\n")
    return 0
