"""The messages of containerd's task, events and bootstrap protocols, as tables (see wire).

Names and numbers are those of containerd's .proto files: api/runtime/task/v3, api/events, api/runtime/bootstrap/v1,
api/types, core/runtime/... runc options, and google.protobuf.
"""

from __future__ import annotations

from ocirt.shim.wire import BOOL, BYTES, INT32, INT64, STRING, UINT32

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ocirt.shim.wire import Table

ANY: Table = {1: ("type_url", STRING), 2: ("value", BYTES)}
TIMESTAMP: Table = {1: ("seconds", INT64), 2: ("nanos", INT32)}
EMPTY: Table = {}

# -- the protocol itself: ttrpc ------------------------------------------------------------------------------------

STATUS: Table = {1: ("code", INT32), 2: ("message", STRING), 3: ("details", [ANY])}
PAIR: Table = {1: ("key", STRING), 2: ("value", STRING)}
REQUEST: Table = {
    1: ("service", STRING),
    2: ("method", STRING),
    3: ("payload", BYTES),
    4: ("timeout_nano", INT64),
    5: ("metadata", [PAIR]),
}
RESPONSE: Table = {1: ("status", STATUS), 2: ("payload", BYTES)}

# -- starting a shim -----------------------------------------------------------------------------------------------

EXTENSION: Table = {1: ("value", ANY)}
BOOTSTRAP_PARAMS: Table = {
    1: ("instance_id", STRING),
    2: ("namespace", STRING),
    3: ("log_level", INT32),
    4: ("containerd_version", STRING),
    5: ("containerd_ttrpc_address", STRING),
    6: ("containerd_grpc_address", STRING),
    7: ("containerd_binary", STRING),
    8: ("extensions", [EXTENSION]),
    9: ("socket_dir", STRING),
}
BOOTSTRAP_RESULT: Table = {
    1: ("version", INT32),
    2: ("address", STRING),
    3: ("protocol", STRING),
    4: ("capabilities", [STRING]),
    5: ("metadata", {}),
}
RUNTIME_VERSION: Table = {1: ("version", STRING), 2: ("revision", STRING)}
RUNTIME_INFO: Table = {
    1: ("name", STRING),
    2: ("version", RUNTIME_VERSION),
    3: ("options", ANY),
    4: ("features", ANY),
    5: ("annotations", {}),
}

# -- options of a container ----------------------------------------------------------------------------------------

RUNC_OPTIONS: Table = {
    1: ("no_pivot_root", BOOL),
    2: ("no_new_keyring", BOOL),
    3: ("shim_cgroup", STRING),
    4: ("io_uid", UINT32),
    5: ("io_gid", UINT32),
    6: ("binary_name", STRING),
    7: ("root", STRING),
    8: ("criu_path", STRING),
    9: ("systemd_cgroup", BOOL),
    10: ("criu_image_path", STRING),
    11: ("criu_work_path", STRING),
    12: ("task_api_address", STRING),
    13: ("task_api_version", UINT32),
}
RUNTIME_OPTIONS: Table = {1: ("type_url", STRING), 2: ("config_path", STRING), 3: ("config_body", BYTES)}
CHECKPOINT_OPTIONS: Table = {
    1: ("exit", BOOL),
    2: ("open_tcp", BOOL),
    3: ("external_unix_sockets", BOOL),
    4: ("terminal", BOOL),
    5: ("file_locks", BOOL),
    6: ("empty_namespaces", [STRING]),
    7: ("cgroups_mode", STRING),
    8: ("image_path", STRING),
    9: ("work_path", STRING),
    10: ("parent_path", STRING),
}

#: What a client of containerd 1.x sends for a runtime whose name doesn't begin with io.containerd.runc:
#: containerd.linux.runc.CreateOptions and .CheckpointOptions, of its first shim.
OLD_CREATE_OPTIONS: Table = {
    1: ("no_pivot_root", BOOL),
    2: ("open_tcp", BOOL),
    3: ("external_unix_sockets", BOOL),
    4: ("terminal", BOOL),
    5: ("file_locks", BOOL),
    6: ("empty_namespaces", [STRING]),
    7: ("cgroups_mode", STRING),
    8: ("no_new_keyring", BOOL),
    9: ("shim_cgroup", STRING),
    10: ("io_uid", UINT32),
    11: ("io_gid", UINT32),
    12: ("criu_work_path", STRING),
    13: ("criu_image_path", STRING),
}
OLD_CHECKPOINT_OPTIONS: Table = {
    **{number: CHECKPOINT_OPTIONS[number] for number in range(1, 8)},
    8: ("work_path", STRING),
    9: ("image_path", STRING),
}

# -- the task service ----------------------------------------------------------------------------------------------

