"""The image: the modules of a command in one file, so that a command opens one file and not ninety.

A launcher that has one reads it, and the modules' code comes from there; what isn't in it is imported as always.

    magic (4 bytes)  length of the head (4, big endian)
    head             marshalled: the code of BOOT, {module: (is it a package, offset, size)}, {extension: its file}
    for each module  marshalled: its code (lean.py), the modules of the image that it imports at its top

A module that is asked for brings what it imports, in the order in which its import statements would, but without the
import system's search, spec and lock for each: that takes longer than running the code. One that is imported so has
`__spec__` None.

It is written for one version of the interpreter; another one doesn't get past the magic number and imports from the
files.
"""

from __future__ import annotations

import marshal
import os
import sys

from ocirt.cli.lean import compiled

#: What no verb of the hot path imports.
_LEFT_OUT = ("ocirt.cni", "ocirt.proxy", "ocirt.cli.explain", "ocirt.validation.explain")

#: What functions of a module import whatever the container is: it comes along as well.
_ALONG = {
    "ocirt.commands.create": ("ocirt.creating",),
    "ocirt.commands.run": ("ocirt.creating", "ocirt.process.start"),
    "ocirt.commands.start": ("ocirt.process.start",),
    "ocirt.commands.delete": ("ocirt.cgroups",),
    "ocirt.creating": ("ocirt.validation", "ocirt.cgroups.choosing", "ocirt.cgroups.making"),
}

#: Modules in C that have a file of their own: where it is, is looked for once, when the image is made.
_EXTENSIONS = ("_json", "_ctypes")

#: Runs in the launcher, whose names ROOT, IMAGE (a descriptor), START, TABLE and EXTENSIONS it uses.
BOOT = '''
class Image:
    """Finds and loads modules of the image; as a finder it stands before those of the files."""

    def find_spec(self, name, path=None, target=None):
        found = TABLE.get(name)
        if found is None:
            return self.extension(name) if name in EXTENSIONS else None
        spec = ModuleSpec(name, self, is_package=found[0])
        file = ROOT + "/" + name.replace(".", "/")
        if found[0]:
            spec.submodule_search_locations = [file]
            file += "/__init__"
        spec.origin = file + ".py"
        spec.has_location = True
        return spec

    def extension(self, name):
        file = EXTENSIONS[name]
        try:
            posix.stat(file)
        except OSError:
            return None  # another build of the same version: it is looked for
        spec = ModuleSpec(name, files.ExtensionFileLoader(name, file), origin=file)
        spec.has_location = True
        return spec

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        run(module.__spec__.name, module.__dict__)

def run(name, names):
    _, offset, size = TABLE[name]
    code, needs = loads(posix.pread(IMAGE, size, START + offset))
    for need in needs:
        if need not in modules:
            load(need)
    exec(code, names)

def load(name):
    parent, _, child = name.rpartition(".")
    if parent and parent not in modules:
        load(parent)
        if name in modules:
            return
    module = modules[name] = Module(name)
    names = module.__dict__
    file = ROOT + "/" + name.replace(".", "/")
    if TABLE[name][0]:
        names["__package__"] = name
        names["__path__"] = [file]
        names["__file__"] = file + "/__init__.py"
    else:
        names["__package__"] = parent
        names["__file__"] = file + ".py"
    try:
        run(name, names)
    except BaseException:
        del modules[name]
        raise
    if parent:
        setattr(modules[parent], child, module)

modules = sys.modules
Module = type(sys)
files = modules["_frozen_importlib_external"]
ModuleSpec = modules["_frozen_importlib"].ModuleSpec
sys.meta_path.insert(0, Image())
'''

#: How much of the file the first read takes: more than the head is.
_HEAD = 32768


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
        "        boot, TABLE, EXTENSIONS = loads(head[8:START])\n"
        "        exec(boot)\n"
        "except OSError:\n"
        "    pass\n"
    )


def build(root: str, path: str) -> None:
    """Write the image of the package below `root` to `path`; raises OSError, SyntaxError."""
    found = dict(_modules(root))
    table: dict[str, tuple[bool, int, int]] = {}
    body = bytearray()
    for name, (package, source) in found.items():
        with open(source, "rb") as text:
            code, imported = compiled(text.read(), source, name)
        needs = [need for need in (*imported, *_ALONG.get(name, ())) if need in found and need != name]
        data = marshal.dumps((code, tuple(needs)))
        table[name] = (package, len(body), len(data))
        body += data
    head = marshal.dumps((compile(BOOT, "<image>", "exec"), table, _extensions()))
    if len(head) + 8 > _HEAD:
        raise ValueError(f"the image's head is {len(head)} bytes: raise _HEAD")
    new = path + ".new"
    with open(new, "wb") as image:
        image.write(magic() + len(head).to_bytes(4, "big") + head + body)
        os.fchmod(image.fileno(), 0o644)
    os.rename(new, path)


def _modules(root: str) -> list[tuple[str, tuple[bool, str]]]:
    """(name, (is it a package, file)) of each module that the image gets."""
    found: list[tuple[str, tuple[bool, str]]] = []
    for directory, _, files in os.walk(f"{root}/ocirt"):
        for file in files:
            source = f"{directory}/{file}"
            name = source[len(root) + 1 : -3].replace("/", ".")
            package = name.endswith(".__init__")
            name = name.removesuffix(".__init__")
            if file.endswith(".py") and not name.startswith(_LEFT_OUT):
                found.append((name, (package, source)))
    return found


def _extensions() -> dict[str, str]:
    """Where this interpreter has the modules in C that a command needs; those that are built in are nowhere."""
    from importlib.util import find_spec

    specs = [(name, find_spec(name)) for name in _EXTENSIONS]
    return {name: spec.origin for name, spec in specs if spec and spec.origin and os.path.isabs(spec.origin)}


if __name__ == "__main__":
    build(sys.argv[1], sys.argv[2])
