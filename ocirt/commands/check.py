"""ocirt check"""

from __future__ import annotations

from ocirt import check
from ocirt.commands import Options, indented, write


def run(options: Options) -> int:
    """Report what this host offers to a runtime; 1 if no container is possible."""
    findings = check.report()
    usable = all(finding.status != check.MISSING for finding in findings if finding.required)
    if options.format == "json":
        write(indented({"usable": usable, "findings": [finding.as_dict() for finding in findings]}) + "\n")
        return 0 if usable else 1
    group = ""
    for finding in findings:
        if finding.group != group:
            group = finding.group
            write(f"{group}\n")
        write(f"  {finding.status:8}{finding.name:18}{finding.detail}\n")
        if finding.remedy:
            write(f"  {'':8}{'':18}-> {finding.remedy}\n")
    return 0 if usable else 1
