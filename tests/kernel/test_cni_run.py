"""`ocirt run --network …` and `ocirt network …`: a container's network without an engine."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ocirt.cni import attach
from ocirt.errors import InvalidConfig
from tests.harness.waiting import eventually
from tests.kernel.netlab import Namespace, Server, ask

OCIRT = str(Path(__file__).resolve().parents[2] / "hack" / "ocirt")
BUSYBOX = shutil.which("busybox") or ""

pytestmark = pytest.mark.skipif(
    not BUSYBOX, reason="busybox (static) is not installed: the container's programs are it"
)

SERVER = "httpd -f -p 80 -h /www"


class Site:
    """A host with a neighbour on its wire, a bundle, and the runtime with all its state in one directory."""

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
        self.environment = {
            **os.environ,
            "OCIRT_CNI_DIRECTORY": str(directory / "cni"),
            "OCIRT_RUN_DIRECTORY": str(directory / "run"),
            "NETCONFPATH": str(directory / "net.d"),
        }
        self.networks = directory / "net.d"
        self.networks.mkdir()
        self.ids: list[str] = []
        root = directory / "bundle" / "rootfs"
        for name in ("bin", "etc", "proc", "dev", "sys", "tmp", "www"):
            (root / name).mkdir(parents=True)
        shutil.copy(BUSYBOX, root / "bin" / "busybox")
        (root / "www" / "index.html").write_text("hello from inside\n")
        for name in ("sh", "httpd", "nc", "cat", "ip", "sleep", "wget", "nslookup", "ping"):
            (root / "bin" / name).symlink_to("busybox")

    def bundle(self, *command: str, **annotations: str) -> str:
        path = self.directory / "bundle"
        (path / "config.json").unlink(missing_ok=True)
        subprocess.run([OCIRT, "spec", "-b", str(path)], check=True, timeout=30)
        config = json.loads((path / "config.json").read_text())
        config["process"].update(terminal=False, args=list(command))
        config["annotations"] = {k.replace("__", ".").replace("_", "-"): v for k, v in annotations.items()}
        (path / "config.json").write_text(json.dumps(config))
        return str(path)

    def ocirt(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        out = self.directory / "out"
        err = self.directory / "err"
        with self.host.inside(), out.open("w") as stdout, err.open("w") as stderr:
            process = subprocess.Popen(
                [OCIRT, "--root", str(self.directory / "root"), *arguments],
                stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, env=self.environment,
            )  # fmt: skip
        code = process.wait(60)
        assert not check or code == 0, (arguments, code, out.read_text(), err.read_text())
        return subprocess.CompletedProcess(arguments, code, out.read_text(), err.read_text())

    def network(self, action: str, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.ocirt("network", action, *arguments, check=check)

    def run(self, id: str, *flags: str, command: tuple[str, ...] = ("sleep", "1000"), **annotations: str) -> None:
        self.ids.append(id)
        self.ocirt("run", "-d", "-b", self.bundle(*command, **annotations), *flags, id)

    def inside(self, id: str, script: str) -> str:
        return self.ocirt("exec", id, "sh", "-c", script).stdout

    def processes(self, word: str) -> list[int]:
        """Pids of processes of ours in the host's namespace with `word` in their command line."""
        found = []
        for name in filter(str.isdigit, os.listdir("/proc")):
            try:
                command = Path(f"/proc/{name}/cmdline").read_bytes()
                if word.encode() in command and os.stat(f"/proc/{name}/ns/net").st_ino == os.fstat(self.host.fd).st_ino:
                    found.append(int(name))
            except OSError:
                continue
        return found

    def left(self) -> tuple[list[str], int, list[str], list[str]]:
        links = [i["ifname"] for i in self.host.ip("link") if i["ifname"] not in ("lo", "wire", "ocirt0")]
        reserved = [p.name for p in (self.directory / "cni" / "networks" / "bridge").glob("*") if p.name[0].isdigit()]
        cached = [p.name for p in (self.directory / "cni" / "results").glob("*")]
        return links, self.host.sh("nft list ruleset").count("comment"), reserved, cached

    def close(self) -> None:
        for id in self.ids:
            self.ocirt("delete", "-f", id, check=False)
        self.network("gc", "bridge", check=False)
        self.host.close()
        self.outside.close()


