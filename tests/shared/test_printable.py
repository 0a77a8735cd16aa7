"""No text of a peer can forge output: the schema refuses unprintable text, and text is escaped before it is shown.

The texts are proposals of a server, and texts, codes and log lines that a site or Flower wrote.
"""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
import time
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paths import ROOT
from typer.testing import CliRunner

from wardround.cli.app import print_table
from wardround.errors import PolicyRefusal, StudyError, UsageError, WireError
from wardround.operations.health_checks import fault, table_of
from wardround.operations.log_reader import line_of
from wardround.operations.logs import JsonLines
from wardround.printable import cells, escaped, is_plain, is_printable, json_line, lines_of, quoted
from wardround.study.load import Study, load_study, parse_study, study_from_json
from wardround.wire.proposal import unpack_proposal
from wardround.wire.versions import PROTOCOL_VERSION
from wardround_client.cli.main import app
from wardround_client.studies.proposals import receive
from wardround_client.studies.store import add_decision, approved_study
from wardround_server.cli.main import app as server_app
from wardround_simulation.cli.progress import RunProgress

SITE = 'name = "north"\n[privacy]\nepsilon_cap = 8.0\ndelta_cap = 1e-4\n'
BASE: dict[str, dict[str, Any]] = {
    "study": {"name": "nodules", "rounds": 5, "spare_rounds": 1},
    "data": {"labels": ["benign", "malignant"], "image_size": 64},
    "privacy": {"epsilon": 3.0, "delta": 1e-8, "max_grad_norm": 0.3, "nominal_patients": 10},
    "aggregation": {"nominal_sites": 3, "min_sites": 2},
}
FORGED = (
    "a\x1b[2K\rcosts    ε 0.1",  # a line that writes itself anew
    "a\x1b]0;title\x07",
    "a\x9b31m",  # the C1 control that opens an escape sequence by itself
    "a\ncosts    ε 0.1",
    "a\rb",
    "a\tb",
    "a\x7fb",
    "a\u202eb",  # right-to-left override
    "a\u2066b",
    "a\u200bb",  # zero width
    "a\u00adb",  # soft hyphen
    "a\u2028b",
    "a\u2029b",
    "a\ue000b",  # private use: whatever the font likes
    "a\ufeffb",
    "a\u3164b",  # a letter that shows nothing
    "a\ufe0fb",
    "a\U000e0041b",  # a tag
    "a\u0378b",  # not assigned
    "a\u00a0b",  # a space that is none of the keyboard's
    "a\U0001f3fb",  # the colour of an emoji: no column as rich counts, two of a terminal
    "a\U0001f1e6",  # half a flag: one column or two
    "a\u0336b",  # struck through
    "a\u20ddb",
    "ka\u0940",  # a mark with a place of its own
    "a\u1161b",  # jamo: joined, or not
    "a\u1100b",
    "a\u2800b",
    "a\U00013441b",  # a blank hieroglyph
    "\u05d0 12",  # from right to left
    "\u0627 12",
)
NOT_PLAIN = (
    *(
        "a\u0308",
        " a",
        "a ",
        "a  b",
        "a^",
        "a`",
        "\u02ee",
        "\u0669",
        "\u20ac",
        "\u201ca\u201d",
        "a\u2502b",
        "\U0001f600",
    ),
    *("\U0001f600", "a\u00b7b", "a\u2019b", "\u216b", "\U0001d400", "\u4e00\u3099", "\u212b"),
)


def changed(place: str, value: object) -> dict[str, Any]:
    section, key = place.split(".")
    return {**BASE, section: {**BASE.get(section, {}), key: value}}


@pytest.fixture
def site(tmp_path: Path) -> Path:
    (tmp_path / "site.toml").write_text(SITE)
    return tmp_path


# The rule


