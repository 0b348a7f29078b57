"""linux.intelRdt on a directory tree that stands for resctrl: which directories and lines, in which order.

The machines we have lack RDT. The tree does what resctrl does: a new group has
its files at once, and a group can be removed with its files in it.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from ocirt.cgroups import intelrdt
from ocirt.errors import Error, InvalidConfig, Unsupported


class Directories:
    """The part of os that intelrdt uses."""

    path = os.path

    def __init__(self, mkdir: object) -> None:
        self.mkdir = mkdir

    def rmdir(self, path: str) -> None:
        """resctrl's groups are removed with their files."""
        os.stat(path)
        shutil.rmtree(path)


DEFAULT = "L3:0=7ff;1=7ff\nMB:0=100;1=100\n"


def fill(directory: Path) -> None:
    """The files of a group; those of a monitoring group are fewer."""
    (directory / "tasks").write_text("")
    if directory.parent.name != "mon_groups":
        (directory / "schemata").write_text(DEFAULT)
        (directory / "mon_groups").mkdir()


@pytest.fixture
def resctrl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "resctrl"

    def make(path: str, mode: int = 0o777) -> None:
        os.mkdir(path, mode)
        fill(Path(path))

    root.mkdir()
    fill(root)
    monkeypatch.setattr(intelrdt, "os", Directories(make))
    return root


def group(root: Path, name: str, schemata: str = DEFAULT) -> Path:
    directory = root / name
    directory.mkdir()
    fill(directory)
    (directory / "schemata").write_text(schemata)
    return directory


def test_a_class_of_its_own_is_made_and_removed(resctrl: Path) -> None:
    record = intelrdt.apply({"l3CacheSchema": "L3:0=f;1=f"}, "c1", 42, str(resctrl))
    assert (resctrl / "c1" / "tasks").read_text() == "42"
    assert (resctrl / "c1" / "schemata").read_text().startswith("L3:0=f;1=f\n")
    intelrdt.remove(record)
    assert not (resctrl / "c1").exists()
    intelrdt.remove(record)


def test_lines_in_the_order_of_the_specification() -> None:
    rdt = {"schemata": ["L2:0=f", "MB:0=20"], "memBwSchema": "MB:0=70", "l3CacheSchema": "L3:0=f"}
    assert intelrdt.schemata(rdt) == ["L3:0=f", "MB:0=70", "L2:0=f", "MB:0=20"]
    assert intelrdt.schemata({"l3CacheSchema": "L3CODE:0=f\nL3DATA:0=f\nMB:0=5"}) == ["L3CODE:0=f", "L3DATA:0=f"]


@pytest.mark.parametrize("rdt", [{"memBwSchema": "L3:0=f"}, {"memBwSchema": "MB:0=1\nMB:1=1"}, {"schemata": ["a\nb"]}])
def test_schemata_that_must_not_be(rdt: dict[str, object]) -> None:
    with pytest.raises(InvalidConfig, match=r"linux\.intelRdt"):
        intelrdt.schemata(rdt)


def test_nothing_is_written_without_schemata(resctrl: Path) -> None:
    intelrdt.apply({}, "c1", 42, str(resctrl))
    assert (resctrl / "c1" / "schemata").read_text() == DEFAULT


def test_a_named_class_that_is_there_must_be_the_same(resctrl: Path) -> None:
    directory = group(resctrl, "gold", "    L3:0=00f;1=7ff\n    MB:0= 20;1= 70\n")
    rdt = {"closID": "gold", "schemata": ["L3:1=7ff;0=f", "MB:0=20;1=70"]}
    record = intelrdt.apply(rdt, "c1", 42, str(resctrl))
    assert (directory / "tasks").read_text() == "42"
    intelrdt.remove(record)
    assert directory.is_dir()
    with pytest.raises(Error, match="has no line 'L3:0=1;1=7ff'"):
        intelrdt.apply({"closID": "gold", "l3CacheSchema": "L3:0=1;1=7ff"}, "c2", 43, str(resctrl))
    assert directory.is_dir()


