"""The client's ends of a task's fifos."""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from pathlib import Path


class Output:
    """A fifo that a thread reads to the end of file.

    paused  nothing is read until `resume`
    """

    def __init__(self, path: Path, *, paused: bool = False) -> None:
        self.path = path
        os.mkfifo(path, 0o700)
        self.fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        self.data = bytearray()
        self._go, self._stop = threading.Event(), threading.Event()
        if not paused:
            self._go.set()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        while not self._go.wait(0.05):
            if self._stop.is_set():
                return
        poll = select.poll()
        poll.register(self.fd, select.POLLIN)  # hangs up only after somebody has had it open
        while not self._stop.is_set():
            if poll.poll(50):
                with contextlib.suppress(BlockingIOError):
                    data = os.read(self.fd, 1 << 16)
                    if not data:
                        return
                    self.data += data

    def resume(self) -> None:
        self._go.set()

    def all(self, timeout: float = 20) -> bytes:
        """Everything up to the end of file; fails when that doesn't come."""
        self.resume()
        self._thread.join(timeout)
        assert not self._thread.is_alive(), f"no end of file within {timeout} s after {bytes(self.data[-200:])!r}"
        return bytes(self.data)

    @property
    def ended(self) -> bool:
        return not self._thread.is_alive()

    def until(self, text: bytes, timeout: float = 20) -> bytes:
        """What has come once `text` is in it."""
        end = time.monotonic() + timeout
        while text not in self.data:
            assert time.monotonic() < end, f"no {text!r} in {bytes(self.data)!r}"
            time.sleep(0.01)
        return bytes(self.data)

    def leave(self) -> None:
        """The reader goes away."""
        self._stop.set()
        self._thread.join(10)
        os.close(self.fd)
        self.fd = -1

    def close(self) -> None:
        if self.fd >= 0:
            self.leave()


class Input:
    """A fifo that is written; it is open for both, so that nothing here blocks or hangs up."""

    def __init__(self, path: Path) -> None:
        self.path = path
        os.mkfifo(path, 0o700)
        self.fd = -1

    def open(self) -> None:
        """Open for writing: once the shim reads."""
        end = time.monotonic() + 20
        while True:
            try:
                self.fd = os.open(self.path, os.O_WRONLY | os.O_NONBLOCK)
                os.set_blocking(self.fd, True)
                return
            except OSError:
                assert time.monotonic() < end, "the shim doesn't open stdin"
                time.sleep(0.01)

    def write(self, data: bytes) -> None:
        if self.fd < 0:
            self.open()
        while data:
            data = data[os.write(self.fd, data) :]

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
