"""What a site's rounds leave in its audit log: every refusal by its code, every reply before it leaves, no name."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from wardround.audit import verified
from wardround.errors import AuditError, PolicyRefusal, WireError
from wardround.models.registry import architecture_sha256
from wardround.study import Study, parse_study
from wardround.wire import Broadcast, weights_sha256
from wardround_client.data.cohort import CohortRow, pseudonym, write_cohort
from wardround_client.evaluation import release_scores
from wardround_client.privacy.ledger import Ledger
from wardround_client.round import answer
from wardround_client.site import approve_study, open_site
from wardround_client.tasks.weights import initial_network, trained_parameters

KEY = b"k" * 32
SITE = 'name = "h"\n[privacy]\nepsilon_cap = 12.0\ndelta_cap = 1e-4\n[release]\nevaluation = "noised"\n'


def study_of(evaluation_epsilon: float = 0.0) -> Study:
    return parse_study(
        {
            "study": {"name": "t", "rounds": 3, "spare_rounds": 1},
            "data": {"labels": ["benign", "malignant"], "image_size": 64},
            "privacy": {"epsilon": 8.0, "delta": 1e-4, "max_grad_norm": 0.3, "nominal_patients": 8},
            "aggregation": {"nominal_sites": 1},
            "evaluation": {"epsilon": evaluation_epsilon, "holdout": 0.5},
        }
    )


def broadcast_of(study: Study, round_: int = 1, **changes) -> Broadcast:
    network = initial_network(study)
    weights = {name: p.detach().numpy() for name, p in trained_parameters(network, study).items()}
    message = Broadcast(
        study_sha256=study.sha256(),
        run_id="run",
        round=round_,
        weights=weights,
        architecture_sha256=architecture_sha256(network),
    )
    return dataclasses.replace(message, **changes)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A site whose patients are called CANARY."""
    generator = np.random.default_rng(0)
    rows = [CohortRow(pseudonym=pseudonym(KEY, f"CANARY^{n // 2}"), label=n // 2 % 2) for n in range(24)]
    images = (generator.integers(0, 256, (1, 64, 64), dtype=np.uint8) for _ in rows)
    names = ("benign", "malignant")
    write_cohort(tmp_path / "cohort", rows, images, shape_CHW=(1, 64, 64), label_names=names, site_key=KEY)
    (tmp_path / "site.toml").write_text(SITE)
    return tmp_path


def entries(folder: Path) -> tuple[dict, ...]:
    return verified(folder / "audit.jsonl").entries


def test_a_reply_is_in_the_log_with_its_hash_and_the_epsilon_that_the_ledger_says(folder: Path) -> None:
    approve_study(folder, study_of())
    site, message = open_site(folder), broadcast_of(study_of())
    reply = answer(message, site).weights
    first = site.ledger.spent(1e-4)
    answer(message, site)
    answer(broadcast_of(study_of(), 2), site)
    one, again, two = entries(folder)
    assert (one["run"], one["round"], one["purpose"], one["again"]) == ("run", 1, "train", False)
    assert one["reply"] == weights_sha256(reply) == again["reply"] and again["again"] is True
    assert one["epsilon"] == again["epsilon"] == first.to_json()
    assert two["epsilon"] == site.ledger.spent(1e-4).to_json() and two["epsilon"]["epsilon"] > first.value > 0


def test_released_figures_are_in_the_log_too(folder: Path) -> None:
    study = study_of(evaluation_epsilon=1.0)
    approve_study(folder, study)
    release_scores(broadcast_of(study, 4), open_site(folder))
    release_scores(broadcast_of(study, 4), open_site(folder))
    assert [(one["purpose"], one["again"]) for one in entries(folder)] == [("evaluate", False), ("evaluate", True)]


def test_nothing_leaves_that_cannot_be_written_down(folder: Path) -> None:
    approve_study(folder, study_of())
    (folder / "audit.jsonl").write_text("not what was written\n")
    (folder / "audit.head").write_text(f"{3:015d} {'0' * 64}\n")
    with pytest.raises(AuditError):
        answer(broadcast_of(study_of()), open_site(folder))
    assert len(Ledger(folder / "ledger.sqlite3").attempts()) == 1, "it is charged; its bytes stay here"
    for name in ("audit.jsonl", "audit.head"):
        (folder / name).unlink()
    answer(broadcast_of(study_of()), open_site(folder))
    assert [one["again"] for one in entries(folder)] == [True]
    assert len(Ledger(folder / "ledger.sqlite3").attempts()) == 1


def test_every_refusal_is_in_the_log_by_its_code_and_none_by_its_text(folder: Path, caplog) -> None:
    def fails(study: Study):
        raise OSError(f"/data/CANARY^1.dcm of patient {pseudonym(KEY, 'CANARY^1')}")

    with pytest.raises(PolicyRefusal):
        answer(broadcast_of(study_of()), open_site(folder))
    approve_study(folder, study_of())
    site = open_site(folder)
    with pytest.raises(PolicyRefusal):
        answer(broadcast_of(study_of(), architecture_sha256="0" * 64), site)
    with pytest.raises(WireError):
        answer(broadcast_of(study_of(), weights={"head.weight": np.zeros((9, 9), np.float32)}), site)
    with pytest.raises(OSError):
        answer(broadcast_of(study_of()), dataclasses.replace(site, material_of=fails))
    with pytest.raises(PolicyRefusal):
        release_scores(broadcast_of(study_of(), 4), site)
    codes = ["not_approved", "architecture", "wire-names", "failed", "evaluation_not_asked"]
    assert [(one["event"], one["code"]) for one in entries(folder)] == [("message-refused", code) for code in codes]
    text = (folder / "audit.jsonl").read_text()
    assert "CANARY" not in text and "/data" not in text and pseudonym(KEY, "CANARY^1") not in text
