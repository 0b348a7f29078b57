"""What may be a container's id: names of files are made of it."""

from __future__ import annotations

from ocirt.errors import InvalidConfig

ID_CHARACTERS = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_+.-")
_ID_LIMIT = 1024


def check_id(id: str) -> None:
    """Refuse an id that can't be a file name: letters, digits, `_+.-`, by bytes, not `.` or `..`."""
    data = id.encode("utf-8", "surrogateescape")
    if not data or id in (".", "..") or not ID_CHARACTERS.issuperset(data) or len(data) > _ID_LIMIT:
        raise InvalidConfig(
            f"invalid container ID format: {id[:80]!r}"
            f" (letters, digits and _+.- are allowed, not . or .. alone, at most {_ID_LIMIT})"
        )
