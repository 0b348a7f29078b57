"""Why a configuration doesn't match its schema: every error at once, by jsonschema.

Imported only when the generated check said no. jsonschema's verdict counts: if
it finds nothing, the configuration is right.
"""

from __future__ import annotations

from ocirt.validation.near import nearest
from ocirt.validation.problem import ERROR, Problem, join, join_all, show

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ocirt.validation.document import Document


def explain(value: Any, name: str, document: Document) -> list[Problem]:
    """The errors of `value` against schemas/NAME.json."""
    try:
        errors = list(validator(document.schema(name)).iter_errors(value))
    except ImportError as missing:
        hint = f"cannot say where: {missing}; install jsonschema to see every error"
        return [Problem(ERROR, "", "", f"doesn't match schemas/{name}.json", hint=hint)]
    found: list[Problem] = []
    seen: set[tuple[str, str]] = set()
    for error in errors:
        for problem in _problems(error, document, name):
            if (problem.path, problem.message) not in seen:
                seen.add((problem.path, problem.message))
                found.append(problem)
    return found


def validator(schema: dict[str, Any]) -> Any:
    """A jsonschema validator (draft 2020-12) that differs in two things.

    An integer is what is written as one: 1.0 and 1e3 aren't (they aren't for
    encoding/json either, and other runtimes refuse them). And `$` in a pattern
    is the end of the string, as ECMA-262 has it, not also before a newline.
    """
    import jsonschema.validators

    library: Any = jsonschema.validators  # its stubs leave too much unknown
    base = library.Draft202012Validator
    checker = base.TYPE_CHECKER.redefine("integer", _is_integer)
    return library.extend(base, {"pattern": _pattern}, type_checker=checker)(schema)


def _is_integer(_checker: object, instance: object) -> bool:
    return isinstance(instance, int) and not isinstance(instance, bool)


def _pattern(_validator: object, pattern: str, instance: object, _schema: object) -> Any:
    import re

    from jsonschema.exceptions import ValidationError

    ecma = pattern[:-1] + r"\Z" if pattern.endswith("$") else pattern
    if isinstance(instance, str) and not re.search(ecma, instance):
        yield ValidationError(f"{instance!r} does not match {pattern!r}")


def _problems(error: Any, document: Document, name: str) -> list[Problem]:
    """One error of jsonschema as problems: more than one if several keys are missing."""
    way = document.walk(name, error.absolute_schema_path)
    spec = next((s["$comment"] for s in reversed(way) if "$comment" in s), "")
    path = join_all(error.absolute_path)
    if error.validator == "required":
        return [
            _missing(key, path, error.instance, way, document)
            for key in error.validator_value
            if key not in error.instance
        ]
    expected = _expected(way, document)
    if "propertyNames" in error.absolute_schema_path:
        return [Problem(ERROR, join(path, str(error.instance)), "", f"must be {expected}", spec=spec)]
    message, hint = f"must be {expected}", ""
    if error.instance is None:
        hint = "leave the key out instead of giving it null"
    elif error.validator == "enum":
        message = f"invalid {expected.partition(' ')[2]}, must be one of {', '.join(error.validator_value)}"
        if isinstance(error.instance, str) and (meant := nearest(error.instance, error.validator_value)):
            hint = f"did you mean {meant}?"
    return [Problem(ERROR, path, show(error.instance), message, hint=hint, spec=spec)]


def _expected(way: list[dict[str, Any]], document: Document) -> str:
    """What would be right: the description where the failing schema is used, which goes before its own."""
    if not way:
        return "something else"
    last = way[-1]
    for schema in reversed(way):
        if schema.get("$ref") and any(s is last for s in document.follow(schema)):
            if "description" in schema:
                return str(schema["description"])
        elif schema is not last:
            break
    return next((str(s["description"]) for s in reversed(way) if "description" in s), "something else")


def _missing(key: str, path: str, instance: Any, way: list[dict[str, Any]], document: Document) -> Problem:
    """The problem of a required key that isn't there."""
    expected, known = "", set[str]()
    spec = next((s["$comment"] for s in reversed(way) if "$comment" in s), "")
    for schema in way:
        if key in schema.get("properties", {}):
            known = set(schema["properties"])
            expected = document.annotation(schema["properties"][key], "description")
            spec = document.annotation(schema["properties"][key], "$comment") or spec
    message = f"is missing, must be {expected}" if expected else "is missing"
    meant = nearest(key, [k for k in instance if k not in known])
    hint = f"{meant!r} is there: is it misspelt?" if meant else ""
    return Problem(ERROR, join(path, key), "", message, hint=hint, spec=spec)
