"""Where the reference plugins, or ours before, went wrong: each test is a case that somebody met."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ocirt.cni import collect, networks, protocol, reload
from ocirt.cni.invoke import invoke
from ocirt.cni.plugins import host_device
from ocirt.cni.request import Request
from ocirt.errors import Error
from ocirt.proxy.loop import Loop
from tests.harness.waiting import eventually
from tests.kernel.netlab import Namespace, ask, ask_udp
from tests.kernel.test_cni_bridge import NOTHING, PORTMAP, Lab, ip_of

ROOT = Path(__file__).resolve().parents[2]
TYPES = ("bridge", "portmap", "host-local", "firewall", "tuning", "bandwidth", "ptp", "macvlan")


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    monkeypatch.setenv("OCIRT_RUN_DIRECTORY", str(tmp_path / "run"))
    made = Lab(tmp_path)
    yield made
    made.close()


# --- addresses ------------------------------------------------------------------------------------------------


def test_an_address_that_another_host_has_is_refused_when_asked_for(lab: Lab) -> None:
    ipam = {"type": "static", "addresses": [{"address": "fd00:88::5/64"}]}
    plain: dict[str, Any] = {"ipam": ipam, "ipMasq": False, "isDefaultGateway": False, "hairpinMode": False}
    network = lab.network(lab.bridge(enabledad=True, **plain))
    lab.add(network, "first")
    state = lab.containers["first"].ip("-6", "addr", "show", "eth0")[0]["addr_info"]
    assert not any(a.get("tentative") for a in state), "ADD returns when the addresses can be used"
    with pytest.raises(Error, match="another host on the network has the address fd00:88::5/64"):
        lab.add(network, "second")
    lab.delete(network, "first")
    assert lab.left() == NOTHING


@pytest.mark.parametrize("type", ["bridge", "ptp"])
def test_ipv6_reaches_a_container_at_once(lab: Lab, type: str) -> None:
    plugin = {**lab.bridge("10.88.0.0/16", {"subnet": "fd00:88::/64"}), "type": type}
    plugin["ipam"]["routes"] = [{"dst": "::/0"}]
    network = lab.network(plugin)
    lab.outside.sh("ip -6 route add fd00:88::/64 via 2001:db8::1")
    for end in (lab.host, lab.outside):  # the same on the wire
        assert eventually(lambda end=end: not _is_tentative(end, "wire"))  # type: ignore[misc]
    for _ in range(2):  # when its last port is gone the bridge has no carrier, and begins anew with the next
        result = lab.add(network, "web")
        link = result.interfaces[0]["name"]
        assert not _is_tentative(lab.host, link)
        server = lab.serve(lab.containers["web"], "::", 80)
        assert ask(lab.outside, ip_of(result, "6"), 80, timeout=0.8).startswith(b"hello")
        server.close()
        lab.delete(network, "web")


def _is_tentative(namespace: Namespace, link: str) -> bool:
    return any(a.get("tentative") for a in namespace.ip("-6", "addr", "show", link)[0]["addr_info"])


def test_a_host_that_begins_to_forward_goes_on_accepting_its_routers(lab: Lab) -> None:
    ra = "/proc/sys/net/ipv6/conf/{}/accept_ra"
    lab.host.sh(f"ip link add deaf type veth peer name other; echo 0 > {ra.format('deaf')}")
    network = lab.network(lab.bridge("10.88.0.0/16", {"subnet": "fd00:88::/64"}))
    lab.add(network, "web")
    read = f"cat {ra.format('wire')} {ra.format('deaf')} {ra.format('br0')} /proc/sys/net/ipv6/conf/all/forwarding"
    assert lab.host.sh(read).split() == ["2", "0", "0", "1"]


def test_delete_releases_what_an_add_that_was_killed_had_reserved(lab: Lab) -> None:
    """Another runtime's ADD is killed, it begins again, and its DEL knows of the second address only."""
    ipam = {"type": "host-local", "dataDir": str(lab.directory / "ipam"), "ranges": [[{"subnet": "10.9.0.0/24"}]]}
    config = {"cniVersion": "1.0.0", "name": "net", "type": "bridge", "ipam": ipam}

    def call(command: str, **more: Any) -> Any:
        return invoke(Request(command, {**config, **more}, container="c", netns="", ifname="eth0"), "host-local")

    call("ADD")
    result = call("ADD")
    assert result.ips[0]["address"] == "10.9.0.3/24"
    call("DEL", prevResult=result.dump("1.0.0"))
    assert [p.name for p in (lab.directory / "ipam/net").iterdir() if p.name[0].isdigit()] == []


