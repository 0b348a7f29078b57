"""System call filters: config.json's `linux.seccomp` compiled to classic BPF.

cache      the front door: `cached()` gives the filter of a configuration, compiled at most once
filter     the result, how it is loaded, and a small interpreter that asks it questions
compile    what the configuration means: one verdict a system call number and architecture
layout     how verdicts become a program; assemble: instructions from the end to the start
arches     architectures; tables: their system call numbers
listener   handing the notify descriptor to the agent
dump       for people; record: the smallest profile of a program that was watched

The names below are loaded when they are first used (PEP 562): a container
without a filter pays for none of them.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ocirt.identity.seccomp.cache import cached
    from ocirt.identity.seccomp.compile import compile_filter
    from ocirt.identity.seccomp.filter import Filter, allows, load, verdict
    from ocirt.identity.seccomp.listener import listener_path, send_listener

#: Annotations of crun: calls that nobody knows are an error; a program, base64, instead of `linux.seccomp`;
#: where the agent listens.
FAIL_UNKNOWN = "run.oci.seccomp_fail_unknown_syscall"
BPF_DATA = "run.oci.seccomp_bpf_data"
RECEIVER = "run.oci.seccomp.receiver"

__all__ = [
    "BPF_DATA",
    "FAIL_UNKNOWN",
    "RECEIVER",
    "Filter",
    "allows",
    "cached",
    "compile_filter",
    "listener_path",
    "load",
    "send_listener",
    "verdict",
]

_MODULES = {
    "Filter": "filter",
    "allows": "filter",
    "cached": "cache",
    "compile_filter": "compile",
    "listener_path": "listener",
    "load": "filter",
    "send_listener": "listener",
    "verdict": "filter",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(name)
    module = __import__(f"{__name__}.{_MODULES[name]}", fromlist=(name,))
    return getattr(module, name)
