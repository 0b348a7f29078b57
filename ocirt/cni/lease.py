"""The process that keeps an attachment's DHCP lease: pyroute2's client, in the container's namespace.

It gets the lease, writes it to its record, renews it in time, and releases it on SIGTERM.

    ocirt.cni.lease -ports FD    see ocirt.cni.plugins.dhcp
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys

from pyroute2.dhcp.client import AsyncDHCPClient, ClientConfig
from pyroute2.dhcp.enums.dhcp import Option
from pyroute2.dhcp.fsm import State
from pyroute2.dhcp.leases import Lease, MissingOptionError

from ocirt.jsontext import dump_json, parse_json
from ocirt.linux import libc
from ocirt.linux.netlink import CLONE_NEWNET
from ocirt.proxy.main import hold

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

_OPTIONS = ("subnet_mask", "routers", "name_servers", "domain_name", "domain_search", "mtu", "lease_time")


def launch() -> NoReturn:
    """Run the process's own command line and leave."""
    number = int(sys.argv[sys.argv.index("-ports") + 1])
    data: Any = parse_json(os.pread(number, os.fstat(number).st_size, 0), "the description of the lease")
    os.close(number)
    os._exit(asyncio.run(_keep(data)) if hold(data["record"]) else 0)


def _described(lease: Lease) -> dict[str, Any]:
    found: dict[str, Any] = {"address": f"{lease.ip}/{lease.prefixlen}"}
    for option in _OPTIONS:
        try:
            found[option] = getattr(lease, option)
        except MissingOptionError:
            continue
    return found


async def _keep(data: dict[str, Any]) -> int:
    record = data["record"]

    class Recorded(Lease):
        """A lease in the record, next to whose it is."""

        def dump(self) -> None:
            text = dump_json({"comment": data["comment"], "lease": _described(self)})
            os.pwrite(record, text, 0)
            os.ftruncate(record, len(text))

        @classmethod
        def load(cls, interface: str) -> None:  # noqa: ARG003
            return None

    (namespace,) = data["fds"]
    libc.call("setns", namespace, CLONE_NEWNET)
    os.close(namespace)
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    config = ClientConfig(
        interface=data["interface"],
        lease_type=Recorded,
        client_id=data["client_id"].encode(),
        host_name=data["host_name"] or None,
        vendor_id=data["vendor_id"],
        requested_parameters=[Option(number) for number in data["requested"]],
        handle_signals=False,
    )
    async with AsyncDHCPClient(config) as client:
        await client.bootstrap()
        try:
            await client.wait_for_state(State.BOUND, timeout=data["timeout"])
        except TimeoutError:
            os.write(data["status"], b"1\nno DHCP server has answered")
            return 1
        os.write(data["status"], b"0\n")
        os.close(data["status"])
        await stopped.wait()
    return 0
