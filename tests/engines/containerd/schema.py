"""The messages of containerd's shim API as real protobuf classes, built from one table: nothing of ocirt is in it.

A line is a message: its full name, then `field=number` and a type: s string, y bytes, b bool, i int32 (enums too), I
int64, u uint32, U uint64, d double, D fixed64, f float, or `:full.Name` of a message; `*` in front of the type means
repeated. A map is written as what it is on the wire, a repeated message of key and value.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

TABLE = """
google.protobuf.Any type_url=1s value=2y
google.protobuf.Timestamp seconds=1I nanos=2i
google.protobuf.Empty
google.rpc.Status code=1i message=2s details=3*:google.protobuf.Any
test.Pair key=1s value=2s

ttrpc.Request service=1s method=2s payload=3y timeout_nano=4I metadata=5*:test.Pair
ttrpc.Response status=1:google.rpc.Status payload=2y

containerd.types.Mount type=1s source=2s target=3s options=4*s

containerd.task.CreateTaskRequest id=1s bundle=2s rootfs=3*:containerd.types.Mount terminal=4b stdin=5s stdout=6s \
    stderr=7s checkpoint=8s parent_checkpoint=9s options=10:google.protobuf.Any
containerd.task.CreateTaskResponse pid=1u
containerd.task.StartRequest id=1s exec_id=2s
containerd.task.StartResponse pid=1u
containerd.task.StateRequest id=1s exec_id=2s
containerd.task.StateResponse id=1s bundle=2s pid=3u status=4i stdin=5s stdout=6s stderr=7s terminal=8b exit_status=9u \
    exited_at=10:google.protobuf.Timestamp exec_id=11s
containerd.task.DeleteRequest id=1s exec_id=2s
containerd.task.DeleteResponse pid=1u exit_status=2u exited_at=3:google.protobuf.Timestamp
containerd.task.ProcessInfo pid=1u info=2:google.protobuf.Any
containerd.task.PidsRequest id=1s
containerd.task.PidsResponse processes=1*:containerd.task.ProcessInfo
containerd.task.PauseRequest id=1s
containerd.task.ResumeRequest id=1s
containerd.task.CheckpointTaskRequest id=1s path=2s options=3:google.protobuf.Any
containerd.task.KillRequest id=1s exec_id=2s signal=3u all=4b
containerd.task.ExecProcessRequest id=1s exec_id=2s terminal=3b stdin=4s stdout=5s stderr=6s \
    spec=7:google.protobuf.Any
containerd.task.ResizePtyRequest id=1s exec_id=2s width=3u height=4u
containerd.task.CloseIORequest id=1s exec_id=2s stdin=3b
containerd.task.UpdateTaskRequest id=1s resources=2:google.protobuf.Any annotations=3*:test.Pair
containerd.task.WaitRequest id=1s exec_id=2s
containerd.task.WaitResponse exit_status=1u exited_at=2:google.protobuf.Timestamp
containerd.task.StatsRequest id=1s
containerd.task.StatsResponse stats=1:google.protobuf.Any
containerd.task.ConnectRequest id=1s
containerd.task.ConnectResponse shim_pid=1u task_pid=2u version=3s
containerd.task.ShutdownRequest id=1s now=2b

containerd.runc.v1.ProcessDetails exec_id=1s
containerd.runc.v1.CheckpointOptions exit=1b open_tcp=2b external_unix_sockets=3b terminal=4b file_locks=5b \
    empty_namespaces=6*s cgroups_mode=7s image_path=8s work_path=9s parent_path=10s
containerd.runc.v1.Options no_pivot_root=1b no_new_keyring=2b shim_cgroup=3s io_uid=4u io_gid=5u binary_name=6s \
    root=7s criu_path=8s systemd_cgroup=9b criu_image_path=10s criu_work_path=11s task_api_address=12s \
    task_api_version=13u
containerd.linux.runc.CreateOptions no_pivot_root=1b open_tcp=2b external_unix_sockets=3b terminal=4b file_locks=5b \
    empty_namespaces=6*s cgroups_mode=7s no_new_keyring=8b shim_cgroup=9s io_uid=10u io_gid=11u criu_work_path=12s \
    criu_image_path=13s
containerd.linux.runc.CheckpointOptions exit=1b open_tcp=2b external_unix_sockets=3b terminal=4b file_locks=5b \
    empty_namespaces=6*s cgroups_mode=7s work_path=8s image_path=9s
runtimeoptions.v1.Options type_url=1s config_path=2s config_body=3y

containerd.events.TaskIO stdin=1s stdout=2s stderr=3s terminal=4b
containerd.events.TaskCreate container_id=1s bundle=2s rootfs=3*:containerd.types.Mount io=4:containerd.events.TaskIO \
    checkpoint=5s pid=6u
