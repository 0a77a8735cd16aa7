"""The phantom sampler: selects phantoms that resemble a federation's patients, and labels them.

It has two linear heads over the frozen public features of the phantom encoder. `label` is the classifier of
`PhantomHead`. `realness` reweights the phantoms: a phantom x is kept with odds exp(realness(x)). Realness is the
discriminator for a generator that can only choose among phantoms; it grows until the kept phantoms have the patients'
mean features. The sampler includes a bank of public phantoms' features, so that a hospital can train against phantoms
without painting them.

Shapes: N images, M phantoms of the bank, D features.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wardround.errors import ModelError
from wardround.networks.model_file import read_shipped
from wardround.networks.phantom_encoder import PUBLIC_FEATURES, PublicFeatures, initial_head, load_phantom_encoder
from wardround.networks.public_head import POSITIVE_PHANTOM

SHIPPED_FILE = "phantom_bank.safetensors"
FEATURES = "features_MD"
BANK_PHANTOMS = 4_000
LABELS = 2


class SamplerHeads(nn.Module):
    """Features (N, D) -> (N, 2): the logit of the second label, and realness, which is initially zero everywhere."""

    centre_D: Tensor
    spread_D: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.label = initial_head()
        self.realness = nn.Linear(PUBLIC_FEATURES, 1, bias=False)
        nn.init.zeros_(self.realness.weight)
        self.register_buffer("centre_D", torch.zeros(PUBLIC_FEATURES))
        self.register_buffer("spread_D", torch.ones(PUBLIC_FEATURES))

    def tilted(self, features_ND: Tensor) -> Tensor:
        """Return the inputs of realness, (N, D): centred features in units of their spread over phantoms.

        In these units noise affects all features equally, and the norm of a phantom's row is about 1.
        """
        return (features_ND - self.centre_D) / (self.spread_D * PUBLIC_FEATURES**0.5)

    def forward(self, features_ND: Tensor) -> Tensor:
        """(N, D) -> (N, 2): logit, realness."""
        return torch.cat([self.label(features_ND), self.realness(self.tilted(features_ND))], 1)


class PhantomSampler(nn.Module):
    """Public features and the bank, which are never trained, and two heads, which train and travel."""

    bank_MD: Tensor

    def __init__(self, public: PublicFeatures, bank_MD: Tensor, labels: tuple[str, ...]) -> None:
        super().__init__()
        self.public = public
        self.head = SamplerHeads()
        self.register_buffer("bank_MD", bank_MD)
        with torch.no_grad():
            self.head.centre_D.copy_(bank_MD.mean(0))
            self.head.spread_D.copy_(bank_MD.std(0) + 1e-6)
            if labels[0] == POSITIVE_PHANTOM:
                self.head.label.weight.neg_()

    @torch.no_grad()
    def features(self, images_NCHW: Tensor) -> Tensor:
        """Grey values 0..255 (N, C, H, W), uint8 or float -> (N, 33), without a gradient."""
        return self.public(images_NCHW)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """Grey values 0..255 (N, C, H, W) -> (N, 2): the logit of the second label, and realness."""
        return self.head(self.features(images_NCHW))

    def label_logits(self, images_NCHW: Tensor) -> Tensor:
        """Grey values 0..255 -> the logit of the second label, (N, 1)."""
        return self(images_NCHW)[:, :1]

    def travelling(self, trainable: str) -> tuple[str, ...]:
        """Return the names of the two heads' parameters, the only ones that train and travel.

        Raises:
            ModelError: If `trainable` is not `head`.
        """
        if trainable != "head":
            raise ModelError(f"model.trainable: phantom-sampler has only heads; use 'head', not '{trainable}'")
        return ("head.label.bias", "head.label.weight", "head.realness.weight")

    def mean_of_kept(self) -> Tensor:
        """Return the mean (1, D) of realness's inputs over the bank, weighted with the odds of keeping each phantom."""
        tilted_MD = self.head.tilted(self.bank_MD)
        return torch.softmax(self.head.realness(tilted_MD)[:, 0], 0)[None] @ tilted_MD


def phantom_sampler(labels: tuple[str, ...], path: str | None = None) -> PhantomSampler:
    """Return the sampler before training: all phantoms have equal odds, and the phantom model labels them.

    The bank is the shipped one, or that in `path`, a file that `wardround-sim pretrain --network sampler` wrote.

    Raises:
        ModelError: If there are not two labels, or the file is missing, altered or of the wrong shape.
    """
    if len(labels) != LABELS:
        raise ModelError(
            f"data.labels: phantom-sampler needs {LABELS} labels, because phantoms are benign or malignant"
        )
    stored = read_shipped("wardround.tasks.synthesis", SHIPPED_FILE, path)
    stored.check_hash()
    bank = stored.tensors.get(FEATURES)
    if bank is None or bank.dim() != 2 or bank.shape[1] != PUBLIC_FEATURES:
        raise ModelError(f"{stored.name}: not a bank of phantoms of this version; pretrain again")
    return PhantomSampler(load_phantom_encoder()[1], bank.float(), labels)