@pytest.mark.parametrize("type", ["bridge", "ptp", "macvlan"])
def test_a_second_add_leaves_the_first_alone(lab: Lab, type: str) -> None:
    plugin = {**lab.bridge(), "type": type, "master": "wire"}
    network = lab.network(plugin)
    lab.add(network, "web")
    before = lab.left(), [i["ifname"] for i in lab.containers["web"].ip("link")]
    # as an engine that keeps no cache calls it
    config = {**plugin, "cniVersion": network.version, "name": network.name}
    request = Request("ADD", config, container="web", netns=lab.containers["web"].path, ifname="eth0")
    with lab.host.inside(), pytest.raises(Error, match="container interface name 'eth0' already exists"):
        invoke(request)
    assert (lab.left(), [i["ifname"] for i in lab.containers["web"].ip("link")]) == before
    lab.check(network, "web")


def test_a_pool_that_is_used_up_says_so_at_once(lab: Lab) -> None:
    store = lab.directory / "ipam" / "net1"
    store.mkdir(parents=True)
    for i in range(1, 4095):
        (store / f"10.88.{i // 256}.{i % 256}").write_text("other\r\neth0")
    network = lab.network(lab.bridge("10.88.0.0/20"))
    start = time.process_time()
    with pytest.raises(Error, match=r"no IP addresses available in range set: 10\.88\.0\.1-10\.88\.15\.254") as caught:
        lab.add(network, "web")
    assert getattr(caught.value, "code", 0) == protocol.NOT_AVAILABLE
    assert time.process_time() - start < 1
    with lab.host.inside(), pytest.raises(Error, match="no IP addresses available"):
        lab.client.status(network)
    assert len(list(store.glob("10.*"))) == 4094


# --- interfaces -----------------------------------------------------------------------------------------------


def test_a_device_that_the_kernel_moved_back_gets_its_name_back(lab: Lab) -> None:
    """The namespace has ended, and the device is on the host under its name inside (stood in for by a pair's end)."""
    lab.host.sh("ip link add eth0 type veth peer name other; ip link set eth0 alias fast0")
    config = {"cniVersion": "1.1.0", "name": "net1", "type": "host-device", "device": "fast0"}
    with lab.host.inside():
        host_device.delete(Request("DEL", config, container="c", netns="", ifname="eth0"))
    names = {i["ifname"]: i.get("ifalias", "") for i in lab.host.ip("link")}
    assert "eth0" not in names
    assert names["fast0"] == ""


def test_what_tuning_kept_goes_with_gc(lab: Lab) -> None:
    directory = lab.directory / "tuning"
    tuning = {"type": "tuning", "mtu": 1400, "dataDir": str(directory)}
    network = lab.network(lab.bridge(), tuning)
    other = lab.network(lab.bridge(bridge="br0"), tuning, name="net2")
    lab.add(network, "web")
    lab.add(network, "stays")
    lab.add(other, "theirs")
    (directory / "reference_eth0.json").write_text('{"mtu": 1500}')
    with lab.host.inside():
        config = {"cniVersion": "1.1.0", "name": "net1", **tuning}
        invoke(Request("GC", {**config, "cni.dev/valid-attachments": [{"containerID": "stays", "ifname": "eth0"}]}))
    left = ["reference_eth0.json", "stays_eth0.json", "theirs_eth0.json"]
    assert sorted(p.name for p in directory.iterdir()) == left


# --- ports ----------------------------------------------------------------------------------------------------


