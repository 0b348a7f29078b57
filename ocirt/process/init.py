"""The container's init between clone and execve: seal the interpreter, run the steps, report.

Nothing here or in a step may import, look up a codec, ask NSS or print a
traceback: after the root has been entered, files of those names are the
container's (docs/security.md).
"""

from __future__ import annotations

import posix as os
import sys

from ocirt import log
from ocirt.errors import Error, in_context
from ocirt.linux import fds

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

    from ocirt.process.plan import Plan, Step


def main(plan: Plan, inherited: set[int]) -> NoReturn:
    """Run plan.steps as the child of a clone; never returns.

    inherited  descriptors to keep besides 0–2; all others are closed first, so
               that nothing of the caller can be reached from inside (CVE-2024-21626)
    """
    status = 1
    try:
        log.in_init()
        seal_imports()
        fds.close_all_but({0, 1, 2} | inherited)
        for step in plan.steps:
            run_step(plan, step)
    except Error as error:
        _report(plan, error)
    except BaseException as error:
        _report(plan, Error(f"bug in ocirt: {type(error).__name__}: {error} ({_where(error)})"))
    finally:
        os._exit(status)


def run_step(plan: Plan, step: Step) -> None:
    """Run one step; its phrase is the context of its error and its name in the timeline."""
    try:
        if log.timed():
            log.step(phrase(step))
        step(plan)
    except OSError as error:
        raise in_context(error, phrase(step)) from None
    except Error as error:
        error.context = (phrase(step), *error.context)
        raise


def phrase(step: Step) -> str:
    """The first line of a step's docstring."""
    return (step.__doc__ or step.__name__).split("\n", 1)[0]


def seal_imports() -> None:
    """Make any later import fail.

    An import after the root has been entered would run the container's
    /usr/lib/python3 as root of the host.
    """
    sys.path.clear()
    sys.meta_path.clear()
    sys.path_hooks.clear()
    sys.path_importer_cache.clear()
    # the codecs of a quick start (cli/quickstart.py) come by a path, whatever sys.path is: by then the container's
    vars(sys.modules["encodings"]).pop("__getattr__", None)


def _report(plan: Plan, error: Error) -> None:
    log.detach()
    try:
        plan.channel.send_error(error)
    except Error:
        pass  # whoever listened is gone: there is nobody left to tell


def _where(error: BaseException) -> str:
    """The line that raised: the traceback module is not to be had here."""
    trace = error.__traceback__
    where = "?"
    while trace is not None:
        code = trace.tb_frame.f_code
        where = f"{code.co_filename}:{trace.tb_lineno}"
        trace = trace.tb_next
    return where
