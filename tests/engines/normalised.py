"""JSON of engines without what differs from one container to the next: names, ids, times, pids."""

from __future__ import annotations

import json
import re
from typing import Any


def flat(value: Any, path: str = "") -> set[str]:
    """Every leaf of a JSON value as `path=value`; the order in lists is left out, as engines vary it."""
    if isinstance(value, dict):
        return {line for key, inner in value.items() for line in flat(inner, f"{path}.{key}")}
    if isinstance(value, list):
        return {line for inner in value for line in flat(inner, f"{path}[]")}
    return {f"{path}={value!r}"}


def keys(value: Any, path: str = "") -> set[str]:
    """Every path of a JSON value that leads to a leaf, without the leaf."""
    return {line.partition("=")[0] for line in flat(value, path)}


def normalised(value: Any, id: str, runtime: str, name: str) -> set[str]:
    """The leaves of what an engine tells of a container."""
    text = json.dumps(value, sort_keys=True)
    for own, common in ((id, "ID"), (runtime, "RUNTIME"), (name, "NAME"), (id[:12], "ID")):
        text = text.replace(own, common)
    text = re.sub(r"\d{4}-\d\d-\d\dT[0-9:.]+(Z|[+-]\d\d:\d\d)", "TIME", text)
    text = re.sub(r"(storage/overlay|overlay2|volumes)/[0-9a-f]+(-init)?|/l/[A-Z0-9]+", "LAYER", text)
    text = re.sub(r"\b[0-9a-f]{64}\b|docker/netns/[0-9a-f]+", "HASH", text)
    text = re.sub(r'"(Pid|ConmonPid)": \d+', r'"\1": 0', text)
    return flat(json.loads(text))
