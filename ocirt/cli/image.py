"""The image: the modules of a command in one file, so that a command opens one file and not ninety.

A launcher that has one reads it, and the modules' code comes from there; what isn't
in it is imported as always. Measured on `run` in interleaved pairs: 0.87 of the CPU time
of modules from .pyc files, and 0.95 on `state`.

    magic (4 bytes)  length of the head (4, big endian)
    head             marshalled: the code of BOOT, {module: (is it a package, offset, size)}
    marshalled code of each module

It is written for one version of the interpreter; another one doesn't get past the
magic number and imports from the files.
"""

from __future__ import annotations

import marshal
import os
import sys

#: What no verb of the hot path imports.
_LEFT_OUT = ("ocirt.cni", "ocirt.proxy", "ocirt.cli.explain", "ocirt.validation.explain")

#: Runs in the launcher, whose names ROOT, IMAGE (a descriptor), START and TABLE it uses.
BOOT = '''
class Image:
    """Finds and loads modules of the image; as a finder it stands before those of the files."""

    def find_spec(self, name, path=None, target=None):
        found = TABLE.get(name)
        if found is None:
            return None
        spec = ModuleSpec(name, self, is_package=found[0])
        file = ROOT + "/" + name.replace(".", "/")
        if found[0]:
            spec.submodule_search_locations = [file]
            file += "/__init__"
        spec.origin = file + ".py"
        spec.has_location = True
        return spec

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        _, offset, size = TABLE[module.__spec__.name]
        exec(loads(posix.pread(IMAGE, size, START + offset)), module.__dict__)

ModuleSpec = sys.modules["_frozen_importlib"].ModuleSpec
sys.meta_path.insert(0, Image())
'''

#: How much of the file the first read takes: more than the head is.
_HEAD = 65536


def magic() -> bytes:
    """What tells the code of one version of the interpreter from another's."""
    return sys.modules["_frozen_importlib_external"].MAGIC_NUMBER  # type: ignore[no-any-return]


def program(root: str, path: str) -> str:
    """The lines of a launcher that use the image at `path` of the package in the directory `root`."""
    return (
        "import posix\n"
        "from marshal import loads\n"
        f"ROOT = {root!r}\n"
        "try:\n"
        f"    IMAGE = posix.open({path!r}, posix.O_RDONLY | posix.O_CLOEXEC)\n"
        f"    head = posix.pread(IMAGE, {_HEAD}, 0)\n"
        "    if head[:4] == sys.modules['_frozen_importlib_external'].MAGIC_NUMBER:\n"
        "        START = 8 + int.from_bytes(head[4:8], 'big')\n"
        "        boot, TABLE = loads(head[8:START])\n"
        "        exec(boot)\n"
        "except OSError:\n"
        "    pass\n"
    )


def build(root: str, path: str) -> None:
    """Write the image of the package below `root` to `path`; raises OSError, SyntaxError."""
    table: dict[str, tuple[bool, int, int]] = {}
    body = bytearray()
    for directory, _, files in os.walk(f"{root}/ocirt"):
        for file in files:
            source = f"{directory}/{file}"
            name = source[len(root) + 1 : -3].replace("/", ".")
            package = name.endswith(".__init__")
            name = name.removesuffix(".__init__")
            if not file.endswith(".py") or name.startswith(_LEFT_OUT):
                continue
            with open(source, "rb") as text:
                code = marshal.dumps(compile(text.read(), source, "exec", dont_inherit=True))
            table[name] = (package, len(body), len(code))
            body += code
    head = marshal.dumps((compile(BOOT, "<image>", "exec"), table))
    if len(head) + 8 > _HEAD:
        raise ValueError(f"the image's head is {len(head)} bytes: raise _HEAD")
    new = path + ".new"
    with open(new, "wb") as image:
        image.write(magic() + len(head).to_bytes(4, "big") + head + body)
        os.fchmod(image.fileno(), 0o644)
    os.rename(new, path)


if __name__ == "__main__":
    build(sys.argv[1], sys.argv[2])
