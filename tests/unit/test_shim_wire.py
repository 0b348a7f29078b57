"""The shim's protobuf codec and its tables against protobuf itself, by a table of the tests' own."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ocirt.shim import messages, metrics, wire
from ocirt.shim.wire import BOOL, BYTES, DOUBLE, INT32, INT64, STRING, UINT32, UINT64
from tests.engines.containerd import schema

Table = dict[int, tuple[str, Any]]

#: {name in messages.py: message}
NAMES = {
    "ANY": "google.protobuf.Any",
    "TIMESTAMP": "google.protobuf.Timestamp",
    "EMPTY": "google.protobuf.Empty",
    "STATUS": "google.rpc.Status",
    "PAIR": "test.Pair",
    "REQUEST": "ttrpc.Request",
    "RESPONSE": "ttrpc.Response",
    "EXTENSION": "containerd.bootstrap.Extension",
    "BOOTSTRAP_PARAMS": "containerd.bootstrap.BootstrapParams",
    "BOOTSTRAP_RESULT": "containerd.bootstrap.BootstrapResult",
    "RUNTIME_VERSION": "containerd.types.RuntimeVersion",
    "RUNTIME_INFO": "containerd.types.RuntimeInfo",
    "RUNC_OPTIONS": "containerd.runc.v1.Options",
    "RUNTIME_OPTIONS": "runtimeoptions.v1.Options",
    "CHECKPOINT_OPTIONS": "containerd.runc.v1.CheckpointOptions",
    "OLD_CREATE_OPTIONS": "containerd.linux.runc.CreateOptions",
    "OLD_CHECKPOINT_OPTIONS": "containerd.linux.runc.CheckpointOptions",
    "MOUNT": "containerd.types.Mount",
    "CREATE": "containerd.task.CreateTaskRequest",
    "STATE": "containerd.task.StateResponse",
    "PROCESS": "containerd.task.StateRequest",
    "CONTAINER": "containerd.task.PidsRequest",
    "PID": "containerd.task.CreateTaskResponse",
    "DELETED": "containerd.task.DeleteResponse",
    "PROCESS_DETAILS": "containerd.runc.v1.ProcessDetails",
    "PROCESS_INFO": "containerd.task.ProcessInfo",
    "PIDS": "containerd.task.PidsResponse",
    "CHECKPOINT": "containerd.task.CheckpointTaskRequest",
    "KILL": "containerd.task.KillRequest",
    "EXEC": "containerd.task.ExecProcessRequest",
    "RESIZE": "containerd.task.ResizePtyRequest",
    "CLOSE_IO": "containerd.task.CloseIORequest",
    "UPDATE": "containerd.task.UpdateTaskRequest",
    "EXITED": "containerd.task.WaitResponse",
    "STATS": "containerd.task.StatsResponse",
    "SHUTDOWN": "containerd.task.ShutdownRequest",
    "CONNECT": "containerd.task.ConnectResponse",
    "TASK_IO": "containerd.events.TaskIO",
    "ENVELOPE": "containerd.events.Envelope",
    "FORWARD": "containerd.events.ForwardRequest",
}
METRICS = {"V1": "cgroups1.Metrics", "V2": "cgroups2.Metrics"}


def tables() -> dict[str, tuple[Table, str]]:
    """{name: (table, message)} of all that is known here."""
    found = {name: (getattr(messages, name), message) for name, message in NAMES.items()}
    found |= {name: (getattr(metrics, name), message) for name, message in METRICS.items()}
    return found | {topic: (table, f"containerd.events.{name}") for topic, (name, table) in messages.EVENTS.items()}


ALL = tables()


def is_table(value: object) -> bool:
    return isinstance(value, dict) and bool(value) and all(isinstance(key, int) for key in value)


def test_every_table_is_looked_at() -> None:
    """A message that is added must be added here, too."""
    known = {id(table) for table, _ in ALL.values()}
    missing = {name for name, value in vars(messages).items() if is_table(value) and id(value) not in known}
    assert missing == set()


KINDS = {
    STRING: "TYPE_STRING",
    BYTES: "TYPE_BYTES",
    BOOL: "TYPE_BOOL",
    INT32: "TYPE_INT32",
    INT64: "TYPE_INT64",
    UINT32: "TYPE_UINT32",
    UINT64: "TYPE_UINT64",
    DOUBLE: "TYPE_DOUBLE",
}


def compare(table: Table, descriptor: Any, *, names: bool, path: str) -> list[str]:
    """What is different between a table and protobuf's descriptor."""
    wrong = []
    fields = {field.number: field for field in descriptor.fields}
    for number, (name, kind) in table.items():
        field = fields.get(number)
        where = f"{path}.{name}={number}"
        if field is None:
            wrong.append(f"{where}: no such field")
            continue
        if names and field.name != name:
            wrong.append(f"{where}: is {field.name}")
        inner = kind
        repeated = isinstance(kind, list)
        if repeated:
            inner = kind[0]
        elif kind == {}:
            repeated, inner = True, {1: ("key", STRING), 2: ("value", STRING)}
        if repeated != field.is_repeated:
            wrong.append(f"{where}: repeated: {field.is_repeated}")
        if isinstance(inner, dict):
            if field.message_type is None:
                wrong.append(f"{where}: is no message")
            else:
                wrong += compare(inner, field.message_type, names=names, path=where)
        elif field.type != getattr(field, KINDS[inner]):
            wrong.append(f"{where}: is of type {field.type}")
    return wrong


