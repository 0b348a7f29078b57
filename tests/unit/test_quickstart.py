"""The quick start of the interpreter: less is loaded, and everything else is as it was."""

from __future__ import annotations

import encodings.aliases
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ocirt.cli import launcher, quickstart

INTERPRETER = os.path.realpath(sys.executable)


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The quick start of the interpreter that runs the tests."""
    directory = tmp_path_factory.mktemp("quick") / "start"
    made = quickstart.make(str(directory), INTERPRETER)
    assert made == f"{directory}/bin/python3"
    return made


def output(interpreter: str, text: str, **options: object) -> str:
    """What it prints."""
    argv = [interpreter, launcher.FLAGS, "-c", text]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, done.stderr
    return str(done.stdout)


def test_the_start_loads_less(quick: str) -> None:
    text = "import sys; print(*sorted(name for name in sys.modules if name.startswith('encodings')))"
    assert output(quick, text).split() == ["encodings"]
    assert "encodings.aliases" in output(INTERPRETER, text).split()


def test_every_codec_is_there(quick: str) -> None:
    """By each of its names, also as the first one that is asked for."""
    names = sorted({*encodings.aliases.aliases, *encodings.aliases.aliases.values(), "idna", "undefined", "none-such"})
    text = f"""
import codecs
for name in {names!r}:
    try:
        found = codecs.lookup(name)
        print(name, found.name, found.encode.__module__, found.streamreader and found.streamreader.__mro__[1])
    except LookupError as error:
        print(error)
"""
    here, there = output(INTERPRETER, text).splitlines(), output(quick, text).splitlines()
    utf_8 = {"utf8", "utf_8"}  # ours
    assert [line for line in here if line.split()[0] not in utf_8] == [
        line for line in there if line.split()[0] not in utf_8
    ]
    for name in ("latin_1x", "cp1252", "idna", "utf-16"):
        text = f"import codecs\ntry: print(codecs.lookup({name!r}).name)\nexcept LookupError as error: print(error)"
        assert output(INTERPRETER, text) == output(quick, text)


def test_utf_8_is_the_standard_one(quick: str, tmp_path: Path) -> None:
    """In streams, in files, in pieces, with each way of handling errors."""
    text = f"""
import codecs, io, sys
data = "é€𝄞".encode("utf-8")
print(sys.stdout.encoding, codecs.getincrementaldecoder("utf-8")().decode(data[:3]), data)
print([codecs.getincrementalencoder("utf-8")("surrogateescape").encode("\\udcff")])
print(codecs.getreader("utf-8")(io.BytesIO(data)).read(), codecs.lookup("utf-8").decode(data))
with open({str(tmp_path / "file")!r}, "w", encoding="utf-8") as file: file.write("é" * 9000)
print(len(open({str(tmp_path / "file")!r}, encoding="UTF8").read()))
try: b"\\xff".decode("utf-8")
except UnicodeDecodeError as error: print(error)
"""
    assert output(quick, text) == output(INTERPRETER, text)


def test_what_others_use_of_the_package(quick: str) -> None:
    text = "import encodings; print(encodings.normalize_encoding('a b'), encodings.CodecRegistryError.__mro__[1])"
    assert output(quick, text) == output(INTERPRETER, text)
    text = "import encodings\ntry: encodings.nothing\nexcept AttributeError as error: print(error)"
    assert output(quick, text) == output(INTERPRETER, text)
    assert output(quick, "import json, re, subprocess, tempfile; print(1)") == "1\n"


def test_nothing_of_the_caller_counts(quick: str, tmp_path: Path) -> None:
    """The link is as isolated as the interpreter: neither variables nor the current directory are looked at."""
    (tmp_path / "codecs.py").write_text("raise SystemExit('poisoned')")
    (tmp_path / "encodings").mkdir()
    (tmp_path / "encodings/__init__.py").write_text("raise SystemExit('poisoned')")
    environment = {"PYTHONPATH": str(tmp_path), "PYTHONHOME": str(tmp_path), "PYTHONIOENCODING": "latin-1"}
    assert output(quick, "import json; print('fine')", cwd=tmp_path, env=environment) == "fine\n"


def test_an_interpreter_that_cannot_is_used_as_it_is(tmp_path: Path) -> None:
    assert quickstart.make(str(tmp_path / "start"), "/bin/false") == "/bin/false"


@pytest.mark.parametrize("started", ["INTERPRETER", "quick"])
def test_no_codec_is_loaded_once_imports_are_sealed(quick: str, started: str) -> None:
    """By then its file would be one of the container's root, and run as root of the host."""
    text = f"""
import sys
sys.path.append({str(Path(__file__).resolve().parents[2])!r})
from ocirt.process.init import seal_imports
seal_imports()
opened = []
sys.addaudithook(lambda event, given: event == "open" and opened.append(given[0]))
for name in ("cp1252", "idna", "none_such", "utf_8"):
    try:
        print(len("a".encode(name)))
    except LookupError as error:
        print(error)
print(opened)
"""
    unknown = [f"unknown encoding: {name}" for name in ("cp1252", "idna", "none_such")]
    found = output(quick if started == "quick" else INTERPRETER, text).splitlines()
    assert found == [*unknown, "1", "[]"]


def test_the_test_above_would_see_it(quick: str) -> None:
    text = """
import sys
opened = []
sys.addaudithook(lambda event, given: event == "open" and opened.append(given[0]))
"a".encode("cp1252")
print(*opened)
"""
    assert "/encodings/" in output(quick, text)
