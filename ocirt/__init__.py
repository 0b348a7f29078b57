"""ocirt: a low-level OCI container runtime that is also a library.

`import ocirt` gives the public API of `ocirt.api`, loaded when a name of it
is first used (PEP 562): the command line never pays for it.
"""

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    if name.startswith("_"):
        raise AttributeError(name)
    from ocirt import api

    try:
        return getattr(api, name)
    except AttributeError:
        raise AttributeError(f"module 'ocirt' has no attribute {name!r}") from None