@pytest.mark.parametrize("name", ALL)
def test_tables(name: str) -> None:
    """Numbers, types and names."""
    table, message = ALL[name]
    descriptor = schema.message(message).DESCRIPTOR
    assert compare(table, descriptor, names=name not in METRICS, path=message) == []
    if name not in METRICS:
        assert sorted(table) == sorted(field.number for field in descriptor.fields)


# values

TEXT = st.text(max_size=12)
SCALARS: dict[int, st.SearchStrategy[Any]] = {
    STRING: TEXT,
    BYTES: st.binary(max_size=12),
    BOOL: st.booleans(),
    INT32: st.integers(-(1 << 31), (1 << 31) - 1),
    INT64: st.integers(-(1 << 63), (1 << 63) - 1),
    UINT32: st.integers(0, (1 << 32) - 1),
    UINT64: st.integers(0, (1 << 64) - 1),
    DOUBLE: st.floats(allow_nan=False),
}


def values(kind: Any) -> st.SearchStrategy[Any]:
    """Values of a field's kind."""
    if isinstance(kind, list):
        return st.lists(values(kind[0]), max_size=3)
    if kind == {}:
        return st.dictionaries(TEXT, TEXT, max_size=3)
    return message_of(kind) if isinstance(kind, dict) else SCALARS[kind]


