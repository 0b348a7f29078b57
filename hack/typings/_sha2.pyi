# The C module behind hashlib's sha256 since CPython 3.12, which typeshed has no stub for.
from _sha256 import sha256 as sha256
