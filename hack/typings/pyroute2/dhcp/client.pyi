from typing import Self

from pyroute2.dhcp.enums.dhcp import Option
from pyroute2.dhcp.fsm import State
from pyroute2.dhcp.leases import Lease

class ClientConfig:
    def __init__(
        self,
        *,
        interface: str,
        lease_type: type[Lease],
        client_id: bytes,
        host_name: str | None,
        vendor_id: str,
        requested_parameters: list[Option],
        handle_signals: bool,
    ) -> None: ...

class AsyncDHCPClient:
    def __init__(self, config: ClientConfig) -> None: ...
    async def __aenter__(self) -> Self: ...
    async def __aexit__(self, *what: object) -> None: ...
    async def bootstrap(self) -> None: ...
    async def wait_for_state(self, state: State, timeout: float) -> None: ...
