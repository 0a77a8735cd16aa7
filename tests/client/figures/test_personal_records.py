"""A risk model is personalised at one site and tested on its held-out patients, by the network's last hour."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from builders.broadcasts import broadcast_of
from builders.networks import records_study
from builders.personal import KEY, approved_site, released

from wardround.networks.build import initial_network
from wardround.phantoms.stays import stays
from wardround.study.load import Study
from wardround.wire.protocol import PERSONALISE, TRAIN
from wardround_client.figures.personal import personalised_and_tested
from wardround_client.figures.scores import scored
from wardround_client.rounds.training import answer
from wardround_client.site.site import open_site
from wardround_client.sources.cohort import CohortRow, pseudonym, write_cohort
from wardround_client.sources.records.source import prepared_by
from wardround_client.training.batches import HeldOutRows

HOURS, PATIENTS = 6, 60


def study_of(network: str) -> Study:
    return records_study(
        network, hours=HOURS, study={"rounds": 1, "spare_rounds": 0}, model={"init": "phantom"},
        evaluation={"holdout": 0.4}, personalisation={"epsilon": 2.0, "steps": 2, "learning_rate": 0.05},
    )  # fmt: skip


def site_with_stays(folder: Path, study: Study) -> Path:
    """A site that approved the study, with simulated stays."""
    approved_site(folder, study)
    rows_NTV, died_N = stays(PATIENTS, 3, hours=HOURS)
    rows = [CohortRow(pseudonym=pseudonym(KEY, str(number)), label=int(died)) for number, died in enumerate(died_N)]
    write_cohort(
        folder / "cohort", rows, iter(rows_NTV), row_shape=rows_NTV.shape[1:], label_names=study.data.labels,
        site_key=KEY, prepared_by=prepared_by(study.data), dtype=np.float32,
    )  # fmt: skip
    return folder


@pytest.mark.parametrize("network", ["severity-head", "gru"])
def test_a_risk_model_is_personalised_once_and_tested(tmp_path: Path, network: str) -> None:
    study = study_of(network)
    site = open_site(site_with_stays(tmp_path, study))
    answer(broadcast_of(study), site)
    question = released(study)
    made, outcome = personalised_and_tested(question, site)
    again, _ = personalised_and_tested(question, site)
    assert (made.again, again.again) == (False, True)
    assert [one.purpose for one in site.ledger.attempts()] == [TRAIN, PERSONALISE]
    assert made.epsilon.value <= 2.0 and outcome.released.patients == outcome.personalised.patients > 10
    moved = {name for name in question.weights if not np.array_equal(made.tensors[name], question.weights[name])}
    assert moved == {"head.weight", "head.bias"}, "the rest of a recurrent network stays as it was released"


def test_a_risk_at_every_hour_is_scored_by_its_last_hour() -> None:
    study = study_of("gru")
    rows_NTV, died_N = stays(20, 1, hours=HOURS)
    held_out = HeldOutRows(values_N=rows_NTV, labels_N=died_N.astype(np.int16), patient_N=np.arange(20))
    network = initial_network(study).eval()
    with torch.no_grad():
        right_N = network(torch.from_numpy(rows_NTV))[:, -1].sigmoid().numpy()
    assert np.allclose(scored(network, held_out, torch.device("cpu")).scores, right_N, atol=1e-6)
