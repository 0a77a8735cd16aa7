"""The objectives of synthesis, for its two kinds of model.

`phantom-sampler` chooses among public phantoms and labels them; patients move its two linear heads
(`sampler_objective.py`). `dcgan` is a generator that is trained against a discriminator; patients move the
discriminator (`gan_objective.py`). In both, patients move parameters only through sums that are clipped, noised and
charged.
"""

from __future__ import annotations

from typing import cast

from torch import nn

from wardround.study.load import Study
from wardround.tasks.labelled.rows import has_positive_label, highest_logit, labelled_rows
from wardround.tasks.objective import Objective, StepTools
from wardround.tasks.synthesis import gan_objective, sampler_objective
from wardround.tasks.synthesis.gan import SharedGAN
from wardround.tasks.synthesis.phantom_sampler import PhantomSampler

usable_rows = labelled_rows  # generated images have a label
is_positive = has_positive_label
patient_score = highest_logit  # how strongly a patient's images resemble the second label


def reads_features(study: Study) -> bool:
    """Return True for the sampler, which reads features, and False for the GAN, which reads images."""
    return study.model.name != "dcgan"


def objective_of(network: nn.Module, study: Study, tools: StepTools) -> Objective:
    """Return the discriminator's hinge loss, or the loss of the sampler's two heads, as the objective."""
    if isinstance(network, SharedGAN):
        return gan_objective.objective_of(network, study, tools)
    return sampler_objective.objective_of(cast(PhantomSampler, network), study, tools)