def test_printable_is_what_shows_itself_in_one_line_and_nothing_else() -> None:
    refused = {"Cc", "Cf", "Zl", "Zp", "Co", "Cs", "Cn"}
    for code in range(sys.maxunicode + 1):
        if unicodedata.category(chr(code)) in refused:
            assert not is_printable(chr(code)), hex(code)
    assert is_printable("Übersicht κ=3 日本 [ok] \"x\" 'y' <b>")
    assert not any(map(is_printable, FORGED))


def test_every_character_that_is_printable_has_one_width_for_every_program_that_counts() -> None:
    """rich, which counts what we print in tables, and wcwidth, whose tables many terminals have."""
    from rich.cells import cell_len

    wcwidth = pytest.importorskip("wcwidth").wcwidth
    for code in range(sys.maxunicode + 1):
        one = chr(code)
        if is_printable(one):
            assert cell_len(one) == wcwidth(one) in (1, 2) and cells(one) >= cell_len(one), hex(code)
            assert unicodedata.bidirectional(one) not in ("R", "AL", "AN"), hex(code)
        if is_plain(one):
            letter = unicodedata.category(one) in ("Lu", "Ll", "Lt", "Lo")
            assert is_printable(one) and (letter or " " < one <= "~"), hex(code)


def test_plain_are_letters_ascii_and_single_spaces() -> None:
    assert all(map(is_plain, ('Übersicht k=3 [ok] "x" (b): a_1', "日本", "доброкачественная", "한국", "")))
    assert not any(map(is_plain, (*FORGED, *NOT_PLAIN)))


@given(st.text(st.characters(), max_size=60), st.integers(2, 40))
def test_a_line_is_never_wider_than_its_width_and_no_word_is_lost(text: str, width: int) -> None:
    lines = lines_of(escaped(text), width)
    assert max(map(cells, lines)) <= width
    assert "".join(lines).replace(" ", "") == escaped(text).replace(" ", "")


@given(st.text(st.characters(), max_size=40))
def test_what_is_escaped_is_printable_and_what_is_printable_stays(text: str) -> None:
    assert is_printable(escaped(text)) and escaped(escaped(text)) == escaped(text)
    assert not is_printable(text) or escaped(text) == text
    assert is_printable(json_line({text: [text]})) and json.loads(json_line({text: [text]})) == {text: [text]}
    assert re.fullmatch(r'"([^"\\]|\\.)*"', quoted(text)), "no quotation mark of the text ends it"


# What a study may hold

TEXTS = {
    "data.body_part": lambda text: text,
    "data.labels": lambda text: ["benign", text],
    "model.init": lambda text: f"{text}.safetensors",
    "model.init_sha256": lambda text: text,
    "aggregation.site_weights": lambda text: {text: 1.0},
    "study.name": lambda text: text,
    "data.modality": lambda text: text,
}


@pytest.mark.parametrize("place", TEXTS)
def test_no_text_of_a_study_takes_a_character_that_does_not_show_itself_and_none_is_long(place: str) -> None:
    only_plain = () if place == "model.init" else NOT_PLAIN  # a path, which is not shown
    for text in (*FORGED, *only_plain, "\ud800", "x" * 1100):
        with pytest.raises(StudyError) as caught:
            parse_study(changed(place, TEXTS[place](text)))
        line = str(caught.value)
        assert is_printable(line) and len(line) < 300 and place in line


def test_texts_of_any_language_are_taken_and_their_number_is_bounded() -> None:
    parse_study(changed("data.labels", ["gutartig", "bösartig", "良性", "доброкачественная", 'a "b"']))
    for place, value in (
        ("data.labels", [chr(0x4E00 + number) for number in range(65)]),
        ("data.labels", ["a" * 64, "b" * 64, "c" * 64, "d" * 9]),
        ("data.window_hu", [[0, number + 1] for number in range(17)]),
        ("aggregation.site_weights", {f"site {number}": 1.0 for number in range(10_001)}),
    ):
        with pytest.raises(StudyError, match=place):
            parse_study(changed(place, value))


