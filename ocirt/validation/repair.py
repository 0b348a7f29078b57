"""What other runtimes read without a word although it isn't right: taken as they take it, with a warning.

Only looked at when a configuration doesn't match its schema. Go's decoder, and
with it every tool that was only ever tried with runc, takes null for "not
there" and a missing number for 0. After the repair nobody below has to know.
"""

from __future__ import annotations

from ocirt.validation.kinds import is_array, is_object
from ocirt.validation.problem import WARNING, Problem, join, show

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ocirt.validation.document import Document

_EXTENSIBILITY = "config.md, Valid values"


def repair(value: Any, name: str, document: Document) -> list[Problem]:
    """Repair `value` (a configuration or the part that schemas/NAME.json describes) in place; a warning for each."""
    done: list[Problem] = []
    _drop_nulls(value, document.schema(name), "", document, done)
    if name == "config" and is_object(value):
        _process(value.get("process"), "process.", done)
        _linux(value.get("linux"), done)
    elif name == "process":
        _process(value, "", done)
    return done


def _drop_nulls(value: Any, schema: dict[str, Any], path: str, document: Document, done: list[Problem]) -> None:
    """Remove every known key whose value is null; null in an array or a map of strings stays, and is an error."""
    *_, schema = document.follow(schema)
    if is_array(value) and "items" in schema:
        for index, inner in enumerate(value):
            _drop_nulls(inner, schema["items"], join(path, index), document, done)
    elif is_object(value):
        for key, known in schema.get("properties", {}).items():
            if key in value and value[key] is None:
                del value[key]
                done.append(
                    Problem(WARNING, join(path, key), "null", "is taken as if it weren't there", spec=_EXTENSIBILITY)
                )
            elif key in value:
                _drop_nulls(value[key], known, join(path, key), document, done)
        if "additionalProperties" in schema:
            for key, inner in value.items():
                _drop_nulls(inner, schema["additionalProperties"], join(path, key), document, done)


def _process(process: Any, path: str, done: list[Problem]) -> None:
    if is_object(process):
        _zero(process.get("user"), ("uid", "gid"), f"{path}user", "config.md, POSIX-platform User", done)
        _zero(process.get("ioPriority"), ("priority",), f"{path}ioPriority", "config.md, Linux Process", done)


def _zero(value: Any, keys: tuple[str, ...], path: str, spec: str, done: list[Problem]) -> None:
    for key in keys:
        if is_object(value) and key not in value:
            value[key] = 0
            done.append(Problem(WARNING, f"{path}.{key}", "", "is missing, 0 is taken", spec=spec))


def _linux(linux: Any, done: list[Problem]) -> None:
    if not is_object(linux):
        return
    namespaces = linux.get("namespaces")
    for index, namespace in enumerate(namespaces if is_array(namespaces) else ()):
        _drop_empty(namespace, "path", f"linux.namespaces[{index}].path", "config-linux.md, Namespaces", done)
    spec = "config-linux.md, Rootfs Mount Propagation"
    _drop_empty(linux, "rootfsPropagation", "linux.rootfsPropagation", spec, done)
    resources = linux.get("resources")
    rules = resources.get("devices") if is_object(resources) else None
    for index, rule in enumerate(rules if is_array(rules) else ()):
        path = f"linux.resources.devices[{index}].type"
        _drop_empty(rule, "type", path, "config-linux.md, Allowed Device list", done)
    policy = linux.get("memoryPolicy")
    if is_object(policy) and not policy.keys() & {"mode", "nodes", "flags"}:
        del linux["memoryPolicy"]
        message, spec = "is taken as if it weren't there: it has no mode", "config-linux.md, Memory policy"
        done.append(Problem(WARNING, "linux.memoryPolicy", show(policy), message, spec=spec))


def _drop_empty(value: Any, key: str, path: str, spec: str, done: list[Problem]) -> None:
    if is_object(value) and value.get(key) == "":
        del value[key]
        done.append(Problem(WARNING, path, '""', "is taken as if it weren't there", spec=spec))
