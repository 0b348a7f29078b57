"""What the shim's program may import: containerd waits for `start` and `delete` of every container."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sysconfig
import tempfile
import threading
from pathlib import Path

import pytest

from ocirt.cli import launcher
from ocirt.shim import messages, sockets, wire
from tests.unit.test_cli_imports import DEAR

TOP = Path(__file__).resolve().parents[2]

#: Beyond the bare interpreter.
ALLOWED = {
    "__future__", "_socket", "fcntl", "gc",
    "ocirt", "ocirt.errors", "ocirt.ids", "ocirt.log",
    "ocirt.shim", "ocirt.shim.bundles", "ocirt.shim.main", "ocirt.shim.messages", "ocirt.shim.sockets",
    "ocirt.shim.wire",
}  # fmt: skip


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    path = tmp_path / "c1"
    path.mkdir()
    (path / "config.json").write_text('{"ociVersion": "1.0.2", "annotations": {}}')
    return path


def shim(bundle: Path, action: str, given: bytes = b"") -> tuple[set[str], bytes]:
    """(the modules that an action loads beyond those of a bare interpreter, what it prints)"""
    path = bundle.parent / "shim"
    launcher.write(str(path), directories=(str(TOP), sysconfig.get_path("purelib")), entry="ocirt.shim.main:launch")
    interpreter = [path.read_text().split()[0][2:], launcher.FLAGS, "-X", "importtime"]
    flags = ["-namespace", "ns", "-address", "/c.sock", "-publish-binary", "/bin/false", "-id", "c1"]
    done = subprocess.run(
        [*interpreter, path, *flags, action],
        input=given,
        capture_output=True,
        timeout=60,
        check=False,
        env={},
        cwd=bundle,
    )
    assert done.returncode == 0, done.stderr
    bare = subprocess.run([*interpreter, "-c", "pass"], capture_output=True, timeout=60, check=True, env={}, cwd="/")
    return _imported(done.stderr) - _imported(bare.stderr), done.stdout


def _imported(text: bytes) -> set[str]:
    lines = [line for line in text.decode().splitlines() if line.startswith("import time:")]
    return {line.rpartition("|")[2].strip() for line in lines}


def test_delete_of_what_is_gone(bundle: Path) -> None:
    """As after every ordinary Delete."""
    found, printed = shim(bundle, "delete")
    assert wire.decode(messages.DELETED, printed)["exit_status"] == 137
    assert found <= ALLOWED | {"ocirt.shim.deleting"}


def test_delete_of_what_is_there(bundle: Path) -> None:
    """The test above would see it."""
    (bundle.parent / "root" / "c1").mkdir(parents=True)
    (bundle / "ocirt-root").write_text(f"{bundle.parent}/root")
    assert "ocirt.lifecycle" in shim(bundle, "delete")[0]


def test_start_where_a_shim_serves(bundle: Path) -> None:
    """As for the second container of a pod."""
    directory = tempfile.mkdtemp(dir="/tmp")  # a unix socket's path is short
    address = sockets.address_of(directory, "/c.sock", "ns", "c1")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(sockets.path_of(address))
        listener.listen()

        def answer() -> None:
            connection = listener.accept()[0]
            connection.recv(100)
            connection.send(b"x")
            connection.close()

        thread = threading.Thread(target=answer)
        thread.start()
        parameters = {"instance_id": "c1", "namespace": "ns", "socket_dir": directory}
        found, printed = shim(bundle, "start", wire.encode(messages.BOOTSTRAP_PARAMS, parameters))
        thread.join()
    told = wire.decode(messages.BOOTSTRAP_RESULT, printed)
    assert told == {"version": 3, "address": address, "protocol": "ttrpc"}
    assert (bundle / "address").read_text() == address
    assert found <= ALLOWED | {"ocirt.shim.starting", "_sha256", "_sha2"}
    assert not found & DEAR
    assert os.listdir(directory) == [os.path.basename(sockets.path_of(address))]
    shutil.rmtree(directory)