NUMBERS = {
    "study.rounds": 100_000, "study.spare_rounds": 100_000, "study.seed": 2**63 - 1, "training.local_steps": 100_000,
    "training.warmup_rounds": 100_000, "privacy.nominal_patients": 10_000_000, "privacy.images_per_patient": 10_000,
    "aggregation.nominal_sites": 10_000, "aggregation.min_sites": 3, "evaluation.bins": 64, "data.image_size": 1024,
    "privacy.epsilon": 1e4, "privacy.delta": 1e-2, "privacy.max_grad_norm": 1e4, "privacy.sampling_rate": 1.0,
    "training.learning_rate": 1e15, "training.weight_decay": 1000.0, "training.momentum": 0.999,
    "aggregation.round_deadline_s": 2_592_000.0, "aggregation.max_update_norm": 1e9, "aggregation.proximal_mu": 1e6,
    "aggregation.server_learning_rate": 1000.0, "aggregation.ema_decay": 0.999, "aggregation.tail_fraction": 1.0,
    "evaluation.epsilon": 1e4, "evaluation.holdout": 0.999, "evaluation.logit_scale": 100.0, "data.spacing_mm": 31.25,
}  # fmt: skip


@pytest.mark.parametrize("place", NUMBERS)
def test_every_number_of_a_study_has_a_largest_value(place: str) -> None:
    largest = NUMBERS[place]
    parse_study(changed(place, largest))
    beyond = (largest + 1 if isinstance(largest, int) else 1.01 * largest, 10**400, -(10**400), 1e308, -1e308)
    for value in (*beyond, float("nan"), [[]], {"a": 1}):
        with pytest.raises(StudyError) as caught:
            parse_study(changed(place, value))
        assert is_printable(str(caught.value)) and len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("place", "least"),
    [
        ("privacy.epsilon", 1e-3), ("privacy.delta", 1e-15), ("privacy.max_grad_norm", 1e-4),
        ("privacy.sampling_rate", 1e-6), ("training.learning_rate", 1e-30), ("aggregation.max_update_norm", 1e-9),
        ("evaluation.epsilon", 1e-3), ("data.spacing_mm", 0.01),
    ],
)  # fmt: skip
def test_numbers_that_divide_have_a_smallest_value(place: str, least: float) -> None:
    parse_study(changed(place, least))
    for value in (least * 0.99, 1e-300, 5e-324, -least):
        with pytest.raises(StudyError):
            parse_study(changed(place, value))


@pytest.mark.parametrize("window", [[0, 1e-300], [-1e300, 1e300], [0, float("inf")], [0, float("nan")], [0, 10**400]])
def test_a_window_is_one_that_grey_values_can_be_made_of(window: list[float]) -> None:
    with pytest.raises(StudyError, match="window_hu"):
        parse_study(changed("data.window_hu", [window]))


def test_a_cut_is_no_wider_than_a_scanner() -> None:
    with pytest.raises(StudyError, match="more than 2000 mm"):
        parse_study({**BASE, "data": {**BASE["data"], "image_size": 1024, "spacing_mm": 10.0}})


@pytest.mark.parametrize("norm", [1e-4, 1e4])
def test_at_both_ends_of_the_clipping_norm_the_noise_has_its_size_and_its_grid(norm: float) -> None:
    import torch
    from builders.randomness import KnownRandom
    from torch import nn

    from wardround_client.clipping.engines import ClippedSum
    from wardround_client.privacy.noise import GRID_PARTS, PatientOptimizer
    from wardround_client.privacy.plan import plan_from_study

    plan = plan_from_study(parse_study(changed("privacy.max_grad_norm", norm)))
    weight = nn.Parameter(torch.zeros(20_000))
    optimizer = PatientOptimizer(torch.optim.SGD([weight], lr=1.0), plan, {"w": weight}, KnownRandom(b"s" * 32))
    optimizer.accumulate_sum(ClippedSum(gradients={"w": torch.zeros(20_000)}, sensitivity=norm))
    optimizer.noisy_step()
    noise = -weight.detach().double() * plan.expected_patients
    standard_deviation = plan.noise_multiplier * norm
    assert float(noise.std()) == pytest.approx(standard_deviation, rel=0.02)
    assert 1 / GRID_PARTS / 2 < float(noise.abs()[noise != 0].min()) / standard_deviation < 1 / GRID_PARTS * 2


