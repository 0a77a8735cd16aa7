"""The server's record of each site's ledger outlives runs, keys and backups, so a ledger that goes back is noticed."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from builders.keys import public_key
from builders.rounds import START, Sites, WithLedgers, a_study, head, recent, run
from builders.sites import study_of, twelve_images
from typer.testing import CliRunner

from wardround.errors import RoundError, UsageError, WardroundError, WireError
from wardround.networks.build import initial_network
from wardround.networks.fingerprint import architecture_sha256
from wardround.records.audit_log import AUDIT_FILE, verified
from wardround.study.load import parse_study
from wardround.wire.evaluation import ScoreRelease, SiteRelease, pack_release, unpack_release
from wardround_client.ledger.ledger import Cap, Ledger
from wardround_client.privacy.secure_random import SecretRandom
from wardround_client.site.site import Site
from wardround_server.cli.main import app
from wardround_server.operations.backup import backup, restore
from wardround_server.operations.config import config_text
from wardround_server.operations.paths import HEADS_FILE
from wardround_server.rounds.evaluation import federated_test
from wardround_server.rounds.loop import Missing, run_rounds
from wardround_server.sites.ledger_heads import LedgerHeads, check_extends
from wardround_server.sites.registry import Registry
from wardround_simulation.engine.in_process import in_process_exchange, start_weights

ROLLBACK = "invalid:ledger-rollback"


def missing_in(folder: Path, name: str, sites: Sites, rounds: int = 1, **other) -> list[tuple[int, str, str]]:
    """Who has no part in a run of its own in this server's folder."""
    outcome = run(a_study(rounds=rounds), sites, folder / name, ledgers=LedgerHeads(folder), run_id=name, **other)
    return [(one.round, one.site, one.code) for one in outcome.missing]


class Shown(WithLedgers):
    """Sites whose replies show what the test says: (round, site) -> (head, recent)."""

    def __init__(self, shown, **other):
        super().__init__(**other)
        self.shown = shown

    def __call__(self, broadcast, deadline_s):
        for reply in super().__call__(broadcast, deadline_s):
            now, hashes = self.shown.get((broadcast.round, reply.site), (reply.ledger_head, reply.ledger_recent))
            yield dataclasses.replace(reply, ledger_head=now, ledger_recent=hashes)


def grown(entries: int, **other) -> Shown:
    """Honest sites whose ledgers have so many entries in the first round, but for those that show something else."""
    honest = head(entries), recent(head(entries))
    return Shown({(1, site): other.get(site, honest) for site in ("a", "bb", "ccc")})


BACK = {
    "older": (head(5), recent(head(5))),
    "as long, another": (head(8, "e"), recent(head(8, "e"))),
    "older, grown past": (head(12), "d" * 8 * 7 + "e" * 8 * 4 + "d" * 8),
    "none": (None, ""),
}


@pytest.mark.parametrize("kind", list(BACK))
def test_a_ledger_that_went_back_or_forked_between_two_runs_is_refused_and_named(tmp_path: Path, kind: str) -> None:
    assert missing_in(tmp_path, "first", WithLedgers(), rounds=3) == []  # ends with 8 entries each
    assert missing_in(tmp_path, "second", grown(10, bb=BACK[kind])) == [(1, "bb", ROLLBACK)]
    assert LedgerHeads(tmp_path).known()["bb"].head == head(8)
    assert missing_in(tmp_path, "third", grown(12)) == []  # the newest copy was put back


def test_an_old_copy_is_refused_however_far_it_grows(tmp_path: Path) -> None:
    missing_in(tmp_path, "first", WithLedgers(), rounds=3)
    for number in range(6, 60, 2):
        now = head(number, "e")
        back = grown(8, bb=(now, "d" * 8 * 4 + "e" * 8 * (number - 4)))
        assert missing_in(tmp_path, f"run-{number}", back) == [(1, "bb", ROLLBACK)], number


def test_more_entries_than_a_reply_shows_are_a_gap_and_as_many_as_it_shows_are_not() -> None:
    check_extends(head(1032, "e"), "d" * 8 * 1023 + "e" * 8, head(9))
    with pytest.raises(WireError) as caught:
        check_extends(head(1032, "e"), "d" * 8 * 1022 + "e" * 8, head(9))
    assert caught.value.code == "ledger-gap"


class Killed(BaseException):
    pass


def test_a_head_is_on_disk_when_its_reply_is_taken(tmp_path: Path) -> None:
    """Also where the round, or the run, never ends."""

    def dies(broadcast, deadline_s):
        for reply in WithLedgers()(broadcast, deadline_s):
            if reply.site == "ccc":
                raise Killed
            yield reply

    with pytest.raises(Killed):
        missing_in(tmp_path, "first", dies)
    assert {site: seen.entries for site, seen in LedgerHeads(tmp_path).known().items()} == {"a": 4, "bb": 4}


def test_a_round_below_its_quorum_leaves_its_heads_to_the_next_run(tmp_path: Path) -> None:
    with pytest.raises(RoundError):
        missing_in(tmp_path, "first", WithLedgers({(1, "bb"): head(9)}, faults={(1, "a"): "late", (1, "ccc"): "late"}))
    assert missing_in(tmp_path, "second", WithLedgers({(1, "bb"): head(8)})) == [(1, "bb", ROLLBACK)]


