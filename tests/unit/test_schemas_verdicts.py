"""The generated validator and jsonschema agree, whatever they are asked."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ocirt.validation import generated
from ocirt.validation.document import Document
from ocirt.validation.explain import validator
from tests.unit.schema_oracle import EVERY, GENERATOR, SAMPLES, agree
from tests.unit.validation_samples import FULL, MINIMAL, clone, docker, paths


@pytest.mark.parametrize("value", [FULL, MINIMAL, docker(), {**MINIMAL, "process": {"cwd": "/", "args": ["sh"]}}])
def test_good_configurations(value: Any) -> None:
    assert agree("config", value)


@pytest.mark.parametrize("name", SAMPLES)
def test_good_samples(name: str) -> None:
    assert agree(name, SAMPLES[name])


def test_samples_use_every_key() -> None:
    """So that the mutations below reach every schema."""

    def look(value: Any, schema: dict[str, Any], where: str) -> None:
        *_, schema = document.follow(schema)
        _, used, _ = seen.setdefault(id(schema), (set(schema.get("properties", ())), set(), where))
        if isinstance(value, dict):
            used.update(value)
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value if value else ()):
            part = schema["items"] if isinstance(value, list) else schema.get("properties", {}).get(key)
            part = part or schema.get("additionalProperties")
            if part and isinstance(inner, (dict, list)):
                look(inner, part, f"{where}.{key}")

    document = Document()
    seen: dict[int, tuple[set[str], set[str], str]] = {}
    for name, sample in SAMPLES.items():
        look(sample, document.schema(name), name)
    assert len(seen) > 80
    for known, used, where in seen.values():
        assert known <= used, where


#: What no integer, string, … of the specification can be, and borders of what it can be.
JUNK: tuple[Any, ...] = (
    None, True, 1.0, -1, 0, -2, 1 << 64, 1 << 32, (1 << 32) - 1, 65536, -(1 << 63) - 1, 1 << 63, 8, 101, 512, 4096,
    1 << 20, 1001, "", "x", "/x", "1", "0-3,7\n", "MB:\n", [], [None], [1], [""], {}, {"": ""}, {"a": 1},
)  # fmt: skip


def smaller(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration without the parts that are samples of their own, and without repetitions."""
    linux = {**config["linux"], "resources": {"pids": {"limit": 1}}}
    process = {"cwd": "/", "args": ["sh"]}
    return clone({**config, "linux": linux, "process": process, "hooks": {"poststop": config["hooks"]["poststop"]}})


@pytest.mark.parametrize("name", SAMPLES)
def test_every_value_replaced_by_junk(name: str) -> None:
    sample = smaller(SAMPLES[name]) if name == "config" else clone(SAMPLES[name])
    before = clone(sample)
    verdicts = set()
    for way in paths(sample):
        *outer, last = way
        here = sample
        for step in outer:
            here = here[step]
        kept = here[last]
        for junk in JUNK:
            here[last] = junk
            verdicts.add(agree(name, sample))
        here[last] = kept
    assert verdicts == {True, False}
    assert sample == before


@pytest.mark.parametrize("name", SAMPLES)
def test_every_key_left_out(name: str) -> None:
    verdicts = []
    for way in paths(SAMPLES[name]):
        sample = clone(SAMPLES[name])
        here = sample
        for step in way[:-1]:
            here = here[step]
        del here[way[-1]]
        verdicts.append(agree(name, sample))
    assert True in verdicts
    assert False in verdicts


@pytest.mark.parametrize("value", [None, True, 1, 1.5, "", [], {}, [{}]])
@pytest.mark.parametrize("name", SAMPLES)
def test_not_even_an_object(name: str, value: Any) -> None:
    assert agree(name, value) == (name == "resources" and value == {})


