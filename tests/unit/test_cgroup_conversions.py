"""Properties of what becomes of linux.resources: tables 1.7 of the conversions, device rules, systemd's values."""

from __future__ import annotations

import sys
from decimal import ROUND_CEILING, Decimal, getcontext

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ocirt import operations
from ocirt.cgroups import choosing, conversions, devices, devices_v2, files, gvariant, host, making, stats
from ocirt.cgroups import systemd as systemd_driver
from ocirt.cgroups import systemd_properties as properties
from ocirt.cgroups.base import START_UP, too_small
from ocirt.errors import InvalidConfig
from tests.unit.cgroup_model import Allowed, run

getcontext().prec = 60

SHARES = st.integers(0, 1 << 20)
LIMITS = st.integers(-1, 1 << 62)


# -- numbers


@given(SHARES)
@example(1024)
@example(2)
@example(3)
@example(262143)
@example(262144)
def test_weight_is_the_formula(shares: int) -> None:
    weight = conversions.cpu_weight(shares)
    if shares == 0:
        assert weight == 0
    elif shares <= 2:
        assert weight == 1
    elif shares >= 262144:
        assert weight == 10000
    else:
        binary = Decimal(shares).ln() / Decimal(2).ln()
        exponent = (binary * binary + 125 * binary) / 612 - Decimal(7) / 34
        exact = Decimal(10) ** exponent
        # the exact points of the formula are whole numbers, which 60 digits miss by less than this
        assert weight == (exact - Decimal("1e-40")).to_integral_value(ROUND_CEILING)


@pytest.mark.parametrize(
    ("shares", "weight"), [(0, 0), (1, 1), (2, 1), (1024, 100), (512, 59), (262144, 10000), (1 << 40, 10000)]
)
def test_weight_at_the_points_everybody_knows(shares: int, weight: int) -> None:
    assert conversions.cpu_weight(shares) == weight


@given(SHARES, SHARES)
def test_more_shares_are_never_less_weight(one: int, other: int) -> None:
    low, high = sorted((one, other))
    assert conversions.cpu_weight(low) <= conversions.cpu_weight(high)


@given(st.integers(10, 1000))
@example(10)
@example(1000)
def test_io_weight(weight: int) -> None:
    converted = conversions.io_weight(weight)
    assert 1 <= converted <= 10000
    assert converted == 1 + (weight - 10) * 9999 // 990
    if weight < 1000:
        assert converted < conversions.io_weight(weight + 1)


def test_io_weight_at_the_ends() -> None:
    assert conversions.io_weight(10) == 1
    assert conversions.io_weight(1000) == 10000


@given(st.integers(-5, 1 << 40))
def test_pids(limit: int) -> None:
    text = conversions.pids(limit)
    assert text == ("max" if limit < 0 else "1" if limit == 0 else str(limit))


@given(st.integers(1, 1 << 62), st.integers(0, 1 << 61))
def test_swap_is_what_is_beyond_memory(memory: int, beyond: int) -> None:
    assert conversions.swap_max(memory, memory + beyond) == str(beyond)


@given(st.integers(1, 1 << 62), st.data())
def test_swap_below_memory_is_refused(memory: int, data: st.DataObject) -> None:
    swap = data.draw(st.integers(1, memory)) - 1
    if swap == 0:
        assert conversions.swap_max(memory, swap) == ""
    else:
        with pytest.raises(InvalidConfig, match=r"linux\.resources\.memory\.swap"):
            conversions.swap_max(memory, swap)


@pytest.mark.parametrize(
    ("memory", "swap", "text"),
    [
        (0, 0, ""),
        (5, 0, ""),
        (-1, 0, "max"),
        (5, -1, "max"),
        (0, -1, "max"),
        (-1, 7, "7"),
        (5, 5, "0"),
        (-1, -1, "max"),
    ],
)
def test_swap_cases(memory: int, swap: int, text: str) -> None:
    assert conversions.swap_max(memory, swap) == text


