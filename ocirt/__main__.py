"""The entry of the command line: reads argv, runs the command, and turns what was raised into output and exit codes.

Exit status 0 on success, 1 on any failure, 255 if `exec` could not run its command; `run` and `exec` give the
status of their process otherwise, 128 + N when signal N ended it.

`posix` stands where `os` would: `os` is Python text on top of it, and its import takes an eighth of a bare
interpreter's start. The same goes for all that `state`, `kill`, `start` and `delete` load.
"""

from __future__ import annotations

import gc
import posix
import sys

from ocirt import log
from ocirt.cli import parse
from ocirt.errors import Error, doing

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

EXEC_FAILURE = 255


def launch() -> NoReturn:
    """Run the process's own command line and leave: for launchers.

    `_exit`, because tearing down the interpreter costs time and nothing of ours is left to be written.
    """
    # what imports make isn't garbage: looking for some takes 7 % of create. spawn switches it on for what lives longer
    gc.disable()
    log.open_standard_files()
    posix._exit(main(sys.argv[1:]))


def console_script() -> NoReturn:
    """The entry that pip's script calls."""
    _isolated("ocirt.__main__:launch")
    launch()


def shim_script() -> NoReturn:
    """The entry that pip's script of the containerd shim calls."""
    _isolated("ocirt.shim.main:launch")
    from ocirt.shim.main import launch as launch_shim

    launch_shim()


def _isolated(entry: str) -> None:
    """Start the interpreter once more, isolated, if it is not.

    pip can't write `-I -S` into the script; without it, modules of the current directory and of the environment
    would be imported as root.
    """
    if not (sys.flags.isolated and sys.flags.no_site):
        import os

        from ocirt.cli.launcher import FLAGS, program

        interpreter = os.path.realpath(sys.executable)
        os.execv(interpreter, [interpreter, FLAGS, "-c", program(entry=entry), *sys.argv[1:]])


def main(argv: list[str]) -> int:
    """Run a command line and return its exit status."""
    name = ""
    try:
        command = parse(argv)
        module = command and find(command[0])
        if command is None or module is None:
            from ocirt.cli.explain import explain

            explained = explain(argv)
            if isinstance(explained, int):
                return explained
            command = explained
            module = find(command[0])
        name, values = command
        configure_log(values)
        from ocirt.commands import Options

        status: int = module.run(Options(values))
        log.end()
        return status
    except Error as error:
        log.error(str(error))
    except KeyboardInterrupt:
        from ocirt.commands import SIGINT, end_by

        end_by(SIGINT)
    except Exception as error:
        report_bug(error)
    return EXEC_FAILURE if name == "exec" else 1


def find(name: str) -> Any:
    """The module of a command, None if there is none; "" is --version."""
    module = f"ocirt.commands.{name or 'version'}"
    try:
        return __import__(module, fromlist=("run",))
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        return None


def configure_log(values: dict[str, Any]) -> None:
    """Set the log up as the global options say."""
    path: str | None = values["log"]
    level = log.DEBUG if values["debug"] else log.LEVELS[values["log_level"]]
    with doing("open the log"):
        log.configure(path, json=values["log_format"] == "json", level=level)


def report_bug(error: Exception) -> None:
    """Report what is no Error: one line for the log and stderr, then the traceback on stderr only."""
    import traceback

    log.error("bug in ocirt: " + " ".join("".join(traceback.format_exception_only(error)).split()))
    try:
        posix.write(2, "".join(traceback.format_exception(error)).encode("utf-8", "backslashreplace"))
    except OSError:
        pass  # nobody reads stderr; the log has the line


if __name__ == "__main__":
    console_script()