NOTHING: Any = ([], 0, [], [])


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    made.close()


def page(site: Site, client: Namespace, address: str, port: int) -> bool:
    try:
        return b"hello from inside" in ask(client, address, port, b"GET / HTTP/1.0\r\n\r\n", timeout=1)
    except OSError:
        return False


def test_a_container_on_the_default_network_with_ports(site: Site) -> None:
    site.run("web", "--network", "bridge", "-p", "8080:80", "-p", "5300:53/udp", command=("sh", "-c", SERVER))
    assert eventually(lambda: page(site, site.outside, "192.0.2.1", 8080))
    assert page(site, site.host, "127.0.0.1", 8080)
    hosts = site.inside("web", "cat /etc/hosts")
    assert "10.87.0.2\tweb ocirt\n" in hosts
    late = site.ocirt("run", "-d", "-b", site.bundle("sleep", "9"), "-p", "8080:80", "late", check=False)
    assert late.returncode == 1
    assert "host port 8080/tcp is taken by container web (network bridge, eth0)" in late.stderr
    assert "late" not in site.ocirt("list", "-q").stdout
    site.ocirt("delete", "-f", "web")
    assert site.left() == NOTHING


def test_annotations_say_the_same_as_flags(site: Site) -> None:
    annotations = {
        "org__ocirt__network": "bridge:mac=02:00:00:00:00:42,interface=net7",
        "org__ocirt__network__publish": "8080:80, 127.0.0.1:8081:80/tcp",
        "org__ocirt__network__ip": "10.87.7.7",
        "org__ocirt__network__dns": "192.0.2.53",
    }
    site.run("web", command=("sh", "-c", SERVER), **annotations)
    assert eventually(lambda: page(site, site.outside, "192.0.2.1", 8080))
    assert page(site, site.host, "127.0.0.1", 8081)
    assert not page(site, site.outside, "192.0.2.1", 8081)
    told = site.inside("web", "ip addr show net7; cat /etc/resolv.conf")
    assert "10.87.7.7/16" in told
    assert "02:00:00:00:00:42" in told
    assert "nameserver 127.0.0.11\n" in told
    site.ocirt("delete", "-f", "web")
    assert site.left() == NOTHING


def test_names_of_containers_resolve_and_other_names_are_asked_for(site: Site) -> None:
    from dnslib import RR, A, DNSRecord

    questions: list[str] = []

    def upstream(data: bytes, _peer: str) -> bytes:
        asked = DNSRecord.parse(data)
        questions.append(str(asked.q.qname))
        reply = asked.reply()
        reply.add_answer(RR(asked.q.qname, rdata=A("192.0.2.77")))
        return bytes(reply.pack())

    server = Server(site.outside, "192.0.2.2", 53, socket.SOCK_DGRAM, upstream)
    site.network("create", "red", "--subnet", "10.61.0.0/24")
    flags = ("--dns", "192.0.2.2", "--network-alias", "www")
    for id, *names in (("one", "bridge"), ("two", "bridge", "red"), ("three", "red")):
        site.ids.append(id)
        bundle = site.bundle("sleep", "1000")
        networks = [flag for name in names for flag in ("--network", name)]
        site.ocirt("run", "-d", "-b", bundle, *networks, *flags[:2], "--network-alias", f"www-{id}", id)
    resolvers = site.directory / "run" / "resolvers"
    assert len(list(resolvers.iterdir())) == 3

    def lookup(id: str, name: str) -> str:
        return site.ocirt("exec", id, "nslookup", name, check=False).stdout

    try:
        assert "10.87.0.3" in lookup("one", "two")
        assert "10.87.0.3" in lookup("one", "www-two")
        assert "fd6f:6369:7274::3" in lookup("one", "two.bridge")
        assert "10.61.0.2" in lookup("three", "two")
        assert "10.61.0.3" in lookup("two", "three.red")
        assert questions == []
        # Who isn't in the same network isn't found by name: that is a question for the others.
        assert "192.0.2.77" in lookup("one", "three")
        assert "192.0.2.77" in lookup("one", "example.org")
        assert {"three.", "example.org."} <= set(questions)
        assert "two.bridge" in lookup("one", "10.87.0.3")
        # Nothing of it is on the host, and the container may have port 53 for itself.
        assert site.host.sh("ss -Htlnu sport = :53") == ""
        pid = json.loads(site.ocirt("state", "two").stdout)["pid"]
        os.kill(pid, signal.SIGKILL)
        assert eventually(lambda: len(site.processes("ocirt.proxy.resolver")) == 2)
        for id in ("one", "two", "three"):
            site.ocirt("delete", "-f", id)
        assert not list(resolvers.iterdir())
        assert not list((site.directory / "run" / "names").iterdir())
        assert site.processes("ocirt.proxy.resolver") == []
    finally:
        server.close()


