"""What the cgroup tests share: cgroups of a test, processes in them, and questions about the host."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from ocirt import cgroups
from ocirt.cgroups import host
from ocirt.cgroups.base import Cgroup

UNIFIED = host.unified()
SYSTEMD = os.path.isdir("/run/systemd/system")
MANAGERS = ["cgroupfs", "systemd"] if SYSTEMD else ["cgroupfs"]
#: A program for a process in a cgroup: it has these names, and waits for its turn.
PRELUDE = "import os, sys, time, mmap, signal\nsys.stdin.readline()\n"

Resources = dict[str, Any]


def controllers() -> set[str]:
    """Every controller that a hierarchy of this host has."""
    found: set[str] = set()
    for names, mountpoint in host.hierarchies():
        found.update(names.split(",") if names else Path(mountpoint, "cgroup.controllers").read_text().split())
    return found


class Process:
    """A Python program that was put into a cgroup before its first line of ours."""

    def __init__(self, program: str, *prefix: str) -> None:
        self.popen = subprocess.Popen(
            [*prefix, sys.executable, "-I", "-S", "-c", PRELUDE + program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.pid = self.popen.pid
        self.pending = b""

    def go(self) -> None:
        assert self.popen.stdin
        self.popen.stdin.write("go\n")
        self.popen.stdin.flush()

    def line(self, timeout: float = 30) -> str:
        """The next line that it prints."""
        assert self.popen.stdout
        end = time.monotonic() + timeout
        while b"\n" not in self.pending:
            assert not self.silent(end - time.monotonic()), "the process printed nothing"
            data = os.read(self.popen.stdout.fileno(), 4096)
            assert data, f"the process ended: {self.result()}"
            self.pending += data
        line, _, self.pending = self.pending.partition(b"\n")
        return line.decode()

    def silent(self, seconds: float) -> bool:
        """Does it print nothing for a while?"""
        assert self.popen.stdout
        return b"\n" not in self.pending and not select.select([self.popen.stdout], [], [], max(seconds, 0))[0]

    def result(self, timeout: float = 60) -> tuple[int, str, str]:
        """(exit status or -signal, output, errors)."""
        out, err = self.popen.communicate(timeout=timeout)
        return self.popen.returncode, out.strip(), err.strip()

    def cpu(self) -> float:
        """Seconds of processor time that it used so far."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def end(self) -> None:
        if self.popen.poll() is None:
            self.popen.send_signal(signal.SIGKILL)
        self.popen.communicate(timeout=30)


class Lab:
    """The cgroups and processes of one test."""

    def __init__(self, name: str, manager: str) -> None:
        self.name = name
        self.manager = manager
        self.made: list[Cgroup] = []
        self.processes: list[Process] = []

    def path(self, below: str = "") -> str:
        """A cgroupsPath of this test."""
        if self.manager == "systemd":
            return f"system.slice:{self.name}:{below.strip('/').replace('/', '-') or 'c'}"
        return f"/{self.name}{below}"

    def choose(self, below: str = "", resources: Resources | None = None, **options: Any) -> Cgroup:
        linux = {"cgroupsPath": options.pop("path", None) or self.path(below), "resources": resources or {}}
        arguments: dict[str, Any] = {"manager": self.manager, "rootless": False, "annotations": {}, **options}
        return cgroups.choose(linux, self.name, **arguments)

    def prepared(self, below: str = "", resources: Resources | None = None, **options: Any) -> Cgroup:
        """A cgroup whose directories are there (systemd: whose name is free)."""
        cgroup = self.choose(below, resources, **options)
        descriptor = cgroup.prepare()
        if descriptor >= 0:
            os.close(descriptor)
        self.made.append(cgroup)
        return cgroup

    def process(self, program: str, *prefix: str) -> Process:
        made = Process(program, *prefix)
        self.processes.append(made)
        return made

    def limited(self, resources: Resources, program: str, below: str = "", *prefix: str) -> tuple[Cgroup, Process]:
        """A process with limits, as create makes it, that has been told to go."""
        cgroup = self.prepared(below, resources)
        process = self.process(program, *prefix)
        cgroup.join(process.pid)
        cgroup.apply(resources)
        process.go()
        return cgroup, process

    def idle(self, resources: Resources | None = None, below: str = "") -> tuple[Cgroup, Process]:
        """A process with limits that does nothing."""
        return self.limited(resources or {}, "print('ready', flush=True)\ntime.sleep(600)\n", below)

    def close(self) -> None:
        for cgroup in reversed(self.made):
            cgroup.thaw()
            cgroup.kill()
        for process in self.processes:
            process.end()
        for cgroup in reversed(self.made):
            cgroup.remove()


def read(cgroup: Cgroup, controller: str, name: str) -> str:
    """A file of the cgroup."""
    return Path(cgroup.path(controller), name).read_text().strip()
