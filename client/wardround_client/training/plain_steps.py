"""The optimizer step of a study without privacy: sums, divided and stepped.

It takes the place of `privacy/noise.py` where the plan has no noise, and gives the same numbers, bit for bit. That
module needs Opacus, whose import takes longer than a small run.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from wardround.errors import WardroundError
from wardround_client.clipping.engines import ClippedSum
from wardround_client.privacy.plan import PrivacyPlan


class PlainOptimizer:
    """`PatientOptimizer` without noise. Guarantees nothing to a patient, so it refuses every plan that has noise."""

    def __init__(
        self, optimizer: torch.optim.Optimizer, plan: PrivacyPlan, parameters: dict[str, nn.Parameter]
    ) -> None:
        if plan.noise_multiplier != 0:
            raise WardroundError("this optimizer adds no noise, and the study's plan asks for it")
        self._optimizer = optimizer
        self._plan = plan
        self._parameters = parameters
        self._sums: dict[str, Tensor] = {}
        self.noisy_steps = 0  # with noise of size 0

    def accumulate_sum(self, clipped: ClippedSum) -> None:
        """Add one physical batch, in float64. Raises where its sensitivity is not the plan's clipping norm."""
        if clipped.sensitivity != self._plan.max_grad_norm:
            raise WardroundError(
                f"sensitivity {clipped.sensitivity:g} differs from the plan's {self._plan.max_grad_norm:g}"
            )
        for name, parameter in self._parameters.items():
            self._sum_of(name, parameter).add_(clipped.gradients[name])

    def noisy_step(self, after_noise: Callable[[], None] | None = None) -> None:
        """Divide and step. A draw without patients steps on zeros. `after_noise` may add to the gradients."""
        for name, parameter in self._parameters.items():
            gradient = self._sum_of(name, parameter).to(parameter.dtype)
            gradient /= self._plan.expected_patients
            parameter.grad = gradient
        self._sums = {}
        self.noisy_steps += 1
        if after_noise is not None:
            after_noise()
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    def _sum_of(self, name: str, parameter: nn.Parameter) -> Tensor:
        if name not in self._sums:
            self._sums[name] = torch.zeros_like(parameter, dtype=torch.float64)
        return self._sums[name]
