"""The objective of early warning: cross-entropy of the outcome, of the head's logit or averaged over the hours.

A patient has one row, and every network gives a patient one loss: `gru` the mean over the hours, so that the hours of a
stay are clipped together.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wardround.networks.weights import trained_parameters
from wardround.sources.records.study import records_data
from wardround.sources.records.synthetic_rows import synthetic_rows
from wardround.study.load import Study
from wardround.tasks.labelled.objective import FEATURE_ROWS, binary_losses, head_of, loss_per_row
from wardround.tasks.labelled.rows import has_positive_label, highest_logit, labelled_rows
from wardround.tasks.objective import Objective, StepTools, rows_as_read

SAMPLE_ROWS = 7
GROUP_ROWS = 64  # stays in one pass of the clipping engine: the hours follow one another, so small groups waste time

usable_rows = labelled_rows
is_positive = has_positive_label
patient_score = highest_logit


def reads_features(study: Study) -> bool:
    """Return whether training reads the public features of a row, as the two heads do."""
    return study.model.name != "gru"


def mean_over_hours(logits_NT: Tensor, labels_N: Tensor) -> Tensor:
    """Return the losses, (N,): the mean over the hours of the binary cross-entropy of a stay's outcome."""
    return binary_losses(logits_NT, labels_N).mean(1)


def objective_of(network: nn.Module, study: Study, tools: StepTools) -> Objective:
    """Return the objective of the head, or of the recurrent network."""
    parameters = trained_parameters(network, study)
    if reads_features(study):
        head = head_of(network)
        return Objective(
            part=head,
            parameters={name.removeprefix("head."): parameter for name, parameter in parameters.items()},
            loss_per_row=loss_per_row,
            augment=rows_as_read,
            sample=lambda: _random(SAMPLE_ROWS, head.in_features).to(tools.device),
            outputs=1,
            rows_at_once=FEATURE_ROWS,
        )
    return Objective(
        part=network,
        parameters=parameters,
        loss_per_row=mean_over_hours,
        augment=rows_as_read,
        sample=lambda: synthetic_rows(records_data(study), SAMPLE_ROWS).to(tools.device),
        outputs=1,
        rows_at_once=GROUP_ROWS,
        rows_in_a_group=GROUP_ROWS,
    )


def _random(rows: int, width: int) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(0))
