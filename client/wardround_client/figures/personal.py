"""Whether personalisation helped: the released and the personalised model on this site's held-out patients.

The figures are exact. They describe patients of this site, so they are shown here only; publishing them would be a
release that no epsilon covers.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import nn

from wardround.errors import required
from wardround.metrics.classification import TestFigures
from wardround.metrics.intervals import Estimate
from wardround.storage.atomic import write_private
from wardround.wire.packets import Broadcast
from wardround_client.figures.scores import difference, figures_of, scored
from wardround_client.rounds.personalisation import PersonalModel, personalise, released_network, with_tensors
from wardround_client.site.site import Site
from wardround_client.training.batches import HeldOutRows

OUTCOME_FILE = "outcome.json"  # beside the personalised model

Verdict = Literal["helped", "did harm", "no clear difference", "unknown"]
VERDICTS: dict[Verdict, str] = {
    "helped": "it helped: the interval of the difference lies above 0",
    "did harm": "it did harm: the interval of the difference lies below 0; use the released model",
    "no clear difference": "no clear difference: the interval of the difference contains 0; use the released model",
    "unknown": "unknown: there are too few held-out patients, or they have one label only; use the released model",
}


@dataclass(frozen=True, kw_only=True)
class PersonalOutcome:
    """The figures of both models on the same held-out patients, and the difference personalised minus released."""

    released: TestFigures
    personalised: TestFigures
    difference: Estimate | None

    @property
    def verdict(self) -> Verdict:
        """Whether the personalised model is better, by the 95 % interval of the difference."""
        if self.difference is None:
            return "unknown"
        if self.difference.low > 0:
            return "helped"
        return "did harm" if self.difference.high < 0 else "no clear difference"

    def to_json(self) -> dict[str, Any]:
        """Return plain values, as in `result.json` of a simulation."""
        return {
            "verdict": self.verdict,
            "released": self.released.to_json(),
            "personalised": self.personalised.to_json(),
            "difference": None if self.difference is None else asdict(self.difference),
        }


def personalised_and_tested(question: Broadcast, site: Site) -> tuple[PersonalModel, PersonalOutcome]:
    """Personalise the released weights of `question` at a site, and test the result on its held-out patients.

    The figures are written to `OUTCOME_FILE` beside the model. They cost no privacy, because they stay at the site.

    Raises:
        WardroundError: See `personalise`.
    """
    made, study = personalise(question, site), site.study_of(question.study_sha256)
    held_out = required(site.held_out_of, "held-out patients")(study)
    before, after = released_network(study, question.weights), with_tensors(study, made.tensors)
    outcome = compare_models(before, after, held_out, site.device)
    write_private(made.folder / OUTCOME_FILE, (json.dumps(outcome.to_json(), indent=1) + "\n").encode())
    return made, outcome


def compare_models(
    released: nn.Module, personalised: nn.Module, held_out: HeldOutRows, device: torch.device
) -> PersonalOutcome:
    """Test both networks, from images to logits, on the same held-out rows."""
    before, after = scored(released, held_out, device), scored(personalised, held_out, device)
    return PersonalOutcome(
        released=figures_of(before), personalised=figures_of(after), difference=difference(after, before)
    )
