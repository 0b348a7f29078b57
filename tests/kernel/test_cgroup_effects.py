"""Each resource by what it does to a process, not by the file that was written; the same on v1, v2 and systemd."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ocirt.cgroups.base import Cgroup
from ocirt.cgroups.oom import Watch
from ocirt.errors import Error, InvalidConfig, Unsupported
from tests.harness.leftovers import Before
from tests.harness.waiting import eventually
from tests.kernel.cgroup_lab import MANAGERS, UNIFIED, Lab, Process, read

MIB = 1 << 20
HOG = "print('on', flush=True)\nwhile True: pass\n"
EATER = """
area = mmap.mmap(-1, {mib} << 20)
print('eating', flush=True)
for at in range(0, {mib} << 20, 4096):
    area[at] = 1
print('full', flush=True)
time.sleep(600)
"""
BOMB = """
n = 0
try:
    while n < 64:
        if os.fork() == 0:
            time.sleep(600)
        n += 1
except BlockingIOError as error:
    print(n, error.strerror, flush=True)
else:
    print(n, 'all', flush=True)
time.sleep(600)
"""


@pytest.fixture(params=MANAGERS)
def lab(request: pytest.FixtureRequest, apart: None, test_id: str, place: Path) -> Iterator[Lab]:
    before = Before()
    made = Lab(test_id, request.param)
    yield made
    made.close()
    left = before.left(place, test_id)
    assert not left, "left behind: " + ", ".join(left)


def one_cpu() -> str:
    return str(max(os.sched_getaffinity(0)))


# -- cpu


def used(process: Process, seconds: float) -> float:
    """The share of one CPU that it uses for a while."""
    before, start = process.cpu(), time.monotonic()
    time.sleep(seconds)
    return (process.cpu() - before) / (time.monotonic() - start)


@pytest.mark.parametrize("period", [50_000, 100_000])
def test_a_hog_is_held_to_its_quota(lab: Lab, period: int) -> None:
    cgroup, process = lab.limited({"cpu": {"quota": period // 5, "period": period}}, HOG)
    process.line()
    assert used(process, 1.5) < 0.3
    throttling = cgroup.stats()["cpu"]["throttling"]
    assert throttling["throttledPeriods"] > 5
    assert throttling["throttledTime"] > 100_000_000
    cgroup.update({"cpu": {"quota": -1}}, {})
    periods = cgroup.stats()["cpu"]["throttling"]["throttledPeriods"]
    used(process, 0.5)
    assert cgroup.stats()["cpu"]["throttling"]["throttledPeriods"] <= periods + 1


def test_burst_is_what_was_saved_up(lab: Lab) -> None:
    """After a rest a process may use more than its quota of one period at once, and the kernel counts that."""
    program = (
        "for _ in range(5):\n    time.sleep(0.25)\n    start = time.process_time()\n"
        "    while time.process_time() - start < 0.06: pass\nprint('done', flush=True)\ntime.sleep(600)\n"
    )
    for burst in (0, 40_000):
        cpu = {"quota": 40_000, "period": 100_000, "burst": burst}
        cgroup, process = lab.limited({"cpu": cpu}, program, below=f"/burst{burst}")
        assert process.line() == "done"
        bursts = dict(line.split() for line in read(cgroup, "cpu", "cpu.stat").splitlines())["nr_bursts"]
        assert (int(bursts) > 0) == (burst > 0)


def competition(lab: Lab, first: dict[str, object], second: dict[str, object], seconds: float = 2) -> float:
    """How much more of the same CPU the first gets."""
    processes = []
    # the weaker one first: it might not come to its first line beside the other
    for name, cpu in (("/second", second), ("/first", first)):
        _, process = lab.limited({"cpu": {"cpus": one_cpu(), **cpu}}, HOG, below=name)
        process.line()
        processes.insert(0, process)
    before = [process.cpu() for process in processes]
    time.sleep(seconds)
    after = [process.cpu() for process in processes]
    return (after[0] - before[0]) / max(after[1] - before[1], 0.01)


def test_shares_are_shares(lab: Lab) -> None:
    assert 2 < competition(lab, {"shares": 4096}, {"shares": 512}) < 20


def test_idle_yields(lab: Lab) -> None:
    assert competition(lab, {"shares": 1024, "idle": 0}, {"idle": 1}) > 10


def test_cpus_bind(lab: Lab) -> None:
    program = "print(os.sched_getaffinity(0), flush=True)\n"
    _, process = lab.limited({"cpu": {"cpus": one_cpu(), "mems": "0"}}, program)
    assert process.line() == f"{{{one_cpu()}}}"


def test_a_cpu_that_does_not_exist(lab: Lab) -> None:
    cgroup = lab.prepared()
    process = lab.process("time.sleep(600)")
    cgroup.join(process.pid)
    with pytest.raises(Error, match=r"linux\.resources\.cpu\.cpus: write \"4095\" to /.*/cpuset\.cpus"):
        cgroup.apply({"cpu": {"cpus": "4095"}})


def test_quota_below_burst_is_refused_by_the_kernel_and_named(lab: Lab) -> None:
    cgroup, _ = lab.idle({"cpu": {"quota": 50_000, "period": 100_000}})
    with pytest.raises(Error, match=r"linux\.resources\.cpu\.burst"):
        cgroup.update({"cpu": {"burst": 60_000}}, {})


def test_quota_and_burst_change_together(lab: Lab) -> None:
    """Whichever is written first would be refused alone, up or down."""
    cgroup, _ = lab.idle({"cpu": {"quota": 20_000, "period": 100_000, "burst": 20_000}})
    for quota, burst in ((80_000, 70_000), (10_000, 5_000)):
        cgroup.update({"cpu": {"quota": quota, "burst": burst}}, {})
        if UNIFIED:
            assert read(cgroup, "cpu", "cpu.max") == f"{quota} 100000"
            assert read(cgroup, "cpu", "cpu.max.burst") == str(burst)
        else:
            assert read(cgroup, "cpu", "cpu.cfs_quota_us") == str(quota)
            assert read(cgroup, "cpu", "cpu.cfs_burst_us") == str(burst)


@pytest.mark.skipif(UNIFIED, reason="cgroup v2 has no realtime limits: refused, see test_cgroup_refusals")
def test_realtime_needs_a_runtime(lab: Lab) -> None:
    program = (
        "try:\n    os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))\n    print('realtime')\n"
        "except PermissionError:\n    print('refused')\n"
    )
    cgroup = lab.prepared("/with")
    if not os.path.exists(cgroup.path("cpu") + "/cpu.rt_runtime_us"):
        pytest.skip("the kernel lacks CONFIG_RT_GROUP_SCHED")
    if read(cgroup, "cpu", "../cpu.rt_runtime_us") == "0":
        pytest.skip("CONFIG_RT_GROUP_SCHED_DEFAULT_DISABLED: the root has no realtime bandwidth to give")
    _, without = lab.limited({}, program, "/without")
    assert without.line() == "refused"
    _, process = lab.limited({"cpu": {"realtimePeriod": 1_000_000, "realtimeRuntime": 10_000}}, program, "/given")
    assert process.line() == "realtime"


# -- memory


def test_the_one_that_eats_too_much_is_killed(lab: Lab) -> None:
    cgroup, process = lab.limited({"memory": {"limit": 24 * MIB, "swap": 24 * MIB}}, EATER.format(mib=64))
    assert process.line() == "eating"
    status, out, _ = process.result()
    assert (status, out) == (-signal.SIGKILL, "")
    assert cgroup.oom_kills() == 1
    limit, peak = cgroup.memory_peak()
    assert limit == 24 * MIB
    if lab.manager == "cgroupfs":  # systemd has removed the cgroup by now
        assert 23 * MIB < peak <= 24 * MIB


def test_within_the_limit_it_lives(lab: Lab) -> None:
    cgroup, process = lab.limited({"memory": {"limit": 96 * MIB, "swap": -1}}, EATER.format(mib=48))
    assert process.line() == "eating"
    assert process.line() == "full"
    assert cgroup.oom_kills() == 0
    usage = cgroup.stats()["memory"]["usage"]
    assert 48 * MIB < usage["usage"] < 96 * MIB
    assert usage["limit"] == 96 * MIB


def test_an_oom_kill_is_an_event(lab: Lab) -> None:
    program = "if os.fork() == 0:\n" + "".join("    " + line + "\n" for line in EATER.format(mib=64).splitlines())
    cgroup, process = lab.limited({}, program + "time.sleep(600)\n")
    with Watch(process.pid, cgroup) as watch:
        process.line()
        cgroup.update({"memory": {"limit": 24 * MIB, "swap": 24 * MIB}}, {})
        assert watch.wait(20) == "oom"
        assert watch.wait(0.2) == ""
        process.popen.kill()
        assert watch.wait(20) == "end"


@pytest.mark.skipif(UNIFIED, reason="cgroup v2 has no way to turn the OOM killer off: refused, see below")
def test_without_the_oom_killer_it_waits_for_more(lab: Lab) -> None:
    limits = {"limit": 24 * MIB, "swap": 24 * MIB, "disableOOMKiller": True}
    cgroup, process = lab.limited({"memory": limits}, EATER.format(mib=48))
    assert process.line() == "eating"
    assert eventually(lambda: "under_oom 1" in read(cgroup, "memory", "memory.oom_control"))
    assert process.silent(0.3)
    cgroup.update({"memory": {"limit": 96 * MIB, "swap": 96 * MIB}}, {})
    assert process.line() == "full"


def test_limits_go_up_and_down(lab: Lab) -> None:
    """memory.limit must never be above memory and swap together, whichever way both move."""
    cgroup, _ = lab.idle({"memory": {"limit": 30 * MIB, "swap": 40 * MIB}})
    for limit, swap in ((60, 80), (20, 25), (50, 50)):
        cgroup.update({"memory": {"limit": limit * MIB, "swap": swap * MIB}}, {})
        if UNIFIED:
            assert read(cgroup, "memory", "memory.max") == str(limit * MIB)
            assert read(cgroup, "memory", "memory.swap.max") == str((swap - limit) * MIB)
        else:
            assert read(cgroup, "memory", "memory.limit_in_bytes") == str(limit * MIB)
            assert read(cgroup, "memory", "memory.memsw.limit_in_bytes") == str(swap * MIB)
    cgroup.update({"memory": {"limit": -1}}, {})
    assert cgroup.memory_peak()[0] == -1


def test_a_limit_below_what_is_used(lab: Lab) -> None:
    cgroup, process = lab.limited({"memory": {"limit": 96 * MIB, "swap": 96 * MIB}}, EATER.format(mib=48))
    assert [process.line(), process.line()] == ["eating", "full"]
    with pytest.raises(Error, match=r"linux\.resources\.memory\.limit: \d+ is below what is in use: \d+ bytes"):
        cgroup.update({"memory": {"limit": 8 * MIB, "checkBeforeUpdate": True}}, {})
    assert process.popen.poll() is None
    assert cgroup.oom_kills() == 0


def test_reservation_and_swappiness(lab: Lab) -> None:
    memory: dict[str, object] = {"reservation": 16 * MIB}
    if not UNIFIED:
        memory["swappiness"] = 0
    cgroup, _ = lab.idle({"memory": memory})
    if UNIFIED:
        assert read(cgroup, "memory", "memory.low") == str(16 * MIB)
    else:
        assert read(cgroup, "memory", "memory.soft_limit_in_bytes") == str(16 * MIB)
        assert read(cgroup, "memory", "memory.swappiness") == "0"


# -- pids


@pytest.mark.parametrize(("limit", "forks"), [(8, 7), (1, 0), (0, 0)])
def test_a_fork_bomb_is_stopped(lab: Lab, limit: int, forks: int) -> None:
    cgroup, process = lab.limited({"pids": {"limit": limit}}, BOMB)
    number, _, why = process.line().partition(" ")
    assert int(number) == forks
    assert why == "Resource temporarily unavailable"
    assert cgroup.stats()["pids"] == {"current": forks + 1, "limit": max(limit, 1)}


def test_minus_one_is_no_limit(lab: Lab) -> None:
    _, process = lab.limited({"pids": {"limit": -1}}, BOMB)
    assert process.line(60) == "64 all"


# -- block I/O


@pytest.fixture
def disk(place: Path) -> Iterator[tuple[str, int, int]]:
    """A loop device of 16 MiB: (path, major, minor)."""
    image = place / "disk"
    image.write_bytes(b"")
    os.truncate(image, 16 * MIB)
    node = subprocess.run(
        ["losetup", "--show", "--find", str(image)], check=True, capture_output=True, text=True
    ).stdout.strip()
    number = os.stat(node).st_rdev
    yield node, os.major(number), os.minor(number)
    subprocess.run(["losetup", "--detach", node], check=True)


def transfer(node: str, write: bool, mib: int) -> str:
    """Direct I/O of 64 KiB at a time: on v1 nothing else is throttled."""
    flags, call = ("os.O_WRONLY", "os.write(fd, area)") if write else ("os.O_RDONLY", "os.readv(fd, [area])")
    return (
        f"fd = os.open({node!r}, {flags} | os.O_DIRECT)\narea = mmap.mmap(-1, 65536)\nstart = time.monotonic()\n"
        f"for _ in range({mib} * 16): {call}\nprint(time.monotonic() - start, flush=True)\ntime.sleep(600)\n"
    )


@pytest.mark.parametrize("write", [False, True], ids=["read", "write"])
@pytest.mark.parametrize("unit", ["Bps", "IOPS"])
def test_a_throttle_is_felt(lab: Lab, disk: tuple[str, int, int], write: bool, unit: str) -> None:
    node, major, minor = disk
    key = f"throttle{'Write' if write else 'Read'}{unit}Device"
    rate = MIB if unit == "Bps" else 16  # 16 times 64 KiB is 1 MiB
    resources = {
        "blockIO": {key: [{"major": major, "minor": minor, "rate": rate}]},
        "devices": [{"allow": True, "type": "b", "major": major, "minor": minor, "access": "rw"}],
    }
    cgroup, process = lab.limited(resources, transfer(node, write, 2), below="/held")
    assert float(process.line(60)) > 1.2, "2 MiB at 1 MiB a second"
    entries = cgroup.stats()["blkio"]["ioServiceBytesRecursive"]
    done = [e for e in entries if (e["major"], e["minor"], e["op"]) == (major, minor, "Write" if write else "Read")]
    assert [e["value"] for e in done] == [2 * MIB]
    free = {
        **resources,
        "blockIO": {key: [{"major": major, "minor": minor, "rate": 1 << 30 if unit == "Bps" else 1 << 20}]},
    }
    _, process = lab.limited(free, transfer(node, write, 2), below="/free")
    assert float(process.line(60)) < 1.0


def test_a_throttle_of_no_device_is_named(lab: Lab) -> None:
    cgroup = lab.prepared()
    process = lab.process("time.sleep(600)")
    cgroup.join(process.pid)
    entry = {"major": 240, "minor": 99, "rate": 5}
    with pytest.raises(Error, match=r"linux\.resources\.blockIO\.throttleReadBpsDevice\[0\].*such a block device"):
        cgroup.apply({"blockIO": {"throttleReadBpsDevice": [entry]}})


def test_block_weight(lab: Lab, disk: tuple[str, int, int]) -> None:
    node, major, minor = disk
    scheduler = Path(f"/sys/block/{os.path.basename(node)}/queue/scheduler")
    if "bfq" not in scheduler.read_text():
        pytest.skip("the kernel lacks the bfq scheduler: no per-device weights")
    scheduler.write_text("bfq")
    try:
        device = {"major": major, "minor": minor, "weight": 300}
        cgroup, _ = lab.idle({"blockIO": {"weight": 200, "weightDevice": [device]}})
        name = "io.bfq.weight" if UNIFIED else "blkio.bfq.weight"
        text = read(cgroup, "blkio", name)
        assert "200" in text.split()
        if not UNIFIED:
            text = read(cgroup, "blkio", "blkio.bfq.weight_device")
        assert f"{major}:{minor} 300" in text
    finally:
        scheduler.write_text("none")


# -- devices

OPEN = """
for line in sys.stdin:
    path, flags = line.split()
    try:
        os.close(os.open(path, int(flags)))
        print('open', flush=True)
    except OSError as error:
        print(error.strerror, flush=True)
