"""What the command line prints and exits with: errors, usage, help, completion."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sysconfig
from pathlib import Path

import pytest

import ocirt.__main__
from ocirt.cli import launcher
from ocirt.cli.explain import enabled
from ocirt.commands import version
from ocirt.errors import Error, doing

TOP = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def ocirt_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("bin") / "ocirt"
    launcher.write(str(path), directories=(str(TOP), sysconfig.get_path("purelib")))
    return str(path)


class Ocirt:
    """Runs the launcher with a root of its own."""

    def __init__(self, path: str, directory: Path) -> None:
        self.path = path
        self.root = directory / "root"
        self.log = directory / "log"

    def __call__(self, *argv: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.path, *argv], capture_output=True, text=True, timeout=60, check=False, env=environment
        )

    def entries(self) -> list[dict[str, str]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]


@pytest.fixture
def run(ocirt_path: str, tmp_path: Path) -> Ocirt:
    return Ocirt(ocirt_path, tmp_path)


def test_an_error_is_one_line_of_json_and_the_same_on_stderr(run: Ocirt) -> None:
    done = run("--root", str(run.root), "--log", str(run.log), "--log-format=json", "state", "nope")
    assert (done.returncode, done.stdout) == (1, "")
    (entry,) = run.entries()
    assert entry["level"] == "error"
    assert entry["msg"] + "\n" == done.stderr
    assert "does not exist" in entry["msg"]
    assert set(entry) == {"level", "msg", "time"}


def test_text_log(run: Ocirt) -> None:
    run("--root", str(run.root), "--log", str(run.log), "state", "nope")
    run("--root", str(run.root), "--log", str(run.log), "state", "nope")
    lines = run.log.read_text().splitlines()
    assert len(lines) == 2
    assert all(line.startswith('time="') and ' level=error msg="' in line for line in lines)


def test_stderr_as_the_log(run: Ocirt) -> None:
    """As runc, whose --log is /dev/stderr by default; also when that is a socket, which can't be opened."""
    for flags in (["--log=/dev/stderr", "--log-format=json"], ["--log-format=json"]):
        ours, theirs = socket.socketpair()
        argv = [run.path, "--root", str(run.root), *flags, "state", "nope"]
        assert subprocess.run(argv, stderr=theirs, timeout=60, check=False).returncode == 1
        theirs.close()
        assert "does not exist" in json.loads(ours.recv(4096))["msg"]
        assert ours.recv(4096) == b""
        ours.close()
    text = run("--root", str(run.root), "--log=/dev/stderr", "state", "nope").stderr
    assert text.count("does not exist") == 1
    assert text.startswith('time="')


def test_log_that_cannot_be_opened(run: Ocirt) -> None:
    done = run("--log", "/nonexistent/log", "list")
    assert done.returncode == 1
    assert done.stderr == "open the log: /nonexistent/log: no such file or directory\n"


def test_exec_fails_with_255_and_the_others_with_1(run: Ocirt) -> None:
    for argv, status in (
        (["exec", "nope", "true"], 255), (["run", "-b", "/nonexistent", "x"], 1), (["start", "nope"], 1),
        (["kill", "nope"], 1), (["delete", "nope"], 1), (["create", "-b", "/nonexistent", "x"], 1),
        (["delete", "--force", "nope"], 0), (["list"], 0),
    ):  # fmt: skip
        assert run("--root", str(run.root), *argv).returncode == status, argv


def test_texts_that_clients_look_for(run: Ocirt) -> None:
    for argv in (["state", "nope"], ["kill", "nope", "9"], ["delete", "nope"], ["start", "nope"]):
        assert "does not exist" in run("--root", str(run.root), *argv).stderr
    assert 'unknown signal "BOGUS"' in run("--root", str(run.root), "kill", "nope", "BOGUS").stderr


# --- what isn't Error ---------------------------------------------------------------------------------------