def message_of(table: Table) -> st.SearchStrategy[dict[str, Any]]:
    """Messages of a table, as the codec has them; some fields are left out. Large ones get a few fields only."""
    entries = list(table.values())
    if len(entries) <= 16:
        return st.fixed_dictionaries({}, optional={name: values(kind) for name, kind in entries})

    def some(chosen: list[tuple[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
        return st.fixed_dictionaries({name: values(kind) for name, kind in chosen})

    return st.lists(st.sampled_from(entries), max_size=5, unique_by=lambda e: str(e[0])).flatmap(some)


def with_defaults(table: Table, message: dict[str, Any]) -> dict[str, Any]:
    """A message with nothing left out, so that two can be compared; one that isn't there is None."""
    full: dict[str, Any] = {}
    for name, kind in table.values():
        value = message.get(name)
        if isinstance(kind, list):
            inner = kind[0]
            full[name] = [with_defaults(inner, v) if isinstance(inner, dict) else v for v in value or []]
        elif kind == {}:
            full[name] = dict(value or {})
        elif isinstance(kind, dict):
            full[name] = None if value is None else with_defaults(kind, value)
        else:
            zero: Any = "" if kind == STRING else b"" if kind == BYTES else 0
            full[name] = value or zero
    return full


def of_protobuf(table: Table, message: Any) -> dict[str, Any]:
    """protobuf's message as `with_defaults` makes it: by number, because names may differ."""
    full: dict[str, Any] = {}
    fields = {field.number: field.name for field in message.DESCRIPTOR.fields}
    for number, (name, kind) in table.items():
        value = getattr(message, fields[number])
        if isinstance(kind, list):
            inner = kind[0]
            full[name] = [of_protobuf(inner, v) if isinstance(inner, dict) else v for v in value]
        elif kind == {}:
            full[name] = {pair.key: pair.value for pair in value}
        elif isinstance(kind, dict):
            full[name] = of_protobuf(kind, value) if message.HasField(fields[number]) else None
        else:
            full[name] = value or ("" if kind == STRING else b"" if kind == BYTES else 0)
    return full


BY_NAME = sorted(ALL)


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_what_we_write_protobuf_reads(data: st.DataObject) -> None:
    table, name = ALL[data.draw(st.sampled_from(BY_NAME))]
    message = data.draw(message_of(table))
    parsed = schema.parse(name, wire.encode(table, message))
    assert of_protobuf(table, parsed) == with_defaults(table, message)
    assert parsed.SerializeToString() == wire.encode(table, message), "nothing is written that protobuf wouldn't write"


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_what_protobuf_writes_we_read(data: st.DataObject) -> None:
    table, name = ALL[data.draw(st.sampled_from(BY_NAME))]
    message = data.draw(message_of(table))
    written = schema.parse(name, wire.encode(table, message)).SerializeToString()
    assert with_defaults(table, wire.decode(table, written)) == with_defaults(table, message)


# what isn't written by anybody in their right mind


def varint(value: int) -> bytes:
    data = bytearray()
    value &= (1 << 64) - 1
    while value > 0x7F:
        data.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*data, value])


def entry(number: int, form: int, value: Any) -> bytes:
    head = varint(number << 3 | form)
    if form == 0:
        return head + varint(value)
    if form == 2:
        return head + varint(len(value)) + bytes(value)
    return head + value


FORMS = st.sampled_from([0, 1, 2, 5])


@st.composite
def entries(draw: st.DrawFn) -> bytes:
    """Well-formed fields of any number and wire type: unknown, repeated, of another type than the table says."""
    data = b""
    for _ in range(draw(st.integers(0, 5))):
        form = draw(FORMS)
        value: Any = {
            0: st.integers(0, (1 << 64) - 1),
            1: st.binary(min_size=8, max_size=8),
            2: st.one_of(st.binary(max_size=10), TEXT.map(str.encode), entries()),
            5: st.binary(min_size=4, max_size=4),
        }[form]
        data += entry(draw(st.one_of(st.integers(1, 40), st.integers(1, (1 << 29) - 1))), form, draw(value))
    return data


def both(table: Table, name: str, data: bytes) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """What we and protobuf make of bytes; None for an error."""
    try:
        ours = with_defaults(table, wire.decode(table, data))
    except ValueError:
        ours = None
    try:
        theirs = of_protobuf(table, schema.parse(name, data))
    except ValueError:
        theirs = None
    return ours, theirs


@settings(max_examples=800, deadline=None)
@given(st.sampled_from(BY_NAME), entries())
@example("STATE", entry(10, 2, entry(1, 0, 5)) + entry(10, 2, entry(2, 0, 7)))  # a message twice is merged
@example("BOOTSTRAP_PARAMS", entry(3, 0, -8))
@example("KILL", entry(3, 0, (1 << 35) + 9))
@example("MOUNT", entry(1, 2, b"\xff"))
def test_unknown_and_unexpected_fields(name: str, data: bytes) -> None:
    """Both say the same, about errors too."""
    table, message = ALL[name]
    ours, theirs = both(table, message, data)
    assert ours == theirs


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(BY_NAME), entries(), st.data())
def test_cut_off(name: str, data: bytes, draw: st.DataObject) -> None:
    """A message that ends too early."""
    table, message = ALL[name]
    part = data[: draw.draw(st.integers(0, len(data)))]
    ours, theirs = both(table, message, part)
    assert ours == theirs


@settings(max_examples=1500, deadline=None)
@given(st.sampled_from(BY_NAME), st.binary(max_size=40))
def test_any_bytes(name: str, data: bytes) -> None:
    """Never anything but a message or a ValueError; what both take they take alike. Groups are the one thing that we
    refuse and protobuf passes over: nobody has sent them for twenty years."""
    table, message = ALL[name]
    ours, theirs = both(table, message, data)
    if ours is not None and theirs is not None:
        assert ours == theirs


def test_deep_nesting() -> None:
    """Bounded, like everything that comes from a socket."""
    table: Table = {}
    table[1] = ("inner", table)
    data = b""
    for _ in range(200):
        data = entry(1, 2, data)
    with pytest.raises(ValueError, match="deep"):
        wire.decode(table, data)


def test_unknown_name() -> None:
    with pytest.raises(ValueError, match="nothing"):
        wire.encode(messages.PAIR, {"key": "a", "nothing": 1})
