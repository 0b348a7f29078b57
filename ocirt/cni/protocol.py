"""The words of CNI: versions, error codes, names, keys (SPEC.md, sections 2 and 5)."""

from __future__ import annotations

from ocirt.errors import Error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

VERSIONS = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
CURRENT = VERSIONS[-1]
#: The first version that knows a command.
SINCE = {"CHECK": "0.4.0", "GC": "1.1.0", "STATUS": "1.1.0"}

INCOMPATIBLE_VERSION, UNSUPPORTED_FIELD, UNKNOWN_CONTAINER, INVALID_ENVIRONMENT = 1, 2, 3, 4
IO_FAILURE, DECODING_FAILURE, INVALID_CONFIG, INVALID_NETNS, TRY_AGAIN = 5, 6, 7, 8, 11
NOT_AVAILABLE, LIMITED_CONNECTIVITY, INTERNAL = 50, 51, 999

_WORD = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789")


class CNIError(Error):
    """A plugin's error object: `code` (SPEC.md, Error), a message and details."""

    def __init__(self, code: int, msg: str, details: str = "") -> None:
        super().__init__(f"{msg}: {details}" if details else msg)
        self.code = code
        self.msg = msg
        self.details = details


def error_object(error: Error, version: str) -> dict[str, object]:
    """The JSON object that a plugin prints for an error; one that isn't a plugin's own has code 999."""
    if isinstance(error, CNIError):
        what: dict[str, object] = {"cniVersion": version, "code": error.code, "msg": error.msg}
        details = error.details
        if error.context or error.notes:
            details = "; ".join(s for s in (details, ": ".join(error.context), *error.notes) if s)
    else:
        what = {"cniVersion": version, "code": INTERNAL, "msg": str(error)}
        details = ""
    if details:
        what["details"] = details
    return what


def get(obj: Mapping[str, Any], key: str, default: Any = None) -> Any:
    """obj[key], or the value of a key that differs in case only.

    Go's decoder takes such keys, and callers rely on it: go-cni sends port
    mappings as `{"HostPort": …}`.
    """
    if key in obj:
        value = obj[key]
        return default if value is None else value
    folded = key.casefold()
    for other in obj:
        if other.casefold() == folded:
            value = obj[other]
            return default if value is None else value
    return default


def mapping(value: object) -> dict[str, Any] | None:
    """The value if it is a JSON object."""
    return value if isinstance(value, dict) else None  # pyright: ignore[reportUnknownVariableType]


def listing(value: object) -> list[Any] | None:
    """The value if it is a JSON list."""
    return value if isinstance(value, list) else None  # pyright: ignore[reportUnknownVariableType]


_KINDS = {str: "a string", bool: "true or false", int: "a number", dict: "an object", list: "a list"}


def typed(obj: Mapping[str, Any], key: str, kind: type, default: Any, where: str = "") -> Any:
    """`get` that demands a type; CNIError (7) names the key, the value and what would be right."""
    value = get(obj, key, default)
    if value is default:
        return default
    if type(value) is not kind:
        path = f"{where}.{key}" if where else key
        raise CNIError(INVALID_CONFIG, f"invalid value of {path}", f"{value!r} must be {_KINDS[kind]}")
    return value


def truth(obj: Mapping[str, Any], key: str, default: bool = False, where: str = "") -> bool:
    """A boolean of the configuration."""
    value: bool = typed(obj, key, bool, default, where)
    return value


def string(obj: Mapping[str, Any], key: str, default: str = "", where: str = "") -> str:
    """A string of the configuration."""
    value: str = typed(obj, key, str, default, where)
    return value


def integer(obj: Mapping[str, Any], key: str, default: int = 0, where: str = "") -> int:
    """A number of the configuration."""
    value: int = typed(obj, key, int, default, where)
    return value


def table(obj: Mapping[str, Any], key: str, where: str = "") -> dict[str, Any]:
    """An object of the configuration, {} without it."""
    value: dict[str, Any] | None = typed(obj, key, dict, None, where)
    return {} if value is None else value


def array(obj: Mapping[str, Any], key: str, where: str = "") -> list[Any]:
    """A list of the configuration, [] without it."""
    value: list[Any] | None = typed(obj, key, list, None, where)
    return [] if value is None else value


def version_tuple(version: str) -> tuple[int, int, int]:
    """`1.1.0` as numbers; raises ValueError. Missing parts are 0, "" is 0.1.0."""
    if not version:
        return 0, 1, 0
    parts = version.split(".")
    if len(parts) > 3 or not all(p.isascii() and p.isdigit() for p in parts):
        raise ValueError(f"{version!r} is no version like 1.1.0")
    numbers = [int(p) for p in parts] + [0, 0]
    return numbers[0], numbers[1], numbers[2]


def at_least(version: str, least: str) -> bool:
    """Is `version` this one or later?"""
    return version_tuple(version) >= version_tuple(least)


def valid_name(name: str) -> bool:
    """May a network or a container have this name (it stands in file names)?"""
    return bool(name) and name[0] in _WORD and all(c in _WORD or c in "_.-" for c in name)


def valid_ifname(name: str) -> bool:
    """May a network interface have this name?"""
    if not name or len(name.encode()) > 15 or name in (".", ".."):
        return False
    return not any(c in "/:" or c.isspace() for c in name)


def check_names(network: str, container: str, ifname: str) -> None:
    """Raise CNIError (4 or 7) if one of the names isn't valid."""
    if not valid_name(network):
        what = "missing network name" if not network else f"invalid characters found in network name {network!r}"
        raise CNIError(INVALID_CONFIG, what)
    if not valid_name(container):
        raise CNIError(INVALID_ENVIRONMENT, f"invalid characters in containerID {container!r}")
    if not valid_ifname(ifname):
        raise CNIError(
            INVALID_ENVIRONMENT,
            f"invalid interface name {ifname!r}",
            "1 to 15 bytes without '/', ':' and spaces, not '.' or '..'",
        )


def parse_args(text: str) -> dict[str, str]:
    """CNI_ARGS `K=V;K2=V2` as a dict; CNIError (4) for a pair that isn't one."""
    found: dict[str, str] = {}
    for pair in text.split(";") if text else ():
        parts = pair.split("=")
        if len(parts) != 2:
            raise CNIError(INVALID_ENVIRONMENT, f"ARGS: invalid pair {pair!r}", "must be KEY=VALUE;KEY=VALUE")
        found[parts[0]] = parts[1]
    return found
