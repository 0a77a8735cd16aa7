"""Describe a study in plain words before a person approves it: what it reads, costs and sends.

The functions build text from the study and a few numbers; they open no file and load no network.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

from wardround.accounting import Epsilon
from wardround.printable import quoted
from wardround.sources import registry as sources
from wardround.study.load import Study
from wardround.tasks import registry
from wardround.text import bytes_text, count_text, epsilon_text, promise, seconds_text

BYTES_OF_A_NUMBER = 4
REFUSED = "would be refused: "  # how the answer begins if the site's rules refuse the study
USES_ALL = 0.98  # of the cap: what is left is of no use for another study
MOST_ALIKE, MOST_KEYS = 4, 12  # limits on what is listed, so that a server's proposal cannot fill the screen


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The effect of approving `runs` runs, of which `begun` have begun already, on a site's budget.

    `now` is the epsilon spent or reserved so far, `after` the epsilon after all these runs, `with_promised` the same
    with the runs of other approved studies that have not begun, `cap_epsilon` the site's cap, and `refusal` the reason
    if the site would refuse. `together` is the epsilon of all `runs` runs for one patient, at the study's delta and by
    this study alone.
    """

    runs: int
    begun: int
    noise_multiplier: float
    together: float
    now: Epsilon
    after: Epsilon
    with_promised: Epsilon
    cap_epsilon: float
    refusal: str | None


@dataclass(frozen=True, kw_only=True)
class Alike:
    """Another study of the same name at this site, and the site's decision about it."""

    study: Study
    state: str


def describe(
    study: Study, *, numbers_leaving: int, cost: Cost, asked_by: str, releases: str, alike: Sequence[Alike] = ()
) -> list[tuple[str, str]]:
    """Return (heading, text) pairs with the facts that an approver needs, in the order in which they would ask.

    Args:
        study: The study.
        numbers_leaving: The number of weights sent in each round.
        cost: The effect on the site's budget.
        asked_by: Who proposes the study.
        releases: The site's own `[release] evaluation`.
        alike: The other studies of the same name, the most relevant first.
    """
    return [
        ("study", study.study.name),
        ("asked by", asked_by),
        ("hash", study.sha256()),
        *([("differs", differs(study, alike))] if alike else []),
        ("learns", learns(study)),
        ("reads", reads(study)),
        ("network", _network(study, numbers_leaving)),
        ("rounds", _rounds(study)),
        ("runs", _runs(cost)),
        ("steps", _steps(study, cost.noise_multiplier)),
        ("leaves", _leaves(study, numbers_leaving, releases)),
        *([("personalises", personalises(study))] if study.personalisation is not None else []),
        ("stays", _stays(study)),
        ("costs", _costs(study, cost)),
        ("means", _means(study, cost)),
        ("answer", _answer(cost)),
    ]


def _stays(study: Study) -> str:
    rows = f"{sources.of_study(study).ROW}s"
    return f"{rows}, names, pseudonyms, single scores; what the ledger and the audit log hold; this site's keys"


def differs(study: Study, alike: Sequence[Alike]) -> str:
    """Describe in which keys a study differs from other studies of the same name."""
    described = [
        f"from {one.study.sha256()[:12]} ({one.state}) in: {_some(_differing_keys(study, one.study))}"
        for one in alike[:MOST_ALIKE]
    ]
    more = len(alike) - MOST_ALIKE
    return "; ".join([*described, f"and from {more} more of this name"] if more > 0 else described)


def _some(keys: list[str]) -> str:
    more = len(keys) - MOST_KEYS
    return ", ".join(keys[:MOST_KEYS]) + (f" and {count_text(more, 'other key')}" if more > 0 else "")


def _differing_keys(study: Study, other: Study) -> list[str]:
    """Return the keys, as `section.key`, whose values differ; only fields that the study's hash covers count."""
    ours, theirs = _values(study), _values(other)
    return sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key))


def _values(study: Study) -> dict[str, str]:
    sections = json.loads(study.canonical())
    return {
        f"{name}.{key}": json.dumps(value)
        for name, section in sections.items()
        if isinstance(section, dict)
        for key, value in section.items()
    }


def _in_full(number: float) -> str:
    """Format a number of a study with all its digits, so that different numbers look different; `∞` for infinity."""
    return "∞" if math.isinf(number) else repr(number).removesuffix(".0")


def learns(study: Study) -> str:
    """Describe what the network learns."""
    *first, last = map(quoted, study.data.labels)
    named = f"{', '.join(first)} and {last}"
    return registry.study_part(study.study.task).learns(study, named)


def reads(study: Study) -> str:
    """Describe which data of a site the study reads, and of which patients."""
    return (
        f"{sources.of_study(study).reads(study)}. {study.evaluation.holdout:.0%} of the patients, always the same, are "
        "never trained on"
    )


def _network(study: Study, numbers: int) -> str:
    return f"{network(study)}: {count_text(numbers, 'number')}"


def network(study: Study) -> str:
    """Describe the network, its initial weights, and which of them are trained."""
    public = registry.public_start(study.study.task, study.model.name)
    start = {"phantom": public, "random": "random weights"}
    moved = {"head": "its last layer", "norm+head": "its last layer and its normalisation layers", "all": "all of it"}
    return (
        f"{study.model.name}, starting from {start.get(study.model.init, 'a given file')}; "
        f"{moved[study.model.trainable]} is trained"
    )


