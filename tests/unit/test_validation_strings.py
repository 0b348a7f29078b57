"""What no string and no structure of a configuration may be, known to the specification or not."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ocirt.errors import InvalidConfig
from ocirt.validation import check, problems
from ocirt.validation.strings import MAX_DEPTH
from tests.unit.validation_samples import FULL, MINIMAL, clone, set_paths


def found(config: Any) -> dict[str, str]:
    """{path: message} of the problems of a copy of `config`."""
    return {p.path: str(p) for p in problems(clone(config) if "x" not in config else config)}


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize(
    ("changes", "path", "text"),
    [
        ({"process.args[1]": "a\0b"}, "process.args[1]", "NUL"),
        ({"process.env[0]": "A=\0"}, "process.env[0]", "NUL"),
        ({"annotations.x": "\ud800"}, "annotations.x", "surrogate"),
        ({"hostname": "a\udfff"}, "hostname", "surrogate"),
        ({"x": {"y": ["\0"]}}, "x.y[0]", "NUL"),
        ({"x": {"a\0": 1}}, 'x["a\\u0000"]', "NUL"),
        ({"x": {"\udc80": 1}}, 'x["\\udc80"]', "surrogate"),
    ],
)
def test_bad_strings_anywhere(changes: dict[str, object], path: str, text: str, quick: bool) -> None:
    config = set_paths(FULL, changes)
    raw = json.dumps(config).encode() if quick else None
    with pytest.raises(InvalidConfig) as caught:
        check(config, raw)
    assert f"{path}: " in str(caught.value)
    assert text in str(caught.value)


def test_good_strings_that_look_bad() -> None:
    for text in ("\U0001f600", "\\u0000", "\\ud800", "é\n\t", "\ue000"):
        config = set_paths(MINIMAL, {"annotations": {"x": text}})
        for raw in (None, json.dumps(config).encode(), json.dumps(config, ensure_ascii=False).encode()):
            check(config, raw)


@settings(deadline=None)
@given(st.text(st.characters() | st.sampled_from("\0\ud800\udfff\\u0d8")))
def test_strings_get_one_verdict_with_and_without_the_text(text: str) -> None:
    config = set_paths(MINIMAL, {"annotations": {"x": text}})
    verdicts = set()
    for raw in (None, json.dumps(config).encode()):
        try:
            check(config, raw)
            verdicts.add(True)
        except InvalidConfig:
            verdicts.add(False)
    assert verdicts == {"\0" not in text and not any("\ud800" <= c <= "\udfff" for c in text)}


def nested(depth: int, kind: str) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value] if kind == "array" else {"a": value}
    return value


@pytest.mark.parametrize("kind", ["array", "object"])
@pytest.mark.parametrize("quick", [False, True])
def test_nesting(kind: str, quick: bool) -> None:
    for depth, good in ((MAX_DEPTH - 1, True), (MAX_DEPTH, False), (900, False)):
        config = {**MINIMAL, "x": nested(depth, kind)}
        raw = json.dumps(config).encode() if quick else None
        if good:
            check(config, raw)  # type: ignore[arg-type]
            continue
        with pytest.raises(InvalidConfig, match="is nested more than 64 levels deep") as caught:
            check(config, raw)  # type: ignore[arg-type]
        assert "invalid config.json: x" in str(caught.value)


@pytest.mark.parametrize("value", [(), b"x", {1}, float("nan"), float("inf"), object()])
def test_python_values_that_json_does_not_have(value: object) -> None:
    said = found({**MINIMAL, "x": {"y": [value]}})
    assert list(said) == ["x.y[0]"]


def test_python_keys_that_json_does_not_have() -> None:
    assert "keys are strings" in found({**MINIMAL, "x": {5: 1}})["x"]
