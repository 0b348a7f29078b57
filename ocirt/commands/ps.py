"""ocirt ps"""

from __future__ import annotations

from ocirt import operations
from ocirt.commands import Options, runtime, write
from ocirt.errors import Error, from_oserror


def run(options: Options) -> int:
    """List the processes of a container: their pids as JSON, or their lines of ps."""
    pids = operations.pids(runtime(options), options.id)
    if options.format == "json":
        write("[" + ",".join(str(pid) for pid in pids) + "]\n")
        return 0
    write("".join(line + "\n" for line in selected(listing(options.options or ["-ef"]), pids)))
    return 0


def listing(arguments: list[str]) -> list[str]:
    """What ps prints."""
    import subprocess

    try:
        done = subprocess.run(["ps", *arguments], capture_output=True, check=False)
    except OSError as error:
        raise from_oserror(error, "execute ps") from None
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace").strip()
        raise Error(f"ps {' '.join(arguments)} exited with {done.returncode}: {said}")
    return done.stdout.decode("utf-8", "surrogateescape").splitlines()


def selected(lines: list[str], pids: list[int]) -> list[str]:
    """The header, and the lines whose column PID is one of ours."""
    header = lines[0].split() if lines else []
    if "PID" not in header:
        raise Error("ps prints no column PID with these arguments")
    column = header.index("PID")
    wanted = {str(pid) for pid in pids}
    return [
        lines[0],
        *(line for line in lines[1:] if line.split()[column : column + 1] and line.split()[column] in wanted),
    ]
