"""`ocirt run --network …` in the modes that need more than one bridge, and after crashes of the runtime itself."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.waiting import eventually
from tests.kernel.netlab import Namespace, ask
from tests.kernel.test_cni_run import BUSYBOX, NOTHING, OCIRT, SERVER, Site, page

pytestmark = pytest.mark.skipif(
    not BUSYBOX, reason="busybox (static) is not installed: the container's programs are it"
)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    made.close()


def left(site: Site) -> tuple[list[str], int, list[str], list[str], list[str]]:
    """As Site.left, for all networks, with the processes that serve."""
    links, comments, _, cached = site.left()
    reserved = [p.name for p in (site.directory / "cni" / "networks").glob("*/*") if p.name[0].isdigit()]
    records = [str(p) for kind in ("proxies", "resolvers") for p in (site.directory / "run" / kind).glob("*")]
    return [n for n in links if n.startswith("veth")], comments, reserved, cached, records


REFERENCE = "/usr/lib/cni"
CLEAN: tuple[list[str], int, list[str], list[str], list[str]] = ([], 0, [], [], [])


def test_macvlan_is_on_the_wire_with_the_address_and_mac_asked_for(site: Site) -> None:
    site.network("create", "wire", "--driver", "macvlan", "--parent", "wire", "--subnet", "192.0.2.0/24",
                 "--ip-range", "192.0.2.128/26", "--gateway", "192.0.2.2")  # fmt: skip
    mac = "02:00:00:00:00:77"
    site.run("web", "--network", f"wire:ip=192.0.2.150,mac={mac}", command=("sh", "-c", SERVER))
    assert eventually(lambda: page(site, site.outside, "192.0.2.150", 80))
    assert mac in site.inside("web", "ip link show eth0")
    neighbours = site.outside.ip("neigh", "show", "192.0.2.150")
    assert neighbours[0]["lladdr"] == mac
    assert "default via 192.0.2.2" in site.inside("web", "ip route")
    site.ocirt("delete", "-f", "web")
    assert left(site) == CLEAN


def test_several_networks_at_once(site: Site) -> None:
    site.network("create", "red", "--subnet", "10.61.0.0/24", "--subnet", "fd61::/64")
    site.network("create", "blue", "--subnet", "10.62.0.0/24", "--ports", "proxy")
    site.network("create", "inner", "--subnet", "10.63.0.0/24", "--internal")
    site.run("web", "--network", "blue", "--network", "red:ip=10.61.0.9,interface=red0", "--network", "inner",
             "-p", "8080:80", "--network-alias", "www", command=("sh", "-c", SERVER))  # fmt: skip
    for network in ("red", "blue", "inner"):
        site.run(f"from-{network}", "--network", network)
        assert "hello" in site.inside(f"from-{network}", "wget -qO- http://www/")
        assert "hello" in site.inside(f"from-{network}", f"wget -qO- http://web.{network}/")
    assert page(site, site.outside, "192.0.2.1", 8080)
    links = site.inside("web", "ip -o addr")
    assert "eth0    inet 10.62.0.2/24" in links
    assert "red0    inet 10.61.0.9/24" in links
    assert "eth2    inet 10.63.0.2/24" in links
    routes = site.inside("web", "ip route").splitlines()
    assert next(r for r in routes if r.startswith("default")).startswith("default via 10.62.0.1 dev eth0")
    # the internal network leads nowhere, the others do
    server = f"busybox httpd -f -p 192.0.2.2:9000 -h {site.directory}/bundle/rootfs/www"
    with site.outside.inside():
        served = subprocess.Popen(["sh", "-c", f"exec {server}"])
    try:
        assert eventually(lambda: page(site, site.outside, "192.0.2.2", 9000))
        assert "hello" in site.inside("from-red", "wget -qO- http://192.0.2.2:9000/")
        no_route = site.ocirt("exec", "from-inner", "sh", "-c", "wget -qO- http://192.0.2.2:9000/", check=False)
        assert no_route.returncode != 0
    finally:
        served.kill()
        served.wait()
    # rm refuses what is used
    refused = site.network("rm", "red", check=False)
    assert "network 'red' is used by from-red, web" in refused.stderr
    for id in ("web", "from-red", "from-blue", "from-inner"):
        site.ocirt("delete", "-f", id)
    assert eventually(lambda: left(site) == CLEAN), left(site)
    for network in ("red", "blue", "inner"):
        site.network("rm", network)
    bridges = [i["ifname"] for i in site.host.ip("link", "show", "type", "bridge")]
    assert bridges == []
    assert list((site.directory / "cni" / "networks").iterdir()) == []
    assert list((site.directory / "cni" / "locks").iterdir()) == []


def test_an_overlay_by_two_runtimes(tmp_path: Path) -> None:
    sites = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        sites.append(Site(tmp_path / name))
    one, two = sites
    one.host.sh(f"ip link add under mtu 1500 type veth peer name under netns /proc/{os.getpid()}/fd/{two.host.fd}")
    try:
        for i, site in enumerate(sites):
            site.host.sh(f"ip addr add 172.16.0.{i + 1}/24 dev under; ip link set under up")
            site.network("create", "far", "--driver", "overlay", "--subnet", "10.50.0.0/16", "--ip-range",
                         f"10.50.{i}.0/24", "--gateway", f"10.50.{i}.1", "-o", "vni=42",
                         "-o", 'peers=["172.16.0.1", "172.16.0.2"]')  # fmt: skip
        two.run("web", "--network", "far", "-p", "8080:80", command=("sh", "-c", SERVER))
        one.run("client", "--network", "far")
        assert eventually(lambda: page(two, two.outside, "192.0.2.1", 8080))
        assert "hello" in one.inside("client", "wget -qO- http://10.50.1.2/")
        for site, id in ((one, "client"), (two, "web")):
            site.ocirt("delete", "-f", id)
            site.network("rm", "far")
            names = {i["ifname"] for i in site.host.ip("link")}
            assert not {n for n in names if n.startswith(("ocv", "oc-", "veth"))}, names
            assert left(site) == CLEAN
    finally:
        for site in sites:
            site.close()


def test_the_runtime_is_killed_at_any_moment_of_create(site: Site) -> None:
    bundle = site.bundle("sleep", "1000")
    seen = set()
    for i in range(24):
        id = f"c{i}"
        site.ids.append(id)
        with site.host.inside():
            process = subprocess.Popen(
                [OCIRT, "--root", str(site.directory / "root"), "create", "-b", bundle, "--network", "bridge",
                 "-p", "8080:80", "-p", "5300:53/udp", id],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=site.environment,
            )  # fmt: skip
        time.sleep(0.013 * i)  # from before the interpreter is up
        process.kill()
        process.wait()
        seen.add(len(site.left()[3]))
        site.ocirt("delete", "--force", id, check=False)
        assert eventually(lambda: left(site) == CLEAN), (i, left(site))
    assert seen == {0, 1}, "some were killed before there was anything, some after"


def test_a_reboot(site: Site) -> None:
    """The state is on a disk: after the reboot pids, namespaces, rules and links are gone, files are not."""
    site.run("web", "--network", "bridge", "-p", "8080:80")
    site.run("old", "--network", "bridge")
    for id in ("web", "old"):
        os.kill(json.loads(site.ocirt("state", id).stdout)["pid"], signal.SIGKILL)
        assert eventually(lambda id=id: json.loads(site.ocirt("state", id).stdout)["status"] == "stopped")  # type: ignore[misc]
    site.host.close()
    site.host = Namespace()
    site.host.sh(
        f"""
        ip link set lo up
        ip link add wire type veth peer name wire2 netns /proc/{os.getpid()}/fd/{site.outside.fd}
        ip addr add 192.0.2.1/24 dev wire; ip link set wire up
        """
    )
    site.outside.sh("ip link set wire2 up; ip addr add 192.0.2.2/24 dev wire2")
    for file in (site.directory / "cni" / "networks" / "bridge").iterdir():
        if file.name[0].isdigit() or file.name[0] == "f":
            os.setxattr(file, "user.ocirt.boot", b"another-boot")
    for file in (site.directory / "cni" / "results").iterdir():
        data = json.loads(file.read_text())
        data["ocirt"]["boot"] = "another-boot"
        file.write_text(json.dumps(data))
    # another container meanwhile gets the first's address and port
    last = site.directory / "cni" / "networks" / "bridge" / "last_reserved_ip.0"
    last.write_text("10.87.0.1")
    site.run("new", "--network", "bridge", "-p", "8080:80", command=("sh", "-c", SERVER))
    assert "10.87.0.2/16" in site.inside("new", "ip addr show eth0")
    site.ocirt("delete", "web")
    shutil.rmtree(site.directory / "root" / "old")  # this one's state was in /run
    site.network("gc")
    assert eventually(lambda: page(site, site.outside, "192.0.2.1", 8080)), "what is gone takes nothing of the new one"
    assert len(site.left()[2]) == 1
    site.ocirt("delete", "-f", "new")
    assert eventually(lambda: left(site) == CLEAN), left(site)
    assert site.left() == NOTHING


def test_ports_of_both_families_and_hosts(site: Site) -> None:
    site.host.sh("ip -6 addr add 2001:db8::1/64 dev wire nodad")
    site.outside.sh("ip -6 addr add 2001:db8::2/64 dev wire nodad")
    site.network("create", "four", "--subnet", "10.64.0.0/24", "--ports", "proxy")
    site.run("web", "--network", "bridge", "-p", "8080:80", "-p", "127.0.0.1:8081:80", command=("sh", "-c", SERVER))
    site.run("four", "--network", "four", "-p", "[::]:9080:80", command=("sh", "-c", SERVER))
    assert eventually(lambda: page(site, site.outside, "192.0.2.1", 8080))
    assert eventually(lambda: page(site, site.outside, "2001:db8::1", 8080))
    assert page(site, site.host, "127.0.0.1", 8081)
    with pytest.raises(OSError):
        ask(site.outside, "192.0.2.1", 8081, timeout=1)
    # an IPv6 port of the host to a container that has IPv4 only: what DNAT can't do
    assert eventually(lambda: page(site, site.outside, "2001:db8::1", 9080))
    for id in ("web", "four"):
        site.ocirt("delete", "-f", id)
    assert eventually(lambda: left(site) == CLEAN), left(site)


@pytest.mark.skipif(not os.path.exists(f"{REFERENCE}/bridge"), reason="containernetworking-plugins is not installed")
@pytest.mark.parametrize("path", [REFERENCE, f"@ocirt:{REFERENCE}"], ids=["reference", "ours first"])
def test_the_reference_plugins(site: Site, path: str) -> None:
    """CNI_PATH says whose plugins run."""
    ipam = {"type": "host-local", "dataDir": f"{site.directory}/cni/networks", "ranges": [[{"subnet": "10.65.0.0/24"}]]}
    plugins = [
        {
            "type": "bridge",
            "bridge": "ref0",
            "isDefaultGateway": True,
            "ipMasq": True,
            "hairpinMode": True,
            "ipam": ipam,
        },
        {"type": "portmap", "capabilities": {"portMappings": True}},
        {"type": "firewall"},
    ]
    content = {"cniVersion": "1.0.0", "name": "ref", "plugins": plugins}
    (site.networks / "ref.conflist").write_text(json.dumps(content))
    site.environment["CNI_PATH"] = path
    site.run("web", "--network", "ref", "-p", "8080:80", command=("sh", "-c", SERVER))
    assert eventually(lambda: page(site, site.host, "10.65.0.2", 80))
    assert page(site, site.outside, "192.0.2.1", 8080)
    nat = site.host.sh("iptables-save -t nat 2>/dev/null; nft list tables")
    assert ("CNI-DN-" in nat) == (path == REFERENCE)
    assert ("table ip ocirt\n" in nat) == (path != REFERENCE)
    site.ocirt("delete", "-f", "web")
    assert [i["ifname"] for i in site.host.ip("link") if i["ifname"].startswith("veth")] == []
    assert left(site)[2:] == ([], [], [])


def test_who_is_gone_holds_neither_address_nor_port(site: Site) -> None:
    """The only address and the port are a container's whose state is lost: the next one gets them without `gc`."""
    site.network("create", "small", "--subnet", "10.66.0.0/30")
    site.run("lost", "--network", "small", "-p", "8080:80")
    full = site.ocirt("run", "-d", "-b", site.bundle("true"), "--network", "small", "x", check=False)
    assert "no IP addresses available in range set: 10.66.0.1-10.66.0.2" in full.stderr
    os.kill(json.loads(site.ocirt("state", "lost").stdout)["pid"], signal.SIGKILL)
    assert eventually(lambda: json.loads(site.ocirt("state", "lost").stdout)["status"] == "stopped")
    shutil.rmtree(site.directory / "root" / "lost")
    site.run("next", "--network", "small", "-p", "8080:80", command=("sh", "-c", SERVER))
    assert "10.66.0.2/30" in site.inside("next", "ip addr show eth0")
    assert eventually(lambda: page(site, site.outside, "192.0.2.1", 8080))
    site.ocirt("delete", "-f", "next")
    assert eventually(lambda: left(site)[:4] == CLEAN[:4]), left(site)


