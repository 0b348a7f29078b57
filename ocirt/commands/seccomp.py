"""ocirt seccomp"""

from __future__ import annotations

import os
import sys

from ocirt import bundle
from ocirt.commands import Options, indented, runtime, write
from ocirt.errors import Error, doing, from_oserror

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def run(options: Options) -> int:
    """Show a bundle's filter, or find the smallest profile for a program."""
    if options.action == "dump":
        return show(options)
    if options.action == "record":
        return record(options)
    raise Error(f'seccomp {options.action}: no such action (use "dump" or "record")')


def show(options: Options) -> int:
    """Print the filter of a bundle."""
    from ocirt.identity.seccomp.dump import dump

    if options.arguments:
        raise Error(f"seccomp dump {options.target}: one bundle only, not {' '.join(options.arguments)}")
    config = bundle.load(options.target or options.bundle, options.config).config
    profile: Any = (config.get("linux") or {}).get("seccomp")
    write(dump(profile, annotations=config.get("annotations"), bpf=options.bpf))
    return 0


def record(options: Options) -> int:
    """Run a bundle's container, watched, and write the profile; its process's exit status."""
    import shutil
    import tempfile

    from ocirt import foreground
    from ocirt.identity.seccomp.record import Watcher, smallest_profile, watched_profile
    from ocirt.process import seal

    if not seal.is_sealed():
        # create would find that the watched filter wants this, and start the command over with a watcher already there
        seal.restart(tuple(sys.orig_argv[1:]))
    config: Any = bundle.load(options.bundle, options.config).config
    if not config.get("process"):
        raise Error("config.json has no process: there is nothing to record")
    if options.target:
        config["process"]["args"] = [options.target, *options.arguments]
    output = open_output(options.output)
    directory = tempfile.mkdtemp(prefix="ocirt-seccomp-")
    try:
        agent = f"{directory}/agent"
        config.setdefault("linux", {})["seccomp"] = watched_profile(agent)
        watched = f"{directory}/config.json"
        with open(watched, "wb") as file:
            file.write(bundle.dump_json(config))
        watcher = Watcher(agent)
        try:
            id = options.id or os.path.basename(directory)
            status = foreground.run(runtime(options), id, options.bundle, config=watched)
            profile = smallest_profile(watcher.calls())
        finally:
            watcher.end()
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    text = indented(profile) + "\n"
    if output < 0:
        write(text)
    else:
        with doing(f"write {options.output}"):
            os.truncate(output, 0)
            os.write(output, text.encode())
    return status


def open_output(path: str) -> int:
    """Open the file before anything runs; -1 for stdout. What is in it stays until there is something to write."""
    if path == "-":
        return -1
    try:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise from_oserror(error, path) from None