def _rounds(study: Study) -> str:
    spare, sites = study.study.spare_rounds, study.aggregation
    steps = count_text(study.training.local_steps, "step")
    rounds = count_text(study.study.rounds, "round")
    return (
        f"{rounds} and {spare} spare, of {steps} each, with at least {sites.min_sites} "
        f"of {count_text(sites.nominal_sites, 'site')}; a round waits {seconds_text(sites.round_deadline_s)} at most"
    )


def _runs(cost: Cost) -> str:
    begun = {0: "none has begun", 1: "1 has begun"}.get(cost.begun, f"{cost.begun} have begun")
    allowed = f"an approval of {count_text(cost.runs, 'run')} in all; {begun} at this site"
    if cost.begun >= cost.runs:
        return f"{allowed}. No other begins without a new approval, of {cost.begun + 1} runs in all (--runs)"
    return f"{allowed}. Any further one needs another approval by a person: the server cannot begin it"


def _steps(study: Study, noise_multiplier: float) -> str:
    privacy, each, row = study.privacy, study.privacy.images_per_patient, sources.of_study(study).ROW
    rows = f"all {row}s" if each == "all" else f"at most {count_text(each, row)}"
    cut = f"cut to the length {_in_full(privacy.max_grad_norm)} at most (max_grad_norm)"
    noise = f"noise of {noise_multiplier:.4g} times that length is added to their sum (noise multiplier)"
    return (
        f"in each step every patient takes part with the probability {_in_full(privacy.sampling_rate)} (sampling_rate)"
        f"; what {rows} of a patient say together is {cut if math.isfinite(privacy.max_grad_norm) else 'NOT CUT'}; "
        f"{noise if noise_multiplier > 0 else 'NO NOISE is added'}; the sum is divided by the probability times "
        f"{count_text(privacy.nominal_patients, 'patient')} (nominal_patients, a number agreed on). A run makes "
        f"{count_text(study.budgeted_steps, 'step')} at most"
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


def personalises(study: Study) -> str:
    """Describe what the personalisation does with this site's patients, and where its result goes. "" without one."""
    personal = study.personalisation
    if personal is None:
        return ""
    part = {"head": "its last layer", "norm+head": "its last layer and its normalisation layers", "all": "all of it"}
    noise = "with noise" if math.isfinite(personal.epsilon) else "WITHOUT noise"
    spare = count_text(personal.spare_attempts, "spare attempt")
    return (
        "once in a run, after the last round and only if a person here asks for it, the released model is trained "
        f"further on this site's patients alone: {part[personal.trainable]}, {count_text(personal.steps, 'step')}, "
        f"{noise} ({spare}). The result stays at this site and is never sent, yet it is charged like a round. The site "
        "tests it on its own held-out patients and shows the figures here only"
    )


def _costs(study: Study, cost: Cost) -> str:
    figures = ""
    if study.evaluation.epsilon > 0:
        figures = f", and ε {_in_full(study.evaluation.epsilon)} for each release of figures, of which two are held"
    if study.personalisation is not None:
        figures += f", and ε {_in_full(study.personalisation.epsilon)} for the personalised model, held from the start"
    per = f"per {cost.after.unit} ({cost.after.relation}), δ {cost.after.delta:g}, {cost.after.accountant}"
    promised = ""
    if _others_are_promised(cost):
        promised = f", ε {epsilon_text(cost.with_promised.value)} with the approved studies that have not begun"
    return (
        f"each run ε {_in_full(study.privacy.epsilon)} at δ {_in_full(study.privacy.delta)}{figures}. This site: "
        f"spent or held ε {epsilon_text(cost.now.value)} now, ε {epsilon_text(cost.after.value)} with {_all_runs(cost)}"
        f"{promised}, of ε {cost.cap_epsilon:g}; {per}"
    )


def _others_are_promised(cost: Cost) -> bool:
    return cost.with_promised.value > cost.after.value * (1 + 1e-9)  # apart from rounding


def _answer(cost: Cost) -> str:
    if cost.refusal:
        return f"{REFUSED}{cost.refusal}"
    if math.isfinite(cost.after.value) and _others_are_promised(cost) and cost.with_promised.value > cost.cap_epsilon:
        return (
            "within this site's budget, but not together with the approved studies that have not begun: whichever of "
            "them begins last would be refused"
        )
    if cost.after.value > USES_ALL * cost.cap_epsilon:
        return "within this site's budget, and uses all that is left of it: no further study fits beside it"
    return "within this site's budget"


def _all_runs(cost: Cost) -> str:
    return "the one run of this approval" if cost.runs == 1 else f"all {cost.runs} runs of this approval"


def _means(study: Study, cost: Cost) -> str:
    if not math.isfinite(cost.together):
        row = sources.of_study(study).ROW
        return f"NO PRIVACY: what leaves may tell what single patients' {row}s look like, or whose are there"
    return " ".join([f"By {_all_runs(cost)} alone:", *promise(cost.together, study.privacy.delta)])
