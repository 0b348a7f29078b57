"""Launchers depend on nothing that a caller or the current directory can change."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from ocirt.cli import launcher

TOP = Path(__file__).resolve().parents[2]
PACKAGES = sysconfig.get_path("purelib")


@pytest.fixture
def ocirt(tmp_path: Path) -> str:
    """A launcher of this checkout, as hack/install writes it."""
    path = tmp_path / "bin" / "ocirt"
    path.parent.mkdir()
    launcher.write(str(path), directories=(str(TOP), PACKAGES))
    return str(path)


def run(*argv: str, **settings: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False, **settings)  # type: ignore[call-overload]


def test_names_the_interpreter_itself(ocirt: str) -> None:
    lines = Path(ocirt).read_text().splitlines()
    interpreter, flags = lines[0][2:].split()
    assert os.path.isabs(interpreter)
    assert not os.path.islink(interpreter)
    assert flags == "-ISXutf8"
    assert os.stat(ocirt).st_mode & 0o777 == 0o755


def test_runs_without_any_environment(ocirt: str) -> None:
    done = run(ocirt, "--version", env={}, cwd="/")
    assert done.returncode == 0
    assert done.stdout.startswith("ocirt version ")


def test_environment_has_no_say(ocirt: str, tmp_path: Path) -> None:
    """Neither PYTHON* nor a module in the current directory, which is the bundle, is run."""
    trap = tmp_path / "trap"
    trap.mkdir()
    for name in ("os", "json", "click", "sitecustomize", "ocirt", "_json", "re"):
        (trap / f"{name}.py").write_text("raise SystemExit('trapped')\n")
    environment = {
        "PYTHONPATH": str(trap), "PYTHONHOME": str(trap), "PYTHONSTARTUP": str(trap / "os.py"), "PYTHONINSPECT": "1",
        "HOME": str(trap), "PATH": str(trap), "LC_ALL": "xx_XX.ISO-8859-1",
    }  # fmt: skip
    for argv in (["--version"], ["--help"], ["list"], ["--root", str(tmp_path / "none"), "state", "x"]):
        done = run(ocirt, *argv, env=environment, cwd=trap)
        assert "trapped" not in done.stdout + done.stderr
        assert "Traceback" not in done.stderr


def test_file_names_that_are_not_utf8(ocirt: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [os.fsencode(ocirt), b"validate", os.fsencode(tmp_path) + b"/\xff\xfe"],
        capture_output=True, timeout=60, check=False, env={"LC_ALL": "C"},
    )  # fmt: skip
    assert done.returncode == 1
    assert b"\xff\xfe" in done.stdout
    assert b"bug" not in done.stderr


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)])
def test_closed_standard_files_are_opened(ocirt: str, tmp_path: Path, closed: tuple[int, ...]) -> None:
    """A log must not become stderr because 2 was the lowest free number."""
    log = tmp_path / "log"
    shell = " ".join(f"{fd}{'<' if fd == 0 else '>'}&-" for fd in closed)
    done = run(
        "/bin/sh", "-c", f'exec "$0" --log "$1" --root "$2" state x {shell}', ocirt, str(log), str(tmp_path / "r")
    )
    assert done.returncode == 1
    assert [line.count("x does not exist") for line in log.read_text().splitlines()] == [1]
    assert ("does not exist" in done.stderr) == (2 not in closed)


@pytest.mark.parametrize("argument", ["features", "--help"])
def test_a_reader_that_went_away_ends_it_by_sigpipe(ocirt: str, argument: str) -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([ocirt, argument], stdout=write, stderr=subprocess.PIPE, timeout=60, check=False)
    os.close(write)
    assert done.returncode == -signal.SIGPIPE
    assert done.stderr == b""


def test_full_disk_is_an_error(ocirt: str) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run([ocirt, "features"], stdout=full, stderr=subprocess.PIPE, timeout=60, check=False)
    assert done.returncode == 1
    assert b"write to stdout" in done.stderr
    assert b"bug" not in done.stderr


def test_interrupt_ends_it_by_sigint(ocirt: str, tmp_path: Path) -> None:
    """Waiting for a fifo, so that the moment is sure."""
    fifo = tmp_path / "config.json"
    os.mkfifo(fifo)
    with subprocess.Popen([ocirt, "validate", str(tmp_path)], stderr=subprocess.PIPE) as process:
        fd = os.open(fifo, os.O_WRONLY)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == -signal.SIGINT
        os.close(fd)
        assert process.stderr is not None
        assert process.stderr.read() == b""


def test_pip_makes_a_working_command(tmp_path: Path) -> None:
    """pip's script can't pass -I -S: it starts the interpreter again."""
    sources = tmp_path / "sources"
    sources.mkdir()
    shutil.copytree(TOP / "ocirt", sources / "ocirt", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        if (TOP / name).exists():
            shutil.copy(TOP / name, sources)
    pip = [sys.executable, "-m", "pip", "-q"]
    done = run(*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(tmp_path), str(sources))
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("ocirt-*.whl")
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv/bin/python"
    done = run(*pip, "--python", str(python), "install", "--no-deps", str(wheel))
    assert done.returncode == 0, done.stderr
    script = str(tmp_path / "venv/bin/ocirt")
    (tmp_path / "json.py").write_text("raise SystemExit('trapped')\n")
    done = run(script, "--version", cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)})
    assert done.stdout.startswith("ocirt version ")
    done = run(script, "--root", "a b", "state", "no such", env={})
    assert done.returncode == 1
    assert done.stderr.startswith("invalid container ID format")
    packages = run(str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").stdout.strip()
    flags = "sys.flags.isolated, sys.flags.no_site, sys.flags.utf8_mode"
    probe = f"import sys\ndef run(options):\n    print({flags}, flush=True)\n    return 0\n"
    Path(packages, "ocirt/commands/version.py").write_text(probe)
    assert run(script, "--version").stdout == "1 1 1\n"


def test_refuses_an_interpreter_that_no_shebang_can_hold(tmp_path: Path) -> None:
    for interpreter in ("/a b/python3", "/" + "x" * 260):
        with pytest.raises(ValueError, match="no shebang can hold"):
            launcher.write(str(tmp_path / "ocirt"), interpreter=interpreter)
    assert not list(tmp_path.iterdir())
