"""The benchmarks run and print what they measured. Each runs with tiny sizes in a separate process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
from paths import ROOT

BENCH = ROOT / "bench"
TINY = {
    "private_step": "--networks dcgan-64 --images-per-patient 2 --batch 4 --repeats 2 --modes loop;book-keeping;hooks",
    "noise": "--network phantom-encoder --batch 2 --repeats 2",
    "ledger": "--attempts 1,20 --repeats 2",
    "audit_log": "--entries 1,30 --repeats 2",
    "records": "--rows 20000 --repeats 2",
    "ingestion": "--patients 2 --repeats 2 --workers 1",
    "restoration_step": "--patients 2 --images-per-patient 2 --count 2 --repeats 2 --trainable head",
    "recurrent_step": "--stays 4 --hours 6 --units 8 --repeats 2",
    "synthesis_step": "--sizes 64 --patients 2 --images-per-patient 2 --fakes 2 --count 4 --repeats 2",
    "simulated_round": "--rounds 2 --patients 4 --sites 2",
    "federation_round": "--sites 1 --rounds 3 --megabytes 1",
}
ELSEWHERE = {  # in files of their own
    *(
        "demonstration",
        "explanations",
        "pacs_pull",
        "peers",
        "predictions",
        "released_figures",
        "synthesis_folds",
        "synthesis_gan",
    ),
}
# They check engines, start Flower, or need the seconds of several other tests.
SLOW = {
    *("federation_round", "ingestion", "noise", "private_step", "records", "restoration_step", "simulated_round"),
    "synthesis_step",
}

sys.path.insert(0, str(BENCH))
try:
    import measure
finally:
    sys.path.remove(str(BENCH))


def bench(name: str, *options: str) -> str:
    command = [sys.executable, str(BENCH / f"{name}.py"), *TINY[name].split(), *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def spreads(value: object) -> Iterator[dict]:
    """Every median with its smallest and largest value in a document, however deep."""
    if isinstance(value, dict):
        if "median" in value:
            yield value
        for inner in value.values():
            yield from spreads(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from spreads(inner)


def test_every_benchmark_is_tried_here() -> None:
    """What `./run bench` runs: the files with a main part."""
    found = {path.stem for path in BENCH.glob("*.py") if "\nif __name__" in path.read_text(encoding="utf-8")}
    assert found - ELSEWHERE == set(TINY)


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n in SLOW else ()) for n in TINY])
def test_a_benchmark_prints_one_json_document_of_its_machine_and_its_spreads(name: str) -> None:
    document = json.loads(bench(name, "--json"))
    assert document["machine"]["cores"] >= 1 and document["machine"]["torch"]
    found = list(spreads(document))
    assert len(found) >= 3
    assert all(0 <= one["smallest"] <= one["median"] <= one["largest"] and one["repeats"] == 2 for one in found)
    if name == "private_step":
        (step,) = document["steps"]
        assert step["not_possible"] == {} and set(step["gap_to_loop"]) == {"loop", "book-keeping", "hooks"}
        assert max(step["gap_to_loop"].values()) < 1e-4
        assert step["peak_mb"]["hooks"] > step["peak_mb"]["plain"] > 1  # a gradient for each image has to lie somewhere
    if name == "ingestion":
        assert document["files"] == document["images"] == document["decoded"] > 10
    if name == "noise":
        assert document["numbers"] > 20_000


def test_markdown_and_the_terminal_show_every_cell(capsys: pytest.CaptureFixture[str]) -> None:
    sheet = measure.Sheet(title="Title", columns=["what", "ms"], rows=[["one", "1.0"], ["two", "2.0"]], notes=["note"])
    parser = measure.arguments_of("")
    for options in ([], ["--markdown"]):
        measure.tell(parser.parse_args(options), measure.machine(), {}, [sheet])
        shown = capsys.readouterr().out
        assert all(text in shown for text in ("Title", "what", "ms", "one", "1.0", "two", "2.0", "note"))
    lines = [line for line in shown.splitlines() if line.startswith("|")]
    assert len(lines) == 4 and {line.count("|") for line in lines} == {3}


def test_works_take_turns_within_each_repeat_and_warm_ones_are_not_counted() -> None:
    done: list[str] = []
    ticks = iter(range(1000))
    works = {"a": lambda: done.append("a"), "b": lambda: done.append("b")}
    seconds = measure.interleaved(works, 2, warm=1, clock=lambda: next(ticks))
    assert "".join(done) == "ba" + "ab" + "ba"
    assert {name: len(values) for name, values in seconds.items()} == {"a": 2, "b": 2}


def test_a_ratio_is_formed_within_each_repeat() -> None:
    """A machine twice as slow in the second repeat changes no ratio."""
    found = measure.ratio([2.0, 4.0, 2.0], [1.0, 2.0, 1.0])
    assert (found.median, found.smallest, found.largest, found.repeats) == (2.0, 2.0, 2.0, 3)


def test_a_measurement_without_a_repeat_is_refused() -> None:
    with pytest.raises(ValueError, match="no repeat"):
        measure.spread([])
