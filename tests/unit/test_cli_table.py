"""The table, the commands' files and what is generated from the table fit together."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from ocirt.cli import attribute
from ocirt.cli.explain import HERE, enabled
from ocirt.cli.table import COMMANDS, GLOBAL

TOP = Path(__file__).resolve().parents[2]
FILES = sorted((TOP / "ocirt" / "commands").glob("*.py"))
KINDS = {"flag", "value", "int", "choice", "repeat"}


def test_rows_are_well_formed() -> None:
    for name, (summary, description, arguments, rows) in COMMANDS.items():
        assert summary
        assert summary[0].islower()
        assert description[-1] in ".n" or name == HERE
        for option, short, kind, metavar, default, text in (*GLOBAL, *rows):
            assert kind in KINDS
            assert len(short) <= 1
            assert len(option) > 1
            assert (default is False) == (kind == "flag")
            assert bool(metavar) == (kind != "flag")
            assert kind != "choice" or default in metavar.split("|")
            assert kind != "int" or isinstance(default, int | None)
            assert not text.endswith(".")
        assert [kind for _, kind, _ in arguments] == sorted(
            (kind for _, kind, _ in arguments), key=["one", "optional", "rest"].index
        )


def test_names_are_unique() -> None:
    """Also between the global options and each command's: they become attributes of one object."""
    for name, (_, _, arguments, rows) in COMMANDS.items():
        names = [attribute(row[0]) for row in (*GLOBAL, *rows, *arguments)]
        if name == "spec":
            names.remove("rootless")  # its own takes the place of the global one, which it has no use for
        assert len(names) == len(set(names))
        shorts = [row[1] for row in rows if row[1]]
        assert len(shorts) == len(set(shorts))
        assert not {row[0] for row in rows} & set(shorts)


def test_every_file_is_a_command() -> None:
    names = {path.stem for path in FILES} - {"__init__"}
    assert names <= set(COMMANDS)
    assert names | {HERE} == set(enabled())


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_commands_use_options_that_exist(path: Path) -> None:
    """`options.x` is any attribute to a type checker; here it must be a row of the table."""
    tree = ast.parse(path.read_text())
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "options"
    }
    known = {attribute(row[0]) for row in GLOBAL}
    if path.stem == "create":
        known |= {attribute(row[0]) for row in COMMANDS["run"][3]}
    if path.stem in COMMANDS:
        _, _, arguments, rows = COMMANDS[path.stem]
        known |= {attribute(row[0]) for row in (*arguments, *rows)}
    assert used <= known


def test_generated_pages_are_current() -> None:
    done = subprocess.run(
        [sys.executable, str(TOP / "hack" / "generate-man"), "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"run hack/generate-man: {done.stdout}{done.stderr}"


def test_man_pages_hold_only_the_macros_that_are_meant() -> None:
    """A line of text that begins with a dot or a quote would be taken for one and vanish."""
    for page in sorted((TOP / "man").glob("*.8")):
        for line in page.read_text().splitlines():
            assert line[0] not in ".'" or line.split()[0] in (".TH", ".SH", ".PP", ".TP", '.\\"'), (page, line)
            assert "\\-" in line or "-" not in line or line.startswith('.\\"'), (page, line)