def test_modes_host_none_and_joined(site: Site) -> None:
    site.run("one", "--network", "bridge")
    site.run("two", "--network", "container:one")
    site.run("alone", "--network", "none")
    site.run("host", "--network", "host")
    assert "10.87.0.2/16" in site.inside("two", "ip addr show eth0")
    for name in ("hosts", "resolv.conf"):
        assert site.inside("two", f"cat /etc/{name}") == site.inside("one", f"cat /etc/{name}") != ""
    assert "10.87.0.2" in site.inside("two", "nslookup one.bridge")
    assert site.inside("alone", "ip -o link").count("\n") == 1
    assert "wire" in site.inside("host", "ip -o link")
    bad = site.ocirt("run", "-d", "-b", site.bundle("true"), "--network", "container:nope", "x", check=False)
    assert "container nope does not exist" in bad.stderr
    for id in ("two", "alone", "host", "one"):
        site.ocirt("delete", "-f", id)
    assert site.left() == NOTHING


def test_networks_are_made_used_and_removed(site: Site) -> None:
    made = site.network("create", "red", "--subnet", "10.61.0.0/24", "--isolate")
    assert made.stdout == f"{site.networks}/red.conflist\n"
    assert json.loads((site.networks / "red.conflist").read_text())["name"] == "red"
    site.network("create", "blue", "--ports", "proxy")
    again = site.network("create", "red", check=False)
    assert "network 'red' already exists" in again.stderr
    clash = site.network("create", "green", "--subnet", "10.61.0.0/16", check=False)
    assert "overlaps with 10.61.0.0/24" in clash.stderr
    listed = json.loads(site.network("ls", "--format", "json").stdout)
    assert [n["name"] for n in listed] == ["bridge", "blue", "red"]
    subnet = listed[1]["plugins"][0]["ipam"]["ranges"][0][0]["subnet"]
    assert subnet.endswith(".0/24")
    assert site.network("check", "red").stdout == "red: ready\n"
    site.network("rm", "red")
    site.network("rm", "blue")
    assert not list(site.networks.iterdir())
    gone = site.network("rm", "red", check=False)
    assert "no network of the name 'red'" in gone.stderr


