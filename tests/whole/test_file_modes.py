"""All files and folders of a site or a server belong to its owner alone, whatever the umask: modes 0600 and 0700."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from builders.broadcasts import broadcast_of
from builders.federation import STUDY, Federation, approve, command
from builders.pictures import manifest, many
from builders.pictures import run as ingested
from builders.runs import Sites, run_of, trained
from builders.runs import study_of as run_study
from builders.sites import RELEASING_SITE, releasing_study, write_patients
from paths import ROOT

from wardround.operations.logs import log_to
from wardround.records.chain import START
from wardround.storage.atomic import write_folder, write_private
from wardround.storage.checkpoint import save_checkpoint
from wardround.storage.folders import make_folder
from wardround.wire.versions import ours
from wardround_client.clipping import select
from wardround_client.enhance.files import write_png
from wardround_client.ledger.file import LedgerFile
from wardround_client.ledger.ledger import Ledger
from wardround_client.rounds.evaluation import release_scores
from wardround_client.rounds.training import answer
from wardround_client.site import server_info
from wardround_client.site.config import load_site_config
from wardround_client.site.site import open_site
from wardround_client.sources.images.decoding.workers import WorkerPool
from wardround_client.studies import proposals
from wardround_client.studies.approvals import approve as decide
from wardround_client.studies.store import store_approved
from wardround_server.operations.config import config_text
from wardround_server.runs.folder import create_run
from wardround_server.runs.handover import export_run
from wardround_server.runs.metrics_log import append_lines, trim_lines
from wardround_server.sites import software
from wardround_server.sites.registry import Registry


@pytest.fixture
def pool():
    with WorkerPool(1) as workers:
        yield workers


@pytest.fixture(autouse=True)
def umask_0():
    """The umask that takes nothing away: what is not asked for as private is open to all."""
    before = os.umask(0)
    yield
    os.umask(before)


def open_to_others(folder: Path) -> dict[str, str]:
    """What others than the owner may read, write or enter, the folder itself included."""
    return {
        path.relative_to(folder).as_posix(): oct(path.lstat().st_mode)
        for path in (folder, *folder.rglob("*"))
        if not path.is_symlink() and not path.is_socket() and path.lstat().st_mode & 0o077
    }


def test_what_a_site_writes_in_its_rounds_is_its_owners(tmp_path: Path, monkeypatch) -> None:
    folder = tmp_path / "site"
    folder.mkdir(mode=0o700)
    write_patients(folder, "p")
    write_private(folder / "site.toml", RELEASING_SITE.encode())
    proposed, study = releasing_study(), releasing_study(evaluation_epsilon=1.0)
    assert proposals.receive(folder, proposed) == "proposed"
    decide(
        folder,
        proposed,
        "Ada Lovelace",
        Ledger(folder / "ledger.sqlite3"),
        load_site_config(folder / "site.toml").privacy.cap(),
    )
    assert proposals.receive(folder, releasing_study(evaluation_epsilon=3.0)) == "proposed", "which stays undecided"
    store_approved(folder, study)
    server_info.keep(folder, 1.7e9, ours())
    log_to(folder / "logs" / "site.log", names=("umask",))
    with select._proved_once(folder / "flower" / "proofs" / "a" / "b"):
        pass
    monkeypatch.setattr(select, "_trial", lambda *_: {select.LOOP: 1.0})
    select._remembered(folder / "cache" / "engine.json", *[None] * 4, {select.LOOP: None})
    site = open_site(folder, folder / "flower" / "proofs")
    for number in range(25):  # refusals: in full, then counted
        with pytest.raises(Exception, match="approved study"):
            answer(broadcast_of(releasing_study(evaluation_epsilon=2.0), 1 + number % 3), site)
    for round_ in (1, 2):
        answer(broadcast_of(study, round_), site)
    release_scores(broadcast_of(study, 4), site)
    write_png(folder / "restored.png", np.zeros((8, 8), np.uint8), {})
    there = {path.relative_to(folder).parts[0] for path in folder.rglob("*")}
    assert there >= {
        *("cohort", "studies", "decisions", "proposals", "replies", "cache", "logs", "flower", "ledger.sqlite3"),
        *("ledger.head", "audit.jsonl", "audit.head", "audit.refused", "restored.png"),
    }
    assert open_to_others(folder) == {}


def test_the_ledgers_journal_has_the_mode_of_the_ledger_and_an_open_ledger_of_an_older_version_is_closed(
    tmp_path: Path,
) -> None:
    path = tmp_path / "ledger.sqlite3"
    LedgerFile(path).close()
    path.chmod(0o644)
    ledger = LedgerFile(path)
    ((head, _),) = ledger.walked(ledger.rows(), START)
    with ledger.transaction():
        ledger.append(head, {"kind": "test"})
        assert (tmp_path / "ledger.sqlite3-journal").exists()
        assert [name for name in open_to_others(tmp_path) if name.startswith("ledger")] == []


def test_what_a_server_writes_in_its_runs_is_its_owners(tmp_path: Path) -> None:
    server = tmp_path / "server"
    write_folder(server, {"server.toml": config_text("fed", ("127.0.0.1",), 9092).encode()})
    Registry(server).sites()
    software.keep(server, "north", ours())
    study = run_study("first", figures=1.0)
    trained(create_run(server, study), Sites(codes={(2, "north"): "refused:no_spare_rounds"}))
    run = run_of(server, "first")
    append_lines(run.path / "metrics.jsonl", [{"round": 99}])
    trim_lines(run.path / "metrics.jsonl", 3)
    export_run(run, server / "out" / "deep", attack=None, force=True, license="other", who=None)
    assert (run.path / "model.safetensors").exists() and (run.path / "checkpoints").is_dir()
    assert open_to_others(server) == {}


def test_what_an_ingest_writes_is_its_owners(tmp_path: Path, pool) -> None:
    """The cohort with its quality reports and its list of what was put aside, made twice: what was decoded is kept."""
    rows = [("bad.png", "patient 0", "benign", b"no image"), *many(12)]
    for _ in range(2):
        ingested(manifest(tmp_path / "data", rows), tmp_path / "site" / "cohort", pool)
    there = {path.name for path in (tmp_path / "site" / "cohort").iterdir()}
    assert there >= {"quality.json", "quality.html", "quarantine.csv"}, sorted(there)
    assert open_to_others(tmp_path / "site") == {}


PROGRAM = """
import subprocess, sys
from pathlib import Path
from wardround.cli.app import program, run_program

