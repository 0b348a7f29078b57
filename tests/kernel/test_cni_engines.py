"""Engines that call our plugins as CNI executables: podman 4.3's CNI backend and containerd's ctr."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.waiting import eventually
from tests.kernel.netlab import Namespace, ask

STORE = Path("/var/lib/cni/networks")  # podman and ctr have no option for it
OCIRT = str(Path(__file__).resolve().parents[2] / "hack" / "ocirt")


def missing(*programs: str) -> str:
    return " ".join(p for p in programs if not shutil.which(p))


class Engine:
    """A host with a neighbour, our plugins in a directory, and a root filesystem with a web server."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.host, self.outside = Namespace(), Namespace()
        self.host.sh(
            f"""
            ip link set lo up
            ip link add wire type veth peer name wire netns /proc/{os.getpid()}/fd/{self.outside.fd}
            ip addr add 192.0.2.1/24 dev wire; ip link set wire up
            """
        )
        self.outside.sh("ip link set lo up; ip addr add 192.0.2.2/24 dev wire; ip link set wire up")
        self.plugins = directory / "plugins"
        subprocess.run([OCIRT, "network", "plugins", str(self.plugins)], check=True, timeout=30, capture_output=True)
        self.rootfs = directory / "rootfs"
        for name in ("bin", "etc", "proc", "dev", "sys", "tmp", "www", "run"):
            (self.rootfs / name).mkdir(parents=True)
        shutil.copy(shutil.which("busybox") or "", self.rootfs / "bin" / "busybox")
        for name in ("sh", "httpd", "sleep"):
            (self.rootfs / "bin" / name).symlink_to("busybox")
        (self.rootfs / "www" / "index.html").write_text("hello from inside\n")
        (directory / "net.d").mkdir()

    def page(self, port: int) -> bool:
        try:
            request = b"GET / HTTP/1.0\r\n\r\n"
            return b"hello from inside" in ask(self.outside, "192.0.2.1", port, request, timeout=1)
        except OSError:
            return False

    def left(self) -> tuple[list[str], int]:
        names = [i["ifname"] for i in self.host.ip("link") if i.get("linkinfo", {}).get("info_kind") == "veth"]
        return [n for n in names if n != "wire"], self.host.sh("nft list ruleset").count("comment")

    def close(self) -> None:
        self.host.close()
        self.outside.close()


@pytest.fixture
def engine() -> Iterator[Engine]:
    # podman takes no --runroot of more than 50 characters
    with tempfile.TemporaryDirectory(prefix="cni") as directory:
        made = Engine(Path(directory))
        yield made
        made.close()


@pytest.mark.skipif(
    bool(missing("podman", "conmon", "busybox")), reason="podman 4.3, conmon or busybox is not installed"
)
@pytest.mark.parametrize("runtime", ["runc", OCIRT], ids=["runc", "ocirt"])
def test_podman_with_its_cni_backend(engine: Engine, runtime: str) -> None:
    if runtime == "runc" and missing("runc"):
        pytest.skip("runc is not installed")
    base = engine.directory
    (base / "containers.conf").write_text(
        f"""
        [network]
        network_backend="cni"
        cni_plugin_dirs=["{engine.plugins}"]
        network_config_dir="{base}/net.d"
        [engine]
        cgroup_manager="cgroupfs"
        events_logger="none"
        runtime="{runtime}"
        tmp_dir="{base}/tmp"
        static_dir="{base}/static"
        volume_path="{base}/volumes"
        """
    )
    environment = {**os.environ, "CONTAINERS_CONF": str(base / "containers.conf")}

    def podman(*arguments: str, check: bool = True) -> str:
        command = ("podman", "--root", f"{base}/root", "--runroot", f"{base}/runroot", "--storage-driver", "vfs")
        return engine.host.run(*command, *arguments, check=check, env=environment).stdout

    if podman("info", "--format", "{{.Host.NetworkBackend}}").strip() != "cni":
        pytest.skip("this podman has no CNI backend (it went with 5.0)")
    podman("network", "create", "red")
    try:
        podman(
            "run", "-d", "--network", "red", "-p", "8080:80", "--name", "web",
            "--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024",
            "--rootfs", str(engine.rootfs), "/bin/httpd", "-f", "-p", "80", "-h", "/www",
        )  # fmt: skip
        assert eventually(lambda: engine.page(8080))
    finally:
        podman("rm", "-f", "-t", "0", "web", check=False)
        assert engine.left() == ([], 0)
        podman("network", "rm", "red", check=False)
        reserved = [file.name for file in STORE.glob("red/*") if file.name[0].isdigit()]
        shutil.rmtree(STORE / "red", ignore_errors=True)
    assert reserved == []