def test_a_network_says_who_is_in_it(site: Site) -> None:
    site.network("create", "red", "--subnet", "10.61.0.0/24", "--subnet", "fd61::/64")
    site.run("web", "--network", "red:ip=10.61.0.7,mac=02:00:00:00:00:07,interface=red0", "--network", "bridge")
    site.run("other", "--network", "red")
    (red,) = json.loads(site.network("inspect", "red").stdout)
    assert red["containers"] == ["other", "web"]
    other, web = sorted(red["attachments"], key=lambda a: a["container"])
    assert (web["container"], web["interface"], web["mac"]) == ("web", "red0", "02:00:00:00:00:07")
    assert web["addresses"][0] == "10.61.0.7/24"
    for found, id in ((other, "other"), (web, "web")):
        there = site.inside(id, f"ip addr show {found['interface']}").split()
        assert found["mac"] in there
        assert set(found["addresses"]) <= set(there)
        assert [":" in address for address in found["addresses"]] == [False, True]
    listed = json.loads(site.network("ls", "--format", "json").stdout)
    assert [[a["interface"] for a in n["attachments"]] for n in listed] == [["eth1"], ["eth0", "red0"]]
    # before ADD is through there are no addresses
    cached = site.directory / "cni" / "results" / "red-web-red0"
    data = json.loads(cached.read_text())
    result = data.pop("result")
    cached.write_text(json.dumps(data))
    (red,) = json.loads(site.network("inspect", "red").stdout)
    assert {"container": "web", "interface": "red0", "addresses": [], "mac": ""} in red["attachments"]
    cached.write_text(json.dumps({**data, "result": result}))


@pytest.mark.parametrize("fails", ["add", "create"])
def test_what_cannot_be_undone_is_said_once(site: Site, fails: str) -> None:
    """However many layers try it: the client, the attachment, create."""
    plugin = site.directory / "broken"
    plugin.mkdir()
    refused = '{"code": 111, "msg": "it cannot be undone"}' if fails == "create" else ""
    added = 'cat > /dev/null; echo \'{"cniVersion": "1.1.0"}\''
    if fails == "add":
        added = 'cat > /dev/null; echo \'{"code": 110, "msg": "it cannot be done"}\'; exit 1'
        refused = '{"code": 111, "msg": "it cannot be undone"}'
    (plugin / "broken").write_text(
        f"#!/bin/sh\nif [ $CNI_COMMAND = ADD ]; then {added}; else echo '{refused}'; exit 1; fi\n"
    )
    (plugin / "broken").chmod(0o755)
    site.environment["CNI_PATH"] = f"{plugin}:builtin"
    (site.networks / "bad.conflist").write_text(
        json.dumps({"cniVersion": "1.1.0", "name": "bad", "plugins": [{"type": "broken"}]})
    )
    bundle = site.bundle("/nowhere" if fails == "create" else "true")
    failed = site.ocirt("run", "-d", "-b", bundle, "--network", "bad", "web", check=False)
    assert failed.returncode != 0
    assert failed.stderr.count("it cannot be undone") == 1
    assert failed.stderr.count("take down the network") <= 1
    shutil.rmtree(site.directory / "cni" / "results")


@pytest.mark.parametrize("moment", ["running", "killed"])
def test_what_a_crash_leaves_goes_with_delete_or_gc(site: Site, moment: str) -> None:
    site.run("web", "--network", "bridge", "-p", "8080:80")
    pid = json.loads(site.ocirt("state", "web").stdout)["pid"]
    os.kill(pid, signal.SIGKILL)
    assert eventually(lambda: json.loads(site.ocirt("state", "web").stdout)["status"] == "stopped")
    if moment == "running":
        site.ocirt("delete", "web")
    else:
        shutil.rmtree(site.directory / "root" / "web")  # as if the state were lost
        site.network("gc")
    assert eventually(lambda: site.left() == NOTHING), site.left()


def test_gc_leaves_living_containers_alone(site: Site) -> None:
    site.run("web", "--network", "bridge", "-p", "8080:80", command=("sh", "-c", SERVER))
    before = site.left()
    site.network("gc")
    assert site.left() == before
    assert eventually(lambda: page(site, site.outside, "192.0.2.1", 8080))


def test_reload_puts_back_what_was_flushed(site: Site) -> None:
    site.run("web", "--network", "bridge", "-p", "8080:80", command=("sh", "-c", SERVER))
    assert eventually(lambda: page(site, site.outside, "192.0.2.1", 8080))
    before = site.left()
    site.host.sh("nft flush ruleset")
    assert not page(site, site.outside, "192.0.2.1", 8080)
    assert "bridge: web eth0" in site.network("reload").stdout
    assert page(site, site.outside, "192.0.2.1", 8080)
    assert site.left() == before


