"""The small parser and click say the same about a command line."""

from __future__ import annotations

import click
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ocirt.cli import BOOLEANS, attribute, parse, rows_by_name
from ocirt.cli.explain import HERE, build, explain
from ocirt.cli.table import COMMANDS, GLOBAL

PLAIN = [name for name in COMMANDS if name != HERE]
WORDS = st.sampled_from(["c1", "x", "", "-", "a b", "--", "9", "-9", "KILL", "sh", "true", "table", "ü", "-c"])


def by_click(argv: list[str]) -> tuple[str, dict[str, object]] | None:
    """What click makes of it; None for an error or help."""
    values: dict[str, object] = {}
    try:
        name = build(values, PLAIN).main(argv, "ocirt", standalone_mode=False)
    except click.ClickException:
        return None
    return (name, values) if isinstance(name, str) else None


def spellings(row: tuple, value: str | None) -> list[list[str]]:
    """All well-formed ways to give an option."""
    name, short, kind, *_ = row
    heads = [f"--{name}", f"-{name}", *([f"-{short}", f"--{short}"] if short else [])]
    if kind == "flag":
        return [[head] for head in heads] + [[f"{head}={word}"] for head in heads for word in BOOLEANS]
    assert value is not None
    return [[head, value] for head in heads] + [[f"{head}={value}"] for head in heads]


def value_of(row: tuple) -> st.SearchStrategy[str | None]:
    _, _, kind, metavar, *_ = row
    return {
        "flag": st.none(),
        "int": st.integers(0, 999_999_999).map(str),
        "choice": st.sampled_from(metavar.split("|")),
    }.get(kind, st.sampled_from(["", "x", "-", "--", "-1", "--root", "a=b", "KEY=", "10:20"]))


def options(rows: tuple) -> st.SearchStrategy[list[str]]:
    """A few options of these rows, in any spelling."""
    if not rows:
        return st.just([])
    one = st.sampled_from(rows).flatmap(
        lambda row: value_of(row).flatmap(lambda value: st.sampled_from(spellings(row, value)))
    )
    return st.lists(one, max_size=3).map(lambda lists: [word for words in lists for word in words])


@st.composite
def well_formed(draw: st.DrawFn) -> list[str]:
    """A command line without anything wrong."""
    name = draw(st.sampled_from(PLAIN))
    _, _, arguments, rows = COMMANDS[name]
    argv = [*draw(options(tuple(row for row in GLOBAL if row[0] != "version"))), name, *draw(options(rows))]
    ended = False
    for position, (_, kind, _) in enumerate(arguments):
        if kind == "rest":
            return argv + draw(st.lists(st.one_of(WORDS, st.sampled_from(["--root", "-e"]))))
        if kind == "optional" and draw(st.booleans()):
            break
        if not ended and draw(st.integers(0, 4)) == 0:
            ended = True
            argv.append("--")
        argv.append(draw(st.sampled_from(["c1", "", "-", "a b"] + (["-x", "--"] if ended else []))))
        takes_rest = arguments[-1][1] == "rest"
        if not ended and not (takes_rest and position == len(arguments) - 2):
            argv += draw(options(rows))
    return argv


NOISE = st.sampled_from(
    ["--bogus", "-z", "--help", "-h", "---x", "--all=maybe", "=", "--=x", "-b", "--pid-file", "-dt"]
)


@st.composite
def any_line(draw: st.DrawFn) -> list[str]:
    """A command line with something taken out, put in or exchanged."""
    argv = draw(well_formed())
    for _ in range(draw(st.integers(0, 3))):
        where = draw(st.integers(0, len(argv)))
        argv[where : where + draw(st.integers(0, 1))] = draw(st.lists(st.one_of(NOISE, WORDS), max_size=1))
    return argv


@settings(max_examples=300, deadline=None)
@given(well_formed())
def test_well_formed_lines_need_no_click(argv: list[str]) -> None:
    found = parse(argv)
    assert found is not None
    assert found == by_click(argv)


@settings(max_examples=500, deadline=None)
@given(any_line())
def test_both_parsers_agree(argv: list[str]) -> None:
    found, clicks = parse(argv), by_click(argv)
    if found is not None:
        assert found == clicks
    elif clicks is not None:
        # all that click takes beyond the small parser: `-dt`, `-bDIR`, `--` before the command, and a wrong value
        # of a choice or number that a later one replaces
        rows = rows_by_name(GLOBAL) | rows_by_name(COMMANDS[clicks[0]][3] if clicks[0] else ())
        heads = [word.partition("=")[0] for word in argv]
        joined = [h for h in heads if h[:1] == "-" and h[:2] != "--" and len(h) > 2 and h[1:] not in rows]
        given = [rows[h.lstrip("-")] for h in heads if h[:1] == "-" and h.lstrip("-") in rows]
        replaced = [row for row in given if row[2] in ("choice", "int") and given.count(row) > 1]
        assert joined or replaced or "--" in argv


