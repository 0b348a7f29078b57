"""Bundles are read once and strictly."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ocirt import bundle, jsontext
from ocirt.errors import Error, InvalidConfig
from ocirt.jsontext import dump_json, parse_json
from ocirt.validation import template
from tests.unit.validation_samples import MINIMAL, docker

ROOT = Path(__file__).resolve().parents[2]


def make(directory: Path, config: Any = MINIMAL, rootfs: str = "rootfs") -> Path:
    (directory / rootfs).mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    return directory


# --- JSON ---

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 80), 1 << 80)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=30,
)


def by_json(data: bytes) -> Any:
    """What the json module says, as strictly as we read; ValueError if it isn't JSON."""

    def refuse(name: str) -> None:
        raise ValueError(name)

    def finite(text: str) -> float:
        if math.isinf(float(text)):
            raise ValueError(text)
        return float(text)

    text = data.decode("utf-8")
    return json.loads(text, parse_constant=refuse, parse_float=finite)


@settings(deadline=None)
@given(VALUES)
def test_what_is_written_is_read_again(value: Any) -> None:
    data = dump_json(value)
    assert data.isascii()
    assert parse_json(data, "it") == value
    assert json.loads(data) == value
    assert dump_json(parse_json(data, "it")) == data


@settings(deadline=None)
@given(VALUES, st.sampled_from([None, 1]))
def test_reads_what_json_writes(value: Any, indent: int | None) -> None:
    assert parse_json(json.dumps(value, indent=indent, ensure_ascii=False).encode("utf-8", "ignore"), "it") == by_json(
        json.dumps(value, indent=indent, ensure_ascii=False).encode("utf-8", "ignore")
    )


JSON_PIECES = st.lists(
    st.sampled_from([*"{}[],:1-. \n\x0b\ufeffé\xa0", '"a"', '"b"', r'"\u0041"', r'"\ud800"', r'"\x"', '"\t"'])
    | st.sampled_from(["-1", "-0", "01", "1.5", "1e3", "1e999", "true", "false", "null", "nul"])
    | st.sampled_from(["NaN", "Infinity", "-Infinity"]),
    max_size=12,
).map("".join)


@settings(deadline=None)
@given(JSON_PIECES | st.text(max_size=20))
def test_same_verdict_as_the_json_module(text: str) -> None:
    data = text.encode("utf-8", "surrogatepass")
    try:
        value = by_json(data)
    except ValueError:
        with pytest.raises(InvalidConfig):
            parse_json(data, "it")
    else:
        assert parse_json(data, "it") == value


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "it is empty"),
        (b" \n", "it is empty"),
        (b"{", "line 1, column 2"),
        (b'{\n "a": 1,\n "b" 2\n}', "line 3, column 6"),
        (b'{"a": 1,}', "line 1"),
        (b"[1] 2", "line 1, column 5: extra data"),
        (b"nul", "line 1, column 1"),
        (b'{"a": NaN}', "NaN is no JSON value"),
        (b"[-Infinity]", "-Infinity is no JSON value"),
        (b'{"a": 1e400}', "1e400 is out of range"),
        (b"\xef\xbb\xbf{}", "byte order mark"),
        (b'{"a":\n"\xff"}', "line 2: not UTF-8"),
        (b'"\xed\xa0\x80"', "not UTF-8"),
        (b'"a\tb"', "control character"),
        (b"[" * 100000 + b"]" * 100000, "nested too deeply"),
        (b"9" * 5000, "thousands of digits"),
    ],
)
def test_says_where_json_is_wrong(data: bytes, why: str) -> None:
    with pytest.raises(InvalidConfig, match=r"^it is not valid JSON: ") as caught:
        parse_json(data, "it")
    assert why in str(caught.value)


def test_numbers_keep_their_kind() -> None:
    numbers = parse_json(b"[1, 1.0, 1e3, 18446744073709551615, -0]", "it")
    assert isinstance(numbers, list)
    assert [type(n) for n in numbers] == [int, float, float, int, int]
    assert numbers[3] == 18446744073709551615


def test_a_name_that_is_not_utf8_survives() -> None:
    name = b"/tmp/\xff\xfe".decode("utf-8", "surrogateescape")
    data = dump_json({"bundle": name})
    assert data == b'{"bundle":"/tmp/\\udcff\\udcfe"}'
    assert parse_json(data, "it") == {"bundle": name}