def test_reload_can_watch(site: Site) -> None:
    site.run("web", "--network", "bridge", "-p", "8080:80", command=("sh", "-c", SERVER))
    assert eventually(lambda: page(site, site.outside, "192.0.2.1", 8080))
    with site.host.inside():
        watching = subprocess.Popen([OCIRT, "network", "reload", "--watch"], env=site.environment)
    try:
        for _ in range(2):
            site.host.sh("sleep 0.3; nft flush ruleset")
            assert eventually(lambda: page(site, site.outside, "192.0.2.1", 8080))
    finally:
        watching.terminate()
        watching.wait(5)


def test_plugins_are_written_for_others(site: Site, tmp_path: Path) -> None:
    directory = tmp_path / "cni"
    for _ in range(2):
        site.network("plugins", str(directory))
    done = subprocess.run(
        [directory / "bridge"], env={"CNI_COMMAND": "VERSION"}, capture_output=True, text=True, timeout=20, check=True
    )
    assert "1.1.0" in json.loads(done.stdout)["supportedVersions"]
    done = subprocess.run(
        [directory / "ocirt-cni-firewall"], env={}, capture_output=True, text=True, timeout=20, check=True
    )
    assert done.stderr.startswith("CNI firewall plugin v1.7.1")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("80", [{"hostPort": 80, "containerPort": 80, "protocol": "tcp"}]),
        ("8080:80/udp", [{"hostPort": 8080, "containerPort": 80, "protocol": "udp"}]),
        ("127.0.0.1::80", [{"hostPort": 80, "containerPort": 80, "protocol": "tcp", "hostIP": "127.0.0.1"}]),
        ("[::1]:8080:80", [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": "::1"}]),
        ("8000-8099:8000-8099", [{"hostPort": 8000, "containerPort": 8000, "protocol": "tcp", "range": 100}]),
        ("8000-8001:80-81", [
            {"hostPort": 8000, "containerPort": 80, "protocol": "tcp"},
            {"hostPort": 8001, "containerPort": 81, "protocol": "tcp"},
        ]),
    ],
)  # fmt: skip
def test_port_mappings_as_users_write_them(text: str, expected: list[dict[str, Any]]) -> None:
    assert attach.parse_port(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        *("", "x", "0", "65536", "80:", "1-2:3", "2-1", "80/icmp", "300.0.0.1:80:80", "a:b:c:d", "-1", "８０"),
        *("8_0", " 80", "+80", "80-", "80 "),
    ],
)
def test_what_is_no_port_mapping_is_named(text: str) -> None:
    with pytest.raises(InvalidConfig, match="invalid port mapping"):
        attach.parse_port(text)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"dns": ["nonsense"]}, "invalid name server 'nonsense' .must be an IP address"),
        ({"dns": ["1.1.1.1\nsearch evil"]}, "invalid name server"),
        ({"dns_search": ["a b"]}, "invalid search domain 'a b' .letters, digits"),
        ({"dns_option": ["ndots:1\nnameserver 6.6.6.6"]}, "invalid option of resolv.conf"),
        ({"aliases": ["x\n1.2.3.4 evil"]}, "invalid network alias"),
        ({"wanted": ["host"], "aliases": ["x"]}, "'host' can't be combined with"),
        ({"wanted": ["none"], "dns": ["1.1.1.1"]}, "'none' can't be combined with"),
    ],
)
def test_what_would_be_another_line_is_refused(flags: dict[str, list[str]], message: str) -> None:
    with pytest.raises(InvalidConfig, match=message):
        attach.parse(**{"wanted": ["bridge"], **flags})  # type: ignore[arg-type]


def test_what_is_a_name_is_taken() -> None:
    wish = attach.parse(
        ["bridge"], dns=["fd00::1"], dns_search=["example.org", "."], dns_option=["ndots:2"], aliases=["db_1.x"]
    )
    assert wish is not None
    assert wish.dns == {"servers": ["fd00::1"], "searches": ["example.org", "."], "options": ["ndots:2"]}
    assert wish.aliases == ["db_1.x"]
