"""Rules about mounts and device nodes."""

from __future__ import annotations

from ocirt.validation.rules.namespaces import mappings

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ocirt.spec import Config
    from ocirt.validation.found import Found, Rule


def absolute_destinations(config: Config, found: Found) -> None:
    """A destination "MAY be a relative path, in which case it MUST be interpreted as relative to /": deprecated.

    [config.md, Mounts]
    """
    for index, mount in enumerate(config.get("mounts") or ()):
        if mount["destination"][:1] != "/":
            message = 'a relative destination is deprecated, it is taken as relative to "/"'
            found.warn(f"mounts[{index}].destination", message, mount["destination"])


def mount_mappings(config: Config, found: Found) -> None:
    """The mappings of an ID-mapped mount: uidMappings "MUST be specified along with gidMappings"; `idmap` without any
    "and the container isn't using user namespaces, an error MUST be returned".

    [config.md, Linux mount options]
    """
    for index, mount in enumerate(config.get("mounts") or ()):
        options = mount.get("options") or ()
        wanted = next((o for o in options if o.partition("=")[0] in ("idmap", "ridmap")), "")
        given = [key for key in ("uidMappings", "gidMappings") if mount.get(key)]
        if not wanted and not given:
            continue
        path = f"mounts[{index}]"
        if len(given) == 1:
            missing = "gidMappings" if given == ["uidMappings"] else "uidMappings"
            message = f"is missing: id-mapped mounts must have both uid and gid mappings specified, {given[0]} is given"
            found.error(f"{path}.{missing}", message)
        namespaces = (config.get("linux") or {}).get("namespaces") or ()
        if wanted in ("idmap", "ridmap") and not given and not any(n["type"] == "user" for n in namespaces):
            message = f"{wanted} needs uidMappings and gidMappings, or a user namespace whose mappings can be used"
            found.error(f"{path}.options", message, list(options))
        if given and not wanted:
            hint = "add it, so that older runtimes don't silently ignore the mappings"
            found.warn(f"{path}.options", "has mappings but neither idmap nor ridmap", list(options), hint)
        mappings(mount.get("uidMappings"), f"{path}.uidMappings", found)
        mappings(mount.get("gidMappings"), f"{path}.gidMappings", found)


def device_paths(config: Config, found: Found) -> None:
    """ "If a file already exists at path that does not match the requested device, the runtime MUST generate an error":
    the second of two devices with one path would meet the first.

    [config-linux.md, Devices]
    """
    seen: dict[str, tuple[object, ...]] = {}
    for index, device in enumerate((config.get("linux") or {}).get("devices") or ()):
        kind = "c" if device["type"] == "u" else device["type"]
        numbers = (kind, *((device.get("major"), device.get("minor")) if kind != "p" else ()))
        if seen.setdefault(device["path"], numbers) != numbers:
            found.error(f"linux.devices[{index}].path", "another device has this path", device["path"])


RULES: tuple[Rule, ...] = (absolute_destinations, mount_mappings, device_paths)
