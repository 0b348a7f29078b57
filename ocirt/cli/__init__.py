"""The command line: the parser of what is well-formed (here), one table, click for the rest.

The parser only ever says yes: None means that the command line is anything else (help, an unknown flag, a missing
argument, short flags in one word) and that `ocirt.cli.explain`, which imports click, has to look at it. A test feeds
both with the same words. It stands in the package's own file because each file more is a percent of a command's start.

Flags stand before or after the arguments, as `--flag value`, `--flag=value`, `-f value`, or with one dash for a long
name as Go's clients write them. After `--` come only arguments. What follows the first argument of a command that
takes a rest (exec, ps) belongs to the rest.
"""

from __future__ import annotations

from ocirt.cli.table import COMMANDS, GLOBAL

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from ocirt.cli.table import Positional, Row

#: The booleans of Go's strconv.ParseBool
BOOLEANS = {
    **dict.fromkeys(("true", "1", "t", "T", "TRUE", "True"), True),
    **dict.fromkeys(("false", "0", "f", "F", "FALSE", "False"), False),
}


def parse(argv: list[str]) -> tuple[str, dict[str, object]] | None:
    """The command's name ("" for --version) and the values of all its options and arguments."""
    values: dict[str, object] = {}
    tokens = iter(argv)
    words = _read(tokens, GLOBAL, values, 1)
    if words is not None and values["version"]:
        return "", values
    command = COMMANDS.get(words[0]) if words and len(words) == 1 else None
    if not words or command is None:
        return None
    name = words[0]
    _, _, arguments, options = command
    takes_rest = bool(arguments) and arguments[-1][1] == "rest"
    words = _read(tokens, options, values, len(arguments) - 1 if takes_rest else -1)
    if words is None or not place([*words, *tokens], arguments, values):
        return None
    return name, values


def rows_by_name(rows: tuple[Row, ...]) -> dict[str, Row]:
    """Options by their long and their short names."""
    names: dict[str, Row] = {}
    for row in rows:
        names[row[0]] = row
        if row[1]:
            names[row[1]] = row
    return names


def attribute(name: str) -> str:
    """The attribute of Options for an option or argument."""
    return name.replace("-", "_")


def _read(tokens: Iterator[str], rows: tuple[Row, ...], values: dict[str, object], stop: int) -> list[str] | None:
    """Read flags into `values` and give back the arguments among them, at most `stop` of them.

    None is what isn't well-formed.
    """
    for row in rows:
        values[attribute(row[0])] = [] if row[2] == "repeat" else row[4]
    names = rows_by_name(rows)
    words: list[str] = []
    for word in tokens:
        if word == "--":
            return [*words, *tokens]
        if word[:1] != "-" or word == "-":
            words.append(word)
            if len(words) == stop:
                return words
            continue
        name, equals, text = (word[2:] if word[1] == "-" else word[1:]).partition("=")
        option = names.get(name)
        if option is None:
            return None
        value: str | None = text
        if not equals:
            value = "true" if option[2] == "flag" else next(tokens, None)
        if value is None or not _store(option, value, values):
            return None
    return words


def _store(row: Row, value: str, values: dict[str, object]) -> bool:
    """Put one option's value into `values`; False if it has the wrong kind."""
    name, _, kind, metavar, _, _ = row
    key = attribute(name)
    if kind == "flag":
        if value not in BOOLEANS:
            return False
        values[key] = BOOLEANS[value]
    elif kind == "repeat":
        values[key] = [*values[key], value]  # type: ignore[misc]
    elif kind == "int":
        # int() would take +1, 1_0, blanks and digits of other scripts
        if not (value.isascii() and value.isdigit() and len(value) < 10):
            return False
        values[key] = int(value)
    elif kind == "choice" and value not in metavar.split("|"):
        return False
    else:
        values[key] = value
    return True


def place(words: list[str], arguments: tuple[Positional, ...], values: dict[str, object]) -> bool:
    """Give the words to the arguments, in order; False if there are too few or too many.

    A `--` at the head of a rest is dropped: no program has that name.
    """
    for position, (name, kind, _) in enumerate(arguments):
        if kind == "rest":
            rest = words[position:]
            values[attribute(name)] = rest[1:] if rest[:1] == ["--"] else rest
            return True
        if position >= len(words) and kind == "one":
            return False
        values[attribute(name)] = words[position] if position < len(words) else None
    return len(words) <= len(arguments)
