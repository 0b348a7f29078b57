"""What the VM takes from Debian: packages of this machine, and packages of another suite without installing them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
MIRROR = "http://deb.debian.org/debian"


def say(text: str) -> None:
    print(f"vm: {text}", file=sys.stderr, flush=True)


def run(*command: str | Path, cwd: Path | None = None) -> None:
    """Run a command; its output goes to our stderr. Raises CalledProcessError."""
    subprocess.run([str(part) for part in command], cwd=cwd, stdin=subprocess.DEVNULL, stdout=sys.stderr, check=True)


def output(*command: str | Path, cwd: Path | None = None) -> str:
    return subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True, check=True).stdout


def need(tools: dict[str, str]) -> None:
    """Install the Debian packages that bring the missing tools: program or file -> package."""
    missing = sorted({package for tool, package in tools.items() if not (shutil.which(tool) or Path(tool).exists())})
    if missing:
        say(f"installing {' '.join(missing)}")
        run("apt-get", "update", "-qq")
        run(
            "env",
            "DEBIAN_FRONTEND=noninteractive",
            "apt-get",
            "install",
            "-y",
            "-qq",
            "--no-install-recommends",
            *missing,
        )


def mirror() -> str:
    """The mirror that this machine's apt uses for Debian; deb.debian.org when it isn't a Debian."""
    try:
        rows = output("apt-get", "indextargets", "--format", "$(ORIGIN) $(REPO_URI)", "Created-By: Packages")
    except (OSError, subprocess.CalledProcessError):
        return MIRROR
    uris = [uri for origin, _, uri in (row.partition(" ") for row in rows.splitlines()) if origin == "Debian"]
    return next((uri.rstrip("/") for uri in uris if "security" not in uri), MIRROR)


class Apt:
    """apt with its own lists of one suite: nothing that it does concerns this machine's packages."""

    def __init__(self, suite: str, folder: Path) -> None:
        self.options = [
            f"-oDir::State={folder}/state",
            f"-oDir::State::status={folder}/status",
            f"-oDir::Cache={folder}/cache",
            f"-oDir::Etc={folder}/etc",
            "-oDir::Etc::sourceparts=/nonexistent",
            "-oAPT::Sandbox::User=root",
            "-qq",
        ]
        for part in ("state/lists/partial", "cache/archives/partial", "etc/preferences.d"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        (folder / "status").touch()
        (folder / "etc/sources.list").write_text(f"deb [signed-by={KEYRING}] {mirror()} {suite} main\n")
        run("apt-get", *self.options, "update")

    def depends(self, package: str) -> str:
        """The first package that `package` depends on."""
        rows = output("apt-cache", *self.options, "depends", package).splitlines()
        return next(row.split()[-1] for row in rows if "Depends:" in row)

    def version(self, package: str) -> str:
        rows = output("apt-cache", *self.options, "show", "--no-all-versions", package).splitlines()
        return next(row.split()[1] for row in rows if row.startswith("Version:"))

    def download(self, package: str, folder: Path) -> Path:
        """Download the package's .deb (apt checks its signature chain). -> its path"""
        run("apt-get", *self.options, "download", package, cwd=folder)
        return next(folder.glob(f"{package}_*.deb"))
