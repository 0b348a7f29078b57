"""Rules about the version, names, hooks and paths of a configuration."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Literal

    from ocirt.spec import Config
    from ocirt.validation.found import Found, Rule

    Hook = Literal["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"]

#: __NEW_UTS_LEN of the kernel.
_MAX_NAME = 64

_HOOKS: tuple[Hook, ...] = (
    "prestart",
    "createRuntime",
    "createContainer",
    "startContainer",
    "poststart",
    "poststop",
)

_IDENTIFIER = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz-"


def major(version: str) -> int:
    """The major number of a version in SemVer 2.0.0 format, -1 if it isn't in that format."""
    core, _, build = version.partition("+")
    core, dash, pre = core.partition("-")
    numbers = core.split(".")
    if len(numbers) != 3 or not all(_numeric(n) for n in numbers):
        return -1
    if dash and not all(_identifier(part) and (not part.isdigit() or _numeric(part)) for part in pre.split(".")):
        return -1
    if "+" in version and not all(_identifier(part) for part in build.split(".")):
        return -1
    return int(numbers[0])


def _numeric(text: str) -> bool:
    return text.isascii() and text.isdigit() and (text == "0" or text[0] != "0") and len(text) < 10


def _identifier(text: str) -> bool:
    return bool(text) and not text.strip(_IDENTIFIER)


def oci_version(config: Config, found: Found) -> None:
    """ociVersion "MUST be in SemVer v2.0.0 format"; any 1.x is compatible, no other major version is.

    [config.md, Specification version]
    """
    version = config["ociVersion"]
    number = major(version)
    if number < 0:
        found.error("ociVersion", 'must be a SemVer 2.0.0 version, such as "1.3.0"', version)
    elif number != 1:
        found.error("ociVersion", "unsupported version of the runtime specification, must be 1.x", version)


def names(config: Config, found: Found) -> None:
    """hostname and domainname belong to the UTS namespace, so the container needs one, new or joined.

    [config.md, Hostname]
    """
    namespaces = (config.get("linux") or {}).get("namespaces") or []
    for key, name in (("hostname", config.get("hostname")), ("domainname", config.get("domainname"))):
        if not name:
            continue
        if not any(n["type"] == "uts" for n in namespaces):
            hint = 'add {"type": "uts"} to linux.namespaces'
            found.error(key, f"unable to set {key} without a private UTS namespace", name, hint)
        if len(name.encode("utf-8", "surrogatepass")) > _MAX_NAME:
            found.error(key, f"must not be longer than {_MAX_NAME} bytes", name)


def hook_environments(config: Config, found: Found) -> None:
    """The environment of a hook has "the same semantics as environ": every entry is NAME=value.

    [config.md, POSIX-platform Hooks]
    """
    hooks = config.get("hooks")
    for kind in _HOOKS if hooks else ():
        for number, hook in enumerate((hooks or {}).get(kind) or ()):
            environment(hook.get("env") or [], f"hooks.{kind}[{number}].env", found)


def environment(entries: list[str], path: str, found: Found) -> None:
    """Every entry must be NAME=value with a name that isn't empty."""
    for index, entry in enumerate(entries):
        if entry.find("=") < 1:
            found.error(f"{path}[{index}]", "invalid environment variable, must be NAME=value", entry)


def cgroups_path(config: Config, found: Found) -> None:
    """cgroupsPath stays where it says: a `..` could reach the cgroup of somebody else.

    "Runtimes MAY consider certain cgroupsPath values to be invalid, and MUST generate an error".
    [config-linux.md, Cgroups Path]
    """
    path = (config.get("linux") or {}).get("cgroupsPath")
    if path and ".." in path.split("/"):
        found.error("linux.cgroupsPath", "must not hold ..", path)


def paths_need_mount_namespace(config: Config, found: Found) -> None:
    """Masked and read-only paths are mounts, and without a mount namespace they would be the host's.

    [config-linux.md, Masked Paths]
    """
    linux = config.get("linux") or {}
    if any(n["type"] == "mount" for n in linux.get("namespaces") or ()):
        return
    for key in ("maskedPaths", "readonlyPaths"):
        if linux.get(key):
            hint = 'add {"type": "mount"} to linux.namespaces'
            found.error(f"linux.{key}", "unable to restrict sys entries without a private MNT namespace", hint=hint)


RULES: tuple[Rule, ...] = (oci_version, names, hook_environments, cgroups_path, paths_need_mount_namespace)
