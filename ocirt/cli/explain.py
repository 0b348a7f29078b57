"""What the small parser declines: help, usage errors, short flags in one word, shell completion.

click commands are built from the table, and click reads the command line again. Go's spellings (`-long`,
`--flag=false`) are put into click's first; everything else is click's decision.
"""

from __future__ import annotations

import os

import click
from click.shell_completion import CompletionItem, get_completion_class, shell_complete

import ocirt.commands
from ocirt import log
from ocirt.cli import BOOLEANS, attribute, place, rows_by_name
from ocirt.cli.table import COMMANDS, GLOBAL
from ocirt.errors import Error
from ocirt.validation.near import nearest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ocirt.cli.table import Positional, Row

    TextType = click.ParamType[str]
    NumberType = click.ParamType[int]
else:
    TextType = NumberType = click.ParamType  # generic only in newer versions of click

PROGRAM = "ocirt"
COMPLETE = "_OCIRT_COMPLETE"
HERE = "completion"  # the one command that is of this layer
USAGE_ERROR = 1
SETTINGS: dict[str, Any] = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


def explain(argv: list[str]) -> tuple[str, dict[str, object]] | int:
    """The command's name and values as `parse` gives them, or the exit status if all is said."""
    values: dict[str, object] = {}
    group = build(values, enabled())
    instruction = os.environ.get(COMPLETE)
    if instruction and not argv:
        return shell_complete(group, {}, PROGRAM, COMPLETE, instruction)
    try:
        name = group.main(_help_first(argv), PROGRAM, standalone_mode=False)
    except click.UsageError as error:
        return usage_error(error)
    except (BrokenPipeError, SystemExit):
        # click leaves by SystemExit if nobody reads: `ocirt --help | true`
        ocirt.commands.end_by(ocirt.commands.SIGPIPE)
        raise
    # of help, click gives the exit status
    return (name, values) if isinstance(name, str) else int(name or 0)


def enabled() -> list[str]:
    """The commands that there are, in the table's order."""
    files = os.listdir(os.path.dirname(ocirt.commands.__file__))
    return [name for name in COMMANDS if f"{name}.py" in files or name == HERE]


def build(values: dict[str, object], names: list[str]) -> click.Group:
    """The program as a click group whose commands put what was given into `values` and return their name."""

    def read(**given: Any) -> str:
        context = click.get_current_context()
        if context.invoked_subcommand is None and not given["version"]:
            context.fail("missing command")
        values.update(given)
        return ""

    group = _Group(
        name=PROGRAM,
        help="Run containers as the OCI runtime specification says.",
        params=[_option(row) for row in GLOBAL],
        callback=read,
        context_settings=SETTINGS,
        options_metavar="[GLOBAL OPTIONS]",
        subcommand_metavar="COMMAND [ARGS]...",
        invoke_without_command=True,
    )
    for name in names:
        group.add_command(_command(name, values))
    return group


def usage_error(error: click.UsageError) -> int:
    """Print what was wrong: the usage on stderr, the reason in the log as well."""
    if error.ctx is not None:
        click.echo(error.ctx.get_usage(), err=True)
        click.echo(f"Try '{error.ctx.command_path} --help' for help.", err=True)
        given = error.ctx.find_root().params
        if given.get("log"):
            try:
                log.configure(given["log"], json=given.get("log_format") == "json", level=log.WARNING)
            except OSError:
                pass  # stderr has it
    log.error(reason(error))
    return USAGE_ERROR


def reason(error: click.UsageError) -> str:
    """What was wrong, in the words of Go's flag package where clients look for them (podman's probe of restore)."""
    if isinstance(error, click.NoSuchOption):
        near = nearest(error.option_name.lstrip("-"), [row[0] for row in shown(error.ctx)])
        hint = f" (did you mean --{near}?)" if near else ""
        if not hint and error.option_name.lstrip("-") in rows_by_name(GLOBAL):
            hint = " (a global option: it stands before the command)"
        return f"flag provided but not defined: {error.option_name}{hint}"
    if isinstance(error, click.BadOptionUsage):
        return f"flag needs an argument: {error.option_name}"
    if isinstance(error, click.MissingParameter):
        what = error.param.human_readable_name if error.param else "argument"
        return f"missing argument: {what}"
    text = error.format_message().removesuffix(".")
    return text[:1].lower() + text[1:]


def shown(ctx: click.Context | None) -> tuple[Row, ...]:
    """The rows of the command that a usage error is about, less those without help."""
    command = ctx.command.name if ctx else None
    rows = COMMANDS[command][3] if command in COMMANDS else GLOBAL
    return tuple(row for row in rows if row[5])


def completion_script(shell: str) -> str:
    """The script that makes `shell` (bash, zsh, fish) complete ocirt's command lines."""
    kind = get_completion_class(shell)
    if kind is None:
        raise Error(f"no completion for {shell!r}: bash, zsh and fish have one")
    completer = kind(build({}, enabled()), {}, PROGRAM, COMPLETE)
    # not .source(): for bash it runs whatever `bash` is first found, to learn its version
    return completer.source_template % completer.source_vars()


