"""ocirt create"""

from __future__ import annotations

from ocirt import lifecycle
from ocirt.commands import Options, runtime

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def run(options: Options) -> int:
    """Create a container and leave its process waiting for start."""
    lifecycle.create(runtime(options), options.id, options.bundle, **creation(options))
    return 0


def creation(options: Options) -> dict[str, Any]:
    """What create and run have in common, as keyword arguments."""
    return {
        "config": options.config,
        "console_socket": options.console_socket,
        "pid_file": options.pid_file,
        "pidfd_socket": options.pidfd_socket,
        "no_pivot": options.no_pivot,
        "no_new_keyring": options.no_new_keyring,
        "preserve_fds": options.preserve_fds,
        "network": network_flags(options),
    }


def network_flags(options: Options) -> dict[str, Any] | None:
    """What the flags say about the network, None if nothing; the keyword arguments of ocirt.cni.attach.parse."""
    flags = {
        "wanted": options.network,
        "publish": options.publish,
        "ip": options.ip,
        "mac": options.mac or "",
        "dns": options.dns,
        "dns_search": options.dns_search,
        "dns_option": options.dns_option,
        "aliases": options.network_alias,
    }
    return flags if any(flags.values()) else None
