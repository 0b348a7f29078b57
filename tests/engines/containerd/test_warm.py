"""A worker has all that it needs: what it must import costs every container, and the memory of each fork."""

from __future__ import annotations

import re

from tests.engines.containerd.engine import Engine


def life(engine: Engine) -> dict[str, str]:
    """What the workers of a container's life have imported, by operation."""
    bundle = engine.bundle("sleep 1000")
    bundle.linux["resources"] |= {"memory": {"limit": 64 << 20}, "pids": {"limit": 100}, "cpu": {"shares": 512}}
    bundle.linux["namespaces"].append({"type": "cgroup"})
    rule = {"names": ["kexec_load"], "action": "SCMP_ACT_ERRNO"}
    bundle.linux["seccomp"] = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}
    task = engine.running(bundle=bundle)
    id = task.exec("/bin/true")
    task.start(id)
    task.wait(id)
    task.delete(id)
    task("Pause")
    task("Resume")
    task.kill()
    task.wait()
    task.delete()
    found = dict(re.findall(r'msg="(\w+) \S+: done, imported: ([^"]*)"', bundle.logged()))
    task.leave()
    return found


def test_workers_import_nothing(engine: Engine) -> None:
    if engine.kind.name != "ocirt":
        return
    first = life(engine)
    assert set(first) >= {"create", "start", "execute", "pause", "resume", "delete"}
    assert "ocirt.identity.seccomp.compile" in first["create"], "a filter is compiled once: the log tells of imports"
    assert set(life(engine).values()) == {""}
