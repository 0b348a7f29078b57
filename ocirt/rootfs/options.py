"""Mount options: the one table of their names (config.md, Linux mount options).

The same table is what `features` reports.
"""

from __future__ import annotations

from ocirt.linux import mount as m

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

# What an option does with its value.
_SET, _CLEAR = "set", "clear"  # an attribute of the mount
_RSET, _RCLEAR = "rset", "rclear"  # the same of the mount and all below it
_ATIME, _RATIME = "atime", "ratime"  # one of the ways to keep access times
_FLAG, _UNFLAG = "flag", "unflag"  # a flag of the file system
_BIND, _PROPAGATION, _IDMAP = "bind", "propagation", "idmap"
_MARK = "mark"  # something that the runtime does
_NOTHING = "nothing"

TABLE: dict[str, tuple[str, int]] = {
    "defaults": (_NOTHING, 0),
    "ro": (_SET, m.MOUNT_ATTR_RDONLY),
    "rw": (_CLEAR, m.MOUNT_ATTR_RDONLY),
    "nosuid": (_SET, m.MOUNT_ATTR_NOSUID),
    "suid": (_CLEAR, m.MOUNT_ATTR_NOSUID),
    "nodev": (_SET, m.MOUNT_ATTR_NODEV),
    "dev": (_CLEAR, m.MOUNT_ATTR_NODEV),
    "noexec": (_SET, m.MOUNT_ATTR_NOEXEC),
    "exec": (_CLEAR, m.MOUNT_ATTR_NOEXEC),
    "nosymfollow": (_SET, m.MOUNT_ATTR_NOSYMFOLLOW),
    "symfollow": (_CLEAR, m.MOUNT_ATTR_NOSYMFOLLOW),
    "nodiratime": (_SET, m.MOUNT_ATTR_NODIRATIME),
    "diratime": (_CLEAR, m.MOUNT_ATTR_NODIRATIME),
    "noatime": (_ATIME, m.MOUNT_ATTR_NOATIME),
    "atime": (_ATIME, m.MOUNT_ATTR_RELATIME),
    "relatime": (_ATIME, m.MOUNT_ATTR_RELATIME),
    "norelatime": (_NOTHING, 0),  # relatime is the kernel's default, as mount(8) leaves it
    "strictatime": (_ATIME, m.MOUNT_ATTR_STRICTATIME),
    "nostrictatime": (_ATIME, m.MOUNT_ATTR_RELATIME),
    "sync": (_FLAG, m.MS_SYNCHRONOUS),
    "async": (_UNFLAG, m.MS_SYNCHRONOUS),
    "dirsync": (_FLAG, m.MS_DIRSYNC),
    "mand": (_FLAG, m.MS_MANDLOCK),
    "nomand": (_UNFLAG, m.MS_MANDLOCK),
    "lazytime": (_FLAG, m.MS_LAZYTIME),
    "nolazytime": (_UNFLAG, m.MS_LAZYTIME),
    "iversion": (_FLAG, m.MS_I_VERSION),
    "noiversion": (_UNFLAG, m.MS_I_VERSION),
    "silent": (_FLAG, m.MS_SILENT),
    "loud": (_UNFLAG, m.MS_SILENT),
    "remount": (_FLAG, m.MS_REMOUNT),
    "bind": (_BIND, m.MS_BIND),
    "rbind": (_BIND, m.MS_BIND | m.MS_REC),
    "private": (_PROPAGATION, m.MS_PRIVATE),
    "rprivate": (_PROPAGATION, m.MS_PRIVATE | m.MS_REC),
    "shared": (_PROPAGATION, m.MS_SHARED),
    "rshared": (_PROPAGATION, m.MS_SHARED | m.MS_REC),
    "slave": (_PROPAGATION, m.MS_SLAVE),
    "rslave": (_PROPAGATION, m.MS_SLAVE | m.MS_REC),
    "unbindable": (_PROPAGATION, m.MS_UNBINDABLE),
    "runbindable": (_PROPAGATION, m.MS_UNBINDABLE | m.MS_REC),
    "rro": (_RSET, m.MOUNT_ATTR_RDONLY),
    "rrw": (_RCLEAR, m.MOUNT_ATTR_RDONLY),
    "rnosuid": (_RSET, m.MOUNT_ATTR_NOSUID),
    "rsuid": (_RCLEAR, m.MOUNT_ATTR_NOSUID),
    "rnodev": (_RSET, m.MOUNT_ATTR_NODEV),
    "rdev": (_RCLEAR, m.MOUNT_ATTR_NODEV),
    "rnoexec": (_RSET, m.MOUNT_ATTR_NOEXEC),
    "rexec": (_RCLEAR, m.MOUNT_ATTR_NOEXEC),
    "rnosymfollow": (_RSET, m.MOUNT_ATTR_NOSYMFOLLOW),
    "rsymfollow": (_RCLEAR, m.MOUNT_ATTR_NOSYMFOLLOW),
    "rnodiratime": (_RSET, m.MOUNT_ATTR_NODIRATIME),
    "rdiratime": (_RCLEAR, m.MOUNT_ATTR_NODIRATIME),
    "rnoatime": (_RATIME, m.MOUNT_ATTR_NOATIME),
    "ratime": (_RATIME, m.MOUNT_ATTR_RELATIME),
    "rrelatime": (_RATIME, m.MOUNT_ATTR_RELATIME),
    "rnorelatime": (_NOTHING, 0),
    "rstrictatime": (_RATIME, m.MOUNT_ATTR_STRICTATIME),
    "rnostrictatime": (_RATIME, m.MOUNT_ATTR_RELATIME),
    "idmap": (_IDMAP, 0),
    "ridmap": (_IDMAP, m.AT_RECURSIVE),
    "tmpcopyup": (_MARK, 1),
    "copy-symlink": (_MARK, 2),
    "src-nofollow": (_MARK, 4),
    "dest-nofollow": (_MARK, 8),
}

