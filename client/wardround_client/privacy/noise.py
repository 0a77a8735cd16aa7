"""Noise on a clipped sum and the optimizer step after it: Opacus' optimizer with secret randomness.

Guarantee: with sensitivity C of the accumulated sum, the step releases sum + N(0, (noise_multiplier x C)^2), divided by
a public number: one Gaussian event (Dwork, Roth 2014, appendix A; Abadi et al. 2016). Everything after it is
post-processing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from opacus.optimizers.optimizer_fast_gradient_clipping import DPOptimizerFastGradientClipping
from torch import Tensor, nn

from wardround.errors import WardroundError
from wardround_client.clipping.engines import ClippedSum
from wardround_client.privacy.plan import PrivacyPlan
from wardround_client.privacy.secure_random import SecretRandom

GRID_PARTS = 64  # a grid cell then covers 2^16 of the float32 values that the noise can take, which hides them


class PatientOptimizer(DPOptimizerFastGradientClipping):
    """Opacus' optimizer for virtual steps, which takes clipped sums and draws its noise from `SecretRandom`.

    `accumulate_sum` adds a physical batch's clipped sum. `noisy_step` adds the noise once, divides by the public
    expected number of patients and steps the wrapped torch optimizer. `noisy_steps` counts the noisy steps, which are
    what the accountant is charged for.

    Raises:
        WardroundError: The plan promises a finite epsilon without noise.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        plan: PrivacyPlan,
        parameters: dict[str, nn.Parameter],
        randomness: SecretRandom,
    ) -> None:
        if list(parameters.values()) != [p for group in optimizer.param_groups for p in group["params"]]:
            raise WardroundError("the optimizer and the clipping must hold the same parameters in the same order")
        if not (plan.noise_multiplier > 0 or (plan.noise_multiplier == 0 and plan.epsilon_asked == math.inf)):
            raise WardroundError("the plan promises privacy, but its noise multiplier is not positive")
        super().__init__(
            optimizer,
            noise_multiplier=plan.noise_multiplier,
            max_grad_norm=plan.max_grad_norm,
            expected_batch_size=plan.expected_patients,
        )
        self._parameters = parameters
        self._randomness = randomness
        self.noisy_steps = 0
        self._clipped: dict[str, Tensor] | None = None
        self.attach_step_hook(self._count)

    def _count(self, _: DPOptimizerFastGradientClipping) -> None:
        self.noisy_steps += 1

    def accumulate_sum(self, clipped: ClippedSum) -> None:
        """Add one physical batch.

        Raises:
            WardroundError: The batch's sensitivity is not the one that the noise is scaled to.
        """
        if clipped.sensitivity != self.max_grad_norm:
            raise WardroundError(f"sensitivity {clipped.sensitivity:g} differs from the plan's {self.max_grad_norm:g}")
        self._clipped = clipped.gradients
        self.signal_skip_step(True)
        self.step()

    def noisy_step(self, after_noise: Callable[[], None] | None = None) -> None:
        """Add the noise, divide, and step the optimizer.

        A draw without patients accumulates nothing: its sum is zero, and the step is taken all the same.

        Args:
            after_noise: May add a term that does not depend on any patient to the noised gradients, which is
                post-processing.
        """
        self._clipped = None
        self.signal_skip_step(False)
        if not self.pre_step():
            raise WardroundError("the noisy step was skipped")
        if after_noise is not None:
            after_noise()
        self.original_optimizer.step()
        self.zero_grad(set_to_none=True)

    def accumulate(self) -> None:
        """Replace Opacus' accumulation: the physical batches of a step are summed in float64.

        See `clipping/engines.py`.
        """
        parameter: Any  # a parameter to which Opacus has added summed_grad
        for name, parameter in self._parameters.items():
            if parameter.summed_grad is None:
                parameter.summed_grad = torch.zeros_like(parameter, dtype=torch.float64)
            if self._clipped is not None:
                parameter.summed_grad.add_(self._clipped[name])

    def add_noise(self) -> None:
        """Replace Opacus' noise (torch's generator) by the site's secret noise, one draw for all parameters of a step.

        The noised sum is then rounded to a public grid, the largest power of two that is at most 1 / `GRID_PARTS` of
        the noise's standard deviation. Rounding an already noised value is post-processing; it removes the last bits of
        a floating-point sum, in which the noise could be recognised (I. Mironov, "On significance of the least
        significant bits for differential privacy", CCS 2012), and adds 2e-5 of the noise's variance.
        """
        if self.noise_multiplier > 0:
            standard_deviation = self.noise_multiplier * self.max_grad_norm
            if not math.isfinite(standard_deviation):
                raise WardroundError("noise needs a finite clipping norm")
            sizes = [parameter.numel() for parameter in self.params]
            noise = self._randomness.normal(sum(sizes)).mul_(standard_deviation).split(sizes)
            grid = 2.0 ** math.floor(math.log2(standard_deviation / GRID_PARTS))
        for index, parameter in enumerate(self.params):
            if self.noise_multiplier > 0:
                # in float64: float32 would round the sum itself, before noise hides the rounding
                part = noise[index].view_as(parameter).to(parameter.summed_grad).add_(parameter.summed_grad)
                parameter.grad = part.div_(grid).round_().mul_(grid).to(parameter.dtype)
            else:
                parameter.grad = parameter.summed_grad.to(parameter.dtype)
            parameter.summed_grad._processed = True
