"""What a study of early warning may ask for: a fault is one line that names the section and the fix."""

from __future__ import annotations

import pytest
from builders.networks import records_study

from wardround.errors import StudyError
from wardround.study.personal import personal_study


@pytest.mark.parametrize(
    "network, trainable, says",
    [
        ("severity-head", "all", "personalisation.trainable: severity-head trains its head only; set it to head"),
        ("severity-head", "norm+head", "personalisation.trainable: severity-head trains its head only"),
        ("gru", "norm+head", "personalisation.trainable: gru has no normalisation layers; use head or all"),
    ],
)
def test_a_part_that_the_network_lacks_is_refused_when_the_study_is_loaded(network, trainable, says) -> None:
    with pytest.raises(StudyError) as caught:
        records_study(network, personalisation={"epsilon": 1.0, "trainable": trainable})
    assert says in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("network, trainable", [("severity-head", "head"), ("gru", "head"), ("gru", "all")])
def test_every_network_can_be_personalised(network: str, trainable: str) -> None:
    study = records_study(network, personalisation={"epsilon": 1.0, "trainable": trainable})
    derived = personal_study(study)
    assert derived is not None and (derived.model.name, derived.model.trainable) == (network, trainable)
