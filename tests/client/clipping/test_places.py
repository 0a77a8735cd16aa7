"""One patient moves the clipped sum by at most C wherever the patient's rows lie in the batch.

torch rounds a sigmoid in two ways: one inside whole vectors of numbers, another for the numbers left at the end of a
tensor. Weights that make the hours of a stay cancel turn the last bit of one hour into a whole clipped gradient.
"""

from __future__ import annotations

import functools

import pytest
import torch
from builders.networks import records_study
from torch import Tensor
from torch.nn import functional

from wardround.networks.build import initial_network
from wardround.networks.weights import trained_parameters
from wardround.sources.records.study import records_data
from wardround.sources.records.synthetic_rows import synthetic_rows
from wardround.sources.records.vocabulary import load_vocabulary
from wardround.tasks.early_warning.objective import mean_over_hours
from wardround.tasks.labelled.objective import loss_per_row
from wardround.tasks.synthesis.sampler_objective import loss_of
from wardround_client.clipping.bookkeeping import SpeedSettings, clip_by_bookkeeping
from wardround_client.clipping.engines import PatientBatch
from wardround_client.clipping.hostile_weights import largest_move
from wardround_client.clipping.places import loss_places_agree, places_agree

HOURS, GROUPS = (1, 3, 5, 12, 48, 49), (4, 8, 16, 64)


def unpadded(logits_NT: Tensor, labels_N: Tensor) -> Tensor:
    labels_NT = labels_N.to(logits_NT.dtype)[:, None].expand_as(logits_NT)
    return functional.binary_cross_entropy_with_logits(logits_NT, labels_NT, reduction="none").mean(1)


def uneven_logits() -> list[float]:
    """Logits whose sigmoid has other bits in whole vectors than alone; none on a processor that has one way only."""
    tried = 3 * torch.randn(32_000, generator=torch.Generator().manual_seed(0))
    alone = torch.cat([torch.sigmoid(few) for few in tried.split(1)])
    return tried[torch.sigmoid(tried) != alone].tolist()


def only_where_rounding_differs() -> None:
    if not uneven_logits():
        pytest.skip("this processor rounds a sigmoid in one way")


@pytest.mark.parametrize("hours", HOURS)
def test_no_row_of_a_loss_depends_on_its_place(hours: int) -> None:
    assert all(loss_places_agree(mean_over_hours, torch.zeros(group, hours)) for group in GROUPS)


def test_the_sampler_and_several_labels_agree_too() -> None:
    assert all(loss_places_agree(loss_of(0.5), torch.zeros(group, 2)) for group in (8, 33))
    assert all(loss_places_agree(loss_per_row, torch.zeros(33, labels)) for labels in (1, 3, 14))


@pytest.mark.parametrize(("hours", "group"), [(5, 8), (13, 4), (49, 8)])
def test_a_loss_whose_rows_are_rounded_by_place_is_found(hours: int, group: int) -> None:
    only_where_rounding_differs()
    assert not loss_places_agree(unpadded, torch.zeros(group, hours))
    study = records_study("gru", hours=hours)
    network = initial_network(study)
    arguments = (network, trained_parameters(network, study))
    rows_N, speed = synthetic_rows(records_data(study), 3), SpeedSettings(group_images=group)
    assert not places_agree(*arguments, unpadded, rows_N, speed)
    assert places_agree(*arguments, mean_over_hours, rows_N, speed)


@pytest.mark.parametrize(("loss", "holds"), [(mean_over_hours, True), (unpadded, False)])
def test_hours_that_cancel_do_not_turn_one_bit_into_a_direction(loss, holds: bool) -> None:
    """Found by a reviewer: states of zero, weights of 1e20 that cancel, and a bias whose sigmoid differs by place."""
    hours, group, patients = 5, 8, 16
    if not holds:
        only_where_rounding_differs()
    study = records_study("gru", hours=hours)
    network = initial_network(study)
    parameters, units = trained_parameters(network, study), network.units
    names = load_vocabulary("icu").names
    empty_TV = torch.full((hours, len(names)), torch.nan)
    aged_TV = empty_TV.clone()
    aged_TV[0, names.index("Age")] = 30.0
    (column,) = (network.prepare(aged_TV[None])[1] != network.prepare(empty_TV[None])[1])[0].nonzero()[:1, 0].tolist()
    largest = 0.0
    for seed, bias in enumerate((uneven_logits() or [-1.0])[:8]):
        huge = 1e20 * torch.rand(units, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            for parameter in parameters.values():
                parameter.zero_()
            network.inputs.bias[units : 2 * units] = -200.0  # the update gate is 0: the state is the new value, 0
            network.head.weight[0, :units], network.head.weight[0, units : 2 * units] = huge, -huge
            network.head.weight[0, 2 * units + column], network.head.bias[0] = 0.37, bias
        for place in range(1, group):
            rows_N = aged_TV.repeat(patients, 1, 1)
            rows_N[place::group] = empty_TV
            batch = PatientBatch(
                inputs_N=rows_N,
                labels_N=torch.zeros(patients, dtype=torch.int64),
                start_U1=torch.arange(patients + 1),
            )
            engine = functools.partial(clip_by_bookkeeping, speed=SpeedSettings(group_images=group))
            largest = max(largest, largest_move(engine, network, parameters, loss, batch, 0.4, (0,)))
    assert (largest <= 1.01) is holds, largest
