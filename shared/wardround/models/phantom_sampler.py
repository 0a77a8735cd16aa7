"""The phantom sampler: which phantoms look like a federation's patients, and what their label is there.

Two linear heads over the frozen public features of the phantom encoder. `label` is the classifier of `PhantomHead`;
`realness` tilts the phantoms: a phantom with features x is kept with odds exp(realness(x)). That tilt is the
discriminator of a generator that can do nothing but choose: it rises until the chosen phantoms have the patients' mean
features. A bank of public phantoms' features comes with it, so that a hospital can train against phantoms which it
never paints.
Shapes: N images, M phantoms of the bank, D features, E features of realness.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from wardround.errors import ModelError
from wardround.models.encoder import LARGEST_ROW_NORM, PUBLIC_FEATURES, PublicFeatures, load_phantom_encoder
from wardround.models.gan import read_phantom_file
from wardround.models.phantom_network import POSITIVE_PHANTOM, PhantomHead

SHIPPED_FILE = "phantom_bank.safetensors"
BANK_PHANTOMS = 4_000


class SamplerHeads(nn.Module):
    """Features (N, D) -> (N, 2): the logit of the second label, and realness, zero for every phantom at the start."""

    def __init__(self, label: nn.Linear, centre_D: Tensor) -> None:
        super().__init__()
        self.label = label
        self.realness = nn.Linear(len(centre_D), 1, bias=False)
        nn.init.zeros_(self.realness.weight)
        self.register_buffer("centre_D", centre_D.clone())

    def tilted(self, features_ND: Tensor) -> Tensor:
        """What realness reads: the features without the phantoms' mean, (N, E)."""
        return features_ND - self.centre_D

    def forward(self, features_ND: Tensor) -> Tensor:
        """(N, D) -> (N, 2): logit, realness."""
        return torch.cat([self.label(features_ND), self.realness(self.tilted(features_ND))], 1)
