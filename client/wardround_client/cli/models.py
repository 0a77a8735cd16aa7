"""`wardround-site personalise`: use a released model with this site's own patients. Everything stays here."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wardround.cli.options import JsonOption, SiteOption
from wardround.printable import escaped
from wardround.storage.text_file import path_text

if TYPE_CHECKING:
    from wardround.wire.packets import Broadcast
    from wardround_client.figures.personal import PersonalOutcome
    from wardround_client.rounds.personalisation import PersonalModel

HASH = re.compile(r"[0-9a-f]{4,64}")  # a study's hash or its first digits


def personalise(
    model: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL|STUDY",
            help="The folder of a released model, as `model export` wrote it; or the hash of a study whose released "
            "weights this site received for the federated test.",
        ),
    ],
    run: Annotated[
        str | None,
        typer.Option("--run", metavar="RUN", help="With a study's hash: its run, if this site took part in several."),
    ] = None,
    site: SiteOption = Path("."),
    as_json: JsonOption = False,
) -> None:
    """Train a released model further on this site's patients, if its study asks for it, and test whether that helped.

    The budget was held when the study was admitted here. The model and its figures stay in this site's folder. Asked
    again, the command shows the same model and charges nothing. Exit 3: refused by policy or budget.
    """
    from wardround_client.figures.personal import personalised_and_tested
    from wardround_client.site.site import open_site

    made, outcome = personalised_and_tested(_released(model, site, run), open_site(site))
    if as_json:
        cost = {"epsilon": made.epsilon.to_json(), "epsilon_with_training": made.together.to_json()}
        print(json.dumps({"model": str(made.folder), "again": made.again, **cost, **outcome.to_json()}))
        return
    for name, text in _in_words(made, outcome):
        print(escaped(f"{name:<13} {text}"))


def _released(model: Path, site: Path, run: str | None) -> Broadcast:
    """Return the released weights: of an exported folder, or those that the site received."""
    from wardround.errors import UsageError, required
    from wardround.handover.network import load_network
    from wardround.handover.package import open_package
    from wardround.networks.weights import trained_parameters, weights_of
    from wardround_client.rounds.personalisation import kept_question, release_question
    from wardround_client.site.paths import PERSONAL
    from wardround_client.studies.approvals import find_study

    if not model.exists() and HASH.fullmatch(str(model)):
        return kept_question(required(find_study(site, str(model)).study, "study"), site / PERSONAL, run)
    if run is not None:
        raise UsageError(f"--run {run}: an exported model names its run itself; leave the option out")
    package = open_package(model)
    weights = weights_of(trained_parameters(load_network(package), package.study))
    return release_question(
        package.study, str(package.content["run"]), weights, str(package.content["architecture_sha256"])
    )


def _in_words(made: PersonalModel, outcome: PersonalOutcome) -> list[tuple[str, str]]:
    from wardround_client.figures.personal import VERDICTS

    trained = "trained earlier; nothing was charged now" if made.again else "trained now, and charged to the ledger"
    figures = outcome.to_json()
    return [
        ("model", f"{path_text(made.folder)} ({trained})"),
        ("cost", f"{made.epsilon}; with the rounds of training {made.together.value:.3g}"),
        ("tested on", f"{outcome.released.patients} held-out patients of this site"),
        ("released", _auc_text(figures["released"])),
        ("personalised", _auc_text(figures["personalised"])),
        ("verdict", VERDICTS[outcome.verdict]),
        ("stays", "the model and these figures stay at this site; publishing them is a release that no ε covers"),
    ]


def _auc_text(figures: dict[str, Any]) -> str:
    if figures["auc"] is None:
        return "AUC unknown"
    low, high = figures["auc_ci95"]
    return f"AUC {figures['auc']:.3f} (95 % interval {low:.3f} to {high:.3f})"