def test_unmapping_a_udp_port_forgets_no_conversation_of_others(lab: Lab) -> None:
    """Port 53, say: containers ask others on it."""
    network = lab.network(lab.bridge(), PORTMAP)
    lab.add(network, "client")
    lab.serve(lab.outside, "192.0.2.2", 5353, socket.SOCK_DGRAM)
    assert ask_udp(lab.containers["client"], "192.0.2.2", 5353)

    def remembered(destination: str) -> bool:
        lines = lab.host.sh("cat /proc/thread-self/net/nf_conntrack").splitlines()
        return any(f"dst={destination} " in line.partition(" dport=5353 ")[0] for line in lines)

    assert remembered("192.0.2.2")
    lab.add(network, "dns", portMappings=[{"hostPort": 5353, "containerPort": 53, "protocol": "udp"}])
    lab.serve(lab.containers["dns"], "0.0.0.0", 53, socket.SOCK_DGRAM)
    assert ask_udp(lab.outside, "192.0.2.1", 5353)
    assert remembered("192.0.2.1")
    lab.delete(network, "dns")
    assert not remembered("192.0.2.1")
    assert remembered("192.0.2.2")


def test_an_interface_whose_name_iptables_would_have_to_quote(lab: Lab) -> None:
    network = lab.network(lab.bridge(ipMasqBackend="iptables"), {**PORTMAP, "backend": "iptables"})
    lab.containers["web"] = Namespace()
    attachment = lab.attachment("web", {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]})
    attachment.ifname = 'e"-jDROP\\'
    with lab.host.inside():
        lab.client.add(network, attachment)
        lab.client.check(network, attachment)
        assert "DROP" not in lab.host.sh("iptables-save")
        assert "--to-destination 10.88.0.2:80" in lab.host.sh("iptables-save")
        lab.client.delete(network, attachment)
    assert "--to-destination" not in lab.host.sh("iptables-save")


def test_the_proxy_inherits_no_file_of_whoever_called(lab: Lab) -> None:
    network = lab.network(lab.bridge(), {**PORTMAP, "backend": "proxy"})
    reading, writing = os.pipe()
    os.set_inheritable(writing, True)
    lab.add(network, "web", portMappings=[{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}])
    os.close(writing)
    os.set_blocking(reading, False)
    assert os.read(reading, 1) == b"", "the pipe has no other end any more"
    os.close(reading)
    lab.delete(network, "web")
    assert lab.left() == NOTHING


# --- many at once ---------------------------------------------------------------------------------------------


def test_gc_leaves_alone_who_has_come_while_it_waited(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OCIRT_CNI_DIRECTORY", str(lab.directory / "cache"))
    (lab.directory / "net.d").mkdir()
    network = lab.network(lab.bridge(), PORTMAP)
    (lab.directory / "net.d" / "net1.conflist").write_bytes(network.data)
    lab.add(network, "first")
    with open(lab.directory / "cache" / "locks" / "net1") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)  # an ADD that is under way
        with lab.host.inside():
            pid = os.fork()
            if pid == 0:
                try:
                    lock.close()
                    collect.collect(["net1"], str(lab.directory / "net.d"))
                    os._exit(0)
                finally:
                    os._exit(1)
        waits = Path(f"/proc/{pid}/wchan")
        assert eventually(lambda: "lock" in waits.read_text() or "flock" in Path(f"/proc/{pid}/stack").read_text())
        lab.add(network, "second", portMappings=[{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}])
    assert os.waitpid(pid, 0)[1] == 0
    lab.check(network, "first")
    lab.check(network, "second")


