"""What this host offers to a runtime: a table of probes, each with a remedy.

for finding in check.report():
    finding.status, finding.name, finding.detail, finding.remedy
"""

from __future__ import annotations

from ocirt.check import host, kernel, tools
from ocirt.check.finding import MISSING, OK, PARTLY, Finding, Probe
from ocirt.errors import Error

__all__ = ["MISSING", "OK", "PARTLY", "Finding", "report"]

#: In the order of the report. A group's probes stand together.
PROBES: tuple[Probe, ...] = (*kernel.PROBES, *host.PROBES, *tools.PROBES)


def report() -> list[Finding]:
    """Ask every probe. A probe that fails counts as missing: the report says why."""
    findings: list[Finding] = []
    for probe in PROBES:
        try:
            status, detail = probe.ask()
        except (Error, OSError, ValueError, ImportError) as error:
            status, detail = MISSING, str(error)
        remedy = "" if status == OK else probe.remedy
        findings.append(Finding(probe.group, probe.name, status, detail, remedy, probe.required))
    return findings
