"""The image of an installed ocirt: the same modules as from the files, without what only costs time."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import CodeType

import pytest

from ocirt.cli import image, launcher, lean

TOP = Path(__file__).resolve().parents[2]
#: What a command prints about each module of ocirt that it has loaded, and whether the import system did it
REPORT = """
import json, sys
names = {}
for name, module in sorted(sys.modules.items()):
    if name.split(".")[0] == "ocirt":
        names[name] = [module.__file__, module.__package__, hasattr(module, "__path__"), module.__spec__ is None]
print(json.dumps(names))
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image of this checkout."""
    path = tmp_path_factory.mktemp("image") / "ocirt.image"
    image.build(str(TOP), str(path))
    return path


def run(text: str, *args: str) -> str:
    """What the interpreter prints that runs `text` as a launcher."""
    argv = [sys.executable, launcher.FLAGS, "-c", text, *args]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def start(path: Path | None) -> str:
    """A launcher's text up to its import of the entry."""
    text = launcher.program((str(TOP), sysconfig.get_path("purelib")), image=str(path or ""))
    return text.partition("from ocirt")[0]


@pytest.mark.parametrize("module", ["ocirt.commands.state", "ocirt.creating", "ocirt.exec", "ocirt.check"])
def test_the_modules_are_those_of_the_files(made: Path, module: str) -> None:
    """In name, place and number; nearly all come without the import system's search."""
    text = f"import ocirt.__main__, {module}\n{REPORT}"
    with_image = json.loads(run(start(made) + text))
    without = json.loads(run(start(None) + text))
    assert {name: with_image[name][:3] for name in without} == {name: found[:3] for name, found in without.items()}
    assert module in image._ALONG or set(with_image) == set(without)
    assert not any(found[3] for found in without.values())
    searched = [name for name, found in with_image.items() if not found[3]]
    assert len(searched) <= 4, searched  # ocirt, __main__, the package of the module, the module


def test_every_module_of_the_image_can_be_the_first(made: Path) -> None:
    """Whatever is imported first: what it needs comes along in an order that works."""
    names = [name for name, _ in image._modules(str(TOP))]
    assert len(names) > 100
    text = """
first = set(sys.modules)
for name in sys.argv[1:]:
    for loaded in set(sys.modules) - first:
        if loaded.startswith("ocirt"):
            del sys.modules[loaded]
    __import__(name)
print(len(sys.argv) - 1)
"""
    assert int(run(start(made) + text, *names)) == len(names)


def test_a_module_that_fails_can_be_imported_again(made: Path) -> None:
    """A module whose import failed isn't left half-made for the next one to find."""
    text = """
sys.modules["_socket"] = None
for attempt in range(2):
    try:
        import ocirt.process.sync
    except ImportError as error:
        print(error.name)
print("ocirt.process.sync" in sys.modules)
del sys.modules["_socket"]
import ocirt.process.sync
print(ocirt.process.sync.Gone.__name__)
"""
    assert run(start(made) + text).split() == ["_socket", "_socket", "False", "Gone"]


def test_another_interpreters_image_is_left_alone(made: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.image"
    other.write_bytes(b"none" + made.read_bytes()[4:])
    assert "OK" in run(start(other) + "import ocirt.errors\nprint('OK', ocirt.errors.__spec__.name)")
    assert "OK" in run(start(tmp_path / "missing") + "import ocirt.errors\nprint('OK')")


def test_extensions_are_found_without_a_search(made: Path, tmp_path: Path) -> None:
    """And by one, when the file isn't where it was."""
    text = "import _json\nprint(_json.__file__, len([k for k in sys.path_importer_cache if 'dynload' in k]))"
    text = "sys.path_importer_cache.clear()\n" + text
    if "_json" in sys.builtin_module_names:
        pytest.skip("this interpreter has _json built in")
    file, searched = run(start(made) + text).split()
    assert searched == "0"
    moved = run(start(made) + "EXTENSIONS['_json'] = '/nonexistent'\n" + text).split()
    assert moved == [file, "1"]


def test_what_comes_along_is_imported_in_a_function() -> None:
    """A row whose import has gone would load a module for nothing."""
    found = dict(image._modules(str(TOP)))
    sources = "\n".join(Path(file).read_text() for _, file in found.values())
    for module, along in image._ALONG.items():
        assert module in found
        for name in along:
            assert name in found
            parent, _, child = name.rpartition(".")
            pattern = rf"^\s+(from {re.escape(name)} import|from {re.escape(parent)} import .*\b{child}\b)"
            assert re.search(pattern, sources, re.MULTILINE), name


def flattened(code: CodeType) -> list[CodeType]:
    """The code and all functions in it."""
    return [code, *(inner for const in code.co_consts if isinstance(const, CodeType) for inner in flattened(const))]


SOURCE = '''"""Text.

More.
"""
from __future__ import annotations
import posix
from posix import path
TYPE_CHECKING = False
if TYPE_CHECKING:
    import typing
class C:
    """Doc."""
    x: int
    y: int = 3
class D:
    """Only this."""
def step(plan: Plan, *more: typing.Any) -> dict[str, int]:
    """do it

    Why.
    """
    found: list[int] = [1]
    if TYPE_CHECKING:
        import os
    else:
        found.append(2)
    return found
'''


def test_what_lean_leaves_out() -> None:
    code, needs = lean.compiled(SOURCE.replace("from posix import path", "import ocirt.log"), "x.py")
    names: dict[str, object] = {"__name__": "x"}
    exec(code, names)
    assert needs == ("__future__", "__future__.annotations", "posix", "ocirt.log")
    step, kept = names["step"], names["C"]
    assert step("plan") == [1, 2]  # type: ignore[operator]
    assert step.__doc__ == "do it"
    assert step.__annotations__ == {}
    assert step.__code__.co_firstlineno == 17  # type: ignore[attr-defined]
    assert kept.y == 3  # type: ignore[attr-defined]
    assert kept.__doc__ is None
    assert "typing" not in {name for inner in flattened(code) for name in inner.co_names}


def test_rules_keep_the_section_that_they_name() -> None:
    code, _ = lean.compiled(SOURCE, "x.py", "ocirt.validation.rules.x")
    assert any("Why." in str(const) for inner in flattened(code) for const in inner.co_consts)


def test_only_annotations_come_from_the_future() -> None:
    """Another feature would be lost with its import."""
    for name, (_, file) in image._modules(str(TOP)):
        for node in ast.walk(ast.parse(Path(file).read_text())):
            if isinstance(node, ast.ImportFrom) and node.module == "__future__":
                assert [alias.name for alias in node.names] == ["annotations"], name