def test_a_bug_is_reported_as_one(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def fail(options: object) -> int:
        raise ValueError("first\nsecond")

    monkeypatch.setattr(version, "run", fail)
    log = tmp_path / "log"
    assert ocirt.__main__.main(["--log", str(log), "--log-format", "json", "version"]) == 1
    err = capfd.readouterr().err
    assert err.startswith("bug in ocirt: ValueError: first second\nTraceback (most recent call last):\n")
    assert [json.loads(line)["msg"] for line in log.read_text().splitlines()] == [
        "bug in ocirt: ValueError: first second"
    ]


def test_an_error_shows_its_context_and_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail(options: object) -> int:
        with doing("do this"), doing("do that"):
            raise Error('open("x"): no such file or directory', 2)

    monkeypatch.setattr(version, "run", fail)
    ocirt.__main__.main(["--log-level=error", "--log", "/dev/null", "version"])
    assert capfd.readouterr().err == 'do this: do that: open("x"): no such file or directory\n'


# --- usage --------------------------------------------------------------------------------------------------


def test_usage_errors_end_with_1_and_say_what_is_wrong(run: Ocirt) -> None:
    for argv, text in (
        (["restore", "--lsm-mount-context"], "flag needs an argument: --lsm-mount-context"),
        (["create", "--bundle"], "flag needs an argument: --bundle"),
        (["create", "--bundel", "x"], "flag provided but not defined: --bundel (did you mean --bundle?)"),
        (["create", "--preserve-fd", "1", "x"], "not defined: --preserve-fd (did you mean --preserve-fds?)"),
        (["run", "--pid_file", "p", "x"], "not defined: --pid_file (did you mean --pid-file?)"),
        (["run", "--delete", "x"], "flag provided but not defined: --delete\n"),
        (["run", "--rm", "x"], "flag provided but not defined: --rm\n"),
        (["state"], "missing argument: ID"),
        (["state", "a", "b"], "unexpected extra argument (b)"),
        (["state", "--root", "/r", "x"], 'it stands before the command'),
        (["list", "--format", "xml"], "'xml' is not one of 'table', 'json'"),
        (["kill", "--all=maybe", "x"], 'invalid boolean value "maybe" for --all'),
        (["create", "--preserve-fds=1_0", "x"], "'1_0' is not a whole number"),
        (["create", "--preserve-fds", "-1", "x"], "'--preserve-fds': '-1' must be 0 or more"),
        (["exec", "--preserve-fds=-12", "x", "y"], "'--preserve-fds': '-12' must be 0 or more"),
        (["create", "--preserve-fds=9999999999", "x"], "'9999999999' is not a whole number below 1000000000"),
        (["frob"], "no such command 'frob'"),
        (["--debug"], "missing command"),
    ):  # fmt: skip
        if argv[0] in ("restore",) and argv[0] not in enabled():
            continue
        done = run("--log", str(run.log), "--log-format", "json", *argv)
        assert (done.returncode, done.stdout) == (1, ""), argv
        assert text in done.stderr.splitlines(keepends=True)[-1]
        assert done.stderr.startswith("Usage: ocirt ")
        assert run.entries()[-1]["msg"] == done.stderr.splitlines()[-1]


def test_a_global_flag_that_there_is_not(run: Ocirt) -> None:
    assert run("--rot", "x", "list").stderr.endswith("not defined: --rot (did you mean --root?)\n")


def test_help(run: Ocirt) -> None:
    for argv in ([], ["--help"], ["-h"], ["help"]):
        done = run(*argv)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("Usage: ocirt [GLOBAL OPTIONS] COMMAND")
    for name in enabled():
        pages = {run(*argv).stdout for argv in ([name, "--help"], [name, "-h"], ["help", name])}
        assert len(pages) == 1
        assert pages.pop().startswith(f"Usage: ocirt {name}")


def test_hidden_options_are_taken_and_not_shown(run: Ocirt) -> None:
    assert "--criu" not in run("--help").stdout
    assert run("--criu", "x", "--root", str(run.root), "list").returncode == 0


def test_version(run: Ocirt) -> None:
    for argv in (["--version"], ["-v"], ["version"], ["--debug", "--version"]):
        done = run(*argv)
        lines = done.stdout.splitlines()
        assert (done.returncode, done.stderr) == (0, "")
        assert lines[0].split() == ["ocirt", "version", ocirt.__version__]
        assert "spec: 1.3.0" in lines


# --- completion ---------------------------------------------------------------------------------------------


def complete(run: Ocirt, *words: str) -> list[str]:
    """What click offers for the last word, as bash would ask for it."""
    done = run(COMP_WORDS=" ".join(["ocirt", *words]), COMP_CWORD=str(len(words)), _OCIRT_COMPLETE="bash_complete")
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_completion(run: Ocirt) -> None:
    for id in ("web1", "web2", "db"):
        (run.root / id).mkdir(parents=True)
    root = ["--root", str(run.root)]
    assert complete(run, "sta") == ["plain,start", "plain,state"]
    assert complete(run, "create", "--no-p") == ["plain,--no-pivot"]
    assert complete(run, *root, "state", "we") == ["plain,web1", "plain,web2"]
    assert complete(run, *root, "kill", "db", "KI") == ["plain,KILL"]
    assert complete(run, "list", "--format", "") == ["plain,table", "plain,json"]
    assert complete(run, "create", "--bundle", "x") == ["dir,x"]
    assert complete(run, "create", "--pid-file", "x") == ["file,x"]
    assert complete(run, "completion", "") == ["plain,bash", "plain,fish", "plain,zsh"]


def test_bash_completes(run: Ocirt) -> None:
    """bash itself, with the script that we print."""
    script = (
        'PATH="$1:$PATH"; eval "$(ocirt completion bash)"; complete -p ocirt >&2;'
        'COMP_WORDS=(ocirt del); COMP_CWORD=1; _ocirt_completion ocirt; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        ["bash", "-c", script, "bash", os.path.dirname(run.path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout == "delete\n", done.stderr
    assert "_ocirt_completion" in done.stderr


@pytest.mark.parametrize(("shell", "word"), [("zsh", "compdef"), ("fish", "complete --no-files --command ocirt")])
def test_completion_of_other_shells(run: Ocirt, shell: str, word: str, tmp_path: Path) -> None:
    done = run("completion", shell)
    assert done.returncode == 0
    assert word in done.stdout
    if shutil.which(shell):
        script = tmp_path / "script"
        script.write_text(done.stdout)
        assert subprocess.run([shell, "-n", str(script)], check=False).returncode == 0


def test_completion_of_an_unknown_shell(run: Ocirt) -> None:
    done = run("completion", "csh")
    assert done.returncode == 1
    assert "bash, zsh and fish" in done.stderr
