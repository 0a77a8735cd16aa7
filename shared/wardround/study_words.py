"""A study in plain words: what it reads, what it costs, what leaves. Shown before anyone approves it.

Pure text from the study and a few numbers; nothing here opens a file or knows a network.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from wardround.accounting import Epsilon
from wardround.study import Study
from wardround.words import bytes_text, count_text, epsilon_text, promise, seconds_text

BYTES_OF_A_NUMBER = 4


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a study would do to a site's budget: spent or held `now`, `after` it, the site's `cap`, and why it would be
    refused, if it would.
    """

    now: Epsilon
    after: Epsilon
    cap_epsilon: float
    refusal: str | None


def describe(study: Study, *, numbers_leaving: int, cost: Cost, asked_by: str, releases: str) -> list[tuple[str, str]]:
    """(what, said) for each thing that somebody who approves must know, in the order in which they would ask.

    `numbers_leaving`: how many weights travel a round. `releases`: the site's own `[release] evaluation`.
    """
    return [
        ("study", study.study.name),
        ("asked by", asked_by),
        ("hash", study.sha256()),
        ("learns", _learns(study)),
        ("reads", _reads(study)),
        ("network", _network(study, numbers_leaving)),
        ("rounds", _rounds(study)),
        ("leaves", _leaves(study, numbers_leaving, releases)),
        ("stays", "images, names, pseudonyms, single scores; what the ledger and the audit log hold; this site's keys"),
        ("costs", _costs(study, cost)),
        ("means", _means(study)),
        ("answer", f"would be refused: {cost.refusal}" if cost.refusal else "within this site's budget"),
    ]


def _learns(study: Study) -> str:
    named = f"{', '.join(study.data.labels[:-1])} and {study.data.labels[-1]}"
    if study.study.task == "synthesis":
        return f"to make new images, of no patient, that look like those labelled {named}"
    if study.study.task == "reconstruction":
        return f"to restore images that lost something: {study.reconstruction.degradation.replace('-', ' ')}"
    return f"to tell {named} apart"


def _reads(study: Study) -> str:
    data, what = study.data, "images of any kind" if study.data.modality == "any" else f"{study.data.modality} images"
    part = f" of the body part {data.body_part}" if data.body_part else ""
    cut = {"whole": "the whole image", "centre": "its centre", "marked": "what is cut out around marked points"}
    each = study.privacy.images_per_patient
    images = "all images" if each == "all" else f"at most {count_text(each, 'image')} a step"
    return (
        f"{what}{part} of this site's prepared data, {cut[data.region]}, at {data.image_size} x {data.image_size} "
        f"pixels; {images} of each patient. {study.evaluation.holdout:.0%} of the patients, always the same, are never "
        "trained on"
    )


def _network(study: Study, numbers: int) -> str:
    start = {"phantom": "weights learned from generated phantoms", "random": "random weights"}
    moved = {"head": "its last layer", "norm+head": "its last layer and its normalisation layers", "all": "all of it"}
    return (
        f"{study.model.name}, starting from {start.get(study.model.init, 'a given file')}; "
        f"{moved[study.model.trainable]} is trained: {count_text(numbers, 'number')}"
    )


def _rounds(study: Study) -> str:
    spare, sites = study.study.spare_rounds, study.aggregation
    steps = count_text(study.training.local_steps, "step")
    rounds = count_text(study.study.rounds, "round")
    return (
        f"{rounds} and {spare} spare, of {steps} each, with at least {sites.min_sites} "
        f"of {count_text(sites.nominal_sites, 'site')}; a round waits {seconds_text(sites.round_deadline_s)} at most"
    )


def _leaves(study: Study, numbers: int, releases: str) -> str:
    noise = "with noise" if math.isfinite(study.privacy.epsilon) else "WITHOUT noise"
    weights = (
        f"each round {count_text(numbers, 'number')} ({bytes_text(numbers * BYTES_OF_A_NUMBER)}), the trained weights, "
        f"{noise}; how many entries the ledger has, and their hash; where a round fails, a code without text"
    )
    asked = study.evaluation.epsilon
    if asked == 0:
        return f"{weights}. No figures about patients"
    allowed = releases == "exact" or (releases == "noised" and math.isfinite(asked))
    if not allowed:
        return f"{weights}. The study asks for figures about held-out patients; this site's rules refuse them"
    kind = "noised" if math.isfinite(asked) else "EXACT"
    return f"{weights}. Once, {kind} counts of the scores of held-out patients, in {study.evaluation.bins} bins a label"


def _costs(study: Study, cost: Cost) -> str:
    figures = ""
    if study.evaluation.epsilon > 0:
        figures = f", and ε {epsilon_text(study.evaluation.epsilon)} for each release of figures"
    per = f"per {cost.after.unit}, {cost.after.relation}, δ {cost.after.delta:g}, {cost.after.accountant}"
    return (
        f"ε {epsilon_text(study.privacy.epsilon)} at δ {study.privacy.delta:g}{figures}. This site: spent or held "
        f"ε {epsilon_text(cost.now.value)} now, ε {epsilon_text(cost.after.value)} with this study, of ε "
        f"{cost.cap_epsilon:g} ({per})"
    )


def _means(study: Study) -> str:
    epsilon = max(study.privacy.epsilon, study.evaluation.epsilon)  # a patient trains, or is held out
    if not math.isfinite(epsilon):
        return "NO PRIVACY: what leaves may tell what single patients' images look like, or whose are there"
    return " ".join(["By this study alone:", *promise(epsilon, study.privacy.delta)])
