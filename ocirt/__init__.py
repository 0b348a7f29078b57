"""ocirt: a low-level OCI container runtime that is also a library.

`import ocirt` gives the public API of `ocirt.api`, loaded when a name of it
is first used (PEP 562): the command line never pays for it.
"""

__version__ = "0.1.0"

#: What api gives. Named here because `from ocirt import log` asks for attributes of the package as well, and must not
#: load the API.
_NAMES = (
    "AlreadyExists",
    "Error",
    "InvalidConfig",
    "NotFound",
    "Runtime",
    "Unsupported",
    "WrongState",
    "containers",
    "create",
    "delete",
    "kill",
    "run",
    "seal",
    "start",
    "state",
)


def __getattr__(name: str) -> object:
    if name not in _NAMES:
        raise AttributeError(f"module 'ocirt' has no attribute {name!r}")
    import ocirt.api

    return getattr(ocirt.api, name)