@pytest.mark.parametrize("value", [{1, 2}, b"bytes", object(), float("nan"), float("inf")])
def test_refuses_to_write_what_json_cannot_hold(value: object) -> None:
    with pytest.raises((TypeError, ValueError)):
        dump_json({"a": value})


def test_output_is_compact_and_in_order() -> None:
    assert dump_json({"b": 1, "a": [True, None, "é", 1.5]}) == b'{"b":1,"a":[true,null,"\\u00e9",1.5]}'


# --- bundles ---


def test_load(tmp_path: Path) -> None:
    text = json.dumps(docker(), indent=2)
    make(tmp_path, text)
    loaded = bundle.load(str(tmp_path))
    assert loaded.path == os.path.realpath(tmp_path)
    assert loaded.rootfs == loaded.path + "/rootfs"
    assert loaded.raw == text.encode()
    assert loaded.config == docker()


def test_what_was_repaired_is_what_is_kept(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Whoever reads `raw` again, for exec, must not meet the null."""
    make(tmp_path, {**MINIMAL, "process": {"args": ["sh"], "cwd": "/", "env": None, "user": {"uid": 0}}})
    loaded = bundle.load(str(tmp_path))
    assert parse_json(loaded.raw, "it") == loaded.config
    assert loaded.config["process"] == {"args": ["sh"], "cwd": "/", "user": {"uid": 0, "gid": 0}}  # type: ignore[typeddict-item]
    assert capfd.readouterr().err.count("warning: ") == 2


def test_relative_bundle_and_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "real")
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "real" / "root2").symlink_to("rootfs")
    (tmp_path / "real" / "config.json").write_text('{"ociVersion": "1.0.0", "root": {"path": "root2"}}')
    monkeypatch.chdir(tmp_path)
    loaded = bundle.load("link/../link")
    assert loaded.path == os.path.realpath(tmp_path / "real")
    assert loaded.rootfs == loaded.path + "/rootfs"


def test_absolute_rootfs_and_other_config(tmp_path: Path) -> None:
    make(tmp_path / "bundle")
    (tmp_path / "elsewhere").mkdir()
    other = tmp_path / "other.json"
    other.write_text(json.dumps({"ociVersion": "1.0.0", "root": {"path": str(tmp_path / "elsewhere")}}))
    loaded = bundle.load(str(tmp_path / "bundle"), str(other))
    assert loaded.rootfs == os.path.realpath(tmp_path / "elsewhere")


def test_config_from_a_pipe(tmp_path: Path) -> None:
    make(tmp_path)
    os.mkfifo(tmp_path / "fifo")
    writer = threading.Thread(target=lambda: (tmp_path / "fifo").write_text(json.dumps(docker())))
    writer.start()
    loaded = bundle.load(str(tmp_path), str(tmp_path / "fifo"))
    writer.join()
    assert loaded.config == docker()


def test_missing_bundle() -> None:
    with pytest.raises(Error, match=r"^chdir /nonexistent/bundle: no such file or directory$") as caught:
        bundle.load("/nonexistent/bundle")
    assert caught.value.errno == 2


def test_bundle_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Error, match=r"file: not a directory$") as caught:
        bundle.load(str(tmp_path / "file"))
    assert caught.value.errno == 20


def test_missing_config(tmp_path: Path) -> None:
    with pytest.raises(
        Error, match=r"^JSON specification file config.json not found: open .*/config.json: no such file"
    ):
        bundle.load(str(tmp_path))


def test_config_is_a_directory(tmp_path: Path) -> None:
    (tmp_path / "config.json").mkdir()
    with pytest.raises(Error, match="is a directory"):
        bundle.load(str(tmp_path))


@pytest.mark.parametrize(
    ("text", "kind"), [("[]", "an array"), ("null", "null"), ('"x"', "a string"), ("1", "a number")]
)
def test_config_must_be_an_object(tmp_path: Path, text: str, kind: str) -> None:
    make(tmp_path, text)
    with pytest.raises(InvalidConfig, match=f"config.json holds {kind}, must be an object"):
        bundle.load(str(tmp_path))


def test_huge_config_is_refused(tmp_path: Path) -> None:
    make(tmp_path)
    with (tmp_path / "config.json").open("r+b") as file:
        file.truncate(bundle.MAX_CONFIG)
    with pytest.raises(InvalidConfig, match="not valid JSON"):  # NUL bytes, but read
        bundle.load(str(tmp_path))
    with (tmp_path / "config.json").open("r+b") as file:
        file.truncate(bundle.MAX_CONFIG + 1)
    with pytest.raises(InvalidConfig, match="longer than 16777216 bytes"):
        bundle.load(str(tmp_path))


def test_missing_rootfs(tmp_path: Path) -> None:
    make(tmp_path)
    (tmp_path / "rootfs").rmdir()
    with pytest.raises(Error, match=r"invalid rootfs: stat .*/rootfs: no such file or directory") as caught:
        bundle.load(str(tmp_path))
    assert caught.value.errno == 2
    (tmp_path / "rootfs").touch()
    with pytest.raises(Error, match="rootfs: not a directory"):
        bundle.load(str(tmp_path))


def test_invalid_config_is_refused(tmp_path: Path) -> None:
    make(tmp_path, {"ociVersion": "1.0.0", "root": {"path": "rootfs"}, "hostname": "box"})
    with pytest.raises(InvalidConfig, match="UTS namespace"):
        bundle.load(str(tmp_path))


def test_reading_a_good_bundle_imports_no_library(tmp_path: Path) -> None:
    """The whole way of create: no json, re, typing, jsonschema, enum."""
    make(tmp_path, docker())
    script = (
        f"import sys, os, __future__; before = set(sys.modules); sys.path.insert(0, {str(ROOT)!r}); "
        f"from ocirt import bundle; bundle.load({str(tmp_path)!r}); "
        "print(*sorted(m for m in set(sys.modules) - before if not m.startswith('ocirt')))"
    )
    done = subprocess.run([sys.executable, "-I", "-S", "-c", script], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) <= {"_json"}, done.stdout


# --- reports ---


def test_report_on_a_good_bundle(tmp_path: Path) -> None:
    make(tmp_path, template.default())  # type: ignore[arg-type]
    assert bundle.report(str(tmp_path)) == []


def test_report_lists_everything(tmp_path: Path) -> None:
    make(
        tmp_path,
        '{"ociVersion": "1.0.0", "root": {"path": "gone"}, "hostnam": "x", "hostname": "a",'
        ' "process": {"args": ["sh"], "args": ["ls"], "cwd": "tmp"}}',
    )
    found = [(p.severity, p.path) for p in bundle.report(str(tmp_path))]
    assert found == [
        ("error", "process.cwd"),
        ("error", "hostname"),
        ("warning", "process.args"),
        ("error", "root.path"),
    ]


@pytest.mark.parametrize("text", ["{", "[]", ""])
def test_report_without_a_configuration(tmp_path: Path, text: str) -> None:
    make(tmp_path, text)
    (problem,) = bundle.report(str(tmp_path))
    assert (problem.severity, problem.path) == ("error", "")
    assert problem.as_dict().keys() == {"severity", "path", "value", "message", "hint", "spec"}


def test_report_on_a_missing_bundle() -> None:
    (problem,) = bundle.report("/nonexistent/bundle")
    assert str(problem) == "chdir /nonexistent/bundle: no such file or directory"


def test_names_of_bundle_are_those_of_jsontext() -> None:
    assert bundle.parse_json is jsontext.parse_json
    assert bundle.dump_json is jsontext.dump_json


def test_a_good_configuration_loads_nothing_that_explains(tmp_path: Path) -> None:
    make(tmp_path, docker())
    script = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); from ocirt import bundle; bundle.load({str(tmp_path)!r}); "
        "print(*(m.rpartition('.')[2] for m in sys.modules if m.startswith('ocirt.validation.')))"
    )
    done = subprocess.run([sys.executable, "-I", "-S", "-c", script], capture_output=True, text=True, check=True)
    explaining = {"problem", "kinds", "document", "bundled", "explain", "repair", "keys", "near", "unshaped", "advice"}
    assert not explaining & set(done.stdout.split())
