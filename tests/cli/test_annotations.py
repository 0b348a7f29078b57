"""Annotations by which engines and administrators ask for what config.json has no field for."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path

from tests.harness.box import Box
from tests.harness.peers import lacks, peer_fails

GROUPS = [4321, 4322]


@peer_fails("runc", "has no such annotation")
def test_keep_original_groups(box: Box) -> None:
    """What `podman run --group-add keep-groups` asks for."""
    box.config["annotations"] = {"run.oci.keep_original_groups": "1"}
    box.args("/bin/cat", "/proc/self/status")
    found = re.search(r"^Groups:(.*)$", box.run(extra_groups=GROUPS).out, re.MULTILINE)
    assert found
    assert sorted(map(int, found.group(1).split())) == GROUPS


def test_groups_of_the_caller_are_dropped_otherwise(box: Box) -> None:
    for value in (None, "0"):
        box.config["annotations"] = {"run.oci.keep_original_groups": value} if value else {}
        box.args("/bin/cat", "/proc/self/status")
        if value is None or box.runtime.name == "ocirt":
            found = re.search(r"^Groups:(.*)$", box.run(extra_groups=GROUPS).out, re.MULTILINE)
            assert found
            assert found.group(1).split() == []


@lacks("runc", what="run.oci.pidfd_receiver")
def test_pidfd_receiver(box: Box, place: Path) -> None:
    box.config["annotations"] = {"run.oci.pidfd_receiver": str(place / "receiver")}
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(place / "receiver"))
        listener.listen(1)
        listener.settimeout(20)
        box.sh("sleep 1000")
        box.create()
        connection, _ = listener.accept()
        with connection:
            _, descriptors, _, _ = socket.recv_fds(connection, 100, 4)
    info = Path(f"/proc/self/fdinfo/{descriptors[0]}").read_text()
    os.close(descriptors[0])
    assert f"Pid:\t{box.pid}\n" in info