def canonical(words: list[str], rows: tuple[Row, ...], stop: int, *, complete: bool = False) -> list[str]:
    """The words as click reads them: `--name`, `--name=value`, options first, no flag that is false.

    After `stop` arguments all belongs to the rest (-1: there is none). click knows only "after the first": what it
    has not seen by then must stand before. Raises click.UsageError for a boolean that is neither true nor false and
    for a missing value, unless the line is only to be completed.
    """
    names = rows_by_name(rows)
    flags: dict[str, bool] = {}
    options: list[str] = []
    others: list[str] = []
    count = 0
    rest = iter(words)
    for word in rest:
        if word == "--":
            others += [] if stop > 0 and count else [word]
            others += rest
        elif word[:1] != "-" or word == "-":
            others.append(word)
            count += 1
            if count == stop:
                others += rest
        else:
            name, equals, value = word.lstrip("-").partition("=") if word[:3] != "---" else (word, "", "")
            row = names.get(name)
            if row is None:
                (options if stop > 0 and count else others).append(word)  # short flags in one word, or unknown
            elif row[2] == "flag":
                if equals and value not in BOOLEANS:
                    raise click.UsageError(f'invalid boolean value "{value}" for --{row[0]}: use true or false')
                flags[row[0]] = BOOLEANS[value] if equals else True
            else:
                given = value if equals else next(rest, None)
                if given is not None:
                    options.append(f"--{row[0]}={given}")
                elif not complete:
                    raise click.BadOptionUsage(f"--{row[0]}", "it needs an argument")
    return [*(f"--{name}" for name, is_set in flags.items() if is_set), *options, *others]


class in_context:
    """Usage errors raised inside know which command they are about: not all of click's parser's do."""

    def __init__(self, ctx: click.Context) -> None:
        self.ctx = ctx

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, click.UsageError) and error.ctx is None:
            error.ctx = self.ctx


class _Group(click.Group):
    """The program: global options, then a command."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        with in_context(ctx):
            return super().parse_args(ctx, canonical(args, GLOBAL, 1, complete=ctx.resilient_parsing))

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(self.commands)


class _Command(click.Command):
    """A command of the table."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        assert self.name is not None
        _, _, arguments, rows = COMMANDS[self.name]
        with in_context(ctx):
            given = canonical(args, rows, stop_of(arguments), complete=ctx.resilient_parsing)
            return super().parse_args(ctx, given)


class _Text(TextType):
    """Any text; files or directories are offered to complete it."""

    def __init__(self, metavar: str) -> None:
        self.name = metavar

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:  # noqa: ARG002
        kind = {"DIR": "dir", "FILE": "file", "SOCKET": "file"}.get(self.name)
        return [CompletionItem(incomplete, type=kind)] if kind else []


class _Number(NumberType):
    """A whole number as the small parser takes it; int() would take more."""

    name = "N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        if not (value.isascii() and value.isdigit() and len(value) < 10):
            is_negative = value[:1] == "-" and value[1:].isascii() and value[1:].isdigit()
            wrong = "must be 0 or more" if is_negative else "is not a whole number below 1000000000"
            self.fail(f"{value!r} {wrong}", param, ctx)
        return int(value)


def stop_of(arguments: tuple[Positional, ...]) -> int:
    """After how many arguments the flags end: what follows belongs to the rest; -1 if never."""
    return len(arguments) - 1 if arguments and arguments[-1][1] == "rest" else -1


def _help_first(argv: list[str]) -> list[str]:
    """`help`, `help COMMAND` and nothing at all as runc has them."""
    if not argv:
        return ["--help"]
    return [*argv[1:2], "--help"] if argv[0] == "help" else argv


def _command(name: str, values: dict[str, object]) -> click.Command:
    summary, description, arguments, rows = COMMANDS[name]

    def read(**given: Any) -> str | int:
        if name == HERE:
            click.echo(completion_script(given["shell"]), nl=False)
            return 0
        for option, _, kind, _, _, _ in rows:
            key = attribute(option)
            values[key] = list(given[key]) if kind == "repeat" else given[key]
        words: list[str] = []
        for argument, kind, _ in arguments:
            word = given[attribute(argument)]
            words += word if kind == "rest" else [] if word is None else [word]
        place(words, arguments, values)
        return name

    return _Command(
        name=name,
        short_help=summary,
        help=f"{summary[:1].upper()}{summary[1:]}.\n\n{description}",
        params=[*(_argument(name, row) for row in arguments), *(_option(row) for row in rows)],
        callback=read,
        context_settings={**SETTINGS, "allow_interspersed_args": stop_of(arguments) < 0},
        options_metavar="[OPTIONS]" if rows else "",
    )


def _argument(command: str, row: Positional) -> click.Argument:
    name, kind, _ = row

    def complete(context: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
        words = words_for(command, name, context.find_root().params.get("root"))
        return [CompletionItem(word) for word in words if word.startswith(incomplete)]

    return click.Argument(
        [attribute(name)],
        metavar={"one": "{}", "optional": "[{}]", "rest": "[{}]..."}[kind].format(name.upper()),
        required=kind == "one",
        nargs=-1 if kind == "rest" else 1,
        shell_complete=complete,
    )


def _option(row: Row) -> click.Option:
    name, short, kind, metavar, default, text = row
    names = [f"--{name}", *([f"-{short}"] if short else []), attribute(name)]
    if kind == "flag":
        return click.Option(names, is_flag=True, default=False, help=text, hidden=not text)
    types: dict[str, click.ParamType[Any]] = {"int": _Number(), "choice": click.Choice(metavar.split("|"))}
    return click.Option(
        names,
        type=types.get(kind) or _Text(metavar),
        metavar=metavar,
        default=default,
        show_default=default is not None,
        multiple=kind == "repeat",
        help=text,
        hidden=not text,
    )


def words_for(command: str, argument: str, root: str | None) -> list[str]:
    """What can stand for an argument: ids of containers, signals, shells."""
    if argument == "id":
        try:
            return sorted(os.listdir(root or ocirt.commands.default_root()))
        except (OSError, Error):
            return []
    if argument == "signal":
        import _signal

        return sorted(name[3:] for name in dir(_signal) if name.startswith("SIG") and name.isalnum())
    if argument == "shell":
        return ["bash", "fish", "zsh"]
    return ["add", "remove"] if (command, argument) == ("mounts", "action") else []
