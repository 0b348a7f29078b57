"""Pid 1 of the namespaces that one test runs in. Not for use by hand: `execute.py` starts it.

    inside.py RESULT TIMEOUT RUNTIME PROGRAM

Runs PROGRAM, reaps everything (a runtime that polls for the death of a container sees it at once), ends it after
TIMEOUT seconds, deletes the containers that it left behind, and writes `{"status": N, "timeout": bool, "left": [ids]}`
to RESULT. When it exits the kernel kills whatever is still in the pid namespace.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from types import FrameType


def _alarm(_signal: int, _frame: FrameType | None) -> None:
    raise TimeoutError


def run(program: str, timeout: int) -> tuple[int, bool]:
    """-> (exit status, 128+N for a signal; whether the time ran out)"""
    child = os.fork()
    if child == 0:
        try:
            os.setsid()
            os.execv(program, [program])
        finally:
            os._exit(127)
    signal.signal(signal.SIGALRM, _alarm)
    signal.alarm(timeout)
    try:
        while True:
            pid, status = os.wait()
            if pid == child:
                signal.alarm(0)
                code = os.waitstatus_to_exitcode(status)
                return (code if code >= 0 else 128 - code), False
    except TimeoutError:
        os.kill(-1, signal.SIGKILL)
        return 124, True


def clean(runtime: str) -> list[str]:
    """Delete the containers that the test left behind. -> their ids"""
    try:
        listed = subprocess.run([runtime, "list", "-q"], capture_output=True, text=True, timeout=20, check=False)
        left = listed.stdout.split()
        for name in left:
            subprocess.run([runtime, "delete", "--force", name], capture_output=True, timeout=20, check=False)
    except subprocess.TimeoutExpired as late:
        return [f"the runtime hangs: {late}"]
    return left


def main() -> None:
    result, timeout, runtime, program = sys.argv[1:]
    status, late = run(program, int(timeout))
    left = clean(runtime)
    with open(result, "w") as file:
        json.dump({"status": status, "timeout": late, "left": left}, file)


main()
