"""Read the Test Anything Protocol as the validation suite prints it, and decide on a verdict.

A naive count would call broken runtimes conformant: several tests of the suite (all that concern hooks) print no test
point when they fail, only a YAML block with an `error`; and a program that crashes half-way leaves points that are all
`ok`. So a test passes only if nothing at all speaks against it: no `not ok`, no error outside of a point, exit status
0, a plan that fits. (Two tests print nothing when they pass; the exit status is all there is to judge them by.)
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_POINT = re.compile(r"^(?P<not>not )?ok\b(?:\s+(?P<number>\d+))?(?:\s*-)?\s*(?P<rest>.*)$")
_PLAN = re.compile(r"^1\.\.(\d+)(?:\s*#\s*(?P<directive>.*))?$")
_DIRECTIVE = re.compile(r"#\s*(skip|todo)\b\s*(?P<why>.*)$", re.IGNORECASE)
_ERROR = re.compile(r"^\s*\"?error\"?:\s*\"?(?P<text>.*?)\"?,?\s*$")


@dataclass
class Tap:
    passed: int = 0
    skipped: int = 0
    failures: list[str] = field(default_factory=list)
    """Description of each `not ok` point, with the error of its YAML block when it has one."""
    errors: list[str] = field(default_factory=list)
    """`error` of each YAML block that belongs to no test point."""
    plans: list[int] = field(default_factory=list)
    bail: str | None = None

    @property
    def points(self) -> int:
        return self.passed + self.skipped + len(self.failures)


def parse(text: str) -> Tap:
    """Parse one program's standard output."""
    tap = Tap()
    after: str | None = None  # the verdict of the point that a YAML block would belong to
    in_yaml = False
    for line in text.splitlines():
        if in_yaml:
            if line.strip() == "...":
                in_yaml, after = False, None
            elif error := _ERROR.match(line):
                if after is None:
                    tap.errors.append(error["text"])
                elif after == "not ok":
                    tap.failures[-1] += f": {error['text']}"
        elif line.strip() == "---":
            in_yaml = True
        elif point := _POINT.match(line):
            directive = _DIRECTIVE.search(point["rest"])
            if directive and directive[1].lower() == "skip":
                tap.skipped += 1
                after = "skip"
            elif point["not"] and not directive:
                tap.failures.append(f"not ok {point['number'] or tap.points + 1} {point['rest']}")
                after = "not ok"
            else:
                tap.passed += 1
                after = "ok"
        elif plan := _PLAN.match(line):
            tap.plans.append(int(plan[1]))
        elif line.startswith("Bail out!"):
            tap.bail = line
    return tap


def verdict(text: str, status: int, stderr: str = "") -> tuple[str, str]:
    """Judge one run of a test by its output and exit status (128+N for a signal).

    -> ("passed" | "failed" | "skipped", why; empty when passed)
    """
    tap = parse(text)
    last = " / ".join(stderr.strip().splitlines()[-3:])
    why = ""
    if tap.failures:
        more = f" (and {len(tap.failures) - 1} more)" if len(tap.failures) > 1 else ""
        why = f"{tap.passed} ok, {len(tap.failures)} not ok: {tap.failures[0]}{more}"
    elif status != 0:
        why = f"exit status {status} after {tap.points} points" + (f": {last}" if last else "")
    elif tap.bail:
        why = tap.bail
    elif tap.errors:
        why = f"error without a test point: {tap.errors[0]}"
    elif not text.strip():
        pass  # some tests speak only through their exit status
    elif not tap.plans:
        why = f"no plan after {tap.points} points: it ended too early"
    elif sum(tap.plans) != tap.points:
        why = f"planned {sum(tap.plans)} points, printed {tap.points}"
    if why:
        return "failed", " ".join(why.replace("\\n", " ").split())[:400]
    if tap.points and tap.skipped == tap.points:
        return "skipped", "every point is skipped"
    return "passed", ""
