"""How a process enters the cgroups of v1 hierarchies by itself, without the kernel waiting for anybody.

Written from outside, a pid in `cgroup.procs` takes a lock that all forks and exits of the machine share, and the
kernel waits for a grace period of RCU: 7 to 15 milliseconds, one caller after the other. A process that writes 0 to
`tasks` moves only itself, one thread, and needs no lock (cgroup_procs_write_start in the kernel): ten microseconds. So
the runtime opens the files, which decides whether they may be written, and the new process, which has one thread,
writes. The cgroup2 tree of a hybrid host has no such file: its cgroup is entered by clone3 (CLONE_INTO_CGROUP).
"""

from __future__ import annotations

import posix

from ocirt.cgroups import files

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


class Entrances:
    """The opened files of the hierarchies; made by the runtime, used by the process.

    late     the directory that is entered last (`charge`): that of the memory controller, so that what set-up takes
             isn't charged to the container; "" if all are entered at once
    unified  the cgroup2 directory of a hybrid host, "" if there is none
    hint     says for a directory why it may not take a process
    """

    __slots__ = ("_files", "_hint", "_late", "_unified")

    def __init__(
        self,
        directories: Iterable[str],
        *,
        hint: Callable[[str], str],
        late: str = "",
        unified: tuple[str, str] = ("", ""),
    ) -> None:
        self._hint = hint
        self._late = late
        self._unified = unified
        self._files: dict[str, int] = {}
        for directory in directories:
            try:
                self._files[directory] = posix.open(directory + "/tasks", posix.O_WRONLY | posix.O_CLOEXEC)
            except OSError as error:
                self.close()
                raise files.failed(directory + "/tasks", "0", error, hint(directory)) from error

    def descriptors(self) -> list[int]:
        """What the new process must keep open until it is in."""
        return list(self._files.values())

    def enter(self) -> None:
        """Put this process in, everywhere but in the late one; raises Error."""
        for directory in [directory for directory in self._files if directory != self._late]:
            self._write(directory)

    def charge(self) -> None:
        """Put this process in where it isn't yet."""
        for directory in list(self._files):
            self._write(directory)

    def _write(self, directory: str) -> None:
        fd = self._files.pop(directory)
        try:
            posix.write(fd, b"0")
        except OSError as error:
            raise files.failed(directory + "/tasks", "0", error, self._hint(directory)) from error
        finally:
            posix.close(fd)

    def follow(self, pid: int) -> None:
        """Put the process into the cgroup2 directory, from outside, unless clone3 could."""
        mountpoint, path = self._unified
        if path and files.read_or(f"/proc/{pid}/cgroup").rpartition("\n0::")[2] != path:
            files.write(f"{mountpoint}{path}/cgroup.procs", str(pid))

    def close(self) -> None:
        """Close the files, in the runtime: the process has its own."""
        for fd in self._files.values():
            posix.close(fd)
        self._files = {}
