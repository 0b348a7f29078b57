from enum import IntEnum

class Option(IntEnum):
    SUBNET_MASK = 1
