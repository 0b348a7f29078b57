"""The VM's kernel: User-Mode Linux, built from Debian's kernel source package. It runs as an ordinary process, so it
needs neither KVM nor an emulator, and boots in less than a second."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import debian

HERE = Path(__file__).resolve().parent
CONFIG = HERE / "kernel.config"

# cpusets need SMP, which User-Mode Linux has since 6.19: newer than what stable ships.
SUITE = "trixie-backports"
TOOLS = {
    "gcc": "gcc", "make": "make", "flex": "flex", "bison": "bison", "bc": "bc", "xz": "xz-utils",
    "/usr/include/stdio.h": "libc6-dev", "dpkg-deb": "dpkg",
}  # fmt: skip

# Sources of what the configuration leaves out: a third of the files, two thirds of the time to unpack.
OMITTED = (
    "Documentation/*/*", "tools/testing/*", "sound/*/*.[ch]", "drivers/gpu/drm/*/*.[ch]", "drivers/media/*/*.[ch]",
    "drivers/net/ethernet/*/*.[ch]", "drivers/net/wireless/*/*.[ch]", "drivers/staging/*/*.[ch]",
    "drivers/infiniband/hw/*/*.[ch]", "drivers/scsi/*/*.[ch]", "*.dts", "*.dtsi",
)  # fmt: skip


def get(cache: Path) -> Path:
    """Answer the kernel's program: OCIRT_VM_KERNEL, or the one in the cache, built the first time (minutes)."""
    if given := os.environ.get("OCIRT_VM_KERNEL"):
        path = Path(given)
        if not os.access(path, os.X_OK):
            raise SystemExit(f"vm: OCIRT_VM_KERNEL={given} is not a program")
        return path.resolve()
    program, built_from = cache / "linux", cache / "linux.config-of"
    if not (program.exists() and built_from.exists() and built_from.read_text() == CONFIG.read_text()):
        debian.need(TOOLS)
        with tempfile.TemporaryDirectory(prefix="kernel.", dir=cache) as folder:
            _build(Path(folder), cache, program)
        built_from.write_text(CONFIG.read_text())
    return program


def _build(folder: Path, cache: Path, program: Path) -> None:
    apt = debian.Apt(SUITE, cache / "apt")
    source = apt.depends("linux-source")
    debian.say(f"building {source} {apt.version(source)} as User-Mode Linux, once; 6 to 15 minutes of CPU")
    package = apt.download(source, folder)
    _unpack(package, source, folder)
    tree = folder / source
    _show_core_id(tree)
    make = ("make", "-s", "ARCH=um", f"-j{os.cpu_count() or 1}")
    debian.run(*make, "x86_64_defconfig", cwd=tree)
    debian.output("env", "ARCH=um", "scripts/kconfig/merge_config.sh", "-m", ".config", CONFIG, cwd=tree)
    debian.run(*make, "olddefconfig", cwd=tree)
    _check(tree)
    debian.run(*make, "linux", cwd=tree)
    debian.run("strip", "-o", program.with_suffix(".new"), tree / "linux")
    shutil.copy(tree / ".config", program.with_suffix(".config"))
    program.with_suffix(".new").rename(program)


def _unpack(package: Path, source: str, folder: Path) -> None:
    """dpkg-deb | tar (the .deb) | tar (the source in it), without ever storing the whole."""
    excluded = [f"--exclude={source}/{pattern}" for pattern in OMITTED]
    outer = ["tar", "-xO", f"./usr/src/{source}.tar.xz"]
    with (
        subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(package)], stdout=subprocess.PIPE) as deb,
        subprocess.Popen(outer, stdin=deb.stdout, stdout=subprocess.PIPE) as archive,
    ):
        subprocess.run(["tar", "-xJ", *excluded], stdin=archive.stdout, cwd=folder, check=True)
    package.unlink()


def _show_core_id(tree: Path) -> None:
    """Give /proc/cpuinfo a "core id" line: procps 4.0 counts cores by it and else refuses `ps -ef`."""
    path = tree / "arch/um/kernel/um_arch.c"
    text = path.read_text()
    line = 'seq_printf(m, "mode\\t\\t: skas\\n");'
    if line not in text:
        debian.say("arch/um prints /proc/cpuinfo in another way than expected: left as it is")
        return
    path.write_text(text.replace(line, line + '\n\tseq_printf(m, "core id\\t\\t: %d\\n", i);'))


def _check(tree: Path) -> None:
    """Say which options of ours the kernel doesn't know or can't have any more."""
    have = set((tree / ".config").read_text().splitlines())
    for line in CONFIG.read_text().splitlines():
        if line.startswith("CONFIG_") and not line.endswith("=n") and line not in have:
            debian.say(f"the kernel doesn't take {line}")