def test_the_ledger_has_come_as_far_as_a_refused_update_shows(tmp_path: Path) -> None:
    """What was wrong with the weights does not undo what the site spent on them."""
    bad = {(1, "bb"): lambda weights: {"head.bias": weights["head.bias"]}}
    assert missing_in(tmp_path, "first", WithLedgers({(1, "bb"): head(9)}, faults=bad)) == [(1, "bb", "invalid:names")]
    assert missing_in(tmp_path, "second", WithLedgers({(1, "bb"): head(8)})) == [(1, "bb", ROLLBACK)]


def test_a_run_begun_before_the_heads_were_kept_goes_on_and_its_checkpoint_counts(tmp_path: Path) -> None:
    def stop(record):
        if record.round == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        missing_in(tmp_path, "old", WithLedgers(), rounds=4, on_round=stop)
    (tmp_path / HEADS_FILE).unlink()  # as before
    sites = WithLedgers({(3, "bb"): head(5)})
    assert missing_in(tmp_path, "old", sites, rounds=4) == [(3, "bb", ROLLBACK)] and sites.asked == [3, 4]


def test_what_the_operator_accepted_is_not_undone_by_an_older_checkpoint(tmp_path: Path) -> None:
    heads = LedgerHeads(tmp_path)
    heads.take("bb", head(8), recent(head(8)))
    heads.accept("bb", str)
    heads.take_over({"bb": head(7), "new": head(3)})
    assert heads.known()["bb"].entries == 0 and heads.known()["new"].head == head(3)
    heads.take("bb", head(2, "e"), recent(head(2, "e")))
    heads.take_over({"bb": head(8), "new": head(2)})
    assert heads.known()["bb"].head == head(2, "e") and heads.known()["new"].head == head(3)


def test_runs_at_once_lose_no_head(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_take_many, args=(tmp_path, f"site-{number}")) for number in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert {site: seen.entries for site, seen in LedgerHeads(tmp_path).known().items()} == {
        f"site-{number}": 40 for number in range(4)
    }


def _take_many(folder: Path, site: str) -> None:
    for entries in range(1, 41):
        LedgerHeads(folder).take(site, head(entries), recent(head(entries)))


def test_a_damaged_file_of_heads_is_one_line_and_not_forgotten(tmp_path: Path) -> None:
    (tmp_path / HEADS_FILE).write_text("{")
    for call in (LedgerHeads(tmp_path).known, lambda: LedgerHeads(tmp_path).take("a", head(1), "d" * 8)):
        with pytest.raises(WardroundError, match=r"ledger_heads.json: cannot be read .*restore it from a backup"):
            call()


def test_the_file_is_replaced_whole_and_synced(tmp_path: Path, monkeypatch) -> None:
    story, real = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: story.append(_name(descriptor)) or real(descriptor))
    heads = LedgerHeads(tmp_path)
    heads.take("a", head(1), "d" * 8)
    assert story == [f".{HEADS_FILE}.partial", tmp_path.name]
    heads.take("a", head(1), "d" * 8)
    assert len(story) == 2 and (tmp_path / HEADS_FILE).stat().st_mode & 0o777 == 0o600


def _name(descriptor: int) -> str:
    return Path(os.readlink(f"/proc/self/fd/{descriptor}")).name


class Figures:
    """Sites that answer the question for figures; `shown` as in `Shown`, by site."""

    def __init__(self, **shown):
        self.shown = shown

    def ask_for_figures(self, question, bins, deadline_s):
        for site, (now, hashes) in sorted(self.shown.items()):
            release = ScoreRelease(counts_2B=np.full((2, bins), 9), per_site=False, head=now, recent=hashes)
            packet = pack_release(question, release)
            yield SiteRelease(site=site, release=unpack_release(packet, question, bins)[0], code=None, bytes_up=0)


def test_figures_show_the_ledger_too_and_those_of_one_that_went_back_do_not_count(tmp_path: Path) -> None:
    study, heads, taken = a_study(), LedgerHeads(tmp_path), []
    study = parse_study(study.model_dump() | {"evaluation": {"epsilon": 1.0}})
    heads.take("a", head(8), recent(head(8)))
    heads.take("bb", head(8), recent(head(8)))
    asked = Figures(a=(head(10), recent(head(10))), bb=BACK["older, grown past"], ccc=BACK["older"])
    figures = federated_test(study, "run", "b" * 64, START, asked, taken.append, heads)
    assert figures["sites"] == ["a", "ccc"] and figures["missing"] == [{"site": "bb", "code": ROLLBACK}]
    assert [one.code for one in taken] == [None, ROLLBACK, None]
    assert {site: seen.entries for site, seen in heads.known().items()} == {"a": 10, "bb": 8, "ccc": 5}


# The server's folder


