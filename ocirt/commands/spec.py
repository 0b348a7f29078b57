"""ocirt spec"""

from __future__ import annotations

import os

from ocirt.commands import Options, indented
from ocirt.errors import AlreadyExists, doing


def run(options: Options) -> int:
    """Write a config.json to start from."""
    from ocirt.validation import template

    path = options.file or os.path.join(options.bundle, "config.json")
    text = indented(template.default(rootless=options.rootless)) + "\n"
    with doing("write a configuration"):
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        except FileExistsError:
            raise AlreadyExists(f"File {os.path.basename(path)} exists. Remove it first", 17) from None
        with open(fd, "w", encoding="utf-8") as file:
            file.write(text)
    return 0