@given(st.integers(1, 1 << 62))
def test_swap_without_memory_is_refused(swap: int) -> None:
    with pytest.raises(InvalidConfig, match="unable to set swap limit without memory limit"):
        conversions.swap_max(0, swap)


@pytest.mark.parametrize(
    ("quota", "period", "current", "text"),
    [
        (None, None, "5 6", ""),
        (0, 0, "5 6", ""),
        (20_000, None, "", "20000 100000"),
        (20_000, 50_000, "", "20000 50000"),
        (-1, None, "", "max 100000"),
        (-1, 50_000, "9 9", "max 50000"),
        (None, 50_000, "20000 100000", "20000 50000"),
        (None, 50_000, "", "max 50000"),
        (10_000, None, "20000 50000", "10000 50000"),
    ],
)
def test_cpu_max(quota: int | None, period: int | None, current: str, text: str) -> None:
    assert conversions.cpu_max(quota, period, current) == text


def test_rdma() -> None:
    assert conversions.rdma("mlx", {"hcaHandles": 3, "hcaObjects": 10000}) == "mlx hca_handle=3 hca_object=10000"
    assert conversions.rdma("mlx", {"hcaObjects": 0}) == "mlx hca_object=0"


@pytest.mark.parametrize("size", ["64KB", "2MB", "1GB"])
def test_page_sizes(size: str) -> None:
    assert conversions.page_size(size, "x") == size


@pytest.mark.parametrize("size", ["2M", "MB", "2mb", "../2MB", "2MB/x", "", "2 MB", "-2MB"])
def test_what_is_no_page_size(size: str) -> None:
    with pytest.raises(InvalidConfig, match="huge page size"):
        conversions.page_size(size, "linux.resources.hugepageLimits[0].pageSize")


# -- device rules

NUMBERS = st.one_of(st.none(), st.integers(0, 3))
RULE = st.fixed_dictionaries(
    {"allow": st.booleans()},
    optional={
        "type": st.sampled_from(["a", "b", "c"]),
        "major": NUMBERS,
        "minor": NUMBERS,
        "access": st.sampled_from(["r", "w", "m", "rw", "rm", "wm", "rwm"]),
    },
)
RULES = st.lists(RULE, max_size=8)
ACCESSES = st.tuples(st.sampled_from("bc"), st.integers(0, 4), st.integers(0, 4), st.integers(1, 7))
FULL = [
    (kind, major, minor, access) for kind in "bc" for major in range(5) for minor in range(5) for access in (1, 2, 4)
]


@pytest.mark.skipif(sys.byteorder == "big", reason="the model reads instructions of little-endian machines")
@given(RULES, ACCESSES)
def test_the_program_decides_as_the_last_rule_does(
    rules: list[dict[str, object]], wanted: tuple[str, int, int, int]
) -> None:
    made = devices.rules(rules)
    program = devices_v2.compile(made)
    assert run(program, *wanted) == Allowed(made).all(*wanted)


@given(RULES)
def test_the_v1_list_is_what_the_rules_say_or_refused(rules: list[dict[str, object]]) -> None:
    made = devices.rules(rules)
    try:
        found = devices.List.of(made)
    except InvalidConfig:
        return
    truth = Allowed(made)
    for kind, major, minor, access in FULL:
        matching = 0
        for (of, a, b), mask in found.exceptions.items():
            if of == kind and a in (None, major) and b in (None, minor):
                matching |= mask
        allowed = not matching & access if found.allow else bool(matching & access)
        assert allowed == truth.all(kind, major, minor, access), (kind, major, minor, access)


