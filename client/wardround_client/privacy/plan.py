"""The frozen privacy plan of a study, which sampler, clipping, noise and ledger all read.

Because all four read the same object, the sampler and the accountant cannot be given different sampling rates. No
number in the plan comes from the site's data.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from wardround.accounting import Epsilon, Event, GaussianEvent, PureEvent, calibrate_noise, spent
from wardround.study.load import Study
from wardround.study.personal import personal_study
from wardround.wire.protocol import EVALUATE, PERSONALISE, TRAIN

EVALUATION_ATTEMPTS = 2  # one, plus a spare for a crash between charge and reply


@dataclass(frozen=True, kw_only=True)
class Share:
    """The budget that a study holds for one purpose: a number of attempts, each of which is one `event`."""

    attempts: int
    event: Event

    def events(self, attempts: int) -> list[Event]:
        """Return the events of `attempts` attempts."""
        return [self.event.repeated(attempts)] if attempts else []


@dataclass(frozen=True, kw_only=True)
class PrivacyPlan:
    """The privacy parameters that one site uses in every step of a study.

    Guarantee: a step draws each patient with probability `sampling_rate`, clips the patient's mean gradient to
    `max_grad_norm` (L2), adds N(0, (noise_multiplier x max_grad_norm)^2) to every coordinate of the sum and divides by
    the public `expected_patients`. With respect to adding or removing one patient, a step is then one subsampled
    Gaussian event; an attempted round is `local_steps` of them, `event(1)`.
    """

    epsilon_asked: float
    delta: float
    sampling_rate: float
    images_per_patient: int | None  # None: all images
    max_grad_norm: float
    noise_multiplier: float
    nominal_patients: int
    rounds: int
    spare_rounds: int
    local_steps: int
    evaluation_epsilon: float = 0.0  # of one release of figures about the held-out patients; 0: no release
    personal: PrivacyPlan | None = None  # of the personalisation after the last round; None: the study has none

    @property
    def expected_patients(self) -> float:
        """The public divisor of a step's noisy sum: q x nominal_patients."""
        return self.sampling_rate * self.nominal_patients

    @property
    def attempts(self) -> int:
        """The number of rounds that may be attempted at one site: the study's rounds and the spare ones."""
        return self.rounds + self.spare_rounds

    @property
    def private(self) -> bool:
        """Whether the plan gives a privacy guarantee.

        False if training, evaluation or personalisation asks for epsilon = inf.
        """
        own = math.isfinite(self.epsilon_asked) and math.isfinite(self.evaluation_epsilon)
        return own and (self.personal is None or self.personal.private)

    def event(self, attempts: int) -> GaussianEvent:
        """Return the ledger event of `attempts` attempted rounds."""
        return GaussianEvent(
            noise_multiplier=self.noise_multiplier, sampling_rate=self.sampling_rate, steps=attempts * self.local_steps
        )

    def shares(self) -> dict[str, Share]:
        """Return the budget that a site holds for the study, by purpose.

        The purposes are sorted by name: evaluation and personalisation, if the study asks for them, and all training
        rounds.
        """
        shares: dict[str, Share] = {}
        if self.evaluation_epsilon != 0:
            figures = PureEvent(epsilon=self.evaluation_epsilon, count=1)
            shares[EVALUATE] = Share(attempts=EVALUATION_ATTEMPTS, event=figures)
        if self.personal is not None:
            shares[PERSONALISE] = Share(attempts=self.personal.attempts, event=self.personal.event(1))
        return {**shares, TRAIN: Share(attempts=self.attempts, event=self.event(1))}

    def events(self) -> list[Event]:
        """Return the events of everything held, spare attempts included.

        All purposes are charged to one ledger, as if they used the same patients. Training and personalisation do.
        Within one study, evaluation never uses them: a patient trains or is held out, so that either epsilon alone
        would be true of each. Across studies the held-out shares differ, and a patient may train in one study and be
        evaluated in another, so the ledger adds all of them up.
        """
        return [event for share in self.shares().values() for event in share.events(share.attempts)]

    def promised(self, runs: int = 1) -> Epsilon:
        """Return the epsilon of the study's training and personalisation, spare attempts included.

        For one run without personalisation it is never above the epsilon that the study asked for.
        """
        personal = [] if self.personal is None else [self.personal.event(self.personal.attempts * runs)]
        return spent([self.event(self.attempts * runs), *personal], self.delta)


def plan_from_study(study: Study) -> PrivacyPlan:
    """Build the privacy plan of a study, calibrating the noise once for (rounds + spare_rounds) x local_steps steps.

    Raises:
        StudyError: No noise multiplier up to 10,000 is enough.
    """
    privacy, personal = study.privacy, personal_study(study)
    noise_multiplier = calibrate_noise(
        epsilon=privacy.epsilon,
        delta=privacy.delta,
        sampling_rate=privacy.sampling_rate,
        steps=study.budgeted_steps,
    )
    return PrivacyPlan(
        epsilon_asked=privacy.epsilon,
        delta=privacy.delta,
        sampling_rate=privacy.sampling_rate,
        images_per_patient=None if privacy.images_per_patient == "all" else privacy.images_per_patient,
        max_grad_norm=privacy.max_grad_norm,
        noise_multiplier=noise_multiplier,
        nominal_patients=privacy.nominal_patients,
        rounds=study.study.rounds,
        spare_rounds=study.study.spare_rounds,
        local_steps=study.training.local_steps,
        evaluation_epsilon=study.evaluation.epsilon,
        personal=None if personal is None else plan_from_study(personal),
    )