def test_without_root_it_says_what_is_possible(site: Site) -> None:
    site.bundle("true")
    nobody = 65534
    for path in (site.directory, *site.directory.parents[:2]):
        path.chmod(0o755)
    for top, directories, files in os.walk(site.directory):
        for name in (*directories, *files):
            os.chown(os.path.join(top, name), nobody, nobody, follow_symlinks=False)
    config = json.loads((site.directory / "bundle" / "config.json").read_text())
    mapping = [{"containerID": 0, "hostID": nobody, "size": 1}]
    config["linux"].update(uidMappings=mapping, gidMappings=mapping)
    config["linux"]["namespaces"].append({"type": "user"})
    (site.directory / "bundle" / "config.json").write_text(json.dumps(config))
    user = ("setpriv", "--reuid", str(nobody), "--regid", str(nobody), "--clear-groups")
    root = site.directory / "nobody"
    root.mkdir()
    os.chown(root, nobody, nobody)
    command = (OCIRT, "--root", str(root), "run", "-b", str(site.directory / "bundle"), "--network", "bridge", "x")
    done = subprocess.run(
        [*user, *command], check=False, capture_output=True, text=True, timeout=30, stdin=subprocess.DEVNULL
    )
    assert done.returncode != 0
    assert (
        "network 'bridge' is made on the host, which needs root (without it: none, host or container:ID)" in done.stderr
    )
    assert list(root.iterdir()) == []


