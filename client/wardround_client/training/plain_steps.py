"""The optimizer step of a study without privacy: the sums are divided by a public number and stepped.

It replaces `privacy/noise.py` for a plan with epsilon = inf, so that such a run does not load Opacus, and gives the
same bits as that module does without noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from wardround.errors import WardroundError
from wardround_client.clipping.engines import ClippedSum
from wardround_client.privacy.plan import PrivacyPlan


def without_privacy(plan: PrivacyPlan) -> bool:
    """Return whether a plan's training promises nothing: its epsilon is infinite, and its noise is exactly zero."""
    return plan.epsilon_asked == math.inf and plan.noise_multiplier == 0


class PlainOptimizer:
    """A counterpart of `PatientOptimizer` that adds no noise and guarantees nothing to a patient.

    Raises:
        WardroundError: The plan promises a finite epsilon, or has noise.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, plan: PrivacyPlan, parameters: dict[str, nn.Parameter]
    ) -> None:
        if not without_privacy(plan):
            raise WardroundError("this optimizer adds no noise, but the study's plan promises privacy")
        self._optimizer = optimizer
        self._plan = plan
        self._parameters = parameters
        self._sums: dict[str, Tensor] = {}
        self.noisy_steps = 0  # named as in `PatientOptimizer`; their noise is zero

    def accumulate_sum(self, clipped: ClippedSum) -> None:
        """Add one physical batch, in float64.

        Raises:
            WardroundError: The batch's sensitivity is not the plan's clipping norm.
        """
        if clipped.sensitivity != self._plan.max_grad_norm:
            raise WardroundError(
                f"sensitivity {clipped.sensitivity:g} differs from the plan's {self._plan.max_grad_norm:g}"
            )
        for name, parameter in self._parameters.items():
            self._sum_of(name, parameter).add_(clipped.gradients[name])

    def noisy_step(self, after_noise: Callable[[], None] | None = None) -> None:
        """Divide and step. After a draw without patients the gradients are zero. `after_noise` may add to them."""
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
