"""Reading an OCI bundle: config.json once, strictly, and its root filesystem (bundle.md, config.md)."""

from __future__ import annotations

import posix as os

from ocirt.errors import Error, InvalidConfig, doing
from ocirt.jsontext import dump_json, parse_json
from ocirt.linux.oslike import isdir, join, realpath

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ocirt.spec import Config
    from ocirt.validation.problem import Problem

__all__ = [
    "Bundle", "directory", "dump_json", "find_rootfs", "load", "parse_config", "parse_json", "read_config", "report",
]  # fmt: skip

CONFIG = "config.json"
#: A config.json is some 20 to 200 KB; more than this is a mistake or an attack on the memory of the host.
MAX_CONFIG = 16 << 20


class Bundle:
    """A bundle as read: later edits of its files have no effect (runtime.md, Lifecycle, step 2).

    path     absolute, without symbolic links
    config   the parsed config.json, checked by ocirt.validation
    raw      config.json, byte for byte, unless something in it had to be repaired: then what it is now
    rootfs   absolute path of an existing directory, without symbolic links
    """

    __slots__ = ("config", "path", "raw", "rootfs")

    def __init__(self, path: str, config: Config, raw: bytes, rootfs: str) -> None:
        self.path = path
        self.config: Config = config
        self.raw = raw
        self.rootfs = rootfs


def load(bundle: str, config_path: str | None = None) -> Bundle:
    """Read and check the bundle; `config_path` replaces its config.json.

    Raises InvalidConfig with every problem of the configuration at once, Error
    (with the errno) where the bundle, the file or the root filesystem is missing.
    """
    from ocirt.validation import check

    path = directory(bundle)
    raw = read_config(path, config_path)
    name = config_path or CONFIG
    config = parse_config(raw, name)
    if check(config, raw, name):
        raw = dump_json(config)
    return Bundle(path, config, raw, find_rootfs(path, config))


def report(bundle: str, config_path: str | None = None) -> list[Problem]:
    """Everything that is wrong with the bundle, without running anything; [] if all is well.

    What hides everything else (no bundle, no config.json, no JSON) is a single problem without a path.
    """
    from ocirt.validation import problems
    from ocirt.validation.duplicates import duplicates
    from ocirt.validation.problem import ERROR, Problem

    try:
        path = directory(bundle)
        raw = read_config(path, config_path)
        config = parse_config(raw, config_path or CONFIG)
    except Error as error:
        return [Problem(ERROR, "", "", str(error), spec="bundle.md, Container Format")]
    found = problems(config, raw) + duplicates(raw)
    if not any(p.severity == ERROR and (not p.path or p.path.startswith("root")) for p in found):
        try:
            find_rootfs(path, config)
        except Error as error:
            found.append(Problem(ERROR, "root.path", "", str(error), spec="config.md, Root"))
    return found


def directory(bundle: str) -> str:
    """The bundle's absolute path; Error if it is no directory."""
    try:
        path = realpath(bundle)
        if not isdir(path):
            raise NotADirectoryError(20, "Not a directory")
    except OSError as error:
        # runc changes into the bundle, and engines show its sentence to users
        raise _failed(f"chdir {bundle}", error) from error
    return path


def read_config(bundle: str, config_path: str | None = None) -> bytes:
    """The bytes of config.json, read once; Error if it is missing, unreadable or too big."""
    path = join(bundle, CONFIG) if config_path is None else config_path
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY)
        try:
            return _read_all(fd, path)
        finally:
            os.close(fd)
    except FileNotFoundError as error:
        reason = _failed(f"open {path}", error)
        raise Error(f"JSON specification file {config_path or CONFIG} not found: {reason}", 2) from error
    except OSError as error:
        raise _failed(f"open {path}", error) from error


def _read_all(fd: int, path: str) -> bytes:
    parts: list[bytes] = []
    left = MAX_CONFIG + 1
    while left and (part := os.read(fd, min(left, 1 << 20))):
        parts.append(part)
        left -= len(part)
    if not left:
        raise InvalidConfig(f"{path} is longer than {MAX_CONFIG} bytes")
    return b"".join(parts)


def parse_config(raw: bytes, name: str = CONFIG) -> Config:
    """The object in config.json, or the file `name`, not yet checked; InvalidConfig if it isn't a JSON object."""
    config = parse_json(raw, name)
    if type(config) is not dict:
        raise InvalidConfig(f"{name} holds {_kind(config)}, must be an object")
    return config  # type: ignore[return-value]


def find_rootfs(bundle: str, config: Config) -> str:
    """The absolute path of the root filesystem (config.md, Root: relative to the bundle).

    "A directory MUST exist at the path declared by the field": Error if not.
    """
    declared = config["root"]["path"]
    path = join(bundle, declared)
    with doing("find the root filesystem"):
        try:
            path = realpath(path)
            if not isdir(path):
                raise NotADirectoryError(20, "Not a directory")
        except OSError as error:
            raise _failed(f"invalid rootfs: stat {path}", error, f"root.path is {declared!r}") from error
    return path


def _failed(call: str, error: OSError, hint: str = "") -> Error:
    text = (error.strerror or str(error)).lower()
    return Error(f"{call}: {text} ({hint})" if hint else f"{call}: {text}", error.errno or 0)


def _kind(value: object) -> str:
    """A JSON value's type in words."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, (int, float)):
        return "a number"
    return "a string" if isinstance(value, str) else "an array"
