"""The frozen privacy plan of a study, which sampler, clipping, noise and ledger all read.

Because all four read the same object, the sampler and the accountant cannot be given different sampling rates. No
number in the plan comes from the site's data.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from wardround.accounting import Epsilon, Event, GaussianEvent, PureEvent, calibrate_noise, spent
from wardround.study.load import Study
from wardround.wire.protocol import EVALUATE, TRAIN

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

        False if training or evaluation asks for epsilon = inf.
        """
        return math.isfinite(self.epsilon_asked) and math.isfinite(self.evaluation_epsilon)

    def event(self, attempts: int) -> GaussianEvent:
        """Return the ledger event of `attempts` attempted rounds."""
        return GaussianEvent(
            noise_multiplier=self.noise_multiplier, sampling_rate=self.sampling_rate, steps=attempts * self.local_steps
        )

    def shares(self) -> dict[str, Share]:
        """Return the budget that a site holds for the study, by purpose.

        The purposes are sorted by name: evaluation, if the study asks for it, and all training rounds.
        """
        train = {TRAIN: Share(attempts=self.attempts, event=self.event(1))}
        if self.evaluation_epsilon == 0:
            return train
        figures = PureEvent(epsilon=self.evaluation_epsilon, count=1)
        return {EVALUATE: Share(attempts=EVALUATION_ATTEMPTS, event=figures), **train}

    def events(self) -> list[Event]:
        """Return the events of everything held, spare attempts included.

        Both purposes are charged to one ledger, as if they used the same patients. Within one study they never do: a
        patient trains or is held out, so that either epsilon alone would be true of each. Across studies the held-out
        shares differ, and a patient may train in one study and be evaluated in another, so the ledger adds the two up.
        """
        return [event for share in self.shares().values() for event in share.events(share.attempts)]

    def promised(self, runs: int = 1) -> Epsilon:
        """Return the epsilon of the study's training, spare rounds included.

        For one run it is never above the epsilon that the study asked for.
        """
        return spent([self.event(self.attempts * runs)], self.delta)


def plan_from_study(study: Study) -> PrivacyPlan:
    """Build the privacy plan of a study, calibrating the noise once for (rounds + spare_rounds) x local_steps steps.

    Raises:
        StudyError: No noise multiplier up to 10,000 is enough.
    """
    privacy = study.privacy
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
    )