containerd.events.TaskStart container_id=1s pid=2u
containerd.events.TaskExit container_id=1s id=2s pid=3u exit_status=4u exited_at=5:google.protobuf.Timestamp
containerd.events.TaskDelete container_id=1s pid=2u exit_status=3u exited_at=4:google.protobuf.Timestamp id=5s
containerd.events.TaskOOM container_id=1s
containerd.events.TaskExecAdded container_id=1s exec_id=2s
containerd.events.TaskExecStarted container_id=1s exec_id=2s pid=3u
containerd.events.TaskPaused container_id=1s
containerd.events.TaskResumed container_id=1s
containerd.events.TaskCheckpointed container_id=1s checkpoint=2s
containerd.events.Envelope timestamp=1:google.protobuf.Timestamp namespace=2s topic=3s event=4:google.protobuf.Any
containerd.events.ForwardRequest envelope=1:containerd.events.Envelope

containerd.bootstrap.Extension value=1:google.protobuf.Any
containerd.bootstrap.BootstrapParams instance_id=1s namespace=2s log_level=3i containerd_version=4s \
    containerd_ttrpc_address=5s containerd_grpc_address=6s containerd_binary=7s \
    extensions=8*:containerd.bootstrap.Extension socket_dir=9s
containerd.bootstrap.BootstrapResult version=1i address=2s protocol=3s capabilities=4*s metadata=5*:test.Pair
containerd.types.RuntimeVersion version=1s revision=2s
containerd.types.RuntimeInfo name=1s version=2:containerd.types.RuntimeVersion options=3:google.protobuf.Any \
    features=4:google.protobuf.Any annotations=5*:test.Pair

cgroups1.HugetlbStat usage=1U max=2U failcnt=3U pagesize=4s
cgroups1.PidsStat current=1U limit=2U
cgroups1.CPUUsage total=1U kernel=2U user=3U per_cpu=4*U
cgroups1.Throttle periods=1U throttled_periods=2U throttled_time=3U
cgroups1.CPUStat usage=1:cgroups1.CPUUsage throttling=2:cgroups1.Throttle
cgroups1.MemoryEntry limit=1U usage=2U max=3U failcnt=4U
cgroups1.MemoryStat cache=1U rss=2U rss_huge=3U mapped_file=4U dirty=5U writeback=6U pg_pg_in=7U pg_pg_out=8U \
    pg_fault=9U pg_maj_fault=10U inactive_anon=11U active_anon=12U inactive_file=13U active_file=14U unevictable=15U \
    hierarchical_memory_limit=16U hierarchical_swap_limit=17U total_cache=18U total_rss=19U total_rss_huge=20U \
    total_mapped_file=21U total_dirty=22U total_writeback=23U total_pg_pg_in=24U total_pg_pg_out=25U \
    total_pg_fault=26U total_pg_maj_fault=27U total_inactive_anon=28U total_active_anon=29U total_inactive_file=30U \
    total_active_file=31U total_unevictable=32U usage=33:cgroups1.MemoryEntry swap=34:cgroups1.MemoryEntry \
    kernel=35:cgroups1.MemoryEntry kernel_tcp=36:cgroups1.MemoryEntry
cgroups1.BlkIOEntry op=1s device=2s major=3U minor=4U value=5U
cgroups1.BlkIOStat io_service_bytes_recursive=1*:cgroups1.BlkIOEntry io_serviced_recursive=2*:cgroups1.BlkIOEntry \
    io_queued_recursive=3*:cgroups1.BlkIOEntry io_service_time_recursive=4*:cgroups1.BlkIOEntry \
    io_wait_time_recursive=5*:cgroups1.BlkIOEntry io_merged_recursive=6*:cgroups1.BlkIOEntry \
    io_time_recursive=7*:cgroups1.BlkIOEntry sectors_recursive=8*:cgroups1.BlkIOEntry
cgroups1.RdmaEntry device=1s hca_handles=2u hca_objects=3u
cgroups1.RdmaStat current=1*:cgroups1.RdmaEntry limit=2*:cgroups1.RdmaEntry
cgroups1.MemoryOomControl oom_kill_disable=1U under_oom=2U oom_kill=3U
cgroups1.Metrics hugetlb=1*:cgroups1.HugetlbStat pids=2:cgroups1.PidsStat cpu=3:cgroups1.CPUStat \
    memory=4:cgroups1.MemoryStat blkio=5:cgroups1.BlkIOStat rdma=6:cgroups1.RdmaStat \
    memory_oom_control=9:cgroups1.MemoryOomControl

cgroups2.PSIData avg10=1d avg60=2d avg300=3d total=4U
cgroups2.PSIStats some=1:cgroups2.PSIData full=2:cgroups2.PSIData
cgroups2.PidsStat current=1U limit=2U
cgroups2.CPUStat usage_usec=1U user_usec=2U system_usec=3U nr_periods=4U nr_throttled=5U throttled_usec=6U \
    psi=7:cgroups2.PSIStats nr_bursts=8U burst_usec=9U