# --- reload ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "policy"), [("bridge", "isolated"), ("ptp", "same-bridge")])
def test_reload_puts_all_back(lab: Lab, kind: str, policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OCIRT_CNI_DIRECTORY", str(lab.directory / "cache"))
    network = lab.network(
        {**lab.bridge(macspoofchk=True), "type": kind},
        {**PORTMAP, "backend": "", "masqAll": True},
        {"type": "firewall", "ingressPolicy": policy},
    )
    lab.add(network, "web", portMappings=[{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}])
    with lab.host.inside():
        before = lab.host.sh("nft list ruleset")
        assert before.count('"net1/web/eth0"') >= 6
        other = "bridge" if kind == "bridge" else "ip"
        for script in ("nft flush ruleset", f"nft delete table {other} ocirt", "true"):
            lab.host.sh(script)
            reload.reload(str(lab.directory))
            assert sorted(lab.host.sh("nft list ruleset").splitlines()) == sorted(before.splitlines())
    lab.delete(network, "web")
    assert lab.left() == NOTHING


def test_reload_notices_a_table_that_is_there_again(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ruleset is flushed, and the next ADD makes the table anew before anybody has looked."""
    monkeypatch.setenv("OCIRT_CNI_DIRECTORY", str(lab.directory / "cache"))
    (lab.directory / "net.d").mkdir()
    network = lab.network({**lab.bridge(), "IPMasq": lab.bridge()["ipMasq"], "ipMasq": True}, PORTMAP)
    lab.add(network, "web", portMappings=[{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}])
    with lab.host.inside():
        watcher = subprocess.Popen(
            [ROOT / "hack" / "ocirt", "network", "--directory", lab.directory / "net.d", "reload", "--watch"],
            stdout=subprocess.DEVNULL,
        )
    try:
        time.sleep(1)
        for _ in range(3):
            lab.host.run("nft", "-f", "-", input="flush ruleset\ntable ip ocirt { }\ndelete table ip ocirt\n")
            lab.add(network, "again")
            assert eventually(lambda: '"net1/web/eth0"' in lab.host.sh("nft list map ip ocirt ports"))
            lab.delete(network, "again")
        assert watcher.poll() is None
    finally:
        watcher.terminate()
        watcher.wait(10)


# --- strangers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [
        {"ipam": []},
        {"ipam": {"type": 5}},
        {"ipam": {"type": "host-local", "ranges": "all"}},
        {"ipam": {"type": "host-local", "ranges": [[{"subnet": 5}]]}},
        {"ipam": {"type": "host-local", "subnet": "10.0.0.0/24", "routes": [5]}},
        {"prevResult": {"cniVersion": "1.0.0", "ips": 5}},
        {"prevResult": {"cniVersion": "1.0.0", "ips": [{"address": None}]}},
        {"runtimeConfig": {"portMappings": {}}},
        {"runtimeConfig": {"portMappings": [[]]}},
        {"args": {"cni": []}},
        {"dns": 7},
        {"mtu": 1e99},
        {"bridge": "\ud800"},
        {"vlanTrunk": [None]},
        {"sysctl": {"net.ipv4.conf.all.forwarding": None}},
        {"addresses": "x"},
        {"cni.dev/valid-attachments": [None]},
    ],
)
@pytest.mark.parametrize(
    "type", ["bridge", "portmap", "host-local", "firewall", "tuning", "bandwidth", "ptp", "macvlan"]
)
def test_whatever_a_plugin_is_given_it_answers_with_an_object(lab: Lab, type: str, config: dict[str, Any]) -> None:
    program = f"import sys\nsys.path.append({str(ROOT)!r})\nfrom ocirt.cni.executable import main\nimport os\n"
    # all commands by one interpreter: it is they that are tested
    program += (
        "for command in ('ADD', 'CHECK', 'DEL', 'GC', 'STATUS'):\n"
        "    os.lseek(0, 0, 0)\n"
        f"    status = main({type!r}, {{**os.environ, 'CNI_COMMAND': command}})\n"
        "    os.write(1, b'\\0%d\\0' % status)\n"
    )
    inside = Namespace()
    environment = {
        "CNI_CONTAINERID": "c",
        "CNI_NETNS": inside.path,
        "CNI_IFNAME": "eth0",
        "CNI_PATH": "/nowhere",
        "PATH": "/usr/bin",
    }
    whole = {"cniVersion": "1.1.0", "name": "net1", "type": type, "dataDir": str(lab.directory), **config}
    if isinstance(whole.get("ipam"), dict):
        whole["ipam"] = {"dataDir": str(lab.directory / "ipam"), **whole["ipam"]}  # the host's own is no test's
    request = lab.directory / "request"
    request.write_bytes(json.dumps(whole).encode())
    command = ["/usr/bin/python3", "-ISXutf8", "-c", program]
    with request.open() as stdin, lab.host.inside():
        done = subprocess.run(command, stdin=stdin, capture_output=True, env=environment, timeout=30, check=False)
    inside.close()
    assert done.stderr == b"", done.stderr.decode()
    answers = done.stdout.split(b"\0")[:-1]
    assert len(answers) == 10
    for text, status in zip(answers[::2], answers[1::2], strict=True):
        if status == b"1":
            answer = json.loads(text)
            assert isinstance(answer["code"], int)
            assert answer["msg"]


def test_a_resolver_lives_through_anything_and_has_few_threads(tmp_path: Path) -> None:
    resolver = pytest.importorskip("ocirt.proxy.resolver", reason="dnslib is not installed")
    from ocirt.cni.names import Names

    inside = Namespace()
    inside.sh("ip link set lo up")
    datagrams, listener = inside.socket(kind=socket.SOCK_DGRAM), inside.socket()
    for made in (datagrams, listener):
        made.bind(("127.0.0.1", 0))
    listener.listen(64)
    loop = Loop()
    serving = resolver.Resolver(loop, Names([str(tmp_path)]), [], datagrams, listener)
    for size in (0, 1, 11, 12, 13, 40, 300):
        for _ in range(200):
            serving.answer(os.urandom(size))
    # pointers that lead to themselves, and a name of pointers
    for name in (b"\xc0\x0c", b"\xc0\x0d", b"\x01a\xc0\x0c", b"\x3f" + bytes(63)):
        serving.answer(b"\0\1\1\0\0\1\0\0\0\0\0\0" + name + b"\0\1\0\1")
    running = True

    def run() -> None:
        while running:
            loop.later(0.05, lambda: None)
            loop.turn()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        before = threading.active_count()
        clients = [inside.socket() for _ in range(60)]
        for client in clients:
            client.connect(listener.getsockname())
        assert eventually(lambda: sum(_is_closed(client) for client in clients) == 60 - 32)
        assert serving._streams == 32
        for client in clients:
            client.close()
        assert eventually(lambda: serving._streams == 0)
        assert threading.active_count() == before
    finally:
        running = False
        thread.join()
        inside.close()
        datagrams.close()
        listener.close()


def _is_closed(client: socket.socket) -> bool:
    client.setblocking(False)
    try:
        return client.recv(1, socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True


# --- networks -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"gateway": "here"}, "'here' is no IP address"),
        ({"subnets": ["10.9.0.0/24"], "gateway": "10.8.0.1"}, "gateway 10.8.0.1 is not in subnet 10.9.0.0/24"),
        ({"subnets": ["10.9.0.0/24"], "ip_range": "x"}, "'x' is no IP address"),
        (
            {"subnets": ["10.9.0.0/24"], "ip_range": "10.7.0.0/28"},
            "no address of the IP range is in subnet|not in network",
        ),
        ({"subnets": ["10.9.0.0/31"]}, "too small"),
        ({"mtu": -1}, "invalid MTU -1"),
        ({"mtu": 20}, "invalid MTU 20: must be 68 to 65535"),
        ({"mtu": 1200, "subnets": ["fd00:9::/64"]}, "invalid MTU 1200: must be 1280 to 65535"),
        ({"bridge": "much-too-long-a-name"}, "invalid bridge name 'much-too-long-a-name'"),
        ({"bridge": "ocirt0"}, "bridge 'ocirt0' is that of network 'bridge'"),
        ({"options": {"hairpinMode": "yes"}}, "invalid value of hairpinMode: 'yes' must be true or false"),
        ({"options": {"promiscMode": True}}, "cannot set hairpin mode and promiscuous mode at the same time"),
        ({"driver": "overlay"}, "invalid vni 0: must be 1 to 16777215"),
        ({"driver": "overlay", "options": {"vni": "x"}}, "invalid value of vni: 'x' must be a number"),
        ({"parent": "eth0"}, "--parent 'eth0' says nothing to driver bridge: it is for macvlan"),
        ({"driver": "ptp", "bridge": "br0"}, "--bridge 'br0' says nothing to driver ptp"),
        ({"driver": "macvlan", "port_backend": "proxy"}, "--ports 'proxy' says nothing to driver macvlan"),
        ({"driver": "macvlan", "internal": True}, "--internal needs --subnet"),
    ],
)
def test_a_network_that_could_never_work_is_not_made(tmp_path: Path, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(Error, match=message):
        networks.create("red", str(tmp_path / "net.d"), **keys)
    assert list((tmp_path / "net.d").iterdir()) == []


def test_networks_made_at_once_get_different_subnets(tmp_path: Path) -> None:
    pids = []
    for i in range(8):
        pid = os.fork()
        if pid == 0:
            try:
                networks.create(f"n{i}", str(tmp_path))
                os._exit(0)
            finally:
                os._exit(1)
        pids.append(pid)
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids] == [0] * 8
    files = [json.loads(p.read_text()) for p in tmp_path.glob("*.conflist")]
    subnets = {f["plugins"][0]["ipam"]["ranges"][0][0]["subnet"] for f in files}
    assert len(subnets) == 8