@pytest.mark.parametrize("driver", ["bridge", "ptp", "macvlan"])
def test_isolated_containers_do_not_reach_each_other(site: Site, driver: str) -> None:
    where = ["--parent", "wire", "--ip-range", "192.0.2.128/26"] if driver == "macvlan" else []
    subnet = "192.0.2.0/24" if driver == "macvlan" else "10.61.0.0/24"
    for name, isolated in (("open", []), ("red", ["--isolate"])):
        site.network("create", name, "-d", driver, "--subnet", subnet, *where, *isolated)
        site.run("web", "--network", name, command=tuple(SERVER.split()))
        site.run("client", "--network", name)
        (web,) = [a for a in site.inside("web", "ip -4 addr show eth0").split() if a.endswith("/24")]
        request = f"echo 'GET / HTTP/1.0\r\n\r' | nc -w 1 {web.partition('/')[0]} 80 || true"
        assert ("hello from inside" in site.inside("client", request)) == (not isolated)
        for id in ("web", "client"):
            site.ocirt("delete", "--force", id)
        site.network("rm", name)


def test_a_network_that_cannot_work_can_be_removed(site: Site) -> None:
    site.network("create", "red", "-o", 'ipam={"type": "nonsense"}')
    failed = site.ocirt("run", "-d", "-b", site.bundle("true"), "--network", "red", "x", check=False)
    assert "failed to find plugin 'nonsense'" in failed.stderr
    removed = site.network("rm", "red")
    assert (removed.stdout, "failed to find plugin 'nonsense'" in removed.stderr) == ("red\n", True)
    assert list(site.networks.iterdir()) == []


def test_actions_that_take_no_name_say_so(site: Site) -> None:
    for action in ("ls", "reload"):
        failed = site.network(action, "red", check=False)
        assert (failed.returncode, "takes no name, but 'red' is given" in failed.stderr) == (1, True)
