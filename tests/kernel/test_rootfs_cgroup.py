"""Mounts of type cgroup, on a host with v1 hierarchies and a cgroup2 beside them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from ocirt.process.plan import Plan
from tests.kernel.rootfs_lab import DEFAULT_MOUNTS, Lab, mountinfo, mounts_by_point
from tests.kernel.test_rootfs_userns import MAPPINGS, owned, tmp_path

__all__ = ("tmp_path",)

PROC, SYSFS = DEFAULT_MOUNTS[0], DEFAULT_MOUNTS[5]
CGROUP = {
    "destination": "/sys/fs/cgroup",
    "type": "cgroup",
    "source": "cgroup",
    "options": ["nosuid", "noexec", "nodev", "relatime", "ro"],
}
WRITABLE = {**CGROUP, "options": ["nosuid", "noexec", "nodev"]}

Groups = list[tuple[str, str, str]]


def hierarchies() -> list[tuple[str, str]]:
    """(controllers, mount point) of this host; controllers is "" for cgroup2."""
    found: list[tuple[str, str]] = []
    for m in mountinfo():
        if m["type"] == "cgroup2":
            found.append(("", m["point"]))
        elif m["type"] == "cgroup":
            names = [o for o in m["super"] if o not in ("rw", "ro", "xattr", "clone_children")]
            found.append((",".join(n for n in names if "release_agent" not in n), m["point"]))
    return found


@pytest.fixture
def groups() -> Iterator[Groups]:
    """A cgroup of the test's own in a v1 hierarchy or two, if there are any, and in cgroup2."""
    chosen = [h for h in hierarchies() if h[0] in ("", "cpu", "cpu,cpuacct", "freezer", "name=systemd")]
    path = f"/ocirt-rootfs-{os.getpid()}"
    for _, point in chosen:
        os.makedirs(point + path, exist_ok=True)
    yield [(controllers, point, path) for controllers, point in chosen]
    for _, point in chosen:
        with suppress(FileNotFoundError):
            os.rmdir(point + path)


def v2_only(groups: Groups) -> Groups:
    return [g for g in groups if not g[0]]


def v1(groups: Groups) -> Groups:
    if not any(controllers for controllers, _, _ in groups):
        pytest.skip("this kernel has no cgroup v1 hierarchy mounted")
    return groups


def look(_: Plan) -> dict[str, Any]:
    points = mounts_by_point()
    return {
        "names": sorted(os.listdir("/sys/fs/cgroup")),
        "mounts": {
            p: [m["type"], m["root"], m["options"]] for p, m in points.items() if p.startswith("/sys/fs/cgroup")
        },
        "links": {n: os.readlink(f"/sys/fs/cgroup/{n}") for n in os.listdir("/sys/fs/cgroup") if _is_link(n)},
    }


def _is_link(name: str) -> bool:
    return os.path.islink(f"/sys/fs/cgroup/{name}")


@pytest.mark.parametrize("mount", [CGROUP, WRITABLE], ids=["ro", "rw"])
def test_v1_shows_the_containers_groups(lab: Lab, groups: Groups, mount: dict[str, Any]) -> None:
    found = lab.run({"mounts": [PROC, SYSFS, mount]}, look, plan={"cgroups": v1(groups)})
    kind, root, options = found["mounts"]["/sys/fs/cgroup"]
    access = "ro" if mount is CGROUP else "rw"
    assert kind == "tmpfs"
    assert access in options
    for controllers, point, path in groups:
        name = os.path.basename(point) if controllers else "unified"
        kind, root, options = found["mounts"][f"/sys/fs/cgroup/{name}"]
        assert kind == ("cgroup" if controllers else "cgroup2")
        assert root == path
        assert {access, "nosuid", "nodev", "noexec"} <= set(options)