HASHES = {
    "demo": "286de0a1dbef8a61fdac8c10d9506ccf64731db504719058a1f9fdee602a924e",
    "lidc": "e9e9197c508a4d245cce154985209a7012211ee501a923721235651f9632dcd8",
    "reconstruction": "5b4ea5a2e0aef172d8c8221efe46b7c421b18ec22d5679183b66fbb0f8d8dabe",
    "scratch": "68bd17236238d080ae4453ee9e4d8d76b0deb7d351878eeedb1de475f6635e0d",
    "seed-cnn-nodules": "946a010da5cfb8239d1c7cbaca487ccdee24c7ee1175172d74d89653fdbecf28",
    "seed-cnn": "9dbdf5156eab883d571685bd237d0f39dc848b33b7519088f1ebcc670ad1e333",
    "synthesis": "3b6ace3c48ff62681edeef0a2a1ebd3e47001ca12efe61e5a2e0872b98f6949d",
}


@pytest.mark.parametrize("name", HASHES)
def test_a_ready_study_keeps_its_hash_under_which_hospitals_approved_it(name: str) -> None:
    assert load_study(ROOT / "studies" / f"{name}.toml").sha256() == HASHES[name]


def test_the_longest_study_leaves_its_name_and_hash_right_above_the_question_on_one_screen(site: Path) -> None:
    labels = [chr(0x4E00 + number) for number in range(60)] + [one * 35 for one in "水火木土"]
    study = parse_study({**BASE, "data": {**BASE["data"], "labels": labels, "body_part": "日" * 64}})
    receive(site, study)
    lines = screen(site, study, 80)
    assert lines[-2].split() == ["study", "nodules"] and lines[-1].split() == ["hash", study.sha256()]
    assert len(lines) < 60
    words = ["studies", "approve", study.sha256(), "--by", "Marie", "--site", str(site)]
    asked = CliRunner().invoke(app, words, input="n\n", env={"COLUMNS": "80"})
    assert asked.stdout.splitlines()[-1].split() == ["hash", study.sha256()] and "Approve 1 run" in asked.stderr


# What is no study

NO_STUDIES = (
    *("", "[1]", "null", "7", '"study"', "{", "[" * 100_000, '{"study":' * 20_000),
    '{"study":{"rounds":' + "9" * 5000 + "}}",
    '{"privacy":{"epsilon":1e999,"delta":NaN}}',
    '{"\\u001b[31mstudy":{}}',
    '{"study":{"\\u001b[2J' + "x" * 9000 + '":1}}',
    '{"study":{"\\ud800":1}}',
    json.dumps(changed("data.labels", ["a", "\x1b[2J"])),
    json.dumps(changed("study.rounds", 10**400)),
)


@pytest.mark.parametrize("number", range(len(NO_STUDIES)))
def test_what_is_no_study_is_refused_in_one_short_printable_line(number: int, tmp_path: Path) -> None:
    with pytest.raises(StudyError) as caught:
        study_from_json(NO_STUDIES[number])
    assert is_printable(str(caught.value)) and len(str(caught.value)) < 400
    proposal = {"protocol": PROTOCOL_VERSION, "study_sha256": "0" * 64, "study": NO_STUDIES[number]}
    with pytest.raises(WireError) as refused:
        unpack_proposal({"proposal": proposal})
    assert refused.value.code == "study" and is_printable(str(refused.value))
    path = tmp_path / "s.toml"
    path.write_text("a = " + "[" * 5000)
    with pytest.raises(StudyError, match="not a TOML file"):
        load_study(path)
    path.write_text("[study]\nrounds = " + "9" * 5000)
    with pytest.raises(StudyError, match="not a TOML file"):
        load_study(path)


