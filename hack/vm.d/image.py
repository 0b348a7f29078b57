"""The root filesystem with systemd and AppArmor, made by mmdebstrap from the packages listed beside this file."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from pathlib import Path

import debian

HERE = Path(__file__).resolve().parent
PACKAGES = HERE / "packages"
TOOLS = {"mmdebstrap": "mmdebstrap", "mke2fs": "e2fsprogs"}
DEFAULT_SUITE = "bookworm"


def suite() -> str:
    """The release of Debian of this machine, so that /usr/bin/python3 is the same there and the checkout's virtual
    environment works in the VM; on another distribution DEFAULT_SUITE."""
    release = Path("/etc/os-release")
    if release.exists():
        fields = dict(row.strip().split("=", 1) for row in release.read_text().splitlines() if "=" in row)
        if fields.get("ID") == "debian":
            return fields.get("VERSION_CODENAME", DEFAULT_SUITE)
    return DEFAULT_SUITE


def get(cache: Path) -> Path:
    """Answer the image; make it the first time and whenever the list of packages has changed (a minute)."""
    packages = [line for line in PACKAGES.read_text().splitlines() if line and not line.startswith("#")]
    key = hashlib.sha256(" ".join([suite(), *packages]).encode()).hexdigest()[:12]
    path = cache / f"image-{suite()}-{key}.ext4"
    if not path.exists():
        debian.need(TOOLS)
        debian.say(f"making the image with systemd ({len(packages)} packages of {suite()}), once; about two minutes")
        for old in cache.glob("image-*.ext4"):
            old.unlink()
        with tempfile.TemporaryDirectory(prefix="image.", dir=cache) as folder:
            _make(Path(folder), packages, path)
    return path


def _make(folder: Path, packages: list[str], path: Path) -> None:
    root, mirror = folder / "root", debian.mirror()
    debian.run(
        "mmdebstrap", "--quiet", "--variant=minbase", f"--include={','.join(packages)}",
        '--aptopt=Apt::Install-Recommends "false"',
        *(f"--dpkgopt=path-exclude=/usr/share/{unread}/*" for unread in ("man", "doc", "locale", "info")),
        suite(), root, f"deb {mirror} {suite()} main",
    )  # fmt: skip
    (root / "etc/hostname").write_text("ocirt-vm\n")
    (root / "etc/fstab").write_text("")
    (root / "etc/machine-id").write_text("")
    shutil.rmtree(root / "var/lib/apt/lists", ignore_errors=True)
    size = int(debian.output("du", "-sm", root).split()[0])
    raw = folder / "image"
    with raw.open("wb") as file:
        file.truncate((size * 5 // 4 + 64) << 20)
    debian.run("mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-m", "0", "-d", root, raw)
    raw.rename(path)
