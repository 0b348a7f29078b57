"""Rules about Intel Resource Director Technology."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ocirt.spec import Config
    from ocirt.validation.found import Found, Rule

#: Directories of every resctrl filesystem that are no classes of service.
_RESERVED = ("info", "mon_data", "mon_groups")


def clos_id(config: Config, found: Found) -> None:
    """closID is the name of one directory of the resctrl filesystem; "/" is its root, the default class.

    [config-linux.md, IntelRdt]
    """
    name = ((config.get("linux") or {}).get("intelRdt") or {}).get("closID")
    if not name or name == "/":
        return
    if name in (".", "..") or "/" in name or "\n" in name:
        found.error("linux.intelRdt.closID", "invalid intelRdt.ClosID, must be a directory name or /", name)
    elif name in _RESERVED:
        found.error("linux.intelRdt.closID", "invalid intelRdt.ClosID: resctrl has a directory of this name", name)


def l3_cache_schema(config: Config, found: Found) -> None:
    """l3CacheSchema "SHOULD start with L3: and SHOULD NOT contain newlines".

    [config-linux.md, IntelRdt]
    """
    schema = ((config.get("linux") or {}).get("intelRdt") or {}).get("l3CacheSchema")
    if schema and (not schema.startswith("L3:") or "\n" in schema):
        found.warn("linux.intelRdt.l3CacheSchema", "should start with L3: and be one line", schema)


RULES: tuple[Rule, ...] = (clos_id, l3_cache_schema)
