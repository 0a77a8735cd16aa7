"""The frozen privacy plan, made from a study: all that sampler, clipping, noise and ledger read.

Because all four read the same object, nothing can pass one sampling rate to the sampler and another to the accountant.
No number of it comes from the site's data.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from wardround.accounting import Epsilon, GaussianEvent, calibrate_noise, spent
from wardround.study import Study


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
        """Whether the plan promises anything: epsilon is finite."""
        return math.isfinite(self.epsilon_asked)

    def event(self, attempts: int) -> GaussianEvent:
        """The ledger event of `attempts` attempted rounds."""
        return GaussianEvent(
            noise_multiplier=self.noise_multiplier, sampling_rate=self.sampling_rate, steps=attempts * self.local_steps
        )

    def promised(self) -> Epsilon:
        """The epsilon of the whole study, spare rounds included: never above what was asked."""
        return spent([self.event(self.attempts)], self.delta)


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
    )