@given(RULES, RULES)
def test_a_change_of_lists_has_no_gap(before: list[dict[str, object]], after: list[dict[str, object]]) -> None:
    """As the kernel does it: an exception of exactly the same numbers is joined or cut."""
    try:
        old, new = devices.List.of(devices.rules(before)), devices.List.of(devices.rules(after))
    except InvalidConfig:
        return
    state = devices.List()
    state.allow, state.exceptions = old.allow, dict(old.exceptions)
    for name, line in old.transition(new):
        allow = name == "devices.allow"
        if line == "a":
            state.allow, state.exceptions = allow, {}
            continue
        parsed = devices.List.parse(line)
        ((key, mask),) = parsed.exceptions.items()
        if allow != state.allow:
            state.exceptions[key] = state.exceptions.get(key, 0) | mask
        else:
            state.exceptions[key] = state.exceptions.get(key, 0) & ~mask
            if not state.exceptions[key]:
                del state.exceptions[key]
        if old.allow == new.allow:
            for key, mask in old.exceptions.items():
                kept = mask & new.exceptions.get(key, 0)
                assert state.exceptions.get(key, 0) & kept == kept
            for key, mask in state.exceptions.items():
                assert not mask & ~(old.exceptions.get(key, 0) | new.exceptions.get(key, 0))
    assert (state.allow, state.exceptions) == (new.allow, new.exceptions)


def test_a_hole_in_a_wildcard_is_refused_on_v1() -> None:
    rules = [{"allow": True, "type": "c", "major": 4}, {"allow": False, "type": "c", "major": 4, "minor": 5}]
    with pytest.raises(InvalidConfig, match=r"can't deny c 4:5 rwm while c 4:\* rwm is allowed"):
        devices.List.of(devices.rules(rules))


@pytest.mark.parametrize(
    ("rule", "field"),
    [
        ({"allow": True, "type": "p"}, "type"),
        ({"allow": True, "access": "x"}, "access"),
        ({"allow": True, "access": ""}, "access"),
    ],
)
def test_rules_that_are_none(rule: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidConfig, match=rf"linux\.resources\.devices\[1\]\.{field}"):
        devices.rules([{"allow": False}, rule])


@pytest.mark.parametrize(
    "number", [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2), (136, 7), (10, 200)]
)
def test_the_default_list_wins(number: tuple[int, int]) -> None:
    assert Allowed(devices.rules([{"allow": False, "access": "rwm"}])).all("c", *number, devices.ALL)


def test_every_device_may_be_made_by_default_and_none_opened() -> None:
    allowed = Allowed(devices.rules(None))
    assert allowed.all("b", 8, 0, devices.MKNOD)
    assert not allowed.all("b", 8, 0, devices.READ)
    assert not allowed.all("c", 1, 1, devices.WRITE)


# -- systemd


@given(st.integers(1, 10**9), st.integers(1000, 10**6))
def test_quota_a_second_is_never_less_and_hardly_more(quota: int, period: int) -> None:
    value = properties.quota_per_second(quota, period)
    assert value % 10_000 == 0
    assert quota * 1_000_000 <= value * period < quota * 1_000_000 + 10_000 * period


@given(st.sets(st.integers(0, 300), min_size=1))
def test_cpu_lists_become_bits(cpus: set[int]) -> None:
    found = properties.bits(",".join(str(c) for c in sorted(cpus)), "x")
    assert {8 * at + bit for at, byte in enumerate(found) for bit in range(8) if byte >> bit & 1} == cpus


def test_cpu_ranges_become_bits() -> None:
    assert properties.bits("0-3,7", "x") == [0b10001111]
    assert stats.numbers("0-3,7") == [0, 1, 2, 3, 7]
    for bad in ("a", "1-", "-", "1_0", "٣", "99999"):
        with pytest.raises(InvalidConfig):
            properties.bits(bad, "linux.resources.cpu.cpus")


@pytest.mark.parametrize(
    ("slice", "path"),
    [("-.slice", ""), ("system.slice", "/system.slice"), ("a-b-c.slice", "/a.slice/a-b.slice/a-b-c.slice")],
)
def test_slices_expand(slice: str, path: str) -> None:
    assert systemd_driver.expand(slice) == path


@given(st.text(max_size=20))
def test_names_of_units_have_only_what_is_allowed(name: str) -> None:
    if not name.isprintable() or any(0xD800 <= ord(c) < 0xE000 for c in name):
        return
    made = systemd_driver.escape(name)
    assert set(made) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789:-_.\\@")