def test_every_engines_calls() -> None:
    """As conmon, podman, go-runc and CRI-O write them."""
    for line, name, wanted in (
        ("--log-format=json --log /l create --bundle /b --pid-file /p --no-pivot c1", "create",
         {"log": "/l", "log_format": "json", "bundle": "/b", "pid_file": "/p", "no_pivot": True, "id": "c1"}),
        ("--systemd-cgroup create -b /b --preserve-fds 2 --console-socket /s c1", "create",
         {"systemd_cgroup": True, "preserve_fds": 2, "console_socket": "/s"}),
        ("--cgroup-manager disabled create --bundle /b c1", "create", {"cgroup_manager": "disabled"}),
        ("exec --process /p --detach --pid-file /f c1", "exec",
         {"process": "/p", "detach": True, "pid_file": "/f", "id": "c1", "command": []}),
        ("exec -t c1 sh -c -- echo --root", "exec", {"tty": True, "command": ["sh", "-c", "--", "echo", "--root"]}),
        ("exec c1 -- sh -c x", "exec", {"command": ["sh", "-c", "x"]}),
        ("exec -- c1 sh", "exec", {"command": ["sh"]}),
        ("exec -e A=1 --env=B=2 -u 1:2 c1 env", "exec", {"env": ["A=1", "B=2"], "user": "1:2"}),
        ("kill --all c1 9", "kill", {"all": True, "signal": "9"}),
        ("kill c1 --all", "kill", {"all": True, "signal": None}),
        ("kill -a=true c1 SIGTERM", "kill", {"all": True, "signal": "SIGTERM"}),
        ("kill -a=false c1", "kill", {"all": False}),
        ("ps --format json c1 -ef", "ps", {"format": "json", "options": ["-ef"]}),
        ("update --resources - c1", "update", {"resources": "-", "id": "c1"}),
        ("update --resources=- c1", "update", {"resources": "-", "id": "c1"}),
        ("update --cpu-quota -1 c1", "update", {"cpu_quota": "-1"}),
        ("restore --image-path /i --work-path /w --detach --pid-file /p -no-subreaper --bundle /b c1", "restore",
         {"image_path": "/i", "no_subreaper": True, "bundle": "/b", "id": "c1"}),
        ("-root /r -log-level=debug state c1", "state", {"root": "/r", "log_level": "debug"}),
        ("--criu /usr/sbin/criu state c1", "state", {"criu": "/usr/sbin/criu"}),
        ("events --stats c1", "events", {"stats": True, "interval": "5s"}),
        ("checkpoint --empty-ns network --empty-ns=x c1", "checkpoint", {"empty_ns": ["network", "x"]}),
        ("--version", "", {"version": True}),
        ("-v", "", {}),
    ):  # fmt: skip
        found = parse(line.split())
        assert found is not None, line
        assert found[0] == name
        assert {key: found[1][key] for key in wanted} == wanted
        assert by_click(line.split()) == found


@pytest.mark.parametrize(
    "line",
    [
        "", "frob", "--root", "--bogus state x", "state", "state a b", "state --bogus x", "create --bundle",
        "create --preserve-fds=-1 x", "create --preserve-fds 1_0 x", "create --preserve-fds ٣ x",
        "create --preserve-fds 9999999999 x", "list --format xml", "kill --all=maybe x", "kill --all= x",
        "state --root /r x", "--log-format=xml list", "state --help", "--help", "kill x -9", "create --bund /b x",
    ],
)  # fmt: skip
def test_declines_what_is_not_well_formed(line: str) -> None:
    assert parse(line.split()) is None
    assert by_click(line.split()) is None


def test_values_of_different_lines_are_apart() -> None:
    first = parse(["exec", "-e", "A=1", "c1"])
    second = parse(["exec", "c1"])
    assert first is not None
    assert second is not None
    assert first[1]["env"] == ["A=1"]
    assert second[1]["env"] == []


def test_every_option_has_an_attribute_after_parsing() -> None:
    for name, (_, _, arguments, rows) in COMMANDS.items():
        if name == HERE:
            continue
        found = parse([name, *("x" for _, kind, _ in arguments if kind == "one")])
        assert found is not None
        assert set(found[1]) == {attribute(row[0]) for row in (*GLOBAL, *rows, *arguments)}


def test_short_flags_in_one_word_work_through_click(capsys: pytest.CaptureFixture[str]) -> None:
    assert parse(["delete", "-fr", "x"]) is None
    explained = explain(["delete", "-fr", "x"])
    assert not isinstance(explained, int)
    assert explained[0] == "delete"
    assert explained[1]["force"] is True
    assert explained[1]["regex"] is True
    assert capsys.readouterr() == ("", "")
