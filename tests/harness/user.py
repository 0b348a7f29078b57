"""An ordinary user of the machine, made for a test and taken away after it."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class User:
    """uid, gid, and the subordinate ids: (first, count), None if there are none."""

    def __init__(self, name: str) -> None:
        entry = pwd.getpwnam(name)
        self.name = name
        self.uid, self.gid = entry.pw_uid, entry.pw_gid
        self.subuids = subordinate("/etc/subuid", name)

    def prefix(self, **environment: str | Path) -> list[str]:
        """What stands before a command to run it as this user, with no more in its environment than is given."""
        variables = [f"{key}={value}" for key, value in {"PATH": os.environ["PATH"], **environment}.items()]
        ids = [f"--reuid={self.uid}", f"--regid={self.gid}", "--init-groups", "--inh-caps=-all"]
        return [shutil.which("setpriv") or "setpriv", *ids, shutil.which("env") or "env", "-i", *variables]

    def own(self, *paths: Path) -> None:
        """Give files and directories, with all that is in them, to this user."""
        for path in paths:
            for found in (path, *path.rglob("*")):
                os.chown(found, self.uid, self.gid, follow_symlinks=False)


def subordinate(file: str, name: str) -> tuple[int, int] | None:
    for line in Path(file).read_text().splitlines() if os.path.exists(file) else ():
        fields = line.split(":")
        if fields[0] == name:
            return int(fields[1]), int(fields[2])
    return None


@contextmanager
def user(name: str, *, subordinate_ids: bool) -> Iterator[User]:
    """A user of this name with subordinate ids (subuid(5), subgid(5)) or without."""
    command = ["useradd", "--no-create-home", "--home-dir", "/nonexistent", "--shell", "/bin/sh"]
    if not subordinate_ids:
        command += ["-K", "SUB_UID_COUNT=0", "-K", "SUB_GID_COUNT=0"]
    subprocess.run([*command, name], check=True, capture_output=True, timeout=30)
    try:
        yield User(name)
    finally:
        subprocess.run(["userdel", name], check=True, capture_output=True, timeout=30)