def values(schema: dict[str, Any], document: Document) -> st.SearchStrategy[Any]:
    """Values that a schema allows, built from the keywords that schemas/ uses."""
    *_, schema = document.follow(schema)
    if "anyOf" in schema and "type" not in schema:
        return st.one_of([values(part, document) for part in schema["anyOf"]])
    types_ = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    return st.one_of([of_type(kind, schema, document) for kind in types_])


def of_type(kind: str, schema: dict[str, Any], document: Document) -> st.SearchStrategy[Any]:
    if kind == "null":
        return st.none()
    if kind == "boolean":
        return st.booleans()
    if kind == "integer":
        low, high = schema.get("minimum", -(1 << 70)), schema.get("maximum", 1 << 70)
        return st.integers(low, high) | st.sampled_from([low, high])
    if kind == "string":
        if "enum" in schema:
            return st.sampled_from(schema["enum"])
        if "pattern" in schema:
            return st.from_regex(schema["pattern"], fullmatch=True) | st.text(max_size=4)
        return st.text(min_size=schema.get("minLength", 0), max_size=4)
    if kind == "array":
        items = values(schema["items"], document)
        return st.lists(items, min_size=schema.get("minItems", 0), max_size=schema.get("maxItems", 2))
    if "properties" not in schema:
        inner = values(schema["additionalProperties"], document) if "additionalProperties" in schema else st.integers()
        return st.dictionaries(st.text(max_size=3), inner, max_size=2)
    required = {*schema.get("required", ()), *schema.get("else", {}).get("required", ())}
    optional = {key: values(inner, document) for key, inner in schema["properties"].items() if key not in required}
    return st.fixed_dictionaries(
        {key: values(schema["properties"][key], document) for key in sorted(required)}, optional=optional
    )


STRATEGIES = {name: st.deferred(lambda name=name: values(Document().schema(name), Document())) for name in SAMPLES}


@pytest.mark.parametrize("name", SAMPLES)
@settings(max_examples=60, suppress_health_check=list(HealthCheck), deadline=None)
@given(data=st.data())
def test_generated_values_get_one_verdict(name: str, data: st.DataObject) -> None:
    value = data.draw(STRATEGIES[name])
    agree(name, value)
    ways = paths(value)
    for _ in range(3 if ways else 0):
        changed = clone(value)
        *outer, last = data.draw(st.sampled_from(ways))
        here = changed
        for step in outer:
            here = here[step]
        action = data.draw(st.sampled_from(["junk", "remove", "add"]))
        if action == "remove":
            del here[last]
        elif action == "add" and isinstance(here, dict):
            here[data.draw(st.text(max_size=5))] = data.draw(st.sampled_from(JUNK))
        else:
            here[last] = data.draw(st.sampled_from(JUNK) | st.text(max_size=5) | st.integers())
        agree(name, changed)


PATTERNS = sorted({schema["pattern"] for _, schema in EVERY if "pattern" in schema})


@pytest.mark.parametrize("pattern", PATTERNS)
@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_patterns_match_what_they_say(pattern: str, data: st.DataObject) -> None:
    characters = st.sampled_from("019aZ_./-,: \nKMGBrwmLMB3:CAP_é")
    text = data.draw(st.from_regex(pattern) | st.text(characters, max_size=6) | st.text(max_size=4))
    namespace: dict[str, Any] = {}
    schemas = GENERATOR.Schemas()
    schemas.files = {"x.json": {"type": "string", "pattern": pattern}}
    exec(GENERATOR.module({"check": "x.json"}, schemas), namespace)
    assert namespace["check"](text, []) == validator({"pattern": pattern}).is_valid(text)


def test_unknown_keys_are_allowed_and_told() -> None:
    value = clone(FULL)
    value["x"] = value["process"]["x"] = value["linux"]["seccomp"]["syscalls"][0]["x"] = [None]
    assert agree("config", value)
    odd: list[Any] = []
    assert generated.config(value, odd)
    assert sorted(odd, key=len) == sorted([value, value["process"], value["linux"]["seccomp"]["syscalls"][0]], key=len)
    odd = []
    assert generated.config(FULL, odd)
    assert odd == []