@pytest.fixture
def server(tmp_path: Path) -> Path:
    folder = tmp_path / "server"
    folder.mkdir()
    (folder / "server.toml").write_text(config_text("fed", ("127.0.0.1",), 9092))
    Registry(folder).add("bb", public_key())
    missing_in(folder, "first", WithLedgers(), rounds=3)
    return folder


def test_a_site_that_is_enrolled_again_has_the_ledger_it_had(server: Path) -> None:
    Registry(server).end("bb", "revoked")
    Registry(server).add("bb", public_key())
    assert missing_in(server, "second", grown(10, bb=BACK["older"])) == [(1, "bb", ROLLBACK)]


def test_heads_are_in_a_backup_and_an_older_backup_takes_sites_that_went_on(server: Path, tmp_path: Path) -> None:
    backup(server, tmp_path / "b.tar")
    missing_in(server, "second", grown(30))
    restore(tmp_path / "b.tar", tmp_path / "restored")
    assert LedgerHeads(tmp_path / "restored").known()["bb"].head == head(8)
    back = grown(10, bb=BACK["older, grown past"])
    assert missing_in(tmp_path / "restored", "third", back) == [(1, "bb", ROLLBACK)]
    assert missing_in(tmp_path / "restored", "fourth", grown(32)) == []


def sites(*words: str):
    done = CliRunner().invoke(app, ["sites", *words])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


def test_the_operator_accepts_another_ledger_by_name_and_it_counts_from_its_next_reply_on(server: Path) -> None:
    back = grown(10, bb=BACK["older"])
    assert missing_in(server, "second", back) == [(1, "bb", ROLLBACK)]
    accept = ("accept-ledger", "bb", "--server", str(server))
    for words in (accept, (*accept, "--by", "root1"), (*accept, "--by", "Ada Lovelace")):
        try:
            assert sites(*words).exit_code == 2
        except UsageError as error:
            assert "name of a person" in str(error) or "--yes" in str(error)
        assert LedgerHeads(server).known()["bb"].head == head(8)
    assert "entry 8 need not be in it" in sites(*accept, "--by", "Ada Lovelace", "--yes").output
    entry = verified(server / AUDIT_FILE).entries[-1]
    assert (entry["event"], entry["site"], entry["who"]) == ("ledger-accepted", "bb", "Ada Lovelace")
    assert (entry["ledger_entries"], entry["ledger_head"]) == (8, "d" * 64)
    with pytest.raises(UsageError, match="is already accepted"):
        sites(*accept, "--by", "Ada Lovelace", "--yes")
    assert missing_in(server, "third", back) == []
    assert LedgerHeads(server).known()["bb"].head == head(5)
    again = grown(12, bb=(head(4), recent(head(4))))
    assert missing_in(server, "fourth", again) == [(1, "bb", ROLLBACK)]  # from there it may not go back either
    listed = json.loads(sites("list", "--server", str(server), "--json").output)
    assert listed[0]["ledger"]["entries"] == 5 and listed[0]["ledger"]["accepted_at"]


def test_only_an_enrolled_site_that_was_seen_has_a_ledger_to_accept(server: Path) -> None:
    for name in ("a", "nobody"):
        with pytest.raises(UsageError, match="no such site is enrolled"):
            sites("accept-ledger", name, "--by", "Ada Lovelace", "--yes", "--server", str(server))
    Registry(server).add("new", public_key())
    with pytest.raises(UsageError, match="is already accepted"):
        sites("accept-ledger", "new", "--by", "Ada Lovelace", "--yes", "--server", str(server))


# With real ledgers, in one process


def test_a_real_ledger_that_is_put_back_between_two_runs_is_refused_by_name(tmp_path: Path) -> None:
    study = study_of(epsilon=1.0)

    def site(name: str) -> Site:
        return Site(
            name=name,
            cap=Cap(epsilon=8.0, delta=1e-4),
            ledger=Ledger(tmp_path / f"{name}.sqlite3"),
            replies={},
            study_of=lambda _: study,
            runs_allowed=lambda _: 9,
            material_of=twelve_images,
            randomness=SecretRandom(),
            device=torch.device("cpu"),
        )

    architecture, heads = architecture_sha256(initial_network(study)), LedgerHeads(tmp_path)

    def trained(name: str) -> tuple[Missing, ...]:
        exchange = in_process_exchange([site("north"), site("south")])
        settings = (architecture, start_weights(study), exchange, tmp_path / name)
        return run_rounds(study, name, *settings, ledgers=heads).missing

    assert trained("first") == ()
    for kind in ("sqlite3", "head"):
        shutil.copy(tmp_path / f"north.{kind}", tmp_path / f"north.{kind}.old")
    assert trained("second") == ()
    for kind in ("sqlite3", "head"):
        shutil.copy(tmp_path / f"north.{kind}", tmp_path / f"north.{kind}.newest")
        shutil.copy(tmp_path / f"north.{kind}.old", tmp_path / f"north.{kind}")
    assert {(one.site, one.code) for one in trained("third")} == {("north", ROLLBACK)}
    for kind in ("sqlite3", "head"):
        shutil.copy(tmp_path / f"north.{kind}.newest", tmp_path / f"north.{kind}")
    assert trained("fourth") == ()