@pytest.mark.parametrize(
    "path", ["/a/b", "a:b", "a:b:c:d", "system:x:y", "system.slice:x:", "a--b.slice:x:y", "a.slice:b:c.slice"]
)
def test_cgroups_paths_that_systemd_cannot_take(path: str) -> None:
    with pytest.raises(InvalidConfig, match=r"linux\.cgroupsPath"):
        systemd_driver.choose([("", "/sys/fs/cgroup")], path, "id", resources={}, rootless=False, annotations={})


def test_names_of_scopes() -> None:
    def unit(path: str, **options: bool) -> tuple[str, str]:
        made = systemd_driver.choose(
            [("", "/sys/fs/cgroup")],
            path,
            "id+1",
            resources={},
            rootless=options.get("rootless", False),
            annotations={},
        )
        return made.unit, made.slice

    assert unit("") == ("ocirt-id\\x2b1.scope", "system.slice")
    assert unit("", rootless=True) == ("ocirt-id\\x2b1.scope", "user.slice")
    assert unit("a-b.slice:pre:name") == ("pre-name.scope", "a-b.slice")
    assert unit("::name") == ("name.scope", "system.slice")


# -- GVariant text


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5", ("i", 5)),
        ("-5", ("i", -5)),
        ("uint64 5", ("t", 5)),
        ("@t 5", ("t", 5)),
        ("0x10", ("i", 16)),
        ("true", ("b", True)),
        ("1.5", ("d", 1.5)),
        ("double 2", ("d", 2.0)),
        ("'a b'", ("s", "a b")),
        ('"it\'s"', ("s", "it's")),
        (r"'a\'b\n\u00e9'", ("s", "a'b\né")),
        ("['a', 'b']", ("as", ["a", "b"])),
        ("@as []", ("as", [])),
        ("[uint32 1, 2]", ("au", [1, 2])),
        ("('a', uint64 3)", ("(st)", ["a", 3])),
        ("@a(st) [('x', 3)]", ("a(st)", [["x", 3]])),
        ("objectpath '/a'", ("o", "/a")),
    ],
)
def test_gvariant(text: str, value: tuple[str, object]) -> None:
    assert gvariant.parse(text, "x") == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[",
        "[]",
        "5 6",
        "'a",
        "byte 256",
        "uint32 -1",
        "1_0",
        "abc",
        "['a', 5]",
        "@s 5",
        "(",
        "uint64 'x'",
        "99999999999",
        "@(s) ('a','b')",
        "[1 2]",
    ],
)
def test_what_is_no_gvariant(text: str) -> None:
    with pytest.raises(InvalidConfig, match="annotations"):
        gvariant.parse(text, "annotations['x']")


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=30))
def test_strings_come_back(text: str) -> None:
    quoted = "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
    assert gvariant.parse(quoted, "x") == ("s", text)


@given(st.text(max_size=40))
def test_any_text_is_a_value_or_invalid(text: str) -> None:
    try:
        gvariant.parse(text, "x")
    except InvalidConfig:
        pass


def test_seconds_become_microseconds() -> None:
    found = properties.of_annotations(
        {"org.systemd.property.TimeoutStopSec": "1.5", "org.systemd.property.CollectMode": "'inactive'", "other": "x"}
    )
    assert found == [("TimeoutStopUSec", ("t", 1_500_000)), ("CollectMode", ("s", "inactive"))]
    for key, text in (
        ("A.b", "5"),
        ("TimeoutStopSec", "'x'"),
        ("TimeoutStopSec", "-1"),
        ("X", "5"),
        ("TimeoutSec", "true"),
    ):
        with pytest.raises(InvalidConfig):
            properties.of_annotations({f"org.systemd.property.{key}": text})


# -- paths and small things


@given(st.lists(st.sampled_from(["a", "b", ".", "", "..", "c d"]), max_size=6))
def test_clean_never_leads_elsewhere(parts: list[str]) -> None:
    path = "/".join(parts)
    if ".." in parts:
        with pytest.raises(InvalidConfig):
            files.clean(path, "linux.cgroupsPath")
    else:
        assert files.clean(path, "linux.cgroupsPath") == [p for p in parts if p not in ("", ".")]