MOUNT: Table = {1: ("type", STRING), 2: ("source", STRING), 3: ("target", STRING), 4: ("options", [STRING])}
CREATE: Table = {
    1: ("id", STRING),
    2: ("bundle", STRING),
    3: ("rootfs", [MOUNT]),
    4: ("terminal", BOOL),
    5: ("stdin", STRING),
    6: ("stdout", STRING),
    7: ("stderr", STRING),
    8: ("checkpoint", STRING),
    9: ("parent_checkpoint", STRING),
    10: ("options", ANY),
}
PROCESS: Table = {1: ("id", STRING), 2: ("exec_id", STRING)}
CONTAINER: Table = {1: ("id", STRING)}
PID: Table = {1: ("pid", UINT32)}
STATE: Table = {
    1: ("id", STRING),
    2: ("bundle", STRING),
    3: ("pid", UINT32),
    4: ("status", INT32),
    5: ("stdin", STRING),
    6: ("stdout", STRING),
    7: ("stderr", STRING),
    8: ("terminal", BOOL),
    9: ("exit_status", UINT32),
    10: ("exited_at", TIMESTAMP),
    11: ("exec_id", STRING),
}
DELETED: Table = {1: ("pid", UINT32), 2: ("exit_status", UINT32), 3: ("exited_at", TIMESTAMP)}
PROCESS_DETAILS: Table = {1: ("exec_id", STRING)}
PROCESS_INFO: Table = {1: ("pid", UINT32), 2: ("info", ANY)}
PIDS: Table = {1: ("processes", [PROCESS_INFO])}
CHECKPOINT: Table = {1: ("id", STRING), 2: ("path", STRING), 3: ("options", ANY)}
KILL: Table = {1: ("id", STRING), 2: ("exec_id", STRING), 3: ("signal", UINT32), 4: ("all", BOOL)}
EXEC: Table = {
    1: ("id", STRING),
    2: ("exec_id", STRING),
    3: ("terminal", BOOL),
    4: ("stdin", STRING),
    5: ("stdout", STRING),
    6: ("stderr", STRING),
    7: ("spec", ANY),
}
RESIZE: Table = {1: ("id", STRING), 2: ("exec_id", STRING), 3: ("width", UINT32), 4: ("height", UINT32)}
CLOSE_IO: Table = {1: ("id", STRING), 2: ("exec_id", STRING), 3: ("stdin", BOOL)}
UPDATE: Table = {1: ("id", STRING), 2: ("resources", ANY), 3: ("annotations", {})}
EXITED: Table = {1: ("exit_status", UINT32), 2: ("exited_at", TIMESTAMP)}
STATS: Table = {1: ("stats", ANY)}
CONNECT: Table = {1: ("shim_pid", UINT32), 2: ("task_pid", UINT32), 3: ("version", STRING)}
SHUTDOWN: Table = {1: ("id", STRING), 2: ("now", BOOL)}

#: What a status is in STATE.
UNKNOWN, CREATED, RUNNING, STOPPED, PAUSED, PAUSING = range(6)

# -- events --------------------------------------------------------------------------------------------------------

ENVELOPE: Table = {1: ("timestamp", TIMESTAMP), 2: ("namespace", STRING), 3: ("topic", STRING), 4: ("event", ANY)}
FORWARD: Table = {1: ("envelope", ENVELOPE)}
TASK_IO: Table = {1: ("stdin", STRING), 2: ("stdout", STRING), 3: ("stderr", STRING), 4: ("terminal", BOOL)}
#: topic (behind /tasks/) -> the message's name and its table
EVENTS: dict[str, tuple[str, Table]] = {
    "create": (
        "TaskCreate",
        {
            1: ("container_id", STRING),
            2: ("bundle", STRING),
            3: ("rootfs", [MOUNT]),
            4: ("io", TASK_IO),
            5: ("checkpoint", STRING),
            6: ("pid", UINT32),
        },
    ),
    "start": ("TaskStart", {1: ("container_id", STRING), 2: ("pid", UINT32)}),
    "exit": (
        "TaskExit",
        {
            1: ("container_id", STRING),
            2: ("id", STRING),
            3: ("pid", UINT32),
            4: ("exit_status", UINT32),
            5: ("exited_at", TIMESTAMP),
        },
    ),
    "delete": (
        "TaskDelete",
        {
            1: ("container_id", STRING),
            2: ("pid", UINT32),
            3: ("exit_status", UINT32),
            4: ("exited_at", TIMESTAMP),
            5: ("id", STRING),
        },
    ),
    "oom": ("TaskOOM", {1: ("container_id", STRING)}),
    "exec-added": ("TaskExecAdded", {1: ("container_id", STRING), 2: ("exec_id", STRING)}),
    "exec-started": ("TaskExecStarted", {1: ("container_id", STRING), 2: ("exec_id", STRING), 3: ("pid", UINT32)}),
    "paused": ("TaskPaused", {1: ("container_id", STRING)}),
    "resumed": ("TaskResumed", {1: ("container_id", STRING)}),
    "checkpointed": ("TaskCheckpointed", {1: ("container_id", STRING), 2: ("checkpoint", STRING)}),
}


def timestamp(now: float) -> dict[str, int]:
    """A TIMESTAMP of seconds since 1970."""
    return {"seconds": int(now), "nanos": int(now % 1 * 1_000_000_000)}
