"""The frozen privacy plan, made from a study: all that sampler, clipping, noise and ledger read.

Because all four read the same object, nothing can pass one sampling rate to the sampler and another to the accountant.
No number of it comes from the site's data.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from wardround.accounting import Epsilon, Event, GaussianEvent, PureEvent, calibrate_noise, spent
from wardround.study.load import Study
from wardround.wire.protocol import EVALUATE, TRAIN

EVALUATION_ATTEMPTS = 2  # one, and a spare for a crash between charge and reply


@dataclass(frozen=True, kw_only=True)
class Share:
    """What a study holds for one purpose: so many attempts, each of them one `event`."""

    attempts: int
    event: Event

    def events(self, attempts: int) -> list[Event]:
        """The events of so many attempts."""
        return [self.event.repeated(attempts)] if attempts else []


@dataclass(frozen=True, kw_only=True)
class PrivacyPlan:
    """What one site does to its patients' gradients in every step of a study.

    Guarantee: a step draws each patient with probability `sampling_rate`, clips the patient's mean gradient to
    `max_grad_norm` (L2), adds N(0, (noise_multiplier x max_grad_norm)^2) to every coordinate of the sum and divides
    by the public `expected_patients`. Adding or removing one patient is then one subsampled Gaussian event,
    `event(1)`.
    """

    epsilon_asked: float
    delta: float
    sampling_rate: float
    images_per_patient: int | None  # None: all of them
    max_grad_norm: float
    noise_multiplier: float
    nominal_patients: int
    rounds: int
    spare_rounds: int
    local_steps: int
    evaluation_epsilon: float = 0.0  # of one release of figures about the held-out patients; 0: none is made

    @property
    def expected_patients(self) -> float:
        """The public divisor of a step's noisy sum: q x nominal_patients."""
        return self.sampling_rate * self.nominal_patients

    @property
    def attempts(self) -> int:
        """How many rounds may be attempted at one site: those of the study and the spare ones."""
        return self.rounds + self.spare_rounds

    @property
    def private(self) -> bool:
        """Whether the plan promises anything: neither training nor evaluation asks for epsilon = inf."""
        return math.isfinite(self.epsilon_asked) and math.isfinite(self.evaluation_epsilon)

    def event(self, attempts: int) -> GaussianEvent:
        """The ledger event of `attempts` attempted rounds."""
        return GaussianEvent(
            noise_multiplier=self.noise_multiplier, sampling_rate=self.sampling_rate, steps=attempts * self.local_steps
        )

    def shares(self) -> dict[str, Share]:
        """What a site holds for the study, by purpose in the order of their names: evaluation, where the study asks
        for it, and all training rounds.
        """
        train = {TRAIN: Share(attempts=self.attempts, event=self.event(1))}
        if self.evaluation_epsilon == 0:
            return train
        figures = PureEvent(epsilon=self.evaluation_epsilon, count=1)
        return {EVALUATE: Share(attempts=EVALUATION_ATTEMPTS, event=figures), **train}

    def events(self) -> list[Event]:
        """Everything held, spare attempts included.

        Both purposes are charged to one ledger, as if they met the same patients. Within one study they never do: a
        patient trains or is held out, so that either epsilon alone would be true of each. Across studies the shares
        held out differ, and a patient of one study's training may be of another's evaluation: so the ledger adds up.
        """
        return [event for share in self.shares().values() for event in share.events(share.attempts)]

    def promised(self, runs: int = 1) -> Epsilon:
        """The epsilon of the study's training, spare rounds included: of one run never above what was asked."""
        return spent([self.event(self.attempts * runs)], self.delta)


def plan_from_study(study: Study) -> PrivacyPlan:
    """Calibrate the noise once for (rounds + spare_rounds) x local_steps steps. Raises `StudyError` where none is
    enough.
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
