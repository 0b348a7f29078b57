"""Launchers: executable files that start the interpreter isolated and run the command line.

A launcher depends on nothing that a caller can change: the interpreter is named by its absolute path, PATH, HOME,
PYTHON* variables and the current directory play no part (podman starts `kill` with XDG_RUNTIME_DIR alone), and
`site` is not loaded, so that neither foreign .pth files nor their time are paid for.
"""

from __future__ import annotations

import os
import sys

#: Isolated from the environment and the user's files, without site-packages, utf-8 whatever the locale is
FLAGS = "-ISXutf8"


def program(directories: tuple[str, ...] = (), entry: str = "ocirt.__main__:launch", image: str = "") -> str:
    """The Python text that runs `entry` (module:function); `image` is a file made by image.py, if there is one.

    The directories (by default the one of this package) come last on the path, so that nothing in them takes the
    place of a module of the standard library; the packages that ocirt needs are found there as well.
    """
    paths = directories or (os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))),)
    module, _, function = entry.partition(":")
    lines = ""
    if image:
        from ocirt.cli.image import program as use

        lines = use(paths[0], image)
    return f"import sys\nsys.path += {list(paths)!r}\n{lines}from {module} import {function}\n{function}()\n"


def write(
    path: str,
    *,
    directories: tuple[str, ...] = (),
    entry: str = "ocirt.__main__:launch",
    interpreter: str = "",
    image: str = "",
) -> None:
    """Write an executable launcher of `entry` to `path`, in place of what is there; raises OSError.

    `interpreter` is the running one by default, with all links resolved: a launcher in a virtual environment must
    not depend on the environment's own link, and `python3` may become another version than the packages were
    installed for. The kernel takes no blank in a shebang's path and 255 bytes at most.
    """
    interpreter = interpreter or os.path.realpath(sys.executable)
    shebang = f"#!{interpreter} {FLAGS}"
    if " " in interpreter or len(os.fsencode(shebang)) > 254:
        raise ValueError(f"no shebang can hold the interpreter's path {interpreter!r}")
    new = path + ".new"
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o755)
    with open(fd, "w", encoding="utf-8") as file:
        file.write(f"{shebang}\n{program(directories, entry, image)}")
        os.fchmod(fd, 0o755)
    os.rename(new, path)


if __name__ == "__main__":
    _path, _directory, _entry, _image, _interpreter = sys.argv[1:]
    write(_path, directories=(_directory,), entry=_entry, image=_image, interpreter=_interpreter)