"""
DENIED = "Operation not permitted"


def opens(process: Process, path: str, flags: int = os.O_RDONLY) -> str:
    assert process.popen.stdin
    process.popen.stdin.write(f"{path} {flags}\n")
    process.popen.stdin.flush()
    return process.line()


@pytest.fixture
def node(place: Path) -> str:
    """A character device that isn't on the default list: /dev/kmsg's number, 1:11."""
    path = str(place / "node")
    os.mknod(path, 0o666 | 0o020000, os.makedev(1, 11))
    return path


def test_only_the_default_devices(lab: Lab, node: str) -> None:
    _, process = lab.limited({}, OPEN)
    for path in ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"):
        assert opens(process, path, os.O_RDWR) == "open", path
    assert opens(process, node) == DENIED


def test_tun_is_on_the_default_list(lab: Lab, place: Path) -> None:
    path = str(place / "tun")
    os.mknod(path, 0o666 | 0o020000, os.makedev(10, 200))
    _, process = lab.limited({}, OPEN)
    assert opens(process, path, os.O_RDWR) != DENIED  # without the driver: no such device


def test_a_device_may_be_read_and_not_written(lab: Lab, node: str) -> None:
    rule = {"allow": True, "type": "c", "major": 1, "minor": 11, "access": "r"}
    _, process = lab.limited({"devices": [{"allow": False, "access": "rwm"}, rule]}, OPEN)
    assert opens(process, node) == "open"
    assert opens(process, node, os.O_WRONLY) == DENIED
    assert opens(process, node, os.O_RDWR) == DENIED


def test_all_devices_but_one(lab: Lab, node: str, place: Path) -> None:
    other = str(place / "other")
    os.mknod(other, 0o666 | 0o020000, os.makedev(1, 1))  # /dev/mem's number: may lack the driver, not the permission
    rules = [{"allow": True, "access": "rwm"}, {"allow": False, "type": "c", "major": 1, "minor": 11, "access": "rwm"}]
    _, process = lab.limited({"devices": rules}, OPEN)
    assert opens(process, node) == DENIED
    assert opens(process, other) != DENIED or not os.path.exists("/dev/mem")


def test_rules_change_while_devices_are_in_use(lab: Lab, node: str) -> None:
    """What both lists allow is never denied, what both deny is never allowed."""
    keep = {"allow": True, "type": "c", "major": 1, "minor": 11, "access": "r"}
    other = {"allow": True, "type": "c", "major": 1, "minor": 4, "access": "rw"}
    program = (
        "refused = wrote = n = 0\nprint('on', flush=True)\nend = [False]\n"
        "signal.signal(signal.SIGUSR1, lambda *a: end.__setitem__(0, True))\nprint('ready', flush=True)\n"
        "while not end[0]:\n    n += 1\n"
        f"    try: os.close(os.open({node!r}, os.O_RDONLY))\n    except OSError: refused += 1\n"
        f"    try: os.close(os.open({node!r}, os.O_WRONLY)); wrote += 1\n    except OSError: pass\n"
        "print(refused, wrote, n > 10, flush=True)\n"
    )
    first = {"devices": [{"allow": False, "access": "rwm"}, keep]}
    second = {"devices": [{"allow": False, "access": "rwm"}, other, keep]}
    cgroup, process = lab.limited(first, program)
    assert [process.line(), process.line()] == ["on", "ready"]
    until = time.monotonic() + 1
    while time.monotonic() < until:
        cgroup.update(second, first)
        cgroup.update(first, second)
    os.kill(process.pid, signal.SIGUSR1)
    assert process.line() == "0 0 True"


def test_rules_change_for_good(lab: Lab, node: str) -> None:
    rule = {"allow": True, "type": "c", "major": 1, "minor": 11, "access": "rw"}
    cgroup, process = lab.limited({}, OPEN)
    assert opens(process, node) == DENIED
    cgroup.update({"devices": [rule]}, {})
    assert opens(process, node) == "open"
    cgroup.update({"devices": [{"allow": True, "access": "rwm"}]}, {"devices": [rule]})
    assert opens(process, node) == "open"
    cgroup.update({"devices": []}, {"devices": [{"allow": True, "access": "rwm"}]})
    assert opens(process, node) == DENIED
    assert opens(process, "/dev/null") == "open"
    cgroup.update({"pids": {"limit": 50}}, {})
    assert opens(process, node) == DENIED


# -- refusals


V1_ONLY = [
    {"cpu": {"realtimeRuntime": 5}},
    {"memory": {"swappiness": 10}},
    {"memory": {"disableOOMKiller": True}},
    {"memory": {"kernelTCP": MIB}},
    {"blockIO": {"leafWeight": 100}},
    {"network": {"classID": 7}},
]


@pytest.mark.skipif(not UNIFIED, reason="these are fields of cgroup v1")
@pytest.mark.parametrize("resources", V1_ONLY, ids=lambda r: "-".join(f"{k}.{next(iter(v))}" for k, v in r.items()))
def test_what_cannot_be_converted_is_refused(lab: Lab, resources: dict[str, dict[str, object]]) -> None:
    cgroup, _ = lab.idle()
    section, part = next(iter(resources.items()))
    with pytest.raises(InvalidConfig, match=rf"linux\.resources\.{section}\.{next(iter(part))}: .* cgroup v2"):
        cgroup.update(resources, {})


def test_unified(lab: Lab) -> None:
    cgroup, process = lab.idle()
    if not UNIFIED:
        with pytest.raises(InvalidConfig, match=r"linux\.resources\.unified\['memory\.high'\]: needs cgroup v2"):
            cgroup.update({"unified": {"memory.high": "1000000"}}, {})
        return
    cgroup.update({"unified": {"memory.high": str(64 * MIB), "pids.max": "33", "cgroup.max.descendants": "3"}}, {})
    assert read(cgroup, "memory", "memory.high") == str(64 * MIB)
    assert read(cgroup, "pids", "pids.max") == "33"
    assert read(cgroup, "", "cgroup.max.descendants") == "3"
    with pytest.raises(Unsupported, match="controller not delegated: nonsense"):
        cgroup.update({"unified": {"nonsense.max": "1"}}, {})
    with pytest.raises(InvalidConfig, match="no name of a cgroup file"):
        cgroup.update({"unified": {"../cgroup.procs": "1"}}, {})
    assert cgroup.pids() == [process.pid]


@pytest.mark.skipif(not UNIFIED, reason="the lines of several devices are of cgroup v2's io.max")
def test_unified_of_several_lines(lab: Lab, disk: tuple[str, int, int]) -> None:
    _, major, minor = disk
    lines = f"{major}:{minor} rbps=1048576\n{major}:{minor} wiops=77"
    cgroup, _ = lab.idle({"unified": {"io.max": lines}})
    assert f"{major}:{minor} rbps=1048576 wbps=max riops=max wiops=77" in read(cgroup, "io", "io.max")


def test_rdma(lab: Lab) -> None:
    """Nowhere here is such a device: the error says which, or that there is no controller."""
    cgroup, _ = lab.idle()
    with pytest.raises(Error, match=r"linux\.resources\.rdma\.mlx5_9: .*(mlx5_9 hca_handle=3|rdma controller)"):
        cgroup.update({"rdma": {"mlx5_9": {"hcaHandles": 3}}}, {})


def test_stats_have_the_shape_that_engines_parse(lab: Lab) -> None:
    cgroup, process = lab.limited({}, HOG)
    process.line()
    assert eventually(lambda: cgroup.stats()["cpu"]["usage"]["total"] > 100_000_000)
    stats = cgroup.stats()
    assert set(stats) >= {"cpu", "cpuset", "memory", "pids", "blkio", "hugetlb", "intel_rdt", "network_interfaces"}
    assert stats["cpuset"]["cpus"]
    if _has_pressure(cgroup):
        assert set(stats["cpu"]["psi"]["some"]) == {"avg10", "avg60", "avg300", "total"}


def _has_pressure(cgroup: Cgroup) -> bool:
    return os.path.exists(cgroup.path() + "/cpu.pressure") and bool(cgroup.path())
