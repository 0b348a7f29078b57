"""Small static C programs for what busybox can't see or do inside a container."""

from __future__ import annotations

import subprocess
from pathlib import Path

SOURCES = Path(__file__).resolve().parent.parent / "helpers"


class Helpers:
    """Programs of tests/helpers, each compiled once a session."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def __call__(self, name: str) -> Path:
        """Path of the compiled program `name`."""
        program = self.directory / name
        if not program.exists():
            source = SOURCES / f"{name}.c"
            command = ["gcc", "-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror", "-static", "-o", program, source]
            subprocess.run(command, check=True, timeout=120)
        return program
