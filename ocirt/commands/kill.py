"""ocirt kill"""

from __future__ import annotations

import _signal

from ocirt import lifecycle
from ocirt.commands import Options, each_match, runtime
from ocirt.errors import Error

HIGHEST = 64


def run(options: Options) -> int:
    """Send a signal to a container's process, or to all of them."""
    number = signal_number(options.signal or "TERM")
    rt = runtime(options)
    if options.regex:
        return each_match(rt, options.id, lambda id: lifecycle.kill(rt, id, number, all=options.all))
    lifecycle.kill(rt, options.id, number, all=options.all)
    return 0


def signal_number(text: str) -> int:
    """The number of a signal given as a number, a name with or without SIG, RTMIN+N or RTMAX-N."""
    if text.isascii() and text.isdigit():
        number = int(text) if len(text) < 4 else HIGHEST + 1
    else:
        number = _by_name(text.upper().removeprefix("SIG"))
    if not 0 <= number <= HIGHEST:
        raise Error(f'unknown signal "{text}"')
    return number


def _by_name(name: str) -> int:
    base, sign, offset = name, "", ""
    for separator in "+-":
        if separator in name:
            base, sign, offset = name.partition(separator)
    if not sign:
        # SIG_DFL and the like are no signals
        return getattr(_signal, "SIG" + name, -1) if name.isalnum() else -1
    if (base, sign) not in (("RTMIN", "+"), ("RTMAX", "-")) or not (offset.isascii() and offset.isdigit()):
        return -1
    number: int = getattr(_signal, "SIG" + base) + int(sign + offset[:3])
    return number if _signal.SIGRTMIN <= number <= _signal.SIGRTMAX else -1