def test_sub_cgroups_of_exec() -> None:
    assert making.split_sub("a/b") == ([], "/a/b")
    assert making.split_sub("cpu,memory:/a/") == (["cpu", "memory"], "/a")
    assert making.split_sub("/") == ([], "")


@pytest.mark.parametrize("path", ["/", "..", "a/../b"])
def test_cgroups_paths_that_are_none(path: str) -> None:
    with pytest.raises(InvalidConfig, match=r"linux\.cgroupsPath"):
        choosing.choose({"cgroupsPath": path}, "id", manager="cgroupfs", rootless=False, annotations={})


def test_hierarchies_of_a_mount_table(monkeypatch: pytest.MonkeyPatch) -> None:
    table = (
        "31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n"
        "50 27 0:30 / /elsewhere rw - cgroup cgroup rw,memory\n"
        "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct\n"
        "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n"
        "40 31 0:37 / /sys/fs/cgroup/sys\\040temd rw - cgroup cgroup rw,xattr,release_agent=/x,name=systemd\n"
        "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n"
        "42 31 0:39 / /run/cgroup rw - ext4 cgroup rw"
    )
    monkeypatch.setattr(host, "unified", lambda: False)
    monkeypatch.setattr(host, "read_or", lambda path: table)
    assert host.hierarchies() == [
        ("memory", "/sys/fs/cgroup/memory"),
        ("cpu,cpuacct", "/sys/fs/cgroup/cpu,cpuacct"),
        ("name=systemd", "/sys/fs/cgroup/sys temd"),
        ("", "/sys/fs/cgroup/unified"),
    ]


@given(st.integers(4096, 1 << 30), st.integers(0, 1 << 30))
def test_the_limit_that_would_do_is_more(limit: int, peak: int) -> None:
    number = int(too_small(limit, peak).partition("; ")[2].split()[0])
    assert number > limit
    assert number >= START_UP


# -- options of update and events


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5", 5),
        ("512m", 512 << 20),
        ("2G", 2 << 30),
        ("2GiB", 2 << 30),
        ("1.5k", 1536),
        ("3kb", 3072),
        ("-1", -1),
        ("0", 0),
        ("7b", 7),
        ("1t", 1 << 40),
    ],
)
def test_sizes(text: str, value: int) -> None:
    assert operations.size(text, "--memory") == value


@pytest.mark.parametrize("text", ["", "m", "-2", "1_0", "٣", "5x", "1.5", "--1", "0x10", "-1k", "1.k", "b", "ib"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(InvalidConfig, match="--memory"):
        operations.size(text, "--memory")


@pytest.mark.parametrize(("text", "value"), [("5s", 5), ("1m30s", 90), ("100ms", 0.1), ("1.5s", 1.5), ("2h", 7200)])
def test_durations(text: str, value: float) -> None:
    assert operations.seconds(text, "--interval") == pytest.approx(value)


@pytest.mark.parametrize("text", ["", "5", "s", "5x", "1..5s", ".s", "-5s", "٣s"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(InvalidConfig, match="--interval"):
        operations.seconds(text, "--interval")


def test_an_update_leaves_what_it_does_not_name() -> None:
    current = {"memory": {"limit": 5, "swap": 9}, "cpu": {"shares": 7}, "devices": [{"allow": True}]}
    merged = operations.merge(current, {"memory": {"limit": 6, "swap": 0}, "cpu": {"idle": 0}, "pids": {"limit": 0}})
    assert merged == {
        "memory": {"limit": 6, "swap": 9},
        "cpu": {"shares": 7, "idle": 0},
        "pids": {"limit": 0},
        "devices": [{"allow": True}],
    }
    assert current["memory"] == {"limit": 5, "swap": 9}
    assert operations.merge(current, {"devices": []})["devices"] == []