app = program("try-this", "A program.")

@app.command()
def work():
    Path("own").write_text("")
    subprocess.run([sys.executable, "-c", "import pathlib; pathlib.Path('childs').mkdir()"], check=True)

run_program(app, "try-this", full_disk="full")
"""


def test_every_program_takes_all_rights_of_others_from_what_it_and_its_children_write(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=tmp_path, timeout=60)
    assert done.returncode == 0 and {path.name for path in tmp_path.iterdir()} == {"own", "childs"}
    assert open_to_others(tmp_path) == {}
    for room in ("client", "server", "simulation"):
        assert "run_program(" in (ROOT / room / f"wardround_{room}" / "cli" / "main.py").read_text(encoding="utf-8")


def test_a_file_of_an_older_version_is_closed_when_it_is_written_again(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    for name in (".reply.safetensors.partial", "metrics.jsonl"):
        (tmp_path / name).touch(mode=0o666)
    save_checkpoint(tmp_path / "reply.safetensors", {}, {})
    append_lines(tmp_path / "metrics.jsonl", [{"round": 1}])
    make_folder(tmp_path / "a" / "b" / "c")
    assert open_to_others(tmp_path) == {}


def test_a_mode_that_was_asked_for_does_not_depend_on_the_umask(tmp_path: Path) -> None:
    for umask in (0, 0o077):
        os.umask(umask)
        write_private(tmp_path / "request", b"", mode=0o644)
        assert (tmp_path / "request").stat().st_mode & 0o777 == 0o644, "it is public: made to be sent"


@pytest.mark.slow
def test_what_daemons_and_flower_write_is_their_owners(tmp_path: Path) -> None:
    """Programs started with umask 0: their own files, Flower's database and keys, SQLite's files, logs."""
    federation = Federation(tmp_path)
    (tmp_path / "tiny.toml").write_text(STUDY.format(rounds=1, min_sites=3))
    try:
        for folder in federation.folders.values():
            approve(tmp_path / "tiny.toml", folder)
        for name in ("server", *federation.folders):
            federation.start(name)
        command("server", "submit", tmp_path / "tiny.toml", "--server", federation.server)
        federation.wait_for(lambda run: run["state"] == "finished", 300)
        while_it_runs = {name: open_to_others(tmp_path / name) for name in ("server", *federation.folders)}
    finally:
        for name in list(federation.processes):
            federation.stop(name)
    public = {f"{name}.enrol.json" for name in federation.folders}  # made to be sent to the operator
    for name, found in while_it_runs.items():
        assert set(found) | set(open_to_others(tmp_path / name)) <= public
    assert list(federation.server.glob("flower*/**/*.db*")) or list(federation.server.glob("flower*/**/*"))
