"""hack/install: an ocirt that depends on nothing of the checkout or the caller."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.harness.bundle import Bundle

TOP = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ocirt installed; pip fetches what it depends on."""
    prefix = tmp_path_factory.mktemp("prefix")
    install(prefix)
    return prefix


def install(prefix: Path, *flags: str) -> None:
    done = subprocess.run(
        [TOP / "hack" / "install", "--prefix", prefix, *flags], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def ocirt(prefix: Path, *argv: str | Path) -> subprocess.CompletedProcess[str]:
    """The installed command, with an empty environment."""
    return subprocess.run(
        [prefix / "bin" / "ocirt", *argv], capture_output=True, text=True, timeout=60, check=False, env={}, cwd="/"
    )


@pytest.mark.timeout(700)
def test_what_is_installed_works(prefix: Path, place: Path, test_id: str, nothing_left: None) -> None:
    """The whole package: it runs a container, explains usage (click) and configurations (jsonschema)."""
    bundle = Bundle(place / "bundle", test_id)
    bundle.sh("exit 3")
    bundle.write()
    done = ocirt(prefix, "--root", place / "root", "run", "--bundle", bundle.path, test_id)
    assert (done.returncode, done.stderr) == (3, "")
    bundle.config["process"]["cwd"] = 1
    bundle.write()
    assert "process.cwd" in ocirt(prefix, "validate", bundle.path).stdout
    assert "flag provided but not defined" in ocirt(prefix, "state", "--nope").stderr


def test_nothing_refers_to_the_checkout(prefix: Path) -> None:
    launcher = (prefix / "bin" / "ocirt").read_text()
    assert str(TOP) not in launcher
    assert f"{prefix}/lib/ocirt/" in launcher
    interpreter = launcher.split()[0][2:]
    assert os.path.isabs(interpreter)
    # the environment's own interpreter is a link that may come to mean another version
    assert not os.path.realpath(interpreter).startswith((str(prefix), str(TOP)))
    assert interpreter == f"{prefix}/lib/ocirt/start/bin/python3", "the quick start works with this interpreter"


def test_it_is_compiled(prefix: Path) -> None:
    """A command must not compile text each time, as it would where it may not write."""
    (package,) = (prefix / "lib" / "ocirt").glob("lib/python3*/site-packages/ocirt")
    sources = list(package.rglob("*.py"))
    assert sources
    for source in sources:
        assert list((source.parent / "__pycache__").glob(f"{source.stem}.cpython-*.pyc")), source


def test_pages_and_completions(prefix: Path) -> None:
    assert (prefix / "share/man/man8/ocirt.8").exists()
    assert "_ocirt_completion" in (prefix / "share/bash-completion/completions/ocirt").read_text()
    assert (prefix / "share/zsh/site-functions/_ocirt").read_text().startswith("#compdef ocirt")
    assert "ocirt" in (prefix / "share/fish/vendor_completions.d/ocirt.fish").read_text()


@pytest.mark.timeout(700)
def test_a_second_installation_replaces_the_first_and_remove_leaves_nothing(prefix: Path) -> None:
    install(prefix)
    assert ocirt(prefix, "--version").returncode == 0
    assert [entry.name for entry in (prefix / "lib").iterdir()] == ["ocirt"]
    install(prefix, "--remove")
    assert [str(path) for path in prefix.rglob("*") if not path.is_dir()] == []
