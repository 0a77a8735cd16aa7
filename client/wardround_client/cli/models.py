"""`wardround-site personalise` and `evaluate`: a released model and this site's own patients. Everything stays here."""

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
    from torch import nn

    from wardround.handover.package import Package
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


def evaluate(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="The folder that `model export` wrote.")],
    beside: Annotated[
        Path | None,
        typer.Option(
            "--beside",
            metavar="MODEL",
            help="Another exported model for the same images and labels, to compare on the same patients.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="The folder for evaluation.json and .html; default: in the site."),
    ] = None,
    site: SiteOption = Path("."),
    as_json: JsonOption = False,
) -> None:
    """Show for whom a model works: by sex, age, scanner, slice thickness and lesion size. Nothing is sent or charged.

    Only patients whom the model's study holds out count. Small groups are suppressed. If this site personalised the
    model, the personalised one is shown beside it.
    """
    from wardround.cli.app import print_table
    from wardround.handover.package import open_package
    from wardround.storage.disk_errors import writing
    from wardround_client.figures.evaluation import evaluate as evaluate_model
    from wardround_client.figures.page import notes_of, short_table, suppressed_line, write_evaluation
    from wardround_client.site.config import load_site_config
    from wardround_client.site.paths import CONFIG_FILE, EVALUATIONS
    from wardround_client.site.site import choose_device, open_cohort_of
    from wardround_client.training.rows import held_out_rows

    device, package = choose_device(load_site_config(site / CONFIG_FILE)), open_package(model)
    _require_classifier(package)
    held_out = held_out_rows(package.study, open_cohort_of(site, package.study))
    found = evaluate_model(package, held_out, device, _other_models(package, site, beside))
    target = out or site / EVALUATIONS / found.model_sha256[:12]
    with writing(target):
        written = write_evaluation(target, found)
    if as_json:
        print(json.dumps(found.to_json()))
        return
    table = short_table(found)
    print_table(table.columns, table.rows)
    for line in (suppressed_line(found), *notes_of(found)):
        if line:
            print(escaped(line))
    for path in written:
        print(escaped(f"wrote {path_text(path)}"))


def _require_classifier(package: Package) -> None:
    from wardround.errors import UsageError
    from wardround.tasks.registry import commands_of

    task = package.study.study.task
    if not commands_of(task).explain:
        raise UsageError(f"{path_text(package.folder)}: is a model of {task}; give one that predicts labels of images")


def _other_models(package: Package, site: Path, beside: Path | None) -> dict[str, nn.Module]:
    """Return the networks to compare: the one that this site personalised, and the one that the user names."""
    from wardround.errors import UsageError
    from wardround.handover.network import load_network
    from wardround.handover.package import open_package
    from wardround.storage.checkpoint import load_checkpoint
    from wardround_client.rounds.personalisation import MODEL_FILE, with_tensors
    from wardround_client.site.paths import PERSONAL

    study, run, found = package.study, str(package.content["run"]), {}
    for path in (site / PERSONAL / study.sha256()).glob(f"*/{MODEL_FILE}"):
        if path.parent.name == run:
            found["personalised"] = with_tensors(study, load_checkpoint(path)[0])
    if beside is not None:
        other = open_package(beside)
        _require_classifier(other)
        if other.study.data != study.data:
            raise UsageError(f"--beside {path_text(beside)}: reads other images or has other labels than the model")
        found["other model"] = load_network(other)
    return found


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