@pytest.mark.parametrize("folder", ["proposals", "studies"])
def test_a_file_that_is_no_study_is_one_line_in_each_command_and_hides_no_other_study(site: Path, folder: str) -> None:
    """As an older version may have kept it, whose schema took it."""
    receive(site, parse_study(BASE))
    (site / folder).mkdir(exist_ok=True)
    texts = (*NO_STUDIES, b"\xff\xfe\x00".decode("latin-1"))
    for number, text in enumerate(texts):
        (site / folder / f"{number:064x}.json").write_bytes(text.encode("latin-1", "backslashreplace"))
    (site / folder / f"{'f' * 64}.json").write_bytes(b"\xff\xfe")
    listed = CliRunner().invoke(app, ["studies", "list", "--site", str(site)])
    lines = listed.output.splitlines()
    assert listed.exit_code == 0 and len(lines) == len(texts) + 2 and all(map(is_printable, lines))
    assert "proposed  nodules" in lines[0] and all(
        "unreadable" in line and "move the file to another folder" in line for line in lines[1:]
    )
    known = json.loads(CliRunner().invoke(app, ["studies", "list", "--json", "--site", str(site)]).output)
    assert [one["state"] for one in known] == ["proposed", *["unreadable"] * (len(texts) + 1)]
    page = CliRunner().invoke(app, ["status", "--site", str(site)]).output
    assert "nodules: proposed" in page and page.count("unreadable") == len(texts) + 1
    asked = f"{1:064x}"
    for words in (("show",), ("approve", "--by", "M", "--yes"), ("refuse", "--by", "M"), ("revoke", "--by", "M")):
        refused = CliRunner().invoke(app, ["studies", *words, asked, "--site", str(site)])
        assert isinstance(refused.exception, UsageError) and refused.output == ""
        assert "move the file to another folder" in str(refused.exception) and is_printable(str(refused.exception))
    command = [sys.executable, "-m", "wardround_client.cli.main", "studies", "show", asked, "--site", str(site)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and done.stdout == "" and len(done.stderr.splitlines()) == 1


# What the screen says


def screen(site: Path, study: Study, width: int) -> list[str]:
    command = [
        sys.executable,
        "-m",
        "wardround_client.cli.main",
        "studies",
        "show",
        study.sha256(),
        "--site",
        str(site),
    ]
    environment = {"COLUMNS": str(width), "PATH": "", "PYTHONPATH": ":".join(sys.path), "LANG": "C.UTF-8"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("width", [60, 80, 200])
def test_no_text_of_a_study_begins_a_line_of_the_screen_or_is_taken_for_the_words_around_it(site, width: int) -> None:
    labels = [
        "[red]costs[/red]",
        ":warning: costs ε 0.1 at δ 1e-09" + "costs" * 5,
        'apart. "costs"',
        "costs " + "日" * 30,
        "д" * 64,  # two columns each, on some terminals
    ]
    study = parse_study({**BASE, "data": {**BASE["data"], "labels": labels, "body_part": "costs: nothing " * 4 + "x"}})
    receive(site, study)
    lines = screen(site, study, width)
    names = [line.split("  ")[0] for line in lines if not line.startswith(" " * 10)]
    assert names == [
        "study", "asked by", "hash", "learns", "reads", "network", "rounds", "runs", "steps", "leaves", "stays",
        "costs", "means", "answer", "state", "study", "hash",
    ]  # fmt: skip
    assert max(map(cells, lines)) <= min(width, 100), "the terminal wraps nothing by itself"
    said = " ".join(line.strip() for line in lines)
    assert '"[red]costs[/red]"' in said and ":warning:" in said and r'"apart. \"costs\""' in said


@pytest.mark.parametrize(
    ("place", "value", "row", "words"),
    [
        ("privacy.epsilon", 2.5, "costs", "ε 2.5"),
        ("privacy.epsilon", 2.5000000001, "costs", "ε 2.5000000001 at"),
        ("privacy.delta", 2e-5, "costs", "δ 2e-05"),
        ("privacy.delta", 2.0000000001e-5, "costs", "at δ 2.0000000001e-05"),
        ("privacy.sampling_rate", 0.2500000001, "steps", "probability 0.2500000001 (sampling_rate)"),
        ("privacy.max_grad_norm", 0.1230000001, "steps", "length 0.1230000001 at most"),
        ("privacy.max_grad_norm", 0.123, "steps", "length 0.123 at most (max_grad_norm)"),
        ("privacy.sampling_rate", 0.25, "steps", "probability 0.25 (sampling_rate)"),
        ("privacy.images_per_patient", 7, "steps", "at most 7 images of a patient"),
        ("privacy.nominal_patients", 77, "steps", "77 patients (nominal_patients"),
        ("study.rounds", 9, "rounds", "9 rounds and 1 spare"),
        ("study.spare_rounds", 4, "rounds", "5 rounds and 4 spare"),
        ("training.local_steps", 3, "steps", "18 steps at most"),
        ("evaluation.epsilon", 0.75, "costs", "ε 0.75 for each release of figures"),
        ("evaluation.holdout", 0.45, "reads", "45% of the patients"),
    ],
)
def test_every_number_that_bears_on_privacy_is_on_the_screen(site: Path, place, value, row: str, words: str) -> None:
    from wardround_client.privacy.plan import plan_from_study

    study = parse_study(changed(place, value))
    receive(site, study)
    shown = CliRunner().invoke(app, ["studies", "show", study.sha256(), "--json", "--site", str(site)]).output
    said = json.loads(shown)["words"]
    assert words in said[row]
    assert f"noise of {plan_from_study(study).noise_multiplier:.4g} times that length" in said["steps"]


def test_a_study_without_noise_or_clipping_says_so_in_capitals(site: Path) -> None:
    study = parse_study(
        {
            **BASE,
            "training": {"learning_rate": 0.1},
            "privacy": {**BASE["privacy"], "epsilon": "inf", "max_grad_norm": "inf"},
        }
    )
    receive(site, study)
    shown = CliRunner().invoke(app, ["studies", "show", study.sha256(), "--json", "--site", str(site)]).output
    assert "NOT CUT" in json.loads(shown)["words"]["steps"] and "NO NOISE" in json.loads(shown)["words"]["steps"]


# What is shown of a peer besides


@pytest.mark.parametrize("text", FORGED)
def test_tables_errors_logs_and_checks_show_what_a_peer_wrote_escaped(text: str, capsys) -> None:
    print_table(("site", "runs"), [("north", text), ("[red]x[/red]", ":warning:")])
    said = capsys.readouterr().out
    assert all(map(is_printable, said.splitlines())) and "[red]x[/red]" in said and ":warning:" in said
    entry = {"at": "2026-11-24T10:00:00.000Z", "level": "error", "text": text, "traceback": f"one\n{text}", "run": text}
    assert all(map(is_printable, line_of(entry).split("\n")))
    record = logging.LogRecord("l", logging.INFO, "", 0, "%s", (text,), None)
    assert is_printable(JsonLines().format(record)) and json.loads(JsonLines().format(record))["text"] == text
    relayed = logging.LogRecord("l", logging.INFO, "", 0, "", None, None)
    relayed.relayed = entry
    assert is_printable(JsonLines().format(relayed)) and json.loads(JsonLines().format(relayed)) == entry
    from rich.console import Console

    Console().print(table_of([fault("server", f"{text} [red]x[/red]", text)]))
    said = capsys.readouterr().out
    assert all(map(is_printable, said.splitlines())) and "[red]x[/red]" in said
    with RunProgress(Console(), 3, quiet=False) as progress:
        progress.warn(f"{text} [red]x[/red]")
    said = capsys.readouterr().out
    assert all(map(is_printable, said.splitlines())) and "[red]x[/red]" in said


def test_an_error_is_one_printable_line(tmp_path: Path) -> None:
    path = tmp_path / "s.toml"
    path.write_text('["stu\\u001b[2Jdy"]\nx = 1\n')
    for name in ("\x1b[31m.toml", str(path)):
        command = [
            sys.executable,
            "-m",
            "wardround_client.cli.main",
            "studies",
            "approve",
            name,
            "--by",
            "M",
            "--site",
            ".",
        ]
        (tmp_path / "site.toml").write_text(SITE)
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
        assert done.returncode == 2 and is_printable(done.stderr.removesuffix("\n"))


@pytest.mark.parametrize("option", [[], ["--json"]])
def test_logs_of_both_programs_print_nothing_that_a_terminal_obeys(tmp_path: Path, option: list[str]) -> None:
    """A line that another version wrote, or a library: the file itself may hold anything."""
    from wardround_server.operations.config import load_server_config

    (tmp_path / "logs").mkdir()
    entry = {"at": "2026-11-24T10:00:00.000Z", "level": "warning", "text": "".join(FORGED)}
    lines = json.dumps(entry, ensure_ascii=False) + "\nplain \x1b[31m\x9b\u202e\n"
    (tmp_path / "logs" / "site.log").write_text(lines, encoding="utf-8")
    (tmp_path / "site.toml").write_text(SITE)
    (tmp_path / "server.toml").write_text('[server]\nhost = "fed.example.org"\nname = "local"\n')
    load_server_config(tmp_path)
    for program, folder in ((app, "--site"), (server_app, "--server")):
        done = CliRunner().invoke(program, ["logs", folder, str(tmp_path), *option])
        assert done.exit_code == 0 and len(done.output.splitlines()) == 2
        assert all(map(is_printable, done.output.split("\n")))


def test_the_servers_show_and_sites_print_a_sites_words_escaped(tmp_path: Path) -> None:
    """Codes and versions of a site have a fixed alphabet; here they come from files that something else wrote."""
    from wardround_server.runs.folder import create_run, write_json

    (tmp_path / "server.toml").write_text('[server]\nhost = "fed.example.org"\nname = "local"\n')
    run, at = create_run(tmp_path, parse_study(BASE)), time.time()
    evil = "refused:\x1b[2J\u202e[red]x[/red]"
    write_json(run.path / "approvals.json", {"east": {"state": evil, "at": at}})
    write_json(run.path / "problem.json", {"phase": "train", "error": evil, "at": at})
    line = {"round": 1, "site": evil, "code": evil, "seconds": 1.0, "bytes_up": 5, "bytes_down": 5}
    (run.path / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    for words in (["show", run.run_id], ["runs"], ["sites", "list"]):
        done = CliRunner().invoke(server_app, [*words, "--server", str(tmp_path)])
        assert done.exit_code == 0, done.exception
        assert all(map(is_printable, done.output.split("\n")))
    assert "[red]x[/red]" in CliRunner().invoke(server_app, ["show", run.run_id, "--server", str(tmp_path)]).output


def test_a_study_that_was_approved_under_a_laxer_schema_trains_no_more(site: Path) -> None:
    text = json.dumps(changed("data.labels", ["a", "\x1b[2J"]))
    (site / "studies").mkdir()
    (site / "studies" / f"{'a' * 64}.json").write_text(text)
    add_decision(site, "approved", "a" * 64, "Marie", 1)
    with pytest.raises((StudyError, PolicyRefusal)):
        approved_study(site, "a" * 64)
