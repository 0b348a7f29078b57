"""A label of a security module that the host lacks is an error before anything is made; config.md, Linux Process."""

from __future__ import annotations

import pytest

from ocirt.identity import labels
from tests.harness.box import Box

no_apparmor = pytest.mark.skipif(labels.apparmor_enabled(), reason="this kernel runs with AppArmor")
no_selinux = pytest.mark.skipif(labels.selinux_enabled(), reason="this kernel runs with SELinux")

CASES = [
    pytest.param("apparmorProfile", "docker-default", "AppArmor", "--apparmor", marks=no_apparmor),
    pytest.param("selinuxLabel", "system_u:system_r:container_t:s0", "SELinux", "--process-label", marks=no_selinux),
]


@pytest.mark.parametrize(("key", "value", "module", "flag"), CASES)
def test_create_and_exec(box: Box, key: str, value: str, module: str, flag: str) -> None:
    box.create_and_start("sleep 1000")
    result = box.exec("true", flags=(flag, value), check=False)
    assert result.rc != 0
    assert f"process.{key}: '{value}': {module} is not enabled on this host" in result.err
    box.delete("--force")
    box.process[key] = value
    result = box.create(check=False)
    assert result.rc == 1
    assert f"process.{key}: '{value}': {module} is not enabled on this host" in result.err


@no_selinux
def test_a_mount_label_is_ignored_with_a_warning(box: Box) -> None:
    """Mounts have no labels that anything could go by; engines set it whatever the host is."""
    box.linux["mountLabel"] = "system_u:object_r:container_file_t:s0"
    result = box.run("echo ran")
    assert result.out == "ran\n"
    assert "linux.mountLabel: 'system_u:object_r:container_file_t:s0' is ignored: SELinux is not enabled" in result.err
