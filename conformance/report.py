"""What comes out of a run: a Markdown table, JSON, and the comparison with the list of expected failures."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from execute import Outcome, apparmor

HERE = Path(__file__).resolve().parent
EXPECTED = HERE / "expected.toml"
MARKS = {"passed": "pass", "failed": "**fail**", "skipped": "skip"}


@dataclass(frozen=True)
class Expected:
    test: str
    reason: str
    suites: tuple[str, ...]
    """Versions of the suite in which it fails; empty: all."""
    when: tuple[str, ...]
    """Facts of the machine that must all hold for it to fail; empty: everywhere."""
    flaky: bool
    """The outcome is a race in the test itself; either verdict is accepted."""


def facts() -> set[str]:
    """What about this machine decides whether a test can pass."""
    found = set()
    mounts = [line.split()[2] for line in Path("/proc/mounts").read_text().splitlines()]
    found.add("cgroup-v1" if "cgroup" in mounts else "cgroup-v2")
    status = dict(line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":\t" in line)
    if not int(status["CapBnd"], 16) >> 24 & 1:
        found.add("no-sys-resource")
    if not apparmor():
        found.add("no-apparmor")
    if not Path("/sys/fs/selinux/enforce").exists():
        found.add("no-selinux")
    if not Path("/sys/kernel/mm/hugepages").is_dir():
        found.add("no-hugepages")
    return found


def expected(suite: str, path: Path = EXPECTED, here: set[str] | None = None) -> dict[str, Expected]:
    """The failures that are expected of ocirt on this machine by this suite, by test."""
    here = facts() if here is None else here
    rows = tomllib.loads(path.read_text()).get("failure", [])
    for row in rows:
        unknown = set(row) - {"test", "reason", "suites", "when", "flaky"}
        if unknown or not row.get("reason", "").strip():
            raise ValueError(
                f"{path}: [[failure]] {row.get('test')!r}: needs a reason, has unknown keys {sorted(unknown)}"
            )
    entries = [
        Expected(r["test"], r["reason"], tuple(r.get("suites", ())), tuple(r.get("when", ())), r.get("flaky", False))
        for r in rows
    ]
    fitting = (e for e in entries if (not e.suites or suite in e.suites) and here.issuperset(e.when))
    return {e.test: e for e in fitting}


def attempts(path: Path = EXPECTED) -> dict[str, int]:
    """How often a test may be tried because its outcome is a race, by test; those that aren't listed: once."""
    return {row["test"]: row["attempts"] for row in tomllib.loads(path.read_text()).get("race", [])}


def as_json(runtime: str, version: str, suite: str, outcomes: Mapping[str, Outcome]) -> dict[str, Any]:
    """The record of one run."""
    return {
        "runtime": runtime,
        "version": version,
        "suite": suite,
        "machine": sorted(facts()),
        **{v: sum(o.verdict == v for o in outcomes.values()) for v in ("passed", "failed", "skipped")},
        "tests": {name: {"verdict": o.verdict, "why": o.why} for name, o in outcomes.items()},
    }


def one_line(text: str) -> str:
    return " ".join(text.split())


def cell(text: str) -> str:
    return one_line(text).replace("|", "\\|")


def table(runs: Iterable[dict[str, Any]]) -> str:
    """A Markdown table: one column of verdicts a run; with one run also the reason of each failure."""
    runs = list(runs)
    names = list(dict.fromkeys(name for run in runs for name in run["tests"]))
    alone = len(runs) == 1
    head = ["test", *(run["version"] for run in runs), *(["why"] if alone else [])]
    lines = ["| " + " | ".join(map(cell, head)) + " |", "| " + " | ".join("---" for _ in head) + " |"]
    for name in names:
        tests = [run["tests"].get(name) for run in runs]
        row = [name, *(MARKS[test["verdict"]] if test else "" for test in tests)]
        if alone:
            row.append(cell(tests[0]["why"]) if tests[0] else "")
        lines.append("| " + " | ".join(row) + " |")
    totals = [f"{run['passed']} passed, {run['failed']} failed, {run['skipped']} skipped" for run in runs]
    lines.append("| total | " + " | ".join(totals + ([""] if alone else [])) + " |")
    if not alone:
        lines += ["", *_differences(runs, names)]
    return "\n".join(lines)


def _differences(runs: list[dict[str, Any]], names: list[str]) -> list[str]:
    """Where the first runtime of a comparison wins and loses against the others, and what fails everywhere."""

    def passes(run: dict[str, Any], name: str) -> bool:
        return bool(run["tests"].get(name, {}).get("verdict") == "passed")

    ours, *others = runs
    wins = [n for n in names if passes(ours, n) and not any(passes(o, n) for o in others)]
    losses = [n for n in names if not passes(ours, n) and any(passes(o, n) for o in others)]
    nobody = [n for n in names if not any(passes(r, n) for r in runs)]
    return [
        f"Passed by {ours['version']} alone ({len(wins)}): {', '.join(wins) or 'none'}.",
        "",
        f"Passed by another but not by it ({len(losses)}): {', '.join(losses) or 'none'}.",
        "",
        f"Passed by none ({len(nobody)}): {', '.join(nobody) or 'none'}.",
    ]


def judge(outcomes: Mapping[str, Outcome], known: Mapping[str, Expected]) -> tuple[list[str], list[str]]:
    """Compare a run with the list of expected failures.

    -> (tests that failed and must not, tests that passed although the list says they fail)
    """
    broken = [name for name, o in outcomes.items() if o.verdict == "failed" and name not in known]
    better = [name for name, o in outcomes.items() if o.verdict == "passed" and name in known and not known[name].flaky]
    return broken, better
