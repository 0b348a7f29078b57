"""Docker's and podman's default profiles, from Debian's packages, made into `linux.seccomp` as the engines do it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

#: engine: (package, file in it)
SOURCES = {
    "docker": (
        "golang-github-docker-docker-dev",
        "usr/share/gocode/src/github.com/docker/docker/profiles/seccomp/default.json",
    ),
    "podman": ("golang-github-containers-common", "usr/share/containers/seccomp.json"),
}
DOCKER_CAPABILITIES = (  # noqa: SIM905
    "CAP_CHOWN CAP_DAC_OVERRIDE CAP_FSETID CAP_FOWNER CAP_MKNOD CAP_NET_RAW CAP_SETGID CAP_SETUID CAP_SETFCAP"
    " CAP_SETPCAP CAP_NET_BIND_SERVICE CAP_SYS_CHROOT CAP_KILL CAP_AUDIT_WRITE"
).split()
PODMAN_CAPABILITIES = (  # noqa: SIM905
    "CAP_CHOWN CAP_DAC_OVERRIDE CAP_FOWNER CAP_FSETID CAP_KILL CAP_NET_BIND_SERVICE CAP_SETFCAP CAP_SETGID"
    " CAP_SETPCAP CAP_SETUID CAP_SYS_CHROOT"
).split()


def profile(engine: str, directory: Path, capabilities: list[str] | None = None) -> dict:
    """The default profile as the engine writes it to config.json of an amd64 container.

    `directory` is where the package is unpacked if it isn't installed.
    """
    if capabilities is None:
        capabilities = DOCKER_CAPABILITIES if engine == "docker" else PODMAN_CAPABILITIES
    return resolve(json.loads(_find(*SOURCES[engine], directory).read_text()), capabilities)


def resolve(source: dict, capabilities: list[str], arch: str = "amd64") -> dict:
    """Conditions on architecture, capabilities and kernel become rules that are there or not."""
    syscalls = []
    for entry in source["syscalls"]:
        includes, excludes = entry.get("includes") or {}, entry.get("excludes") or {}
        if arch not in includes.get("arches", [arch]) or arch in excludes.get("arches", ()):
            continue
        if not set(includes.get("caps", ())) <= set(capabilities) or set(excludes.get("caps", ())) & set(capabilities):
            continue
        kept = {key: entry[key] for key in ("names", "action", "args") if entry.get(key)}
        if entry["action"] == "SCMP_ACT_ERRNO" and entry.get("errnoRet") is not None:
            kept["errnoRet"] = entry["errnoRet"]
        syscalls.append(kept)
    native = next(found for found in source["archMap"] if found["architecture"] == "SCMP_ARCH_X86_64")
    resolved = {
        "defaultAction": source["defaultAction"],
        "architectures": [native["architecture"], *native["subArchitectures"]],
        "syscalls": syscalls,
    }
    if source.get("defaultErrnoRet") is not None:
        resolved["defaultErrnoRet"] = source["defaultErrnoRet"]
    return resolved


def _find(package: str, name: str, directory: Path) -> Path:
    if Path("/", name).exists():
        return Path("/", name)
    if not (directory / name).exists():
        directory.mkdir(parents=True, exist_ok=True)
        fetched = subprocess.run(
            ["apt-get", "-o", "APT::Sandbox::User=root", "download", package],
            cwd=directory, capture_output=True, text=True, check=False, timeout=90,
        )  # fmt: skip
        if fetched.returncode:
            pytest.skip(f"Debian's {package} is neither installed nor to be had: {fetched.stderr.strip()}")
        (deb,) = directory.glob(f"{package}_*.deb")
        subprocess.run(["dpkg-deb", "-x", str(deb), str(directory)], check=True, timeout=60)
    return directory / name
