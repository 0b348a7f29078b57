"""GVariant text (`uint64 5`, `'a'`, `['x', 'y']`, `@as []`) as D-Bus wants it: (signature, value)."""

from __future__ import annotations

from ocirt.errors import InvalidConfig

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

#: Words that say the type of what follows.
WORDS = {
    "boolean": "b",
    "byte": "y",
    "int16": "n",
    "uint16": "q",
    "int32": "i",
    "uint32": "u",
    "handle": "i",
    "int64": "x",
    "uint64": "t",
    "double": "d",
    "string": "s",
    "objectpath": "o",
    "signature": "g",
}
RANGES = {
    "y": (0, 255),
    "n": (-(1 << 15), (1 << 15) - 1),
    "q": (0, (1 << 16) - 1),
    "i": (-(1 << 31), (1 << 31) - 1),
    "u": (0, (1 << 32) - 1),
    "x": (-(1 << 63), (1 << 63) - 1),
    "t": (0, (1 << 64) - 1),
}
ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "a": "\a", "b": "\b", "f": "\f", "v": "\v"}
_SPACE = " \t\n"
_END = _SPACE + ",()[]{}<>'\""


def parse(text: str, field: str) -> tuple[str, Any]:
    """One value: numbers, booleans, strings, arrays and tuples of them; raises InvalidConfig."""
    parser = _Parser(text, field)
    signature, value = parser.value("")
    parser.space()
    if parser.at != len(text):
        raise parser.wrong("the value ends before the text does")
    return signature, value


class _Parser:
    __slots__ = ("at", "field", "text")

    def __init__(self, text: str, field: str) -> None:
        self.text = text
        self.field = field
        self.at = 0

    def wrong(self, what: str) -> InvalidConfig:
        return InvalidConfig(f"{self.field}: {self.text!r} is no GVariant text: {what} (character {self.at + 1})")

    def space(self) -> None:
        while self.at < len(self.text) and self.text[self.at] in _SPACE:
            self.at += 1

    def peek(self) -> str:
        self.space()
        if self.at == len(self.text):
            raise self.wrong("a value is missing")
        return self.text[self.at]

    def word(self) -> str:
        start = self.at
        while self.at < len(self.text) and self.text[self.at] not in _END:
            self.at += 1
        return self.text[start : self.at]

    def value(self, wanted: str) -> tuple[str, Any]:
        """A value of the type `wanted`, "" for whatever it is."""
        first = self.peek()
        if first == "@":
            self.at += 1
            kind = self._signature()
            return self.value(self._agree(wanted, kind))
        if first in "'\"":
            return self._string(wanted)
        if first == "[":
            return self._array(wanted)
        if first == "(":
            return self._tuple(wanted)
        return self._plain(wanted)

    def _signature(self) -> str:
        start = self.at
        while self.at < len(self.text) and self.text[self.at] not in _SPACE:
            self.at += 1
        return self.text[start : self.at]

    def _agree(self, wanted: str, kind: str) -> str:
        if wanted and wanted != kind:
            raise self.wrong(f"{kind} where {wanted} was announced")
        return kind

    def _plain(self, wanted: str) -> tuple[str, Any]:
        word = self.word()
        if word in WORDS:
            return self.value(self._agree(wanted, WORDS[word]))
        if word in ("true", "false"):
            return self._agree(wanted, "b"), word == "true"
        digits = word.removeprefix("-").removeprefix("+")
        if "." in digits or wanted == "d" or (("e" in digits or "E" in digits) and not digits.startswith("0x")):
            try:
                return self._agree(wanted, "d"), float(word)
            except ValueError:
                raise self.wrong(f"{word!r} is no number") from None
        try:
            if not (digits.isascii() and digits.isalnum()):
                raise ValueError
            number = int(word, 16 if digits.startswith("0x") else 8 if len(digits) > 1 and digits[0] == "0" else 10)
        except ValueError:
            raise self.wrong(f"{word!r} is no value") from None
        kind = wanted or "i"
        if kind not in RANGES or not RANGES[kind][0] <= number <= RANGES[kind][1]:
            raise self.wrong(f"{number} is no {kind}")
        return kind, number

    def _string(self, wanted: str) -> tuple[str, str]:
        if wanted and wanted not in ("s", "o", "g"):
            raise self.wrong(f"a string where {wanted} was announced")
        quote = self.text[self.at]
        self.at += 1
        made: list[str] = []
        while self.at < len(self.text):
            character = self.text[self.at]
            self.at += 1
            if character == quote:
                return wanted or "s", "".join(made)
            if character == "\\" and self.at < len(self.text):
                character = self.text[self.at]
                self.at += 1
                if character in ("u", "U"):
                    length = 4 if character == "u" else 8
                    code = self.text[self.at : self.at + length]
                    self.at += length
                    try:
                        character = chr(int(code, 16))
                    except (ValueError, OverflowError):
                        raise self.wrong(f"{code!r} is no character") from None
                else:
                    character = ESCAPES.get(character, character)
            made.append(character)
        raise self.wrong("the string has no end")

    def _array(self, wanted: str) -> tuple[str, Any]:
        if wanted and wanted[0] != "a":
            raise self.wrong(f"an array where {wanted} was announced")
        self.at += 1
        kind = wanted[1:]
        values: list[Any] = []
        while self.peek() != "]":
            kind, value = self.value(kind)
            values.append(value)
            if self.peek() == ",":
                self.at += 1
            elif self.peek() != "]":
                raise self.wrong("a comma is missing")
        self.at += 1
        if not kind:
            raise self.wrong("an empty array needs its type, as in @as []")
        return "a" + kind, values

    def _tuple(self, wanted: str) -> tuple[str, Any]:
        from ocirt.linux.sdbus import split

        if wanted and wanted[0] != "(":
            raise self.wrong(f"a tuple where {wanted} was announced")
        self.at += 1
        kinds = split(wanted[1:-1]) if wanted else []
        made: list[str] = []
        values: list[Any] = []
        while self.peek() != ")":
            if wanted and len(values) == len(kinds):
                raise self.wrong("the tuple is longer than its type")
            kind, value = self.value(kinds[len(values)] if wanted else "")
            made.append(kind)
            values.append(value)
            if self.peek() == ",":
                self.at += 1
            elif self.peek() != ")":
                raise self.wrong("a comma is missing")
        self.at += 1
        return self._agree(wanted, "(" + "".join(made) + ")"), values
