"""Controllers whose v1 hierarchies hosts rarely mount: net_cls, net_prio, hugetlb, perf_event.

They are mounted in the tests' own mount namespace. The kernel has one hierarchy
of each for the whole machine, so others may come and go with it meanwhile.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ocirt.cgroups import host
from ocirt.errors import Error, Unsupported
from tests.harness.leftovers import Before
from tests.kernel.cgroup_lab import UNIFIED, Lab, controllers, read

Mount = Callable[[str], Path]
KNOWN = {line.split()[0] for line in Path("/proc/cgroups").read_text().splitlines() if not line.startswith("#")}


@pytest.fixture
def mount(apart: None, place: Path) -> Iterator[Mount]:
    """Mounts the v1 hierarchy of a controller."""
    libc = ctypes.CDLL(None, use_errno=True)
    mounted: list[Path] = []

    def make(controller: str) -> Path:
        directory = place / controller
        directory.mkdir()
        if libc.mount(b"cgroup", os.fsencode(directory), b"cgroup", 0, controller.encode()):
            directory.rmdir()
            raise OSError(ctypes.get_errno(), f"mount the {controller} hierarchy")
        mounted.append(directory)
        return directory

    yield make
    for directory in mounted:
        libc.umount2(os.fsencode(directory), 2)


@pytest.fixture
def lab(apart: None, test_id: str, place: Path) -> Iterator[Lab]:
    before = Before()
    made = Lab(test_id, "cgroupfs")
    yield made
    made.close()
    left = [line for line in before.left(place, test_id) if not line.startswith("mount on")]
    assert not left, "left behind: " + ", ".join(left)


def need_v1(controller: str, *programs: str) -> None:
    if UNIFIED:
        pytest.skip(f"cgroup v2 has no {controller}: linux.resources.network is refused there")
    if controller not in KNOWN:
        pytest.skip(f"the kernel lacks the {controller} controller")
    for program in programs:
        if not shutil.which(program):
            pytest.skip(f"{program} is not installed: it counts what the kernel marks")


#: In a network namespace of its own, packets over lo are counted by what the kernel wrote on them.
SEND = """
import socket, subprocess
subprocess.run(['ip', 'link', 'set', 'lo', 'up'], check=True)
rules = ['table inet t {', 'chain c {', 'type filter hook output priority 0']
rules += ['udp dport 9 meta cgroup 1048577 counter', '}', '}', '']
subprocess.run(['nft', '-f', '-'], input='\\n'.join(rules), text=True, check=True)
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for _ in range(5):
    s.sendto(b'x', ('127.0.0.1', 9))
