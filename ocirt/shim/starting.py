"""`start`: containerd wants a shim for a container, and its address.

A group's containers share one shim: pods (by the sandbox's id) and whatever an annotation puts together. The first
one's `start` forks: its child, warm already, becomes the daemon (see daemon); the parent answers and ends.
"""

from __future__ import annotations

import posix

from ocirt.errors import Error, InvalidConfig, doing
from ocirt.shim import bundles, main, sockets, wire
from ocirt.shim.messages import ANY, BOOTSTRAP_PARAMS, BOOTSTRAP_RESULT

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket
    from typing import Any

    from ocirt.shim.daemon import Place

#: Annotations whose value groups containers; the first that is there counts.
GROUPS = ("io.containerd.runc.v2.group", "io.kubernetes.cri.sandbox-id")
_INPUT_MAX = 4 << 20
_PR_SCHED_CORE, _PR_SCHED_CORE_CREATE, _SCOPE_PROCESS_GROUP = 62, 1, 2


def start(options: main.Options) -> None:
    """Find or start the shim of a container, and print its address. Raises Error."""
    parameters, any = read_input(options)
    bundle = options.bundle or posix.getcwd()
    environment = {key.decode(): value.decode("utf-8", "surrogateescape") for key, value in posix.environ.items()}
    grpc = options.address or environment.get("GRPC_ADDRESS", "")
    group = group_of(bundle) or options.id
    address = sockets.address_of(parameters.get("socket_dir", ""), grpc, options.namespace, group)
    with doing("start the shim"):
        with sockets.Locked(address):
            socket = sockets.listen(address)
        bundles.note_address(bundle, address)
        if socket is not None:
            try:
                _serve(options, parameters, any, socket, address, bundle, environment)
            except BaseException:
                sockets.remove(address, sockets.identity(address))  # ours: we listen still
                raise
    main.write(answer(address, parameters, environment))


def read_input(options: main.Options) -> tuple[dict[str, Any], dict[str, Any]]:
    """(BootstrapParams, the Any with the container's options) from stdin; {} for what there isn't.

    containerd sends an Any before 2.3, BootstrapParams since; one parses as the other, so the ids in it decide.
    """
    data = b""
    while (more := posix.read(0, 1 << 16)) and len(data) < _INPUT_MAX:
        data += more
    if not data:
        return {}, {}
    try:
        parameters = wire.decode(BOOTSTRAP_PARAMS, data)
        if parameters.get("instance_id") == options.id and parameters.get("namespace") == options.namespace:
            values: list[dict[str, Any]] = [
                extension.get("value", {}) for extension in parameters.get("extensions", [])
            ]
            for value in values:
                from ocirt.shim.options import RUNC, RUNTIME  # `start` without options does without it

                if value.get("type_url", "").rpartition("/")[2] in (RUNC, RUNTIME):
                    return parameters, value
            return parameters, {}
    except ValueError:
        pass
    try:
        return {}, wire.decode(ANY, data)
    except ValueError as error:
        raise InvalidConfig(f"stdin holds neither BootstrapParams nor an Any: {error}") from None


def group_of(bundle: str) -> str:
    """The group that the container's annotations put it into, "" for none."""
    raw = bundles.read(f"{bundle}/config.json")
    if not raw:
        raise InvalidConfig(f"{bundle}/config.json: no such file or directory")
    if not any(key.encode() in raw for key in GROUPS):
        return ""
    from ocirt.jsontext import parse_json

    config: Any = parse_json(raw, f"{bundle}/config.json")
    try:
        return group_among(config["annotations"])
    except (KeyError, TypeError, AttributeError):
        return ""  # what is wrong with the configuration, Create says


def group_among(annotations: dict[str, Any]) -> str:
    """The group that annotations name, "" for none."""
    for key in GROUPS:
        if annotations.get(key):
            return str(annotations[key])
    return ""


