"""The strict verdict on the validation suite's output, and the list of expected failures."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

CONFORMANCE = Path(__file__).resolve().parent.parent.parent / "conformance"
sys.path.insert(0, str(CONFORMANCE))

import report  # noqa: E402
import tap  # noqa: E402
from execute import Outcome  # noqa: E402

HEAD = "TAP version 13\n"
YAML = '  ---\n  {\n    "error": "hooks MUST be called"\n  }\n  ...\n'


@pytest.mark.parametrize(
    ("text", "status", "verdict"),
    [
        pytest.param(HEAD + "ok 1 - a\nok 2 - b\n1..2\n", 0, "passed", id="all ok"),
        pytest.param(HEAD + "1..0\n", 0, "passed", id="no point and no complaint, as the tests of hooks pass"),
        pytest.param("", 0, "passed", id="nothing but an exit status"),
        pytest.param(HEAD + "1..3\nok 1\nok 2\nok 3\n", 0, "passed", id="the plan first"),
        pytest.param(HEAD + "ok 1 - a\n" + YAML + "1..1\n", 0, "passed", id="an error that a point expected"),
        pytest.param(HEAD + "ok 1 # SKIP not here\n1..1\n", 0, "skipped", id="only skipped points"),
        pytest.param(HEAD + "ok 1\nok 2 # SKIP not here\n1..2\n", 0, "passed", id="one skipped point"),
        pytest.param(HEAD + "ok 1\nnot ok 2 - b\n1..2\n", 0, "failed", id="a point that isn't ok"),
        pytest.param(HEAD + "not ok 1 - b # TODO later\n1..1\n", 0, "passed", id="a failure that is a TODO"),
        pytest.param(HEAD + YAML + "1..0\n", 0, "failed", id="an error without a point"),
        pytest.param(HEAD + "ok 1\n1..1\n", 1, "failed", id="an exit status"),
        pytest.param("", 1, "failed", id="a crash without a word"),
        pytest.param(HEAD + "ok 1\nok 2\n", 0, "failed", id="ended before the plan"),
        pytest.param(HEAD + "ok 1\n1..3\n", 0, "failed", id="fewer points than planned"),
        pytest.param(HEAD + "ok 1\n1..1\nok 2\n", 0, "failed", id="more points than planned"),
        pytest.param(HEAD + "ok 1\nBail out! no runtime\n1..1\n", 0, "failed", id="bailed out"),
        pytest.param(HEAD + '  ---\n  {"stdout": "not ok 1 - inner"}\n  ...\nok 1\n1..1\n', 0, "passed", id="quoted"),
    ],
)
def test_verdict(text: str, status: int, verdict: str) -> None:
    found, why = tap.verdict(text, status)
    assert found == verdict
    assert bool(why) == (verdict != "passed")


def test_the_reason_names_the_point_and_its_error() -> None:
    _, why = tap.verdict(HEAD + "ok 1\nnot ok 2 - limit is set\n" + YAML + "1..2\n", 0)
    assert why == "1 ok, 1 not ok: not ok 2 limit is set: hooks MUST be called"


def test_expected_failures_depend_on_suite_and_machine(tmp_path: Path) -> None:
    path = tmp_path / "expected.toml"
    path.write_text(
        '[[failure]]\ntest = "always"\nreason = "r"\n'
        '[[failure]]\ntest = "new"\nsuites = ["new"]\nreason = "r"\n'
        '[[failure]]\ntest = "v2"\nwhen = ["cgroup-v2"]\nreason = "r"\n'
    )
    assert set(report.expected("old", path, {"cgroup-v1"})) == {"always"}
    assert set(report.expected("new", path, {"cgroup-v1"})) == {"always", "new"}
    assert set(report.expected("old", path, {"cgroup-v2", "no-apparmor"})) == {"always", "v2"}


def test_an_expected_failure_needs_a_reason(tmp_path: Path) -> None:
    path = tmp_path / "expected.toml"
    path.write_text('[[failure]]\ntest = "x"\nreason = " "\n')
    with pytest.raises(ValueError, match="reason"):
        report.expected("any", path, set())


def test_judging_a_run() -> None:
    known = {
        "known": report.Expected("known", "r", (), (), False),
        "better": report.Expected("better", "r", (), (), False),
        "race": report.Expected("race", "r", (), (), True),
    }
    outcomes = {
        "good": Outcome("passed", "", 0),
        "known": Outcome("failed", "x", 0),
        "better": Outcome("passed", "", 0),
        "race": Outcome("passed", "", 0),
        "broken": Outcome("failed", "x", 0),
    }
    assert report.judge(outcomes, known) == (["broken"], ["better"])
