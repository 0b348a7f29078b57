"""Every rule that no schema can say: what it refuses, and what it must let pass."""

from __future__ import annotations

import importlib
import os
import pkgutil
from typing import TYPE_CHECKING, Any

import pytest

from ocirt.errors import InvalidConfig
from ocirt.validation import check_process, check_resources, problems, rules, semantic
from ocirt.validation.found import Found, section
from ocirt.validation.rules import advice, annotations, mounts, rdt, scheduling, seccomp, sysctl
from tests.unit.validation_cases import BAD, GOOD, OWN, joined
from tests.unit.validation_samples import FULL, MINIMAL, docker, set_paths

if TYPE_CHECKING:
    from ocirt.validation.found import Rule

MODULES = [importlib.import_module(f"ocirt.validation.rules.{m.name}") for m in pkgutil.iter_modules(rules.__path__)]
RULES = [rule for module in MODULES for rule in (*module.RULES, *getattr(module, "FIRST", ()))]
WARNING_RULES = {mounts.absolute_destinations, rdt.l3_cache_schema, *annotations.RULES, *advice.RULES}


def name(case: object) -> str:
    return case.__name__ if callable(case) else ""


def ask(rule: Rule, config: Any) -> list[tuple[str, str, str]]:
    found = Found()
    found.rule = rule
    rule(config, found)
    return [(p.severity, p.path, str(p)) for p in found.problems]


@pytest.mark.parametrize(("rule", "base", "changes"), GOOD, ids=name)
def test_lets_pass(rule: Rule, base: dict[str, Any], changes: dict[str, Any]) -> None:
    assert ask(rule, set_paths(base, changes)) == []


@pytest.mark.parametrize(("rule", "base", "changes", "path", "text"), BAD, ids=name)
def test_refuses(rule: Rule, base: dict[str, Any], changes: dict[str, Any], path: str, text: str) -> None:
    config = set_paths(base, changes)
    found = ask(rule, config)
    assert path in [where for _, where, _ in found], found
    said = next(message for _, where, message in found if where == path)
    assert text in said
    # and it is asked for a whole configuration, where it counts
    reported = {p.path: p for p in problems(config)}
    assert path in reported
    warned = rule in WARNING_RULES or "neither idmap nor ridmap" in text
    assert reported[path].severity == ("warning" if warned else "error")
    assert reported[path].spec


def test_every_rule_has_cases() -> None:
    assert {case[0] for case in GOOD} == set(RULES)
    assert {case[0] for case in BAD} == set(RULES)


@pytest.mark.parametrize("rule", RULES, ids=name)
def test_every_rule_names_its_sentence(rule: Rule) -> None:
    named = section(rule)
    assert named.startswith(("config.md, ", "config-linux.md, ")) or named.partition("(")[2][0].isdigit(), named


@pytest.mark.parametrize("rule", RULES, ids=name)
def test_rules_are_content_with_whole_configurations(rule: Rule) -> None:
    for config in (MINIMAL, OWN, docker(), FULL):
        assert all(severity == "warning" for severity, _, _ in ask(rule, config))


def test_full_sample_has_only_expected_warnings() -> None:
    found = [(p.severity, p.path) for p in problems(set_paths(FULL, {}))]
    assert found == [
        ("warning", "hooks.prestart"),
        ("warning", "linux.resources.memory.kernel"),
        ("warning", "linux.resources.memory.kernelTCP"),
    ]


def test_rules_for_rare_things_are_only_asked_where_they_occur() -> None:
    asked = set(semantic.rules("config", set_paths(MINIMAL, {})))  # type: ignore[arg-type]
    rare = {*scheduling.RULES, *seccomp.RULES, *sysctl.RULES, *rdt.RULES, *annotations.RULES, *advice.RULES}
    assert asked == set(RULES) - rare
    full = {**FULL, "annotations": {"run.oci.handler": ""}}
    assert set(semantic.rules("config", full, advice=True)) == set(RULES)  # type: ignore[arg-type]


def test_a_joined_network_namespace_that_does_not_exist_is_left_to_joining() -> None:
    assert not os.path.exists("/nonexistent/ns")
    config = set_paths(joined("network", "/nonexistent/ns"), {"linux.sysctl": {"net.core.somaxconn": "1"}})
    assert ask(sysctl.sysctl_namespaces, config) == []


def test_process_alone() -> None:
    check_process({"args": ["sh"], "cwd": "/"}, OWN)  # type: ignore[arg-type]
    bad: Any = {"args": [""], "cwd": "/", "env": ["A"], "user": {"uid": 5000, "gid": 0}}
    with pytest.raises(InvalidConfig, match="invalid process, 3 errors") as caught:
        check_process(bad, OWN)  # type: ignore[arg-type]
    for path in ("args[0]: ", "env[0]: ", "user.uid: 5000: "):
        assert f") {path}" in str(caught.value)
    with pytest.raises(InvalidConfig, match="invalid process: cwd: is missing"):
        check_process({"args": ["sh"]}, OWN)  # type: ignore[arg-type]


def test_resources_alone() -> None:
    check_resources({"memory": {"swap": 100}})  # the limit may be there already
    with pytest.raises(
        Exception, match=r"invalid resources: memory.swap: 9: must not be less than the memory limit 10"
    ):
        check_resources({"memory": {"swap": 9, "limit": 10}})
    with pytest.raises(InvalidConfig, match=r"invalid resources: pids.limit: true: must be the number of tasks"):
        check_resources({"pids": {"limit": True}})
