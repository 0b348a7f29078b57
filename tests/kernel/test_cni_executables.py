"""Our plugins as executables, the reference plugins by our client, and chains of both."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ocirt.cni.client import Client
from ocirt.cni.invoke import find
from ocirt.cni.plugins import TYPES
from ocirt.cni.request import BUILTIN, Attachment
from ocirt.errors import Error
from tests.kernel.netlab import Namespace, ask
from tests.kernel.test_cni_bridge import NOTHING, PORTMAP, Lab

DISPATCHER = Path(__file__).resolve().parents[2] / "hack" / "ocirt-cni"
REFERENCE = "/usr/lib/cni"

needs_reference = pytest.mark.skipif(
    not os.path.exists(f"{REFERENCE}/host-local"), reason="Debian's containernetworking-plugins is not installed"
)


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    made = Lab(tmp_path)
    yield made
    made.close()


@pytest.fixture
def ours(tmp_path: Path) -> str:
    """A directory with our plugins as executables; copies of the file, so that our client executes them."""
    directory = tmp_path / "bin"
    directory.mkdir()
    text = DISPATCHER.read_text().replace("os.path.realpath(__file__)", repr(str(DISPATCHER)))
    for name in TYPES:
        file = directory / name
        file.write_text(text)
        file.chmod(0o755)
    return str(directory)


def run(directory: str, type: str, stdin: str = "", **environment: str) -> tuple[int, dict[str, Any], str]:
    done = subprocess.run(
        [f"{directory}/{type}"], input=stdin, env=environment, capture_output=True, text=True, timeout=30, check=False
    )
    return done.returncode, json.loads(done.stdout) if done.stdout.strip() else {}, done.stderr


ADD = {
    "CNI_COMMAND": "ADD",
    "CNI_CONTAINERID": "c",
    "CNI_NETNS": "/proc/1/ns/net",
    "CNI_IFNAME": "eth0",
    "CNI_PATH": "/x",
}
CONFIG = {"cniVersion": "1.1.0", "name": "n", "type": "bridge"}


def test_without_a_command_it_says_what_it_is(ours: str) -> None:
    code, out, err = run(ours, "firewall")
    assert (code, out) == (0, {})
    first, second = err.splitlines()
    assert first.startswith("CNI firewall plugin v1.7.1")
    assert second == "CNI protocol versions supported: 0.4.0, 1.0.0, 1.1.0"


def test_version(ours: str) -> None:
    code, out, _ = run(ours, "bridge", CNI_COMMAND="VERSION")
    assert code == 0
    assert out["cniVersion"] == "1.1.0"
    assert out["supportedVersions"] == ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]


@pytest.mark.parametrize(
    ("environment", "stdin", "code", "message"),
    [
        ({"CNI_COMMAND": "ADD", "CNI_PATH": "/x"}, CONFIG, 4,
         "required env variables [CNI_CONTAINERID,CNI_NETNS,CNI_IFNAME] missing"),
        ({"CNI_COMMAND": "FOO"}, CONFIG, 4, "unknown CNI_COMMAND: FOO"),
        (ADD, "{", 6, "error unmarshall network config"),
        (ADD, {"cniVersion": "1.1.0", "type": "bridge"}, 7, "missing network name"),
        (ADD, {**CONFIG, "name": "a/b"}, 7, "invalid characters found in network name"),
        (ADD, {**CONFIG, "cniVersion": "9.9.9"}, 1, "incompatible CNI versions"),
        ({**ADD, "CNI_COMMAND": "CHECK"}, {**CONFIG, "cniVersion": "0.3.1"}, 1, "config version does not allow CHECK"),
        ({**ADD, "CNI_COMMAND": "GC"}, {**CONFIG, "cniVersion": "1.0.0"}, 1, "config version does not allow GC"),
        ({**ADD, "CNI_COMMAND": "STATUS"}, {**CONFIG, "cniVersion": "1.0.0"}, 1, "version does not allow STATUS"),
        (
            {**ADD, "CNI_COMMAND": "GC"},
            {**CONFIG, "cni.dev/valid-attachments": "all"},
            7,
            "cni.dev/valid-attachments must be a list",
        ),
        ({**ADD, "CNI_COMMAND": "CHECK"}, CONFIG, 7, "required prevResult missing"),
        ({**ADD, "CNI_CONTAINERID": "-x"}, CONFIG, 4, "invalid characters in containerID"),
        ({**ADD, "CNI_IFNAME": "eth0:1"}, CONFIG, 4, "invalid interface name"),
        ({**ADD, "CNI_NETNS": "/proc/self/ns/net"}, CONFIG, 8, "should not be the same"),
        ({**ADD, "CNI_NETNS": "/etc/passwd"}, CONFIG, 8, "is no network namespace"),
        ({**ADD, "CNI_NETNS": "/nope"}, CONFIG, 8, "failed to open netns"),
        (ADD, {**CONFIG, "mtu": "big"}, 7, "invalid value of mtu"),
        ({**ADD, "CNI_ARGS": "a=b=c"}, CONFIG, 4, "ARGS: invalid pair"),
        ({**ADD, "CNI_ARGS": "FOO=bar"}, CONFIG, 4, "ARGS: unknown args ['FOO']"),
    ],
)  # fmt: skip
def test_errors_are_objects_on_standard_output(
    ours: str, environment: dict[str, str], stdin: Any, code: int, message: str
) -> None:
    status, out, _ = run(ours, "bridge", stdin if isinstance(stdin, str) else json.dumps(stdin), **environment)
    assert status == 1
    assert (out["code"], message in out["msg"] + out.get("details", "")) == (code, True), out


def test_links_to_the_dispatcher_run_in_this_process(tmp_path: Path) -> None:
    (tmp_path / "bridge").symlink_to(DISPATCHER)
    assert find("bridge", (str(tmp_path),)) == BUILTIN
    (tmp_path / "portmap").write_text("")
    assert find("portmap", (str(tmp_path), BUILTIN)) == f"{tmp_path}/portmap"
    assert find("static", (str(tmp_path),)) == BUILTIN
    with pytest.raises(Error, match="failed to find plugin 'nope' in path"):
        find("nope", (str(tmp_path), BUILTIN))


def chain(lab: Lab, version: str = "1.1.0") -> Any:
    return lab.network(lab.bridge(ipMasq=True), {**PORTMAP}, version=version)


PORT = [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]


@pytest.mark.parametrize("version", ["0.3.1", "0.4.0", "1.0.0", "1.1.0"])
def test_our_executables_work_as_in_process(lab: Lab, ours: str, version: str) -> None:
    network = chain(lab, version)
    lab.client.path = (ours,)
    result = lab.add(network, "web", portMappings=PORT)
    assert [i["name"] for i in result.interfaces][::2] == ["br0", "eth0"]
    lab.serve(lab.containers["web"], "0.0.0.0", 80)
    assert ask(lab.outside, "192.0.2.1", 8080) == b"hello|192.0.2.2"
    lab.client.path = (BUILTIN,)
    if version != "0.3.1":
        lab.check(network, "web")
    lab.client.path = (ours,)
    lab.delete(network, "web")
    assert lab.left() == NOTHING


@needs_reference
@pytest.mark.parametrize(
    "types",
    [
        {"bridge": 1, "host-local": 1, "portmap": 1},
        {"host-local": 1},
        {"portmap": 1},
        {"bridge": 1},
        {"bridge": 1, "host-local": 1},
    ],
    ids=lambda types: "reference:" + "+".join(types),
)
def test_chains_of_reference_plugins_and_ours(lab: Lab, ours: str, tmp_path: Path, types: dict[str, int]) -> None:
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    for name in ("bridge", "host-local", "portmap"):
        (mixed / name).symlink_to(f"{REFERENCE if name in types else ours}/{name}")
    network = chain(lab, "1.0.0")
    lab.client.path = (str(mixed),)
    lab.add(network, "web", portMappings=PORT)
    lab.add(network, "other")
    lab.serve(lab.containers["web"], "0.0.0.0", 80)
    assert ask(lab.outside, "192.0.2.1", 8080) == b"hello|192.0.2.2"
    assert ask(lab.containers["other"], "10.88.0.2", 80) == b"hello|10.88.0.3"
    lab.delete(network, "web")
    lab.delete(network, "other")
    lab.delete(network, "other")
    assert lab.left() == NOTHING


@needs_reference
def test_one_store_of_addresses_for_both_host_locals(lab: Lab, tmp_path: Path) -> None:
    # without ipMasq: the reference bridge can only delete rules of its own
    network = lab.network(lab.bridge("10.88.0.0/29", ipMasq=False), version="1.0.0")
    reference = Client((REFERENCE,), lab.client.directory)
    own = lab.client
    ips: list[str] = []
    for i in range(5):
        lab.client = reference if i % 2 else own
        ips.append(lab.add(network, f"c{i}").ips[0]["address"])
    assert sorted(ips) == [f"10.88.0.{i}/29" for i in range(2, 7)]
    for client in (own, reference):
        lab.client = client
        with pytest.raises(Error, match="no IP addresses available"):
            lab.add(network, "late")
    # Each releases what the other has reserved.
    for i in range(5):
        lab.client = own if i % 2 else reference
        lab.delete(network, f"c{i}")
    left = lab.left()
    assert (left["addresses"], left["links"]) == ([], [])


def test_a_plugin_that_fails_is_told_as_it_said_it(lab: Lab, tmp_path: Path) -> None:
    scripts = {
        "json": 'echo \'{"code": 107, "msg": "no luck", "details": "today"}\'; exit 1',
        "plain": "echo oops; exit 1",
        "silent": "echo 'on stderr' >&2; exit 3",
        "signal": "kill -9 $$",
    }
    for name, script in scripts.items():
        (tmp_path / name).write_text(f"#!/bin/sh\ncat > /dev/null\n[ $CNI_COMMAND = DEL ] && exit 0\n{script}\n")
        (tmp_path / name).chmod(0o755)
    lab.client.path = (str(tmp_path),)
    for name, words in (
        ("json", "no luck: today"),
        ("plain", "error parsing its diagnostic message 'oops"),
        ("silent", "netplugin failed: on stderr"),
        ("signal", "exit status -9 without a word"),
    ):
        with pytest.raises(Error, match=f"attach to network net1: CNI ADD by plugin {name}: .*{words}"):
            lab.add(lab.network({"type": name}), "web")
    assert lab.left() == NOTHING


def test_the_request_that_a_foreign_plugin_gets(lab: Lab, tmp_path: Path) -> None:
    script = tmp_path / "tell"
    script.write_text(
        f"""#!/bin/sh
        cat > {tmp_path}/$CNI_COMMAND.json
        env | grep ^CNI_ > {tmp_path}/$CNI_COMMAND.env
        case $CNI_COMMAND in ADD) echo '{{"cniVersion": "1.1.0", "ips": [{{"address": "10.0.0.1/24"}}]}}' ;; esac
        """
    )
    script.chmod(0o755)
    lab.client.path = (str(tmp_path), BUILTIN)
    plugin = {
        "type": "tell",
        "capabilities": {"portMappings": True, "mac": True, "ips": False},
        "unknown": {"a": [1, 2.5, None]},
        "cni.dev/secret": 1,
    }
    network = lab.network(plugin, plugin)
    lab.add(network, "web", portMappings=PORT, ips=["10.88.0.77"], other=1)
    with lab.host.inside():
        lab.client.check(network, lab.attachment("web"))
        lab.client.status(network)
        lab.client.gc(network, [("web", "eth0")])
    lab.delete(network, "web")
    told = {c: json.loads((tmp_path / f"{c}.json").read_text()) for c in ("ADD", "CHECK", "STATUS", "GC", "DEL")}
    for command, config in told.items():
        assert (config["cniVersion"], config["name"], config["unknown"]) == ("1.1.0", "net1", {"a": [1, 2.5, None]})
        assert "capabilities" not in config
        assert "cni.dev/secret" not in config
        assert ("prevResult" in config) == (command in ("ADD", "CHECK", "DEL"))
        assert config.get("runtimeConfig") == ({"portMappings": PORT} if command in ("ADD", "CHECK", "DEL") else None)
    assert told["GC"]["cni.dev/valid-attachments"] == [{"containerID": "web", "ifname": "eth0"}]
    environment = dict(line.split("=", 1) for line in (tmp_path / "ADD.env").read_text().splitlines())
    assert environment["CNI_CONTAINERID"] == "web"
    assert environment["CNI_IFNAME"] == "eth0"
    assert environment["CNI_PATH"] == str(tmp_path)
    assert "CNI_CONTAINERID" not in (tmp_path / "GC.env").read_text()


@pytest.mark.parametrize("value", ["1", "true", "TRUE", "", "0", "yes"])
def test_the_callers_own_namespace(lab: Lab, value: str, ours: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused, by the executables as well, unless CNI_NETNS_OVERRIDE says that it is meant."""
    monkeypatch.setenv("CNI_NETNS_OVERRIDE", value)
    network = lab.network({"type": "macvlan", "master": "wire"})
    attachment = Attachment("web", lab.host.path, "own0")
    for path in ((BUILTIN,), (ours,)):
        lab.client.path = path
        with lab.host.inside():
            if value.lower() not in ("1", "true"):
                with pytest.raises(Error, match="should not be the same"):
                    lab.client.add(network, attachment)
            else:
                lab.client.add(network, attachment)
                assert "own0" in [i["ifname"] for i in lab.host.ip("link")]
                lab.client.check(network, attachment)
                lab.client.delete(network, attachment)
        assert "own0" not in [i["ifname"] for i in lab.host.ip("link")]
    assert lab.left()["cache"] == []


def test_a_namespace_that_ends_while_an_executable_deletes(lab: Lab, ours: str) -> None:
    network = chain(lab)
    lab.client.path = (ours,)
    lab.add(network, "web", portMappings=PORT)
    lab.containers.pop("web").close()
    lab.delete(network, "web")
    assert lab.left() == NOTHING


def test_namespaces_of_the_test_are_its_own() -> None:
    one = Namespace()
    assert os.stat(one.path).st_ino != os.stat("/proc/self/ns/net").st_ino
    one.close()
