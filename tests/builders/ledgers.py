"""Arguments for a ledger: a cap, hashes of studies and a privacy plan."""

from __future__ import annotations

from wardround.accounting import calibrate_noise
from wardround_client.ledger.ledger import Cap
from wardround_client.privacy.plan import PrivacyPlan

CAP = Cap(epsilon=8.0, delta=1e-4)


STUDY, OTHER = "a" * 64, "b" * 64


def plan(
    epsilon: float = 8.0, delta: float = 1e-4, rounds: int = 5, spare: int = 1, evaluation: float = 0.0
) -> PrivacyPlan:
    noise = calibrate_noise(epsilon=epsilon, delta=delta, sampling_rate=1.0, steps=rounds + spare)
    return PrivacyPlan(
        epsilon_asked=epsilon,
        delta=delta,
        sampling_rate=1.0,
        images_per_patient=None,
        max_grad_norm=1.0,
        noise_multiplier=noise,
        nominal_patients=10,
        rounds=rounds,
        spare_rounds=spare,
        local_steps=1,
        evaluation_epsilon=evaluation,
    )
