"""ocirt under an audit hook: what its processes do once they are on their way into a container.

/usr/bin/python3 -I -S audited.py REPORT ARGUMENT…   runs `ocirt ARGUMENT…`; REPORT gets a line for each event

The hook is inherited by the clone. What it sees goes to memory that all the processes share, because init closes
every descriptor that it was not told of. Events of the command's own process are not reported.
"""

import mmap
import os
import sys

WATCHED = ("import", "open", "compile", "exec", "marshal.load", "marshal.loads", "ctypes.dlopen", "ctypes.cdata",
           "subprocess.Popen", "os.exec", "os.posix_spawn", "os.listdir", "os.scandir", "socket.getaddrinfo",
           "socket.gethostbyname", "pwd.getpwnam", "object.__getattr__")  # fmt: skip
SIZE = 1 << 20


def main() -> None:
    report, arguments = sys.argv[1], sys.argv[2:]
    checkout = os.path.realpath(__file__).rsplit("/", 3)[0]
    shared = mmap.mmap(-1, SIZE)
    child = os.fork()
    if child == 0:
        watch(shared)
        packages = f"{checkout}/.venv/lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"
        sys.path += [checkout, packages]
        sys.argv = [f"{checkout}/hack/ocirt", *arguments]
        from ocirt.__main__ import launch

        launch()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    length = int.from_bytes(shared[:4], "little")
    with open(report, "wb") as file:
        file.write(shared[4 : 4 + length])
    sys.exit(status if status >= 0 else 128 - status)


def watch(shared: mmap.mmap) -> None:
    """Report the watched events of every other process than this one."""
    own, getpid, watched = os.getpid(), os.getpid, frozenset(WATCHED)

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event not in watched or getpid() == own:
            return
        name = arguments[0] if arguments else ""
        if isinstance(name, bytes):
            name = name.decode("ascii", "replace")
        line = f"{event} {name}\n".encode("utf-8", "replace")
        used = int.from_bytes(shared[:4], "little")
        if 4 + used + len(line) < SIZE:
            shared[4 + used : 4 + used + len(line)] = line
            shared[:4] = (used + len(line)).to_bytes(4, "little")

    sys.addaudithook(hook)


if __name__ == "__main__":
    main()
