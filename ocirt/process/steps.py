"""The order of what happens inside, between clone and execve, and nothing else.

create and exec are made of the same parts. Why a step comes before another
stands in ORDER, which a test checks.
"""

from __future__ import annotations

from ocirt.console import open_console
from ocirt.identity.capabilities import drop_bounding_set, drop_kept_capability, keep_capabilities, set_capabilities
from ocirt.identity.labels import set_process_labels
from ocirt.identity.limits import limit_descriptors, set_rlimits
from ocirt.identity.scheduling import (
    reset_affinity,
    set_io_priority,
    set_memory_policy,
    set_personality,
    set_scheduler,
)
from ocirt.identity.user import become_root, own_stdio, set_home, set_umask, set_user
from ocirt.process.entering import (
    charge_memory,
    enter_cgroup,
    hide_from_container,
    join_namespaces,
    make_cgroup_namespace,
    make_keyring,
    make_other_namespaces,
    make_session,
    open_root,
    raise_loopback,
    set_plain_umask,
    wait_for_cgroup,
    wait_for_ids,
)
from ocirt.process.executing import (
    close_other_descriptors,
    enter_cwd,
    execute,
    find_program,
    load_seccomp,
    make_cwd,
    make_trampoline,
    prepare_execve,
    reopen_null,
    reset_signals,
    set_no_new_privileges,
)
from ocirt.process.naming import set_domainname, set_hostname
from ocirt.process.starting import (
    run_create_container_hooks,
    run_start_container_hooks,
    tell_mounted,
    tell_ready,
    wait_for_start,
)
from ocirt.rootfs import ENTER_ROOT, MOUNTS, SEAL
from ocirt.rootfs.pivot import open_procfs
from ocirt.sysctl import write_sysctls

ENTER = (
    wait_for_ids,
    enter_cgroup,
    join_namespaces,
    make_other_namespaces,
    become_root,
    set_plain_umask,
    make_session,
    hide_from_container,
)

ROOTFS = (
    raise_loopback,
    make_cgroup_namespace,
    *MOUNTS,
    tell_mounted,
    run_create_container_hooks,
    *ENTER_ROOT,
)

SEALED = (
    set_hostname,
    set_domainname,
    write_sysctls,
    *SEAL,
)

PROCESS = (
    make_keyring,
    reopen_null,
    own_stdio,
    set_home,
    reset_affinity,
    set_scheduler,
    set_io_priority,
    set_memory_policy,
    set_personality,
    set_process_labels,
    set_rlimits,
    set_umask,
    drop_bounding_set,
    keep_capabilities,
    set_user,
    set_capabilities,
    enter_cwd,
    find_program,
    set_no_new_privileges,
    make_trampoline,
    charge_memory,
    close_other_descriptors,
)

FINISH = (
    reset_signals,
    prepare_execve,
    limit_descriptors,
    load_seccomp,
    drop_kept_capability,
    execute,
)

CREATE = (
    *ENTER,
    *ROOTFS,
    open_console,
    make_cwd,
    *SEALED,
    *PROCESS,
    tell_ready,
    wait_for_start,
    run_start_container_hooks,
    *FINISH,
)
EXEC = (*ENTER, open_root, open_procfs, open_console, make_cwd, *PROCESS, wait_for_cgroup, tell_ready, *FINISH)

#: (earlier, later, why)
ORDER = (
    (wait_for_ids, join_namespaces, "ids are mapped before anything is made or entered"),
    (enter_cgroup, join_namespaces, "its files are the host's: nothing of a container may be near them"),
    (enter_cgroup, make_cgroup_namespace, "the namespace's root is where its maker is"),
    (charge_memory, close_other_descriptors, "it writes to one of them"),
    (make_cgroup_namespace, MOUNTS[-1], "a cgroup mount shows the namespace's root"),
    (join_namespaces, make_other_namespaces, "a new namespace must belong to the joined user namespace"),
    (join_namespaces, become_root, "root means root of the container's user namespace"),
    (hide_from_container, open_console, "processes of the container could trace us (CVE-2016-9962)"),
    (tell_mounted, run_create_container_hooks, "runtime.md, Lifecycle: createRuntime runs before createContainer"),
    (run_create_container_hooks, ENTER_ROOT[-1], "config.md: createContainer hooks run before pivot_root"),
    (ENTER_ROOT[-1], open_console, "the pty must be one of the container's devpts (CVE-2025-52565)"),
    (open_console, own_stdio, "the streams are the console's by then"),
    (write_sysctls, SEAL[-1], "readonlyPaths usually holds /proc/sys"),
    (open_procfs, make_keyring, "its label is written through the private procfs"),
    (make_keyring, set_user, "root's label and permissions are set by root"),
    (set_process_labels, set_user, "attr/exec may be written by root of the user namespace only"),
    (set_rlimits, set_user, "raising a hard limit takes CAP_SYS_RESOURCE"),
    (set_scheduler, set_user, "real-time policies take CAP_SYS_NICE"),
    (make_cwd, SEAL[-1], "nothing can be made in a read-only root"),
    (make_cwd, set_user, "the directory is made by root"),
    (drop_bounding_set, set_user, "it takes CAP_SETPCAP"),
    (keep_capabilities, set_user, "a change from root to another user would clear the sets"),
    (set_user, set_capabilities, "setresuid takes CAP_SETUID, setgroups CAP_SETGID"),
    (set_user, enter_cwd, "the user, not root, must be able to enter it"),
    (set_user, find_program, "the user, not root, must be able to execute it"),
    (tell_ready, wait_for_start, "runtime.md, create: the program must not run before start"),
    (wait_for_start, run_start_container_hooks, "config.md: startContainer hooks are part of start"),
    (run_start_container_hooks, load_seccomp, "the filter is for the program, not for the hooks"),
    (prepare_execve, load_seccomp, "the filter may forbid every call that arranges descriptors"),
    (set_no_new_privileges, load_seccomp, "a filter needs no_new_privs or CAP_SYS_ADMIN (seccomp(2))"),
    (prepare_execve, limit_descriptors, "it takes descriptors"),
    (load_seccomp, drop_kept_capability, "a filter needs no_new_privs or CAP_SYS_ADMIN (seccomp(2))"),
)
