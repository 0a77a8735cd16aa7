"""Two networks with frozen public features of a row and a private linear head: `severity-head` and `tabular-head`.

Only the head is trained, and it starts from weights written by hand. A patient's clipped gradient then has a few
hundred numbers, which is why these networks keep most of their use at a small epsilon.

The features are scaled so that a typical row is about 2 long, beside 1 for the intercept: a clipped gradient favours
large features, and the rule for the learning rate assumes features of that size (docs/records.md).

Shapes: N rows, T hours, V variables, D features.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wardround.sources.records.vocabulary import Vocabulary
from wardround.tasks.early_warning.features import heart
from wardround.tasks.early_warning.features.severity import SeverityPart, SeverityScore
from wardround.tasks.early_warning.features.summaries import Feature, StaySummaries, stay_statistics

SEVERITY_SHARE = 0.4  # of the parts of the score: they are large, and there are 80 of them
SUMMARY_SHARE = 1 / 15  # of the summaries beside them, so that 200 of them do not outweigh the score
UNIT_SHARE = 0.5  # of categories beside them
TABLE_SHARE = 0.4  # of all features of a table
SCORE_SLOPE = 0.36  # logits of one point of the severity score
SCORE_INTERCEPT = -3.3  # a stay without any sign of severity: a risk of about 4 %

Part = Feature | SeverityPart


class SeverityFeatures(nn.Module):
    """The parts of the severity score, and the summaries of the stay: (N, 80 + summaries)."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        super().__init__()
        self.share = SEVERITY_SHARE
        self.severity = SeverityScore(vocabulary)
        self.summaries = StaySummaries(vocabulary, share=SUMMARY_SHARE, category_share=UNIT_SHARE)

    @property
    def parts(self) -> tuple[Part, ...]:
        """What each of the features is."""
        return (*self.severity.parts, *self.summaries.parts)

    def forward(self, rows_NTV: Tensor) -> Tensor:
        """Rows (N, T, V) in the vocabulary's units, NaN for what is missing -> features (N, D)."""
        found = stay_statistics(self.summaries.scale(rows_NTV))
        severity_N80 = self.share * self.severity.of_statistics(found, rows_NTV)
        return torch.cat([severity_N80, self.summaries.of_statistics(found, rows_NTV)], 1)


class PublicFeatureHead(nn.Module):
    """Frozen public features and a linear head with one output, the logit of the outcome."""

    def __init__(self, public: SeverityFeatures | StaySummaries) -> None:
        super().__init__()
        self.public = public
        self.head = nn.Linear(len(public.parts), 1)
        with torch.no_grad():
            self.head.weight.zero_()
            self.head.bias.zero_()

    @torch.no_grad()
    def features(self, rows_NTV: Tensor) -> Tensor:
        """Rows (N, T, V) in the vocabulary's units, NaN for what is missing -> features (N, D), without a gradient."""
        return self.public(rows_NTV)

    def forward(self, rows_NTV: Tensor) -> Tensor:
        """Rows (N, T, V) in the vocabulary's units, NaN for what is missing -> logits (N, 1)."""
        return self.head(self.features(rows_NTV))


def severity_head(vocabulary: Vocabulary, *, public_start: bool) -> PublicFeatureHead:
    """`severity-head`, which starts as the severity score, or at zero.

    Raises:
        KeyError: The vocabulary lacks a variable of the score.
    """
    features = SeverityFeatures(vocabulary)
    network = PublicFeatureHead(features)
    if public_start:
        score = features.severity.public_weights()
        with torch.no_grad():
            network.head.weight[0, : len(score)] = SCORE_SLOPE / SEVERITY_SHARE * score
            network.head.bias.fill_(SCORE_INTERCEPT)
    return network


def tabular_head(vocabulary: Vocabulary, *, public_start: bool) -> PublicFeatureHead:
    """`tabular-head`, which starts with the weights written for the vocabulary "heart", or at zero."""
    features = StaySummaries(vocabulary, share=TABLE_SHARE, category_share=TABLE_SHARE)
    network = PublicFeatureHead(features)
    if public_start and vocabulary.name == "heart":
        with torch.no_grad():
            network.head.weight[0] = heart.heart_weights(features.parts) / TABLE_SHARE
            network.head.bias.fill_(heart.INTERCEPT)
    return network