@pytest.mark.skipif(
    bool(missing("containerd", "ctr", "runc", "busybox", "unshare")),
    reason="containerd, runc or busybox is not installed",
)
def test_containerds_ctr(engine: Engine) -> None:
    base = engine.directory
    (base / "net.d" / "10-red.conflist").write_text(
        f"""
        {{"cniVersion": "1.0.0", "name": "red", "plugins": [
            {{"type": "bridge", "bridge": "red0", "isDefaultGateway": true, "ipMasq": true,
              "ipam": {{"type": "host-local", "dataDir": "{base}/ipam", "ranges": [[{{"subnet": "10.61.0.0/24"}}]]}}}},
            {{"type": "portmap", "capabilities": {{"portMappings": true}}}},
            {{"type": "firewall", "ingressPolicy": "same-bridge"}}, {{"type": "tuning"}}]}}
        """
    )
    (base / "containerd.toml").write_text(
        f"""
        version = 2
        root = "{base}/root"
        state = "{base}/state"
        disabled_plugins = ["io.containerd.grpc.v1.cri"]
        [grpc]
        address = "{base}/containerd.sock"
        """
    )
    # ctr looks in /opt/cni/bin and /etc/cni/net.d: there, in a mount namespace of its own, are ours
    script = f"""
        set -e
        mount -t tmpfs none /opt; mkdir -p /opt/cni/bin; mount --bind {engine.plugins} /opt/cni/bin
        mkdir -p /etc/cni; mount -t tmpfs none /etc/cni; mkdir /etc/cni/net.d
        mount --bind {base}/net.d /etc/cni/net.d
        containerd -c {base}/containerd.toml > {base}/log 2>&1 &
        daemon=$!
        ctr="ctr -a {base}/containerd.sock"
        for i in $(seq 100); do $ctr version > /dev/null 2>&1 && break; sleep 0.1; done
        $ctr run --rm --cni --rootfs {engine.rootfs} web /bin/httpd -f -p 80 -h /www &
        web=$!
        touch {base}/up
        while [ ! -e {base}/down ]; do sleep 0.05; done
        $ctr task kill -s KILL web
        wait $web || true
        kill $daemon; wait $daemon || true
    """
    had_cni = os.path.isdir("/etc/cni")
    with engine.host.inside():
        process = subprocess.Popen(
            ["unshare", "-m", "sh", "-c", script],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
    try:
        assert eventually(lambda: (base / "up").exists() or process.poll() is not None, 30)
        time.sleep(0.1)
        assert process.poll() is None, process.stdout and process.stdout.read()

        def answers() -> bool:
            try:
                return b"hello from inside" in ask(engine.host, "10.61.0.2", 80, b"GET / HTTP/1.0\r\n\r\n", timeout=1)
            except OSError:
                return False

        assert eventually(answers)
        assert engine.left()[1] >= 3
    finally:
        (base / "down").touch()
        out, _ = process.communicate(timeout=30)
        if not had_cni and os.path.isdir("/etc/cni"):
            os.rmdir("/etc/cni")
    assert engine.left() == ([], 0)
    assert not [file.name for file in (base / "ipam" / "red").iterdir() if file.name[0].isdigit()]
    assert process.returncode == 0, (out, (base / "log").read_text()[-2000:])
