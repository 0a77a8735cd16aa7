"""The personalisation at the end of a simulated run: at every hospital, charged there, beside the federated model."""

from __future__ import annotations

from pathlib import Path

from builders.broadcasts import broadcast_of
from builders.personal import released, site_folder, study_of

from wardround.networks.build import initial_network
from wardround.networks.fingerprint import architecture_sha256
from wardround.study.load import parse_study
from wardround_client.ledger.ledger import Ledger
from wardround_client.rounds.training import answer
from wardround_client.site.paths import LEDGER_FILE
from wardround_client.site.site import open_site
from wardround_simulation.run.personal import personal_sections, personalise_all


def test_every_hospital_personalises_and_one_that_took_no_part_is_named(tmp_path: Path) -> None:
    study, warned = study_of(), []
    folders = {name: site_folder(tmp_path / name, study) for name in ("east", "north", "west")}
    for name in ("east", "north"):
        answer(broadcast_of(study), open_site(folders[name]))
    weights, architecture = released(study).weights, architecture_sha256(initial_network(study))
    found, again = (personalise_all(study, "run", folders, weights, architecture, warned.append) for _ in range(2))
    assert found == again, "a resumed run shows the same and charges nothing"
    assert found["west"] == {"code": "run_unknown"} and "west" in warned[0]
    for name in ("east", "north"):
        purposes = [attempt.purpose for attempt in Ledger(folders[name] / LEDGER_FILE).attempts()]
        assert purposes == ["train", "personalise"]
        assert found[name]["epsilon"] <= 3.0 < found[name]["epsilon_with_training"]
    (section,) = personal_sections(found)
    (table,) = section.tables
    assert [row[0] for row in table.rows] == ["east", "north", "west"]
    assert {len(row) for row in table.rows} == {len(table.columns)} and "not personalised" in table.rows[2][5]


def test_a_study_without_the_section_has_no_part_in_the_report(tmp_path: Path) -> None:
    study = parse_study({**study_of().model_dump(), "personalisation": None})
    assert personalise_all(study, "run", {"east": tmp_path}, {}, "0" * 64, print) == {}
    assert personal_sections({}) == []
