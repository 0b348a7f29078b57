"""`import ocirt`: what it gives, and that it costs nothing until it is used."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import ocirt
import ocirt.api

ROOT = str(Path(__file__).resolve().parent.parent.parent)


def test_the_package_gives_what_the_api_has() -> None:
    assert list(ocirt._NAMES) == ocirt.api.__all__
    for name in ocirt._NAMES:
        assert getattr(ocirt, name) is getattr(ocirt.api, name)


def test_nothing_is_loaded_before_it_is_used() -> None:
    program = (
        f"import sys; sys.path.append({ROOT!r}); import ocirt; from ocirt import log;"
        "assert 'ocirt.api' not in sys.modules; ocirt.Runtime; assert 'ocirt.api' in sys.modules"
    )
    subprocess.run([sys.executable, "-I", "-S", "-c", program], check=True, timeout=60)


def test_what_is_not_there_is_an_attribute_error() -> None:
    assert not hasattr(ocirt, "nothing")
