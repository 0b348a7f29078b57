"""What the bench needs of the host, and what it says about it."""

from __future__ import annotations

import ctypes
import datetime
import json
import os
import platform
import subprocess
import sys

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
PEERS = ("/usr/bin/runc", "/usr/bin/crun")

CLONE_NEWNS = 0x20000
MS_BIND, MS_REC, MS_PRIVATE = 0x1000, 0x4000, 1 << 18
MNT_DETACH = 2
PR_SET_CHILD_SUBREAPER = 36

_V2_CONTROLLERS = ("cpu", "cpuset", "blkio", "memory", "pids", "hugetlb", "rdma", "misc", "dmem")
_CGROUP = "/sys/fs/cgroup"

#: Docker's default profile and podman's, where Debian has them
_PROFILES = (
    "/usr/share/gocode/src/github.com/docker/docker/profiles/seccomp/default.json",
    "/usr/share/containers/seccomp.json",
)
_PROFILE_PACKAGE = "golang-github-docker-docker-dev"

_libc = ctypes.CDLL(None, use_errno=True)


def call(name: str, *arguments: object) -> None:
    """A libc function that returns 0."""
    if getattr(_libc, name)(*arguments):
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def enter_namespace() -> None:
    """Take a mount namespace of our own, and whatever is orphaned below us."""
    call("prctl", PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    call("unshare", CLONE_NEWNS)
    call("mount", b"none", b"/", None, MS_REC | MS_PRIVATE, None)
    if os.path.isdir(f"{_CGROUP}/unified"):
        _claim_v2_controllers()


def _claim_v2_controllers() -> None:
    """Give each controller of a hybrid host's cgroup2 tree a v1 hierarchy, which vanishes with this namespace.

    cgroup.controllers isn't asked: it may still lack one whose hierarchy is about to vanish.
    """
    held = os.open(_CGROUP, os.O_PATH)
    hierarchies = os.listdir(_CGROUP)
    call("mount", b"tmpfs", _CGROUP.encode(), b"tmpfs", 0, b"mode=755")
    for name in hierarchies:
        path = f"{_CGROUP}/{name}"
        os.mkdir(path)
        call("mount", f"/proc/self/fd/{held}/{name}".encode(), path.encode(), None, MS_BIND, None)
    os.close(held)
    with open("/proc/self/mountinfo", encoding="utf-8") as file:
        mounted = {word for line in file if " - cgroup " in line for word in line.split()[-1].split(",")}
    with open("/proc/cgroups", encoding="utf-8") as file:
        known = {line.split()[0] for line in file}
    for name in _V2_CONTROLLERS:
        if name in known and name not in mounted:
            os.mkdir(f"{_CGROUP}/{name}")
            call("mount", b"cgroup", f"{_CGROUP}/{name}".encode(), b"cgroup", 0, name.encode())


def take_share(group: str) -> bool:
    """Enter a cgroup whose share of the CPUs is the largest that there is; containers are made below it.

    What else the machine does would otherwise decide how long everything takes, and favour whoever has more threads.
    False on cgroup v2, where the containers' parent can't have processes: there it is left out.
    """
    if not os.path.isdir(f"{_CGROUP}/cpu"):
        return False
    for name in os.listdir(_CGROUP):
        directory = f"{_CGROUP}/{name}"
        if os.path.islink(directory):
            continue
        os.mkdir(f"{directory}/{group}")
        for file in ("cpuset.cpus", "cpuset.mems"):
            if os.path.exists(f"{directory}/{group}/{file}"):
                with open(f"{directory}/{file}", encoding="ascii") as above:
                    _write(f"{directory}/{group}/{file}", above.read())
    _write(f"{_CGROUP}/cpu/{group}/cpu.shares", "262144")
    _write(f"{_CGROUP}/cpu/{group}/cgroup.procs", "0")
    return True


def leave_share() -> None:
    """Go back to where others are."""
    if os.path.isdir(f"{_CGROUP}/cpu"):
        _write(f"{_CGROUP}/cpu/cgroup.procs", "0")


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write(text)


def remove_cgroups(prefix: str) -> None:
    """Remove our group, and those that a failed measurement has left."""
    for top, directories, _ in os.walk(_CGROUP, topdown=False):
        for name in directories:
            if name.startswith(prefix):
                try:
                    os.rmdir(f"{top}/{name}")
                except OSError as error:
                    print(f"bench: {error}", file=sys.stderr)


def install(directory: str) -> str:
    """Install this checkout; gives the launcher's path."""
    prefix = f"{directory}/prefix"
    subprocess.run([f"{TOP}/hack/install", "--prefix", prefix], check=True, stdout=sys.stderr)
    return f"{prefix}/bin/ocirt"


def runtimes(ocirt: str, peers: list[str] | None) -> dict[str, str]:
    """{name: path}, ocirt first; a peer that isn't installed is left out with a word."""
    found = {"ocirt": ocirt}
    for path in peers or PEERS:
        if os.access(path, os.X_OK):
            found[os.path.basename(path)] = path
        else:
            print(f"bench: there is no {path}: not measured", file=sys.stderr)
    return found


def interpreter(launcher: str) -> str:
    """The interpreter that a launcher names, as it starts by itself."""
    with open(launcher, encoding="utf-8") as file:
        return os.path.realpath(file.readline()[2:].split()[0])


class Profile:
    """A seccomp profile in the form of config.json, and where it is from."""

    def __init__(self, path: str) -> None:
        self.path = path
        with open(path, encoding="utf-8") as file:
            self.filter = for_oci(json.load(file))


def profile(path: str | None) -> Profile:
    """The given profile, or Docker's default one: installed, or fetched from Debian; podman's if there is no other."""
    if path:
        return Profile(path)
    cache = os.path.expanduser("~/.cache/ocirt-bench")
    fetched = cache + _PROFILES[0]
    if not any(os.path.exists(candidate) for candidate in (_PROFILES[0], fetched)):
        os.makedirs(cache, exist_ok=True)
        line = f"apt-get -q -o APT::Sandbox::User=root download {_PROFILE_PACKAGE} && dpkg-deb -x *.deb . && rm *.deb"
        subprocess.run(["sh", "-c", line], cwd=cache, stdout=subprocess.DEVNULL, check=False)
    for candidate in (_PROFILES[0], fetched, _PROFILES[1]):
        if os.path.exists(candidate):
            return Profile(candidate)
    sys.exit(f"bench: no seccomp profile: install {_PROFILE_PACKAGE}, or give one by --profile")


#: What Docker grants by default.
CAPABILITIES = [
    f"CAP_{name}"
    for name in (
        *("CHOWN", "DAC_OVERRIDE", "FSETID", "FOWNER", "MKNOD", "NET_RAW", "SETGID"),
        *("SETUID", "SETFCAP", "SETPCAP", "NET_BIND_SERVICE", "SYS_CHROOT", "KILL", "AUDIT_WRITE"),
    )
]


def for_oci(source: dict) -> dict:
    """An engine's profile as the engine writes it to config.json: conditions become rules that are there or not."""
    if "archMap" not in source:
        return source
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    capabilities, rules = set(CAPABILITIES), []
    for entry in source["syscalls"]:
        includes, excludes = entry.get("includes") or {}, entry.get("excludes") or {}
        if machine not in includes.get("arches", [machine]) or machine in excludes.get("arches", ()):
            continue
        if not set(includes.get("caps", ())) <= capabilities or set(excludes.get("caps", ())) & capabilities:
            continue
        rules.append({key: entry[key] for key in ("names", "action", "args", "errnoRet") if entry.get(key)})
    native = f"SCMP_ARCH_{platform.machine().upper()}"
    others = [
        arch for found in source["archMap"] if found["architecture"] == native for arch in found["subArchitectures"]
    ]
    result = {"defaultAction": source["defaultAction"], "architectures": [native, *others], "syscalls": rules}
    if source.get("defaultErrnoRet") is not None:
        result["defaultErrnoRet"] = source["defaultErrnoRet"]
    return result


def load() -> str:
    """The load averages."""
    return " ".join(f"{number:.1f}" for number in os.getloadavg())


def facts(runtimes: dict[str, str], seccomp: Profile) -> dict[str, str]:
    """What numbers depend on."""
    python = interpreter(runtimes["ocirt"])
    found = {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "kernel": platform.release(),
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs",
        "cgroups": "v2" if os.path.exists(f"{_CGROUP}/cgroup.controllers") else "v1",
        "Python": subprocess.run([python, "-V"], capture_output=True, text=True, check=True).stdout.split()[1],
        "seccomp profile": "Docker's default" if "docker" in seccomp.path else seccomp.path,
        "load before": load(),
    }
    for name, path in runtimes.items():
        lines = subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout.splitlines()
        commit = [line.split()[1][:12] for line in lines if line.startswith("commit:")]
        found[name] = " ".join([lines[0].split()[-1], *(f"({number})" for number in commit if name == "ocirt")])
    return found
