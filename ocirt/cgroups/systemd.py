"""Cgroups made by systemd: one transient scope a container, with everything in it delegated.

systemd makes the directory when the first process is given to it, so `prepare`
makes nothing and `join` starts the unit. What systemd has no property for is
written to the files of the cgroup, as without it.
"""

from __future__ import annotations

import os

from ocirt.cgroups import conversions, files, systemd_properties
from ocirt.cgroups.base import Cgroup
from ocirt.errors import Error, InvalidConfig, WrongState, doing
from ocirt.linux.sdbus import Bus, Failed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from ocirt.cgroups.systemd_properties import Property

FIELD = "linux.cgroupsPath"
#: Annotation: the cgroup below the scope that the processes are in.
SUBGROUP = "run.oci.systemd.subgroup"
NAME = "org.freedesktop.systemd1"
MANAGER = (NAME, "/org/freedesktop/systemd1", NAME + ".Manager")
PROPERTIES = (NAME, "/org/freedesktop/systemd1", "org.freedesktop.DBus.Properties")
JOB_REMOVED = (
    f"type='signal',sender='{NAME}',path='/org/freedesktop/systemd1',interface='{NAME}.Manager',member='JobRemoved'"
)


def choose(
    mounted: list[tuple[str, str]],
    wanted: str,
    id: str,
    *,
    resources: Mapping[str, Any],
    rootless: bool,
    annotations: Mapping[str, str],
    below: str = "",
) -> Systemd:
    """The scope that cgroupsPath (`slice:prefix:name`) stands for; raises InvalidConfig.

    below  where the processes are below it, and below what an annotation says
    """
    slice, prefix, name = "", "ocirt", id
    if wanted:
        parts = wanted.split(":")
        if len(parts) != 3 or "/" in wanted:
            raise InvalidConfig(
                f"{FIELD}: {wanted!r}: with --cgroup-manager=systemd the form is slice:prefix:name, "
                "for example system.slice:ocirt:web"
            )
        slice, prefix, name = parts
    slice = slice or ("user.slice" if rootless else "system.slice")
    if not slice.endswith(".slice") or slice.startswith(".") or "--" in slice:
        raise InvalidConfig(f"{FIELD}: {slice!r} is no name of a slice: it ends in .slice and has single dashes")
    if not name:
        raise InvalidConfig(f"{FIELD}: {wanted!r} has no name (slice:prefix:name)")
    if name.endswith(".slice"):
        raise InvalidConfig(f"{FIELD}: {name!r} is a slice; a container's processes are in a scope")
    unit = escape(f"{prefix}-{name}" if prefix else name) + ".scope"
    extra = systemd_properties.of_annotations(annotations)
    if annotations.get(SUBGROUP):
        from ocirt.cgroups.choosing import subgroup

        below = subgroup(annotations[SUBGROUP], SUBGROUP) + below
        if len(mounted) != 1 or mounted[0][0]:
            from ocirt.log import warning

            warning(f"the annotation {SUBGROUP} is ignored: this host has more than cgroup v2")
    return Systemd(unit, slice, user=rootless, mounted=mounted, resources=resources, extra=extra, below=below)


def escape(name: str) -> str:
    """A unit's name: what isn't allowed in one (`+` of an id, say) as `\\x2b`."""
    return "".join(
        c if (c.isascii() and c.isalnum()) or c in ":-_.\\@" else "".join(f"\\x{b:02x}" for b in c.encode())
        for c in name
    )


def expand(slice: str) -> str:
    """The path of a slice: `a-b.slice` is /a.slice/a-b.slice, `-.slice` is the root."""
    stem = slice.removesuffix(".slice")
    if stem == "-":
        return ""
    words = stem.split("-")
    return "".join(f"/{'-'.join(words[: n + 1])}.slice" for n in range(len(words)))


