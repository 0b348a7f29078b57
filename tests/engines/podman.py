"""podman with one of the runtimes, of root or of an ordinary user, and what tests ask of it."""

from __future__ import annotations

import json
import os
from typing import Any

from tests.engines.images import NAME
from tests.engines.space import Space
from tests.harness.runtime import Result

TERMINAL = ("script", "--quiet", "--return", "--command")

#: A container that does nothing for long.
SLEEP = (NAME, "sleep", "1000")

USER, UID = "octplain", 7345

#: What stands before a command of the user, as after a login.
AS_USER = (
    *("setpriv", "--reuid", str(UID), "--regid", str(UID), "--clear-groups", "--inh-caps=-all", "--"),
    *("env", "-C", f"/var/lib/{USER}", f"HOME=/var/lib/{USER}", f"XDG_RUNTIME_DIR=/run/user/{UID}", f"USER={USER}"),
)


class Podman:
    """podman with one of the runtimes.

    rootless  it is the user's
    limits    it has cgroups that it may write: an ordinary user's only where systemd delegates them
    """

    def __init__(self, space: Space, runtime: str, *, rootless: bool = False) -> None:
        self.space = space
        self.runtime = runtime
        self.rootless = rootless
        self.limits = not rootless or os.path.exists("/sys/fs/cgroup/cgroup.controllers")
        self.made: list[str] = []

    def argv(self, *arguments: str) -> list[str]:
        return [*(AS_USER if self.rootless else ()), "podman", "--runtime", self.runtime, *arguments]

    def __call__(self, *arguments: str, rc: int | None = 0, **options: Any) -> Result:
        __tracebackhide__ = True
        return self.space(*self.argv(*arguments), rc=rc, **options)

    def run(self, *arguments: str, rc: int | None = 0, **options: Any) -> Result:
        """`run --rm --network none`"""
        __tracebackhide__ = True
        return self("run", "--rm", "--network", "none", *arguments, rc=rc, **options)

    def background(self, name: str, *arguments: str) -> str:
        """`run -d`; the full id."""
        __tracebackhide__ = True
        id = self("run", "--detach", "--network", "none", "--name", name, *arguments).out.strip()
        self.made.append(id)
        return id

    def in_terminal(self, *arguments: str, rc: int | None = 0) -> Result:
        """Run with a terminal as stdin, stdout and stderr."""
        __tracebackhide__ = True
        return self.space(*TERMINAL, " ".join(self.argv(*arguments)), "/dev/null", rc=rc)

    def inspect(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self("inspect", name).out)[0]
        return found

    def status(self, name: str) -> str:
        return str(self.inspect(name)["State"]["Status"])