def test_v1_with_a_cgroup_namespace(lab: Lab, groups: Groups) -> None:
    new = ("mount", "pid", "network", "ipc", "cgroup")
    found = lab.run({"mounts": [PROC, SYSFS, CGROUP]}, look, plan={"cgroups": v1(groups)}, new=new)
    for controllers, point, _ in groups:
        name = os.path.basename(point) if controllers else "unified"
        kind, root, options = found["mounts"][f"/sys/fs/cgroup/{name}"]
        assert (kind, root) == ("cgroup" if controllers else "cgroup2", "/")
        assert "ro" in options


def test_v1_links_for_controllers_that_share_a_hierarchy(lab: Lab, groups: Groups) -> None:
    _, point, path = v1(groups)[0]
    shared = [("cpu,cpuacct", point, path)]
    found = lab.run({"mounts": [PROC, SYSFS, CGROUP]}, look, plan={"cgroups": shared})
    name = os.path.basename(point)
    assert found["links"] == {n: name for n in ("cpu", "cpuacct") if n != name}


def test_v1_group_that_is_missing_leaves_an_empty_directory(lab: Lab, groups: Groups) -> None:
    missing = [(c, p, "/ocirt-nonesuch") for c, p, _ in v1(groups)]
    found = lab.run({"mounts": [PROC, SYSFS, CGROUP]}, look, plan={"cgroups": missing})
    assert list(found["mounts"]) == ["/sys/fs/cgroup"]


def test_v2(lab: Lab, groups: Groups) -> None:
    config = {"mounts": [PROC, SYSFS, CGROUP]}
    found = lab.run(config, look, plan={"cgroups": v2_only(groups)}, new=("mount", "pid", "network", "ipc", "cgroup"))
    kind, root, options = found["mounts"]["/sys/fs/cgroup"]
    assert (kind, root) == ("cgroup2", "/")
    assert "ro" in options
    assert "cgroup.procs" in found["names"]


@pytest.mark.parametrize("mount", [CGROUP, WRITABLE], ids=["ro", "rw"])
def test_v2_in_a_user_namespace_is_bound(lab: Lab, groups: Groups, mount: dict[str, Any]) -> None:
    """Without a cgroup namespace cgroup2 can't be mounted; what is bound instead stays as read-only as it was to be."""
    owned(lab)
    own = v2_only(groups)
    config = {"mounts": [PROC, SYSFS, mount]}
    found = lab.run(config, look, plan={"cgroups": own}, mappings=MAPPINGS)
    kind, root, options = found["mounts"]["/sys/fs/cgroup"]
    assert (kind, root) == ("cgroup2", "/")
    assert ("ro" in options) == (mount is CGROUP)
    assert {"nosuid", "nodev", "noexec"} <= set(options)


def test_v2_that_cannot_be_shown_is_masked(lab: Lab, groups: Groups) -> None:
    """CVE-2023-25809: the host's hierarchy below a bound /sys must not stay in sight."""
    owned(lab)
    missing = [("", "/sys/fs/ocirt-nonesuch", "/x")]
    found = lab.run({"mounts": [PROC, SYSFS, WRITABLE]}, look, plan={"cgroups": missing}, mappings=MAPPINGS)
    kind, _, options = found["mounts"]["/sys/fs/cgroup"]
    assert (kind, found["names"]) == ("tmpfs", [])
    assert "ro" in options


def test_propagation_of_a_cgroup_mount(lab: Lab, groups: Groups) -> None:
    mount = {**CGROUP, "options": ["ro", "rslave", "shared"]}
    for chosen in (groups, v2_only(groups)):
        new = ("mount", "pid", "network", "ipc", "cgroup")
        config = {"mounts": [PROC, SYSFS, mount]}
        found = lab.run(config, lambda _: mounts_by_point()["/sys/fs/cgroup"], plan={"cgroups": chosen}, new=new)
        assert [o.partition(":")[0] for o in found["optional"]] == ["shared"]


def test_no_groups_at_all(lab: Lab) -> None:
    """With cgroups disabled the mount shows cgroup2 where there is one."""
    found = lab.run({"mounts": [PROC, SYSFS, CGROUP]}, look, plan={"cgroups": []})
    assert found["mounts"]["/sys/fs/cgroup"][0] == "cgroup2"
    assert Path("/sys/fs/cgroup").exists()