TMPCOPYUP = 1
COPY_SYMLINK = 2
SRC_NOFOLLOW = 4
DEST_NOFOLLOW = 8

#: What mount(8) keeps to itself, besides `x-…`, `X-…` and `comment=…`: never given to a file system.
_OF_MOUNT8 = frozenset(("_netdev", "auto", "noauto", "nofail", "nouser", "nogroup", "noowner"))

#: The names that `features` lists as mountOptions.
NAMES = tuple(sorted(TABLE))


class Options:
    """The options of one mount.

    set, clear    MOUNT_ATTR_* of the mount
    rset, rclear  the same for the mount and everything below it
    flags         MS_* of the file system (MS_SYNCHRONOUS …, MS_REMOUNT)
    bind          MS_BIND, perhaps with MS_REC; 0 for a new file system
    propagation   MS_SHARED …, perhaps with MS_REC, in the order given
    idmap         None, or AT_RECURSIVE or 0
    mapping       what stood behind `idmap=`, "" if nothing
    marks         TMPCOPYUP | COPY_SYMLINK | SRC_NOFOLLOW | DEST_NOFOLLOW
    data          what is for the file system itself
    late          it becomes read-only only when everything in it is made
    """

    __slots__ = (
        "bind",
        "clear",
        "data",
        "flags",
        "idmap",
        "late",
        "mapping",
        "marks",
        "propagation",
        "rclear",
        "rset",
        "set",
    )

    def __init__(self) -> None:
        self.set = 0
        self.clear = 0
        self.rset = 0
        self.rclear = 0
        self.flags = 0
        self.bind = 0
        self.propagation: list[int] = []
        self.idmap: int | None = None
        self.mapping = ""
        self.marks = 0
        self.data: list[str] = []
        self.late = False


def parse(options: Iterable[str]) -> Options:
    """Read the options of a mount; of options that contradict each other the last one wins."""
    o = Options()
    for option in options:
        entry = TABLE.get(option)
        if entry is None:
            _other(o, option)
            continue
        kind, value = entry
        if kind is _SET:
            o.set |= value
            o.clear &= ~value
        elif kind is _CLEAR:
            o.clear |= value
            o.set &= ~value
        elif kind is _PROPAGATION:
            o.propagation.append(value)
        elif kind is _BIND:
            o.bind |= value
        elif kind is _ATIME:
            # The field of access times is changed as a whole or not at all.
            o.set = o.set & ~m.MOUNT_ATTR__ATIME | value
            o.clear |= m.MOUNT_ATTR__ATIME
        elif kind is _FLAG:
            o.flags |= value
        elif kind is _UNFLAG:
            o.flags &= ~value
        elif kind is _RSET:
            o.rset |= value
            o.rclear &= ~value
        elif kind is _RCLEAR:
            o.rclear |= value
            o.rset &= ~value
        elif kind is _RATIME:
            o.rset = o.rset & ~m.MOUNT_ATTR__ATIME | value
            o.rclear |= m.MOUNT_ATTR__ATIME
        elif kind is _IDMAP:
            o.idmap = value | (o.idmap or 0)
        elif kind is _MARK:
            o.marks |= value
    return o


def _other(o: Options, option: str) -> None:
    name, equals, value = option.partition("=")
    if equals and name in ("idmap", "ridmap"):
        o.idmap = TABLE[name][1]
        o.mapping = value
    elif option and option not in _OF_MOUNT8 and not option.startswith(("x-", "X-", "comment=")):
        o.data.append(option)


def split_data(data: Iterable[str]) -> list[tuple[str, str | None]]:
    """Data of a file system as (key, value) pairs, None for an option without a value.

    An entry may hold several, separated by commas; a comma inside double quotes
    (SELinux contexts) or behind a backslash (overlayfs) separates nothing.
    """
    pairs: list[tuple[str, str | None]] = []
    for entry in data:
        start = 0
        quoted = False
        for i, c in enumerate(entry + ","):
            if c == '"':
                quoted = not quoted
            elif c == "," and not quoted and entry[i - 1 : i] != "\\":
                if part := entry[start:i]:
                    key, equals, value = part.partition("=")
                    pairs.append((key, value.strip('"') if equals else None))
                start = i + 1
    return pairs