def answer(address: str, parameters: dict[str, Any], environment: dict[str, str]) -> bytes:
    """What containerd reads on stdout: each of its versions another thing."""
    if parameters:
        return wire.encode(BOOTSTRAP_RESULT, {"version": 3, "address": address, "protocol": "ttrpc"})
    if "MAX_SHIM_VERSION" not in environment:
        return address.encode()
    from ocirt.jsontext import dump_json

    return dump_json({"version": 2, "address": address, "protocol": "ttrpc"})


def _serve(
    options: main.Options,
    parameters: dict[str, Any],
    any: dict[str, Any],
    socket: _socket.socket,
    address: str,
    bundle: str,
    environment: dict[str, str],
) -> None:
    """Have a shim serve the socket: the spare one, or else a fork of this process."""
    from ocirt.shim import spare

    cgroup = _shim_cgroup(any)
    special = bool(cgroup or environment.get("SCHED_CORE"))  # nobody else's shim is like it
    idle = 0 if special else spare.seconds(environment)
    place: Place = {
        "address": address,
        "namespace": options.namespace,
        "events": environment.get("TTRPC_ADDRESS") or parameters.get("containerd_ttrpc_address", ""),
        "bundle": bundle,
        "debug": options.debug or parameters.get("log_level", 0) < 0,
        "environment": environment,
        # one more than containerd's: the OOM killer takes shims before it
        "score": min(int(bundles.read(f"/proc/{posix.getppid()}/oom_score_adj") or b"0") + 1, 1000),
        "spare": spare.address_of(parameters.get("socket_dir", ""), options.address) if idle else "",
        "idle": idle,
    }
    if idle and spare.ask(place["spare"], socket, place):
        return
    if environment.get("SCHED_CORE"):
        _share_core()
    pid, placed = _fork(socket, place)
    try:
        spare.write_oom_score(pid, place["score"])
        if cgroup:
            _join(cgroup, pid)
    except BaseException:
        posix.kill(pid, 9)
        raise
    finally:
        posix.close(placed)


def _shim_cgroup(any: dict[str, Any]) -> str:
    """The cgroup that the shim itself is to be in, "" for containerd's."""
    if not any:
        return ""
    from ocirt.shim import options as container_options

    try:
        return str(container_options.read(any).get("shim_cgroup", ""))
    except Error:
        return ""  # Create gets the same options, and says what is wrong with them


def _fork(socket: _socket.socket, place: Place) -> tuple[int, int]:
    """Become a daemon in a fork: (its pid, a descriptor that is to be closed when it is where it belongs)."""
    held, placed = posix.pipe2(posix.O_CLOEXEC)
    pid = posix.fork()
    if pid:
        posix.close(held)
        return pid, placed
    try:
        posix.close(placed)
        posix.read(held, 1)  # what it forks is to be there, too
        posix.close(held)
        posix.setsid()
        # containerd waits for the end of what `start` prints
        null = posix.open("/dev/null", posix.O_RDWR)
        for fd in (0, 1, 2):
            posix.dup2(null, fd)
        posix.close(null)
        from ocirt.shim import daemon

        try:
            daemon.serve(socket, place)
        except Exception as error:
            daemon.report(error)
    finally:
        posix._exit(0)


def _share_core() -> None:
    """A core scheduling cookie for this process group, which the daemon inherits (core-scheduling.rst)."""
    from ocirt.linux import libc

    with doing("set SCHED_CORE"):
        libc.call("prctl", _PR_SCHED_CORE, _PR_SCHED_CORE_CREATE, 0, _SCOPE_PROCESS_GROUP, 0)


def _join(path: str, pid: int) -> None:
    """Put the daemon into the cgroup that the option ShimCgroup names: in every hierarchy."""
    from ocirt.cgroups import choose
    from ocirt.cgroups.making import make
    from ocirt.cgroups.v1 import inherit_cpuset

    with doing(f"put the shim into the cgroup {path}"):
        cgroup = choose({"cgroupsPath": path}, "", manager="cgroupfs", rootless=False, annotations={})
        for controllers, mountpoint, inside in cgroup.mounts():
            make(mountpoint, inside)
            if "cpuset" in controllers.split(","):
                inherit_cpuset(mountpoint, inside)
        cgroup.join(pid)