class Systemd(Cgroup):
    """A transient scope; `inner` is its cgroup, in which everything but making and ending is done."""

    __slots__ = ("above", "below", "extra", "inner", "limit", "mounted", "resources", "slice", "unit", "user")

    applies_first = False  # systemd makes the scope with the process in it

    def __init__(
        self,
        unit: str,
        slice: str,
        *,
        user: bool,
        mounted: list[tuple[str, str]],
        resources: Mapping[str, Any],
        extra: list[Property],
        below: str = "",
    ) -> None:
        self.unit = unit
        self.slice = slice
        self.user = user
        self.mounted = mounted
        self.resources = resources
        self.extra = extra
        self.below = below
        self.inner: Cgroup = Cgroup()
        self.above = -1
        #: memory limit at create: what is left to tell when systemd has removed the cgroup
        self.limit: int = conversions.section(resources, "memory").get("limit") or -1

    @classmethod
    def load(cls, record: dict[str, Any]) -> Systemd:
        """From a record."""
        from ocirt.cgroups import load

        made = cls(record["unit"], "", user=record["user"], mounted=[], resources={}, extra=[])
        made.inner = load(record["inner"])
        made.above, made.limit = record["above"], record["limit"]
        return made

    def record(self) -> dict[str, Any]:
        return {
            "manager": "systemd",
            "unit": self.unit,
            "user": self.user,
            "above": self.above,
            "limit": self.limit,
            "inner": self.inner.record(),
        }

    # -- create

    def prepare(self) -> int:
        """Find out where systemd will put the scope, and whether its name is free."""
        with doing("prepare the scope"), Bus(user=self.user) as bus:
            root = _property(bus, "ControlGroup")
            self._refuse_running(bus)
        path = root.rstrip("/") + expand(self.slice) + "/" + self.unit
        above = path.count("/")
        if len(self.mounted) == 1 and self.mounted[0][0] == "":
            from ocirt.cgroups.v2 import V2

            # systemd removes its own: `kept` is one more than there are parts, so that we leave it alone
            self.inner = V2(self.mounted[0][1], path, above, below=self.below)
            self.above = _kills_above(self.inner.directory)
            return -1
        from ocirt.cgroups.v1 import V1

        self.inner = V1([(controllers, mountpoint, path, above) for controllers, mountpoint in self.mounted])
        return -1

    def _refuse_running(self, bus: Bus) -> None:
        try:
            path = bus.call(MANAGER, "GetUnit", "s", self.unit)
        except Failed:
            return
        target = (NAME, bus.read(path, "o")[0], PROPERTIES[2])
        bus.free(path)
        reply = bus.call(target, "Get", "ss", NAME + ".Unit", "ActiveState")
        state = bus.read(reply, "vs")[0]
        bus.free(reply)
        if state == "failed":
            bus.free(bus.call(MANAGER, "ResetFailedUnit", "s", self.unit))
        elif state != "inactive":
            raise WrongState(f"the unit {self.unit} is there already ({state})")

    def join(self, pid: int, *, memory: bool = True) -> None:
        del memory  # systemd puts it into all
        unified = len(self.mounted) == 1 and self.mounted[0][0] == ""
        with Bus(user=self.user) as bus:
            version = _version(bus)
            properties: list[Property] = [
                ("Description", ("s", f"container {self.unit.removesuffix('.scope')}")),
                ("Slice", ("s", self.slice)),
                ("Delegate", ("b", True)),
                ("DefaultDependencies", ("b", False)),
                ("PIDs", ("au", [pid])),
                *(
                    (f"{name}Accounting", ("b", True))
                    for name in ("CPU", "Memory", "Tasks", "IO" if unified else "BlockIO")
                ),
            ]
            properties += systemd_properties.of_resources(self.resources, unified=unified, version=version)
            if not unified:
                from ocirt.cgroups import devices

                properties += systemd_properties.of_devices(devices.rules(self.resources.get("devices")))
            # the user's word comes last and replaces ours
            chosen = dict(properties)
            chosen.update(self.extra)
            self._start(bus, list(chosen.items()))
        self.inner.complete(pid)

    def _start(self, bus: Bus, properties: list[Property]) -> None:
        bus.add_match(JOB_REMOVED)
        with doing(f"start the unit {self.unit}"):
            reply = bus.call(MANAGER, "StartTransientUnit", "ssa(sv)a(sa(sv))", self.unit, "fail", properties, [])
            self._await(bus, reply)

    def _await(self, bus: Bus, reply: int) -> None:
        """Wait for the job that the reply names."""
        job = bus.read(reply, "o")[0]
        bus.free(reply)
        for _, path, unit, result in bus.signals("JobRemoved", "uoss"):
            if path == job:
                if result != "done":
                    raise Error(f"systemd's job for {unit} ended as {result!r} (journalctl -u {unit} may know why)")
                return

    def apply(self, resources: Mapping[str, Any]) -> None:
        self.inner.apply(resources)

    def update(self, resources: Mapping[str, Any], current: Mapping[str, Any]) -> None:
        from ocirt.cgroups.v2 import V2

        unified = isinstance(self.inner, V2)
        merged = {**resources}
        memory, before = conversions.section(resources, "memory"), conversions.section(current, "memory")
        if memory.get("swap") and not memory.get("limit") and before.get("limit"):
            merged["memory"] = {**memory, "limit": before["limit"]}
        # the files first: what the kernel refuses, systemd must not come to know
        self.inner.update(merged, current)
        with Bus(user=self.user) as bus, doing(f"set properties of the unit {self.unit}"):
            properties = systemd_properties.of_resources(merged, unified=unified, version=_version(bus))
            if not unified and "devices" in resources:
                from ocirt.cgroups import devices

                properties += systemd_properties.of_devices(devices.rules(resources["devices"]))
            if properties:
                bus.free(bus.call(MANAGER, "SetUnitProperties", "sba(sv)", self.unit, True, properties))

    # -- delete

    def remove(self) -> None:
        with doing(f"stop the unit {self.unit}"), Bus(user=self.user) as bus:
            bus.add_match(JOB_REMOVED)
            try:
                self._await(bus, bus.call(MANAGER, "StopUnit", "ss", self.unit, "replace"))
            except Failed as error:
                if error.name != NAME + ".NoSuchUnit":
                    raise
            try:
                bus.free(bus.call(MANAGER, "ResetFailedUnit", "s", self.unit))
            except Failed:
                pass  # it wasn't failed: most aren't
        self.inner.remove()

    # -- everything else is the cgroup's

    def mounts(self) -> list[tuple[str, str, str]]:
        return self.inner.mounts()

    def path(self, controller: str = "") -> str:
        return self.inner.path(controller)

    def chown(self, uid: int, gid: int = -1) -> None:
        self.inner.chown(uid, gid)

    def freeze(self) -> None:
        self.inner.freeze()

    def thaw(self) -> None:
        self.inner.thaw()

    def frozen(self) -> bool:
        return self.inner.frozen()

    def pids(self, recursive: bool = True) -> list[int]:
        return self.inner.pids(recursive)

    def kill(self) -> None:
        self.inner.kill()

    def signal(self, number: int) -> None:
        self.inner.signal(number)

    def stats(self) -> dict[str, Any]:
        return self.inner.stats()

    def oom_kills(self) -> int:
        """systemd removes an empty cgroup at once, and what it counted is gone with it.

        Then systemd has remembered what ended the unit (from 253 on), and the slice counts what
        happens below it: a kill since the container was made, and the container gone, is ours.
        """
        directory = self.inner.path("memory")
        if not directory or os.access(directory, os.F_OK):
            return self.inner.oom_kills()
        if self._remembered("Scope", "Result", "s") == "oom-kill":
            return 1
        return max(0, _kills_above(directory) - self.above) if self.above >= 0 else 0

    def memory_peak(self) -> tuple[int, int]:
        limit, peak = self.inner.memory_peak()
        return self.limit if limit < 0 and not peak else limit, peak

    def _remembered(self, interface: str, name: str, signature: str) -> Any:
        """A property of the unit, None if it or systemd is gone."""
        try:
            with Bus(user=self.user) as bus:
                path = bus.call(MANAGER, "GetUnit", "s", self.unit)
                target = (NAME, bus.read(path, "o")[0], PROPERTIES[2])
                reply = bus.call(target, "Get", "ss", f"{NAME}.{interface}", name)
                value = bus.read(reply, "v" + signature)[0]
                bus.free(path)
                bus.free(reply)
                return value
        except Error:
            return None

    def exec_descriptor(self, subs: list[str], init: int = 0) -> int:
        return self.inner.exec_descriptor(subs, init)

    def join_exec(self, pid: int, subs: list[str], init: int = 0) -> None:
        """Where the caller's cgroup isn't delegated to it, only systemd may move the process."""
        try:
            self.inner.join_exec(pid, subs, init)
        except Error as error:
            if error.errno not in (files.EACCES, files.EPERM):
                raise
            from ocirt.cgroups.making import split_sub

            below = split_sub(subs[0])[1] if subs else getattr(self.inner, "below", "")
            with Bus(user=self.user) as bus:
                bus.free(bus.call(MANAGER, "AttachProcessesToUnit", "ssau", self.unit, below, [pid]))


def _kills_above(directory: str) -> int:
    """OOM kills that the slice has counted, its own and below."""
    return files.fields(directory[: directory.rindex("/")] + "/memory.events").get("oom_kill", 0)


def _property(bus: Bus, name: str) -> str:
    """A string property of systemd's manager."""
    reply = bus.call(PROPERTIES, "Get", "ss", MANAGER[2], name)
    value: str = bus.read(reply, "vs")[0]
    bus.free(reply)
    return value


def _version(bus: Bus) -> int:
    """systemd's version: `252.39-1~deb12u1` is 252."""
    digits = ""
    for character in _property(bus, "Version").lstrip("v"):
        if not character.isdigit():
            break
        digits += character
    return int(digits or 0)
