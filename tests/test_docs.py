"""The documentation is true: keys, commands, links, files and tests that it names exist, and its lists are complete."""

from __future__ import annotations

import json
import re
import shlex
import sys
import tomllib
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import click
import pytest
import typer.main
from paths import ROOT

from wardround.sources import SOURCES as SOURCES_OF_DATA
from wardround.sources.registry import source_study
from wardround.study.load import Study, load_study
from wardround_client.cli.main import app
from wardround_server.cli.main import app as server_app
from wardround_simulation.cli.main import app as simulation_app

GUIDES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "deploy/README.md")
PAGES = [*(ROOT / name for name in GUIDES), *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = {page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8") for page in PAGES}
PROGRAMS = {
    "wardround-sim": typer.main.get_command(simulation_app),
    "wardround-site": typer.main.get_command(app),
    "wardround-server": typer.main.get_command(server_app),
}
SOURCES = [path for room in ("shared", "client", "server", "simulation") for path in (ROOT / room).rglob("*.py")]
PLACEHOLDERS = re.compile(r"…|\.\.\.|\bARGS\b|\bCOMMAND\b")


# The study file


def documented_keys() -> dict[tuple[str, str], list[str]]:
    """(section, key) -> the cells of its row in docs/studies.md."""
    rows: dict[tuple[str, str], list[str]] = {}
    section = ""
    for line in TEXTS["docs/studies.md"].splitlines():
        if heading := re.match(r"## \[(\w+)\]", line):
            section = heading[1]
        elif line.startswith("## "):
            section = ""
        elif section and (row := re.match(r"\| `(\w+)` \|", line)):
            if (section, row[1]) in rows:
                raise ValueError(f"{section}.{row[1]} is documented twice")
            rows[section, row[1]] = [cell.strip() for cell in line.strip("|").split(" | ")]
    return rows


def schema_keys() -> dict[tuple[str, str], Any]:
    sections = [
        (section, kind)
        for section, part in Study.model_fields.items()
        for kind in get_args(part.annotation) or (part.annotation,)  # a section of one task only is optional
        if kind is not type(None)
    ]
    sections += [("data", source_study(source).SECTION) for source in SOURCES_OF_DATA]
    return {(section, key): field for section, kind in sections for key, field in kind.model_fields.items()}


def test_every_key_of_the_schema_is_documented_and_every_documented_key_exists() -> None:
    assert set(documented_keys()) == set(schema_keys())


@pytest.mark.parametrize("place", schema_keys(), ids=".".join)
def test_the_documented_default_is_the_real_one(place: tuple[str, str]) -> None:
    field, (_, kind, default, meaning) = schema_keys()[place], documented_keys()[place]
    assert kind and meaning
    if field.is_required():
        assert default == "required"
    elif place == ("aggregation", "min_sites"):
        assert default == "`nominal_sites`"
    elif field.default is None:
        assert default == "not set"
    else:
        plain = json.loads(json.dumps(field.default))
        assert tomllib.loads(f"value = {default.strip('`')}")["value"] == plain


@pytest.mark.parametrize("place", schema_keys(), ids=".".join)
def test_every_choice_of_a_key_is_documented(place: tuple[str, str]) -> None:
    annotation = schema_keys()[place].annotation
    kinds = [annotation, *get_args(annotation)]
    choices = [choice for kind in kinds if get_origin(kind) is Literal for choice in get_args(kind)]
    row = " ".join(documented_keys()[place])
    assert [choice for choice in choices if f'"{choice}"' not in row and f"`{choice}`" not in row] == []


def test_the_documented_rule_of_the_learning_rate_is_the_one_in_the_code() -> None:
    code = (ROOT / "client/wardround_client/training/steps.py").read_text(encoding="utf-8")
    formula = re.search(r"rate = min\((\d+),\s+(\d+) N", TEXTS["docs/studies.md"])
    assert formula is not None
    largest, factor = formula.groups()
    assert f"min({largest}.0, {factor} * sites * plan.nominal_patients / spread)" in code


# Commands


def test_the_page_of_commands_is_what_the_commands_say() -> None:
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        import generate
    finally:
        sys.path.pop(0)
    assert generate.page() == TEXTS["docs/commands.md"], "stale: run python docs/generate.py"
    assert generate.extending_page() == TEXTS["docs/extending.md"], "stale: run python docs/generate.py"


def commands_of(command: click.Command, name: str) -> dict[str, click.Command]:
    """The commands of a program by their words; groups are gone into."""
    parts = getattr(command, "commands", None)
    if parts is None:
        return {name: command}
    return {words: part for word in parts for words, part in commands_of(parts[word], f"{name} {word}").items()}


COMMANDS = {words: part for name, program in PROGRAMS.items() for words, part in commands_of(program, name).items()}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_an_example_and_every_option_a_word(name: str) -> None:
    command = COMMANDS[name]
    assert command.help and command.epilog
    example = command.epilog.removeprefix("Example: ")
    assert example.startswith(f"{name} ")
    parse(example, "its --help")
    options = [parameter for parameter in command.params if isinstance(parameter, click.Option)]
    assert [option.opts for option in options if not option.help] == []
    assert any("--json" in option.opts for option in options)


def parse(line: str, where: str) -> None:
    """Hold a command line against the real parser, without running it. Raises ValueError where it does not fit."""
    words = shlex.split(line, comments=True)
    if words[0] == "./run":
        doors = re.findall(r"^    (\w+)\)", (ROOT / "run").read_text(encoding="utf-8"), flags=re.MULTILINE)
        if len(words) == 1:
            return
        if words[1] not in doors:
            raise ValueError(f"{where}: ./run knows no {words[1]}")
        meant = {
            "simulate": "wardround-sim run",
            "compare": "wardround-sim compare",
            "federation": "wardround-sim federation",
        }
        meant |= {"sim": "wardround-sim", "site": "wardround-site", "server": "wardround-server"}
        if words[1] not in meant:
            return
        words = [*meant[words[1]].split(), *words[2:]]
    name, words, command = words[0], words[1:], PROGRAMS[words[0]]
    while hasattr(command, "commands"):
        if not words or words == ["--help"]:
            return
        if words[0].startswith("-") and getattr(command, "invoke_without_command", False):
            break  # a group that is a command as well
        if words[0] not in command.commands:
            raise ValueError(f"{where}: {name} knows no {words[0]}")
        name, words, command = f"{name} {words[0]}", words[1:], command.commands[words[0]]
    if "--help" in words:
        return
    try:
        context = command.make_context(name, words)
    except click.ClickException as error:
        raise ValueError(f"{where}: {line}: {error.format_message()}") from None
    study, overrides = context.params.get("study"), tuple(context.params.get("set_") or ())
    if study is not None and str(study).startswith("studies/"):
        load_study(ROOT / study, overrides)


def shown_commands(text: str) -> list[str]:
    """Every whole command line in a page: in fenced blocks, and in code between backticks."""
    blocks = re.findall(r"```\w*\n(.*?)```", text, flags=re.DOTALL)
    lines = [line.strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    lines += re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    lines = [line.removeprefix("$ ") for line in lines]
    return [
        line
        for line in lines
        if re.match(r"(\./run|wardround-sim|wardround-site|wardround-server)( |$)", line)
        and not PLACEHOLDERS.search(line)
        and "[" not in line
    ]


@pytest.mark.parametrize("page", TEXTS)
def test_every_command_shown_parses(page: str) -> None:
    for line in shown_commands(TEXTS[page]):
        parse(line, page)


@pytest.mark.parametrize(
    "line",
    [
        "wardround-sim run studies/lidc.toml --dat DIR",
        "wardround-sim train",
        "wardround-site ledger burn",
        "wardround-site ledger show --sight hospital",
        "./run site diary",
        "./run fly",
        "wardround-sim run --sites 0",
        "wardround-sim run studies/none.toml",
        "./run simulate studies/lidc.toml --data D --set privacy.epsilom=3",
        "./run compare studies/lidc.toml --set privacy.epsilon=0",
    ],
)
def test_a_command_that_would_not_work_is_found(line: str) -> None:
    assert shown_commands(f"text `{line}` text") == [line]
    with pytest.raises(Exception, match=r"knows no|No such option|not in the range|no such study|did you mean|greater"):
        parse(line, "a page")


def test_the_readme_shows_the_two_commands_and_the_picture() -> None:
    shown = shown_commands(TEXTS["README.md"])
    assert "./run simulate" in shown and "./run test" in shown
    assert any(line.startswith("./run compare ") for line in shown)
    assert "docs/pictures/report.png" in TEXTS["README.md"]
    assert (ROOT / "docs/pictures/report.png").stat().st_size < 300_000


# Links, files and tests that the pages name


def anchors(text: str) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def broken_links(page: Path, text: str) -> list[str]:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"(https?|mailto):", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        there = file.is_relative_to(ROOT) and file.exists()
        if not there or (anchor and anchor not in anchors(file.read_text(encoding="utf-8"))):
            broken.append(target)
    return broken


@pytest.mark.parametrize("page", TEXTS)
def test_every_link_points_to_a_file_that_is_there(page: str) -> None:
    assert broken_links(ROOT / page, TEXTS[page]) == []


def test_a_broken_link_is_found() -> None:
    text = "[a](none.md) [b](studies.md#nothing) [c](../../outside) [d](studies.md#privacy) [e](https://x.org)"
    assert broken_links(ROOT / "docs" / "x.md", text) == ["none.md", "studies.md#nothing", "../../outside"]


def test_every_source_file_that_a_page_names_exists() -> None:
    known = [path.relative_to(ROOT).as_posix() for path in [*SOURCES, *(ROOT / "tests").rglob("*.py")]]
    known += [
        path.relative_to(ROOT).as_posix()
        for folder in ("docs", "bench", "lock")
        for path in (ROOT / folder).glob("*.py")
    ]
    missing = []
    for page, text in TEXTS.items():
        for name in set(re.findall(r"[\w/]+\.py\b", text)):
            if not any(path == name or path.endswith(f"/{name}") for path in known):
                missing.append((page, name))
        missing += [(page, name) for name in re.findall(r"\bstudies/[\w-]+\.toml", text) if not (ROOT / name).exists()]
    assert missing == []


def test_every_room_has_its_place_in_the_architecture() -> None:
    text = TEXTS["docs/architecture.md"]
    rooms = {path.relative_to(ROOT).parts[1:3] for path in SOURCES if len(path.relative_to(ROOT).parts) > 3}
    sections = {package: text.split(f"/{package} |")[1].split("\n\n")[0] for package, _ in rooms}
    assert sorted(room for room in rooms if f"| `{room[1]}/` |" not in sections[room[0]]) == []


def test_every_test_that_a_page_names_exists() -> None:
    tests = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    known = set(re.findall(r"^def (test_\w+)", tests, flags=re.MULTILINE))
    known |= {path.stem for path in (ROOT / "tests").rglob("test_*.py")} | {"test_by_patient"}  # a field of result.json
    named = {(page, name) for page, text in TEXTS.items() for name in re.findall(r"\btest_\w+", text)}
    assert sorted((page, name) for page, name in named if name not in known) == []


def test_every_privacy_rule_names_its_module_and_its_test() -> None:
    section = TEXTS["docs/privacy-rules.md"].split("\n## The rules")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (\d+) \|(.+)\|$", section, flags=re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, 12))
    assert [number for number, row in rows if not (re.search(r"\w+\.py", row) and re.search(r"test_\w+", row))] == []
