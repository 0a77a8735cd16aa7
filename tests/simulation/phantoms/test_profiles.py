"""The phantom hospitals differ in scanner, size, prevalence and kinds, and the demo study fits them."""

from __future__ import annotations

import statistics

import pytest

from wardround.study.load import load_study
from wardround.study.ready_studies import ready_study
from wardround_simulation.cli.federation import PHANTOM_PATIENTS, PHANTOM_SITES, phantom_patients
from wardround_simulation.phantoms.profiles import PROFILES, patients_at


def test_no_two_hospitals_share_a_scanner_a_size_a_prevalence_or_a_mix() -> None:
    for seen in (
        {profile.scanner.model for profile in PROFILES},
        {profile.scanner.site for profile in PROFILES},
        {profile.size for profile in PROFILES},
        {profile.mix.prevalence for profile in PROFILES},
        {profile.mix for profile in PROFILES},
    ):
        assert len(seen) == len(PROFILES)


def test_sizes_average_to_one_and_shares_sum_to_a_hundred() -> None:
    assert statistics.mean(profile.size for profile in PROFILES) == pytest.approx(1)
    for profile in PROFILES:
        assert sum(profile.mix.benign) == sum(profile.mix.malignant) == 100


@pytest.mark.parametrize("site", range(1, len(PROFILES) + 1))
def test_a_hospital_of_four_patients_has_both_labels(site: int) -> None:
    mix = PROFILES[site - 1].mix
    assert {mix.is_malignant(number) for number in range(1, 5)} == {True, False}


def test_more_sites_than_profiles_start_again_and_no_hospital_is_empty() -> None:
    assert patients_at(len(PROFILES) + 1, 10) == patients_at(1, 10) == 20
    assert min(patients_at(site, 1) for site in range(1, 11)) == 1


def test_the_demo_study_names_the_training_patients_of_an_average_hospital() -> None:
    study = load_study(ready_study("demo"))
    assert study.aggregation.nominal_sites == PHANTOM_SITES == len(PROFILES)
    assert phantom_patients(study) == PHANTOM_PATIENTS


@pytest.mark.parametrize("name", ["demo", "reconstruction", "synthesis"])
def test_an_average_hospital_has_the_studys_nominal_patients_in_training(name: str) -> None:
    study = load_study(ready_study(name))
    trained = phantom_patients(study) * (1 - study.evaluation.holdout)
    assert trained == pytest.approx(study.privacy.nominal_patients, abs=1)
