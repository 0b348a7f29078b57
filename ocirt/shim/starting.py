"""`start`: containerd wants a shim for a container, and its address.

A group's containers share one shim: pods (by the sandbox's id) and whatever an annotation puts together. The first
one's `start` forks: its child, warm already, becomes the daemon (see daemon); the parent answers and ends.
"""

from __future__ import annotations

import posix

from ocirt.errors import Error, InvalidConfig, doing
from ocirt.jsontext import dump_json, parse_json
from ocirt.shim import bundles, main, sockets, wire
from ocirt.shim.messages import ANY, BOOTSTRAP_PARAMS, BOOTSTRAP_RESULT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

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
            _fork(options, parameters, any, socket, address, bundle, environment)
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
            known = ("containerd.runc.v1.Options", "runtimeoptions.v1.Options")
            for value in values:
                if value.get("type_url", "").rpartition("/")[2] in known:
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
    config: Any = parse_json(raw, f"{bundle}/config.json")
    try:
        annotations: dict[str, Any] = config["annotations"]
        for key in GROUPS:
            if annotations.get(key):
                return str(annotations[key])
    except (KeyError, TypeError, AttributeError):
        pass  # what is wrong with the configuration, Create says
    return ""


def answer(address: str, parameters: dict[str, Any], environment: dict[str, str]) -> bytes:
    """What containerd reads on stdout: each of its versions another thing."""
    if parameters:
        return wire.encode(BOOTSTRAP_RESULT, {"version": 3, "address": address, "protocol": "ttrpc"})
    if "MAX_SHIM_VERSION" not in environment:
        return address.encode()
    return dump_json({"version": 2, "address": address, "protocol": "ttrpc"})


def _fork(
    options: main.Options,
    parameters: dict[str, Any],
    any: dict[str, Any],
    socket: Any,
    address: str,
    bundle: str,
    environment: dict[str, str],
) -> None:
    """Start the daemon as our child, and put it where it belongs."""
    given: dict[str, Any] = {}
    if any:
        from ocirt.shim import options as container_options

        try:
            given = container_options.read(any)
        except Error:
            pass  # Create gets the same, and says what is wrong with it
    if environment.get("SCHED_CORE"):
        _share_core()
    debug = options.debug or parameters.get("log_level", 0) < 0
    events = environment.get("TTRPC_ADDRESS") or parameters.get("containerd_ttrpc_address", "")
    pid = posix.fork()
    if pid == 0:
        try:
            posix.setsid()
            # containerd waits for the end of what `start` prints
            null = posix.open("/dev/null", posix.O_RDWR)
            for fd in (0, 1, 2):
                posix.dup2(null, fd)
            posix.close(null)
            from ocirt.shim import daemon

            daemon.open_log(bundle, debug)
            try:
                daemon.serve(socket, address, options.namespace, events)
            except Exception as error:
                daemon.report(error)
        finally:
            posix._exit(0)
    try:
        _set_oom_score(pid)
        if given.get("shim_cgroup"):
            _join(given["shim_cgroup"], pid)
    except BaseException:
        posix.kill(pid, 9)
        sockets.remove(address)
        raise


def _share_core() -> None:
    """A core scheduling cookie for this process group, which the daemon inherits (core-scheduling.rst)."""
    from ocirt.linux import libc

    with doing("set SCHED_CORE"):
        libc.call("prctl", _PR_SCHED_CORE, _PR_SCHED_CORE_CREATE, 0, _SCOPE_PROCESS_GROUP, 0)


def _set_oom_score(pid: int) -> None:
    """One more than containerd's: the OOM killer takes shims before it."""
    score = int(bundles.read(f"/proc/{posix.getppid()}/oom_score_adj") or b"0")
    fd = posix.open(f"/proc/{pid}/oom_score_adj", posix.O_WRONLY | posix.O_CLOEXEC)
    try:
        posix.write(fd, b"%d" % min(score + 1, 1000))
    except OSError:
        pass  # without CAP_SYS_RESOURCE it may only rise
    finally:
        posix.close(fd)


def _join(path: str, pid: int) -> None:
    """Put the daemon into the cgroup that the option ShimCgroup names: in every hierarchy."""
    from ocirt.cgroups import choose

    with doing(f"put the shim into the cgroup {path}"):
        cgroup = choose({"cgroupsPath": path}, "", manager="cgroupfs", rootless=False, annotations={})
        for _, mountpoint, inside in cgroup.mounts():
            import os

            os.makedirs(mountpoint + inside, exist_ok=True)
        cgroup.join(pid)
