"""The schemas are sound and complete, and what is generated from them is up to date, lean and quick."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import pytest

from ocirt import spec
from ocirt.features import features
from ocirt.validation import generated
from ocirt.validation.document import Document
from tests.unit.schema_oracle import EVERY, FILES, GENERATOR, ORACLE, ROOT
from tests.unit.validation_samples import docker


def test_generated_files_are_up_to_date() -> None:
    done = subprocess.run(
        [ROOT / "hack" / "generate-validator", "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_check_notices_a_changed_schema(tmp_path: Path) -> None:
    for part in ("schemas", "hack", "ocirt/validation"):
        shutil.copytree(ROOT / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__"))
    generator = tmp_path / "hack" / "generate-validator"
    schema = tmp_path / "schemas" / "resources.json"
    schema.write_text(schema.read_text().replace('"maximum": 100}', '"maximum": 200}'))
    done = subprocess.run([generator, "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.count("is not what hack/generate-validator makes") == 2  # generated.py and bundled.py
    subprocess.run([generator], capture_output=True, check=True)
    assert subprocess.run([generator, "--check"], check=False).returncode == 0


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        ({"type": "string", "format": "date"}, "keywords that the generator doesn't know: ['format']"),
        ({"type": "string", "pattern": "a$"}, "isn't anchored"),
        ({"type": "string", "pattern": "^(a|b)$"}, "isn't known"),
        ({"type": "string", "pattern": "^[ab]*b$"}, "needs backtracking"),
        ({"type": "object", "properties": {"a": {"type": "null"}}, "additionalProperties": {"type": "null"}}, "beside"),
    ],
)
def test_generator_refuses_what_it_does_not_know(tmp_path: Path, schema: Any, why: str) -> None:
    (tmp_path / "x.json").write_text(json.dumps(schema))
    with pytest.raises(SystemExit) as caught:
        GENERATOR.module({"check": "x.json"}, GENERATOR.Schemas(tmp_path))
    assert why in str(caught.value)


@pytest.mark.parametrize("name", FILES)
def test_schemas_are_schemas(name: str) -> None:
    from jsonschema import Draft202012Validator

    Draft202012Validator.check_schema(FILES[name])
    assert FILES[name]["$schema"] == "https://json-schema.org/draft/2020-12/schema"


def test_every_schema_says_what_would_be_right() -> None:
    for where, schema in EVERY:
        if where == "defs.json" or "$ref" in schema:
            continue
        assert schema.get("description"), where
        assert not schema["description"].startswith(("A ", "An ", "The ")), where  # it follows "must be"
        assert not schema["description"].endswith("."), where


def test_every_reference_leads_somewhere() -> None:
    schemas = GENERATOR.Schemas()
    for where, schema in EVERY:
        if "$ref" in schema:
            assert schemas.get(*schemas.resolve(schema["$ref"], where.partition("/")[0])), where


def test_known_keys_are_those_of_the_types() -> None:
    """schemas/ and spec.py know the same keys, and spec.py's Required are required."""
    compared: set[str] = set()

    def compare(hint: Any, schema: dict[str, Any], where: str) -> None:
        *_, schema = document.follow(schema)
        if hasattr(hint, "__required_keys__"):
            ignored = {"commandLine", "username", "freebsd", "solaris", "vm", "windows", "zos"}
            assert set(schema["properties"]) - ignored == set(hint.__annotations__), where
            if hint is not spec.Process:
                assert hint.__required_keys__ <= set(schema.get("required", ())), where
            compared.add(hint.__name__)
            for key, inner in get_type_hints(hint).items():
                compare(inner, schema["properties"][key], f"{where}.{key}")
        elif get_origin(hint) is list:
            compare(get_args(hint)[0], schema["items"], f"{where}[]")
        elif get_origin(hint) is dict and "additionalProperties" in schema:
            compare(get_args(hint)[1], schema["additionalProperties"], f"{where}.*")

    document = Document()
    compare(spec.Config, document.schema("config"), "config")
    compare(spec.State, document.schema("state"), "state")
    assert {"Config", "Process", "Linux", "Resources", "Seccomp", "SyscallArg", "IOPriority", "State"} <= compared


def test_generated_code_imports_nothing() -> None:
    script = (
        "import sys, __future__\n"
        "before = set(sys.modules)\n"
        f"exec(compile(open({generated.__file__!r}).read(), 'generated', 'exec'), {{'__name__': 'generated'}})\n"
        "print(*(set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-I", "-S", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_features_of_this_runtime_fit() -> None:
    assert [e.message for e in ORACLE["features"].iter_errors(features())] == []


def test_a_yes_is_quick() -> None:
    """Well under a millisecond on an idle machine; ten times that here, because nobody knows what else runs."""
    config = docker()
    assert generated.config(config, [])
    best = min(_timed(lambda: generated.config(config, [])) for _ in range(50))
    assert best < 0.005


def _timed(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start