print(subprocess.run(['nft', 'list', 'ruleset'], check=True, capture_output=True, text=True).stdout.replace('\\n', ' '))
"""


def test_packets_carry_the_class(lab: Lab, mount: Mount) -> None:
    need_v1("net_cls", "nft", "ip")
    mount("net_cls")
    cgroup, process = lab.limited({"network": {"classID": 0x100001}}, SEND, "/marked", "unshare", "-n")
    assert read(cgroup, "net_cls", "net_cls.classid") == str(0x100001)
    assert "counter packets 5 " in process.line()
    _, process = lab.limited({}, SEND, "/plain", "unshare", "-n")
    assert "counter packets 0 " in process.line()


def test_packets_carry_the_priority(lab: Lab, mount: Mount) -> None:
    need_v1("net_prio")
    directory = mount("net_prio")
    if not (directory / "net_prio.ifpriomap").exists():
        pytest.skip("the kernel lacks CONFIG_CGROUP_NET_PRIO")
    resources = {"network": {"priorities": [{"name": "lo", "priority": 5}]}}
    # the file speaks of the first network namespace's devices, so the packets go over its lo
    program = (
        "import socket\nwith socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:\n"
        "    receiver.bind(('127.0.0.1', 0))\n"
        "    try: receiver.setsockopt(socket.SOL_SOCKET, 82, 1)\n"  # SO_RCVPRIORITY
        "    except OSError: print('unknown', flush=True)\n"
        "    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:\n"
        "        sender.sendto(b'x', receiver.getsockname())\n"
        "    said = receiver.recvmsg(8, 64)[1]\n"
        "    print(int.from_bytes(said[0][2], sys.byteorder) if said else -1, flush=True)\ntime.sleep(600)\n"
    )
    cgroup, process = lab.limited(resources, program, "/first")
    assert "lo 5" in read(cgroup, "net_prio", "net_prio.ifpriomap").splitlines()
    with pytest.raises(Error, match=r"linux\.resources\.network\.priorities\[0\]: .*is there such an interface"):
        cgroup.update({"network": {"priorities": [{"name": "nonsense0", "priority": 5}]}}, {})
    line = process.line()
    if line == "unknown":
        pytest.skip("the kernel lacks SO_RCVPRIORITY (Linux 6.14), which shows what the packets carry")
    assert line == "5"


def test_a_missing_controller_is_named(lab: Lab) -> None:
    need_v1("net_cls")
    if "net_cls" in controllers():
        pytest.skip("net_cls is mounted here")
    cgroup = lab.prepared()
    with pytest.raises(Unsupported, match=r"linux\.resources\.network\.classID: no cgroup hierarchy has the net_cls"):
        cgroup.apply({"network": {"classID": 5}})


def test_a_hierarchy_that_went_away_is_no_hindrance(lab: Lab, mount: Mount) -> None:
    need_v1("perf_event")
    directory = mount("perf_event")
    cgroup, process = lab.idle()
    assert host.own(process.pid)["perf_event"] == f"/{lab.name}"
    assert (directory / lab.name).is_dir()
    process.end()
    (directory / lab.name).rmdir()
    ctypes.CDLL(None).umount2(os.fsencode(directory), 2)
    assert cgroup.pids() == []
    cgroup.kill()
    cgroup.remove()


def test_a_hierarchy_that_came_later_is_no_hindrance(lab: Lab, mount: Mount) -> None:
    need_v1("perf_event")
    cgroup, process = lab.idle()
    directory = mount("perf_event")
    cgroup.freeze()
    cgroup.thaw()
    cgroup.kill()
    assert process.result()[0] == -signal.SIGKILL
    cgroup.remove()
    assert not (directory / lab.name).exists()


# -- huge pages

SIZE = 2 << 20


@pytest.fixture
def huge_pages(apart: None) -> Iterator[None]:
    """Four more huge pages of 2 MiB than there were."""
    number = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages")
    if not number.exists():
        pytest.skip("the kernel lacks huge pages of 2 MiB")
    before = int(number.read_text())
    number.write_text(str(before + 4))
    try:
        if int(number.read_text()) < before + 4:
            pytest.skip("the kernel finds no memory for huge pages")
        yield
    finally:
        number.write_text(str(before))


def test_reserving_more_huge_pages_than_the_limit(lab: Lab, huge_pages: None, mount: Mount) -> None:
    if "hugetlb" not in controllers():
        if "hugetlb" not in KNOWN or UNIFIED:
            pytest.skip("the kernel lacks the hugetlb controller")
        mount("hugetlb")  # someone has mounted its v1 hierarchy elsewhere
    control = next((Path(m, "cgroup.subtree_control") for c, m in host.hierarchies() if c == ""), None)
    before = control.read_text() if control else ""
    neighbour = control.parent / f"oct{os.getpid()}neighbour" if control else None
    if neighbour:
        neighbour.mkdir()
    try:
        _reserve(lab)
        lab.close()
        if control and not UNIFIED:
            assert control.read_text() == before, "left enabled, its v1 hierarchy could not be mounted any more"
    finally:
        if neighbour:
            neighbour.rmdir()


def _reserve(lab: Lab) -> None:
    program = (
        "for pages in (1, 2):\n    try:\n"
        f"        area = mmap.mmap(-1, pages * {SIZE}, flags=mmap.MAP_SHARED | 0x40000)\n"
        "        area[0] = 1\n        area.close()\n        print(pages, flush=True)\n"
        "    except OSError as error:\n        print(error.strerror, flush=True)\ntime.sleep(600)\n"
    )
    resources = {"hugepageLimits": [{"pageSize": "2MB", "limit": SIZE}]}
    cgroup, process = lab.limited(resources, program)
    assert process.line() == "1"
    assert process.line() == "Cannot allocate memory"
    assert cgroup.stats()["hugetlb"]["2MB"]["failcnt"] >= 0
    with pytest.raises(Error, match=r"linux\.resources\.hugepageLimits\[0\]: .*hugetlb\.3MB"):
        cgroup.update({"hugepageLimits": [{"pageSize": "3MB", "limit": SIZE}]}, {})