def test_a_named_class_is_made_with_its_schemata_and_stays(resctrl: Path) -> None:
    record = intelrdt.apply({"closID": "gold", "memBwSchema": "MB:0=20;1=20"}, "c1", 42, str(resctrl))
    intelrdt.remove(record)
    assert (resctrl / "gold" / "schemata").read_text().startswith("MB:0=20;1=20\n")


def test_a_named_class_without_schemata_must_be_there(resctrl: Path) -> None:
    with pytest.raises(Error, match=r"linux\.intelRdt\.closID: .*/gold doesn't exist"):
        intelrdt.apply({"closID": "gold"}, "c1", 42, str(resctrl))
    group(resctrl, "gold")
    intelrdt.remove(intelrdt.apply({"closID": "gold"}, "c1", 42, str(resctrl)))
    assert (resctrl / "gold" / "tasks").read_text() == "42"


def test_the_default_class(resctrl: Path) -> None:
    record = intelrdt.apply({"closID": "/"}, "c1", 42, str(resctrl))
    assert (resctrl / "tasks").read_text() == "42"
    intelrdt.remove(record)
    assert resctrl.is_dir()


def test_monitoring_is_a_group_of_the_id_and_removed_in_a_named_class_too(resctrl: Path) -> None:
    group(resctrl, "gold")
    record = intelrdt.apply({"closID": "gold", "enableMonitoring": True}, "c1", 42, str(resctrl))
    monitor = resctrl / "gold" / "mon_groups" / "c1"
    assert (monitor / "tasks").read_text() == "42"
    data = monitor / "mon_data" / "mon_L3_00"
    (monitor / "mon_data").mkdir()
    data.mkdir()
    for name, text in (("llc_occupancy", "5"), ("mbm_total_bytes", "7"), ("mbm_local_bytes", "Unavailable")):
        (data / name).write_text(text + "\n")
    assert intelrdt.stats(record) == {
        "l3_cache_schema": "L3:0=7ff;1=7ff",
        "mem_bw_schema": "MB:0=100;1=100",
        "cmt_stats": [{"llc_occupancy": 5}],
        "mbm_stats": [{"mbm_total_bytes": 7, "mbm_local_bytes": 0}],
    }
    intelrdt.remove(record)
    assert not monitor.exists()
    assert (resctrl / "gold").is_dir()


def test_what_was_made_goes_when_it_fails(resctrl: Path) -> None:
    (resctrl / "c1").mkdir()  # the id is taken, by somebody's group
    with pytest.raises(Error, match="mkdir"):
        intelrdt.apply({"l3CacheSchema": "L3:0=f"}, "c1", 42, str(resctrl))
    assert (resctrl / "c1").is_dir()
    shutil.rmtree(resctrl / "mon_groups")
    with pytest.raises(Error, match=r"linux\.intelRdt\.enableMonitoring"):
        intelrdt.apply({"closID": "/", "enableMonitoring": True}, "c2", 42, str(resctrl))


def test_update_writes_the_lines(resctrl: Path) -> None:
    record = intelrdt.apply({}, "c1", 42, str(resctrl))
    intelrdt.update({"memBwSchema": "MB:0=10;1=10"}, record)
    assert (resctrl / "c1" / "schemata").read_text().startswith("MB:0=10;1=10\n")


@pytest.mark.parametrize("name", ["a/b", "..", "info"])
def test_names_that_are_no_class(resctrl: Path, name: str) -> None:
    with pytest.raises(InvalidConfig, match="closID"):
        intelrdt.apply({"closID": name}, "c1", 42, str(resctrl))


@pytest.mark.skipif(os.path.exists("/sys/fs/resctrl/schemata"), reason="resctrl is mounted here")
def test_without_resctrl_it_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(Unsupported, match="mount -t resctrl"):
        intelrdt.apply({}, "c1", os.getpid())
