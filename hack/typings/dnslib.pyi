# What ocirt.proxy.resolver uses of dnslib.
class DNSError(Exception): ...

class Names:
    def __getitem__(self, number: int) -> str: ...

class Codes:
    SERVFAIL: int

QTYPE: Names
RCODE: Codes

class RD: ...

class A(RD):
    def __init__(self, data: str) -> None: ...

class AAAA(RD):
    def __init__(self, data: str) -> None: ...

class PTR(RD):
    def __init__(self, label: str) -> None: ...

class DNSHeader:
    rcode: int

class DNSQuestion:
    qname: object
    qtype: int

class RR:
    def __init__(
        self, rname: object = None, rtype: int = 1, rclass: int = 1, ttl: int = 0, rdata: RD | None = None
    ) -> None: ...

class DNSRecord:
    header: DNSHeader
    q: DNSQuestion
    @classmethod
    def parse(cls, packet: bytes) -> DNSRecord: ...
    def reply(self) -> DNSRecord: ...
    def add_answer(self, *rr: RR) -> None: ...
    def pack(self) -> bytes: ...
