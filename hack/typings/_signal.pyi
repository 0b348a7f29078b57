# The C module behind `signal`, which typeshed has no stub for; importing `signal` itself costs an enum.
from collections.abc import Iterable
from typing import Any

NSIG: int
SIG_DFL: Any
SIG_IGN: Any
SIG_BLOCK: int
SIG_UNBLOCK: int
SIG_SETMASK: int
SIGHUP: int
SIGINT: int
SIGQUIT: int
SIGILL: int
SIGTRAP: int
SIGABRT: int
SIGBUS: int
SIGFPE: int
SIGKILL: int
SIGSEGV: int
SIGPIPE: int
SIGUSR1: int
SIGALRM: int
SIGTERM: int
SIGCHLD: int
SIGCONT: int
SIGSTOP: int
SIGURG: int
SIGWINCH: int
SIGSYS: int
SIGRTMIN: int
SIGRTMAX: int

def signal(signalnum: int, handler: Any, /) -> Any: ...
def getsignal(signalnum: int, /) -> Any: ...
def pthread_sigmask(how: int, mask: Iterable[int], /) -> Any: ...
def pidfd_send_signal(pidfd: int, sig: int, siginfo: None = None, flags: int = 0, /) -> None: ...
def set_wakeup_fd(fd: int, /, *, warn_on_full_buffer: bool = ...) -> int: ...
def sigwait(sigset: Iterable[int], /) -> int: ...
def strsignal(signalnum: int, /) -> str | None: ...
def valid_signals() -> set[int]: ...
def siginterrupt(signalnum: int, flag: bool, /) -> None: ...
