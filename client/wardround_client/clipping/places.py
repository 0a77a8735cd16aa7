"""Whether a unit's clipped gradient has the same bits in every place of a group: a check of the book-keeping engine.

If it had not, a patient who leaves would move others to other places and change their parts of the sum as well, by a
last bit, and adversarial weights can turn a last bit into a whole clipped gradient.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from wardround.tasks.objective import LossPerRow
from wardround_client.clipping.bookkeeping import Group, SpeedSettings, filled_up, one_pass, places_of, trained_layers
from wardround_client.clipping.engines import random_like
from wardround_client.clipping.hostile_weights import set_weights, weights_restored
from wardround_client.clipping.layer_rules import Contribution, Units, prepared

LOSS_NUMBERS = 1000  # outputs on which the rounding of a loss is checked; it differs for more than 1 in 100


def places_agree(
    network: nn.Module,
    parameters: dict[str, nn.Parameter],
    loss_per_row: LossPerRow,
    inputs_N: Tensor,
    speed: SpeedSettings,
) -> bool:
    """Return whether a unit's norm and its part of the sum have the same bits in every place of a group.

    The bits must not depend on the images in the other places either. Random images of the kind of `inputs_N` are
    shifted by one place, and then every other unit is exchanged. With random images and weights, a different order of
    addition shows in the last bits. (A study's first weights may be zero in the head and would then give no gradient.)
    The weights are restored afterwards.

    An image gives a layer thousands of numbers, but the loss a few, and of those only some percent show a difference in
    rounding. The loss is therefore checked on many outputs of its own: adversarial weights could make all of a
    patient's gradient depend on the last bit of one of them.
    """
    seen: list[Tensor] = []

    def noted(outputs_N: Tensor, labels_N: Tensor) -> Tensor:
        seen.append(outputs_N.detach())
        return loss_per_row(outputs_N, labels_N)

    with weights_restored(parameters):
        set_weights("random", network, parameters, inputs_N)
        agree = _places_agree(network, parameters, noted, inputs_N, speed)
    return agree and all(loss_places_agree(loss_per_row, outputs_N) for outputs_N in seen[:1])


def loss_places_agree(loss_per_row: LossPerRow, outputs_N: Tensor) -> bool:
    """Return whether the gradient of a row's loss has the same bits in every place, for random rows like `outputs_N`.

    The same row is in all places. At least `LOSS_NUMBERS` numbers between about -10 and 10 are tried.
    """
    generator = torch.Generator().manual_seed(3)
    for trial in range(math.ceil(LOSS_NUMBERS / outputs_N[0].numel())):
        row = 4 * torch.randn(outputs_N.shape[1:], generator=generator).to(outputs_N)
        labels_N = torch.full((len(outputs_N),), trial % 2, device=outputs_N.device)
        with torch.enable_grad():
            rows_N = row.expand_as(outputs_N).contiguous().requires_grad_()
            (gradient_N,) = torch.autograd.grad(loss_per_row(rows_N, labels_N).sum(), rows_N)
        if not torch.equal(gradient_N, gradient_N[:1].expand_as(gradient_N)):
            return False
    return True


def _places_agree(
    network: nn.Module,
    parameters: dict[str, nn.Parameter],
    loss_per_row: LossPerRow,
    inputs_N: Tensor,
    speed: SpeedSettings,
) -> bool:
    layers = [(trained, prepared(trained.layer)) for trained in trained_layers(network, parameters)]
    k, places = speed.images_per_unit or 1, places_of(speed)
    if not places:
        return True  # each unit is computed in passes of its own
    units, used = Units(rows=tuple(places), images=speed.images_per_unit), places[-1].stop
    images_N, spare_N = random_like(inputs_N, used), random_like(inputs_N, used, seed=2)
    labels_N = torch.zeros(speed.group_images, dtype=torch.int64, device=inputs_N.device)

    def shares(inputs_N: Tensor) -> list[Contribution]:
        inputs_N = filled_up(inputs_N, speed.group_images)
        group = Group(inputs_N=inputs_N, labels_N=labels_N, units=units, filled=len(places))
        return [one for _, one in one_pass(network, layers, group, loss_per_row, speed)]

    def same(before: list[Contribution], unit: int, after: list[Contribution], place: int) -> bool:
        pairs = zip(before, after, strict=True)
        return all(
            torch.equal(one.squared_norm_U[unit], other.squared_norm_U[place])
            and all(torch.equal(a, b) for a, b in zip(one.share(unit), other.share(place), strict=True))
            for one, other in pairs
        )

    first, moved = shares(images_N), shares(images_N.roll(k, 0))
    if not all(same(first, unit, moved, (unit + 1) % len(places)) for unit in range(len(places))):
        return False
    odd = torch.arange(used, device=inputs_N.device) // k % 2 == 1
    exchanged = shares(torch.where(odd.view(-1, *[1] * (inputs_N.dim() - 1)), spare_N, images_N))
    return all(same(first, unit, exchanged, unit) for unit in range(0, len(places), 2))
