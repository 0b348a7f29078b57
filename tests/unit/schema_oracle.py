"""The same question asked twice: the generated validator, and jsonschema over the schemas."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ocirt.validation import generated
from ocirt.validation.document import Document
from ocirt.validation.explain import validator
from tests.unit.validation_samples import FULL

ROOT = Path(__file__).resolve().parents[2]
FILES = {path.name: json.loads(path.read_text()) for path in sorted((ROOT / "schemas").glob("*.json"))}


STATE = {
    "ociVersion": "1.3.0",
    "id": "box",
    "status": "running",
    "pid": 4422,
    "bundle": "/containers/box",
    "annotations": {"a": "b"},
}
FEATURES: dict[str, Any] = {
    "ociVersionMin": "1.0.0",
    "ociVersionMax": "1.3.0",
    "hooks": ["prestart", "poststop"],
    "mountOptions": None,
    "annotations": {"a": "b"},
    "potentiallyUnsafeConfigAnnotations": ["org.systemd.property."],
    "linux": {
        "namespaces": ["cgroup", "time"],
        "capabilities": ["CAP_CHOWN", "CAP_SYS_ADMIN"],
        "cgroup": {"v1": True, "v2": True, "systemd": True, "systemdUser": None, "rdma": False},
        "seccomp": {
            "enabled": True,
            "actions": ["SCMP_ACT_ALLOW"],
            "operators": ["SCMP_CMP_EQ"],
            "archs": ["SCMP_ARCH_X86"],
            "knownFlags": ["SECCOMP_FILTER_FLAG_LOG"],
            "supportedFlags": [],
        },
        "apparmor": {"enabled": True},
        "selinux": None,
        "memoryPolicy": {"modes": ["MPOL_BIND"], "flags": ["MPOL_F_STATIC_NODES"]},
        "intelRdt": {"enabled": True, "schemata": True, "monitoring": False},
        "mountExtensions": {"idmap": {"enabled": True}},
        "netDevices": {"enabled": True},
    },
}
CNI: dict[str, Any] = {
    "cniVersion": "1.1.0",
    "cniVersions": ["0.4.0", "1.1.0"],
    "name": "net.1_a-b",
    "disableCheck": False,
    "disableGC": True,
    "loadOnlyInlinedPlugins": False,
    "plugins": [
        {
            "type": "bridge",
            "ipMasq": True,
            "ipam": {"type": "host-local", "subnet": "10.0.0.0/24"},
            "dns": {"nameservers": ["10.0.0.1"], "domain": "x", "search": ["y"], "options": []},
            "capabilities": {"portMappings": True},
        }
    ],
}


def load_generator() -> types.ModuleType:
    loader = importlib.machinery.SourceFileLoader("generate_validator", str(ROOT / "hack" / "generate-validator"))
    spec_ = importlib.util.spec_from_loader(loader.name, loader)
    assert spec_
    module = importlib.util.module_from_spec(spec_)
    sys.modules[loader.name] = module
    loader.exec_module(module)
    return module


GENERATOR = load_generator()


def fast(file: str) -> Callable[[Any, list[Any]], bool]:
    """The function that the generator makes from any schema file."""
    namespace: dict[str, Any] = {}
    exec(GENERATOR.module({"check": file}), namespace)
    return namespace["check"]  # type: ignore[no-any-return]


FAST = {
    "config": generated.config,
    "process": generated.process,
    "resources": generated.resources,
    "cni": fast("cni.json"),
    "state": fast("state.json"),
    "features": fast("features.json"),
}
ORACLE = {name: validator(Document().schema(name)) for name in FAST}
SAMPLES: dict[str, Any] = {
    "config": FULL,
    "process": FULL["process"],
    "resources": FULL["linux"]["resources"],
    "cni": CNI,
    "state": STATE,
    "features": FEATURES,
}


def agree(name: str, value: Any) -> bool:
    """The verdict on which both agree."""
    verdict = FAST[name](value, [])
    errors = [] if verdict else None
    oracle = ORACLE[name].is_valid(value)
    assert verdict == oracle, (name, value, errors)
    return verdict


def subschemas(schema: Any, where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every schema inside a schema, with where it stands."""
    if not isinstance(schema, dict):
        return
    yield where, schema
    for keyword in ("properties", "$defs"):
        for key, inner in schema.get(keyword, {}).items():
            yield from subschemas(inner, f"{where}/{keyword}/{key}")
    for keyword in ("items", "additionalProperties", "propertyNames"):
        if keyword in schema:
            yield from subschemas(schema[keyword], f"{where}/{keyword}")


EVERY = [item for name, schema in FILES.items() for item in subschemas(schema, name)]
