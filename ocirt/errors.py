"""The one public error, the context that grows around it, and undoing.

An error reads from the outside in: each level of context is an imperative
phrase of what was being done, the innermost part is the fact or the call that
failed, printed as strace would, a hint in parentheses last.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self


_UNDOING = "while undoing: "


class Error(Exception):
    """What ocirt raises when an operation can't be done.

    reason   what failed: a fact, or a call with its arguments; lower case, no full stop
    errno    the errno of the call, 0 if there was none
    context  imperative phrases, outermost first
    """

    def __init__(self, reason: str, errno: int = 0, context: tuple[str, ...] = ()) -> None:
        super().__init__(reason)
        self.reason = reason
        self.errno = errno
        self.context = context
        self.notes: list[str] = []

    def __str__(self) -> str:
        text = ": ".join((*self.context, self.reason))
        return "; ".join((text, *self.notes))

    def note(self, text: str) -> None:
        """Add what went wrong while undoing; it never replaces the first error."""
        self.notes.append(text)

    def note_undoing(self, failure: BaseException, what: str = "") -> None:
        """Note that `what` (an imperative phrase) failed, unless somebody further in has tried and noted the same."""
        text = str(failure)
        if what and text.split(": ", 1)[0] != what:
            text = f"{what}: {text}"
        whole = f"{_UNDOING}{text}"
        told = [note.removeprefix(_UNDOING) for note in self.notes if note.startswith(_UNDOING)]
        if not any(whole.endswith(f": {earlier}") for earlier in told):
            self.note(whole)


class NotFound(Error):
    """There is no container of this id."""


class AlreadyExists(Error):
    """The id is taken."""


class WrongState(Error):
    """The container's status doesn't allow the operation (runtime.md, Operations)."""


class InvalidConfig(Error):
    """config.json, an id or another input is not valid; nothing was created."""


class Unsupported(Error):
    """The host lacks what was asked for."""


class HookFailed(Error):
    """A hook failed: the container is destroyed (runtime.md, Lifecycle)."""


#: Errors that cross a process boundary as data are raised again as the same class.
BY_NAME: dict[str, type[Error]] = {
    c.__name__: c for c in (Error, NotFound, AlreadyExists, WrongState, InvalidConfig, Unsupported, HookFailed)
}


def from_oserror(error: OSError, call: str, hint: str = "") -> Error:
    """Turn an OSError into an Error: `call: strerror (hint)`."""
    return Error(call_failed(call, error.errno or 0, error.strerror or str(error), hint), error.errno or 0)


def call_failed(call: str, errno: int, strerror: str, hint: str = "") -> str:
    """The reason of a failed call.

    The text of the errno is lower case: engines match `permission denied`,
    `no such file or directory` and `executable file not found`.
    """
    text = f"{call}: {strerror[:1].lower()}{strerror[1:]}" if strerror else f"{call}: errno {errno}"
    return f"{text} ({hint})" if hint else text


class doing:
    """Context of an error: `with doing("mount the root filesystem"): …`.

    An OSError inside becomes an Error; an Error gets this phrase in front.
    """

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, Error):
            error.context = (self.text, *error.context)
        elif isinstance(error, OSError):
            raise in_context(error, self.text) from error


def in_context(error: OSError, text: str) -> Error:
    """An OSError of a plain os call as an Error: it names its file."""
    name = error.filename
    if isinstance(name, bytes):
        name = name.decode("utf-8", "surrogateescape")
    wrapped = from_oserror(error, str(name) if name is not None else "system call")
    wrapped.context = (text,)
    return wrapped


class Undo:
    """A stack of what takes back each thing left on the host.

    On an exception the functions run in reverse order; a failure of one of them
    becomes a note on the error and the others still run. Without an exception
    nothing is undone.
    """

    __slots__ = ("_stack",)

    def __init__(self) -> None:
        self._stack: list[tuple[str, Callable[[], object]]] = []

    def add(self, what: str, function: Callable[[], object]) -> None:
        """Register `function`; `what` is an imperative phrase for the note if it fails."""
        self._stack.append((what, function))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            return
        while self._stack:
            what, function = self._stack.pop()
            try:
                function()
            except (Error, OSError) as failure:
                if isinstance(error, Error):
                    error.note_undoing(failure, what)
