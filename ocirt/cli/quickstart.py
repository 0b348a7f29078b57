"""A start of the interpreter that loads less of the standard library: 0.89 of the CPU time of a bare one.

Before it runs anything, an interpreter imports `encodings` with its table of aliases and `encodings.utf_8`: three files
that it looks for in two long directories. Beside a link to it stands a `._pth` file (docs.python.org: Finding modules),
which is its whole search path: first a directory in which an `encodings` is that knows UTF-8 and becomes the standard
library's when it is asked for anything else, then what the interpreter has by itself.

    DIRECTORY/bin/python3        link to the interpreter
    DIRECTORY/bin/python3._pth   the search path, its first line seen from there
    DIRECTORY/lib/encodings      the package

Made by hack/install, which keeps to the interpreter itself where this doesn't work.
"""

from __future__ import annotations

import os
import subprocess
import sys

#: The package; STANDARD is the directory of the standard library's.
ENCODINGS = '''"""UTF-8, all that a start asks for; anything else comes from the standard library's package."""

import codecs

STANDARD = {standard!r}
__path__.append(STANDARD)


class IncrementalEncoder(codecs.IncrementalEncoder):
    def encode(self, input, final=False):
        return codecs.utf_8_encode(input, self.errors)[0]


class IncrementalDecoder(codecs.BufferedIncrementalDecoder):
    _buffer_decode = codecs.utf_8_decode


class StreamWriter(codecs.StreamWriter):
    encode = codecs.utf_8_encode


class StreamReader(codecs.StreamReader):
    decode = codecs.utf_8_decode


def decode(input, errors="strict"):
    return codecs.utf_8_decode(input, errors, True)


UTF_8 = codecs.CodecInfo(
    name="utf-8",
    encode=codecs.utf_8_encode,
    decode=decode,
    incrementalencoder=IncrementalEncoder,
    incrementaldecoder=IncrementalDecoder,
    streamreader=StreamReader,
    streamwriter=StreamWriter,
)


def first(name):
    """The codec search function, until another codec is wanted."""
    if name in ("utf_8", "utf-8", "utf8"):
        return UTF_8
    if "__getattr__" in globals():
        become_standard()
        return search_function(name)
    return None


def become_standard():
    """Run the standard package in this one's place; it registers a search function of its own."""
    import sys

    del globals()["__getattr__"]
    files = sys.modules["_frozen_importlib_external"]
    spec = files.spec_from_file_location(__name__, STANDARD + "/__init__.py", submodule_search_locations=[STANDARD])
    spec.loader.exec_module(sys.modules[__name__])


def __getattr__(name):
    """Something else than the search function is wanted."""
    if name.startswith("__"):
        raise AttributeError(name)
    become_standard()
    return getattr(__import__(__name__), name)


codecs.register(first)
'''

#: What must be the same in the quick start: the encoding of each stream and of names, codecs, the rest of the path.
_CHECK = """
import sys, codecs
print(sys.path[-{length}:], sys.getfilesystemencoding(), sys.stdin.encoding, sys.stdout.encoding)
print(sys.flags, sys.version)
print("é".encode("latin-1"), "é".encode("utf-8"), b"a".decode("utf_8"), codecs.lookup("utf-8").name)
import encodings, encodings.idna, encodings.aliases, os, json, re
print(encodings.normalize_encoding("a b"), "ü.de".encode("idna"), codecs.lookup("u8").name, os.fsencode("é"))
"""


def make(directory: str, interpreter: str) -> str:
    """Make the quick start of an interpreter; gives its path, or the interpreter's own if it doesn't work.

    interpreter  its path, with all links resolved
    """
    link, path = f"{directory}/bin/python3", f"{directory}/lib"
    own = _output(interpreter, "import sys; print('\\n'.join(sys.path))").split("\n")
    standard = _output(interpreter, "import encodings; print(encodings.__path__[0])")
    for place in (f"{directory}/bin", f"{path}/encodings"):
        os.makedirs(place, exist_ok=True)
    if os.path.lexists(link):
        os.unlink(link)
    os.symlink(interpreter, link)
    with open(f"{path}/encodings/__init__.py", "w", encoding="utf-8") as package:
        package.write(ENCODINGS.format(standard=standard))
    with open(f"{link}._pth", "w", encoding="utf-8") as paths:
        paths.write("\n".join(["../lib", *own]) + "\n")
    subprocess.run([link, "-I", "-S", "-m", "compileall", "-q", path], check=False)
    check = _CHECK.format(length=len(own))
    wanted = _output(interpreter, check)
    return link if wanted and wanted == _output(link, check) else interpreter


def _output(interpreter: str, text: str) -> str:
    """What it prints, "" if it fails."""
    from ocirt.cli.launcher import FLAGS

    done = subprocess.run([interpreter, FLAGS, "-c", text], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


if __name__ == "__main__":
    print(make(sys.argv[1], os.path.realpath(sys.executable)))
