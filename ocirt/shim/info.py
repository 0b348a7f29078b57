"""-info and -v: what containerd, its CRI plugin and people ask about the runtime."""

from __future__ import annotations

import ocirt
from ocirt.features import commit, features
from ocirt.jsontext import dump_json
from ocirt.shim import wire
from ocirt.shim.main import NAME
from ocirt.shim.messages import RUNTIME_INFO

FEATURES_URL = "types.containerd.io/opencontainers/runtime-spec/1/features/Features"


def version() -> str:
    """The text of -v."""
    return f"containerd-shim-ocirt-v1:\n  Version:  {ocirt.__version__}\n  Revision: {commit()}\n"


def info() -> bytes:
    """The message of -info: containerd.types.RuntimeInfo."""
    return wire.encode(
        RUNTIME_INFO,
        {
            "name": NAME,
            "version": {"version": ocirt.__version__, "revision": commit()},
            "features": {"type_url": FEATURES_URL, "value": dump_json(features())},
        },
    )
