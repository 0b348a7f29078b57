"""Taking back what containers have left that don't exist any more."""

from __future__ import annotations

from ocirt.cni import cache, names, networks, resolvers
from ocirt.cni.attach import default_client
from ocirt.cni.config import CONFIG_DIRECTORY
from ocirt.cni.request import join_errors
from ocirt.errors import Error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


def collect(only: Iterable[str] = (), directory: str = CONFIG_DIRECTORY) -> list[str]:
    """Collect the garbage of the named networks, or of all that ocirt made; their names.

    Valid is every cached attachment whose namespace is still there, whoever made
    it. Networks of other programs are left alone unless they are named: their
    attachments need not be in our cache. All are tried; then the first Error is
    raised.
    """
    client = default_client()
    wanted = list(only)
    found = [networks.find(name, directory) for name in wanted] if wanted else networks.find_all(directory)
    done: list[str] = []
    errors: list[Error] = []
    for network in found:
        if not wanted and not network.ours:
            continue
        try:
            client.gc(network, valid_attachments(client.directory, network.name))
            done.append(network.name)
        except Error as error:
            errors.append(error)
    resolvers.collect(lambda container: not any(cache.entries(client.directory, container=container)))
    join_errors(errors)
    return done


def valid_attachments(directory: str, network: str) -> Callable[[], list[tuple[str, str]]]:
    """The network's attachments whose namespace is there, found when called; names of others are forgotten."""

    def found() -> list[tuple[str, str]]:
        entries = cache.entries(directory, network=network)
        valid = [(e.attachment.container, e.attachment.ifname) for e in entries if e.is_alive()]
        names.collect(network, valid)
        return valid

    return found