cgroups2.MemoryStat anon=1U file=2U kernel_stack=3U slab=4U sock=5U shmem=6U file_mapped=7U file_dirty=8U \
    file_writeback=9U anon_thp=10U inactive_anon=11U active_anon=12U inactive_file=13U active_file=14U \
    unevictable=15U slab_reclaimable=16U slab_unreclaimable=17U pgfault=18U pgmajfault=19U workingset_refault=20U \
    workingset_activate=21U workingset_nodereclaim=22U pgrefill=23U pgscan=24U pgsteal=25U pgactivate=26U \
    pgdeactivate=27U pglazyfree=28U pglazyfreed=29U thp_fault_alloc=30U thp_collapse_alloc=31U usage=32U \
    usage_limit=33U swap_usage=34U swap_limit=35U max_usage=36U swap_max_usage=37U psi=38:cgroups2.PSIStats
cgroups2.IOEntry major=1U minor=2U rbytes=3U wbytes=4U rios=5U wios=6U
cgroups2.IOStat usage=1*:cgroups2.IOEntry psi=2:cgroups2.PSIStats
cgroups2.MemoryEvents low=1U high=2U max=3U oom=4U oom_kill=5U oom_group_kill=6U
cgroups2.HugeTlbStat current=1U max=2U pagesize=3s failcnt=4U
cgroups2.Metrics pids=1:cgroups2.PidsStat cpu=2:cgroups2.CPUStat memory=4:cgroups2.MemoryStat \
    io=6:cgroups2.IOStat hugetlb=7*:cgroups2.HugeTlbStat memory_events=8:cgroups2.MemoryEvents
"""

_FIELD = descriptor_pb2.FieldDescriptorProto
_SCALARS = {
    "s": _FIELD.TYPE_STRING,
    "y": _FIELD.TYPE_BYTES,
    "b": _FIELD.TYPE_BOOL,
    "i": _FIELD.TYPE_INT32,
    "I": _FIELD.TYPE_INT64,
    "u": _FIELD.TYPE_UINT32,
    "U": _FIELD.TYPE_UINT64,
    "d": _FIELD.TYPE_DOUBLE,
    "D": _FIELD.TYPE_FIXED64,
    "f": _FIELD.TYPE_FLOAT,
}

#: What the name in a type_url stands for here, where the two differ.
URLS = {
    "io.containerd.cgroups.v1.Metrics": "cgroups1.Metrics",
    "io.containerd.cgroups.v2.Metrics": "cgroups2.Metrics",
}


@cache
def _classes() -> dict[str, Any]:
    """{full name: class}, in a pool of their own."""
    file = descriptor_pb2.FileDescriptorProto(name="shim.proto", package="shim", syntax="proto3")
    for line in TABLE.replace("\\\n", " ").splitlines():
        if not line.strip():
            continue
        name, *fields = line.split()
        message = file.message_type.add(name=_flat(name))
        for text in fields:
            found = re.fullmatch(r"(\w+)=(\d+)(\*?)(?:([a-zA-Z])|:([\w.]+))", text)
            assert found, f"{name}: {text}"
            label = _FIELD.LABEL_REPEATED if found[3] else _FIELD.LABEL_OPTIONAL
            field = message.field.add(name=found[1], number=int(found[2]), label=label)
            if found[4]:
                field.type = _SCALARS[found[4]]
            else:
                field.type = _FIELD.TYPE_MESSAGE
                field.type_name = f".shim.{_flat(found[5])}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    names = [line.split()[0] for line in TABLE.replace("\\\n", " ").splitlines() if line.strip()]
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"shim.{_flat(name)}")) for name in names}


def _flat(name: str) -> str:
    """One package for all: the dots of a name become underscores."""
    return name.replace(".", "_")


def names() -> list[str]:
    """Full names of all messages."""
    return list(_classes())


def message(name: str, **fields: Any) -> Any:
    """A message of this full name, with fields set; a field that is None is left out."""
    return _classes()[name](**{key: value for key, value in fields.items() if value is not None})


def parse(name: str, data: bytes) -> Any:
    """A message of this full name from its bytes; ValueError when they are none."""
    from google.protobuf.message import DecodeError

    made = _classes()[name]()
    try:
        made.ParseFromString(data)
    except DecodeError as error:
        raise ValueError(f"{name}: {error}") from error
    return made


def any_of(name: str, **fields: Any) -> Any:
    """A message in an Any, named as containerd names it: without a prefix."""
    return message("google.protobuf.Any", type_url=name, value=message(name, **fields).SerializeToString())


def open_any(any: Any) -> Any:
    """The message in an Any."""
    return parse(URLS.get(any.type_url, any.type_url), any.value)
