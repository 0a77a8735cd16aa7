"""The content of a model card, made from model.json alone, so that anybody can make it again and compare.

The sections are those of a Hugging Face model card (https://huggingface.co/docs/hub/model-cards).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wardround.handover.card.blocks import Block, Card, Section, bullets, paragraph, table
from wardround.handover.card.figures import (
    NO_FIGURES,
    auc_text,
    figures_heading,
    figures_lines,
    privacy_statement,
    promised_line,
    released_weights_line,
)
from wardround.handover.card.metadata import metadata_of
from wardround.sources.registry import of_study
from wardround.study.describe import learns, network, reads
from wardround.study.load import Study
from wardround.tasks.onnx_form import DISTANCE, OnnxForm
from wardround.tasks.registry import public_start, release_part
from wardround.text import bytes_text, count_text, epsilon_of, epsilon_text
from wardround.wire.reply_codes import code_text

NOTICE = "Research software, not a medical device: not for diagnosis or treatment."
UNSAFE = "UNSAFE: this model was exported with --force-unsafe although the release gate was closed."
MISSING_SHOWN = 20
Record = Mapping[str, Any]


def card_of_record(record: Record, study: Study) -> Card:
    """Make the card of an exported model.

    Args:
        record: The content of model.json.
        study: The study in it.
    """
    reasons = tuple(f"Reason: {reason}." for reason in record["unsafe_reasons"])
    warnings = (UNSAFE, *reasons) if record["unsafe"] else ()
    sections = [
        _section("Model details", _details(record, study)),
        _section("Uses", _uses(record, study)),
        _section("Limits, bias and risks", _limits(record, study)),
        _section("How to use it", _how_to(record, study)),
        _section("Training data", _data(record, study)),
        _section("Evaluation", _evaluation(record, study)),
        _section("Calibration", _calibration(record)),
        _section("Privacy", _privacy(record, study)),
        _section("Attack", _attack(record)),
        _section("Training procedure", _procedure(record, study)),
        _section("Environmental impact", [paragraph("Not measured.")]),
        _section("Files", _files(record)),
        _section("Contact", [paragraph("The operator of the federation, who exported this model.")]),
    ]
    return Card(
        title=f"Model of the study {study.study.name}",
        notice=NOTICE,
        warnings=warnings,
        metadata=metadata_of(record, study),
        sections=tuple(sections),
    )


def _section(title: str, blocks: list[Block]) -> Section:
    return Section(title=title, blocks=tuple(blocks))


def _details(record: Record, study: Study) -> list[Block]:
    architecture = f"{record['architecture']}, SHA-256 {record['architecture_sha256']}"
    numbers = "" if record["numbers"] is None else f"; {count_text(record['numbers'], 'number')} in total"
    weights = released_weights_line(record["released"])
    return [
        paragraph(f"The model learned {learns(study)} ({record['task']}). Its network: {network(study)}{numbers}."),
        *([paragraph(weights)] if weights else []),
        table(
            ("field", "value"),
            [
                ("run", record["run"]),
                (
                    "made by",
                    "a federation of sites" if record["kind"] == "federation" else "a simulation on one machine",
                ),
                ("created", record["created"]),
                ("study, SHA-256", record["study_sha256"]),
                ("architecture", architecture),
                ("labels", ", ".join(record["labels"])),
                ("start", _start(study)),
                ("licence", "not stated by the operator" if record["license"] == "other" else record["license"]),
                *((f"version of {name}", version) for name, version in sorted(record["software"].items())),
            ],
        ),
    ]


def _start(study: Study) -> str:
    kinds = {"phantom": public_start(study.study.task, study.model.name), "random": "random weights"}
    return kinds.get(study.model.init, f"a model file with the SHA-256 {study.model.init_sha256}")


def _uses(record: Record, study: Study) -> list[Block]:
    rows = f"{of_study(study).ROW}s"
    return [
        paragraph(
            f"Intended use: research on federated learning and on models for {rows} like those it was trained on."
        ),
        paragraph("Out of scope:"),
        bullets(
            [
                "diagnosis, treatment, triage or any other decision about a patient; the model is not a medical device",
                f"{rows} of {of_study(study).UNLIKE} than the training data"
                + (", which the output distance is meant to detect" if _is_judged(record) else ""),
                "patients of hospitals that differ from the sites below, before an evaluation there",
                f"finding out whether a person's {rows} were used in training",
            ]
        ),
    ]


def _limits(record: Record, study: Study) -> list[Block]:
    items = [
        "No figures by sex, age, scanner or hospital are part of this card unless they appear under Evaluation; "
        "performance in such groups may be lower.",
        "The noise that protects patients lowers the quality of the model.",
    ]
    if record["phantoms"]:
        items.insert(0, "It was trained and tested on generated phantoms; nothing is known about real patients.")
    if record["onnx"] and not _is_judged(record):
        items.append(f"It does not detect {of_study(study).ROW}s that are unlike those it was trained on.")
    if record["calibration"] is None:
        items.append("Its probabilities are not calibrated.")
    return [bullets(items)]


def _is_judged(record: Record) -> bool:
    """Return whether `distance` judges images. Without a reference it is always 0, and so is the threshold."""
    return record["familiarity"] is not None and record["familiarity"]["threshold"] != 0


def _how_to(record: Record, study: Study) -> list[Block]:
    if not record["onnx"]:
        return [
            paragraph(
                f"A model of {record['task']} leaves as model.safetensors only, because its network does not map an "
                "image to scores: it needs Wardround. There is no ONNX file and no MONAI bundle."
            )
        ]
    form = release_part(record["task"]).onnx_form(study)
    names = ", ".join(form.outputs)
    asked = ", ".join(f'"{name}"' for name in form.outputs)
    zeros = ", ".join(map(str, (1, *form.row_shape)))
    return [
        paragraph(
            f"model.onnx needs onnxruntime alone. Input: {form.input}, {form.dtype} {form.shape_text}, {form.reads}. "
            f"Outputs: logits, float32 {form.logits}{_distance(record, form)} {_probability(record)}"
        ),
        *([table(("column", "meaning"), form.columns)] if form.columns else []),
        Block(
            code="import numpy, onnxruntime\n"
            'session = onnxruntime.InferenceSession("model.onnx")\n'
            f"{form.input} = numpy.zeros(({zeros}), numpy.{form.dtype})  # your {form.input}\n"
            f'{names}{"," if len(form.outputs) == 1 else ""} = session.run([{asked}], {{"{form.input}": {form.input}}})'
        ),
    ]


def _distance(record: Record, form: OnnxForm) -> str:
    """Return the end of the sentence about the outputs: what `distance` is, where the file has it."""
    if DISTANCE not in form.outputs:
        return "."
    distance = "It is always 0, because there is no reference for images of this kind: unlike images are not detected."
    if _is_judged(record):
        limit = record["familiarity"]["threshold"]
        distance = f"Refuse an image whose distance is above {limit:g}: it is unlike the images that the network knows."
    return f"; and distance, float32 (N,). {distance}"


def _probability(record: Record) -> str:
    function = "1 / (1 + exp(-x))" if len(record["labels"]) == 2 else "softmax(x)"
    calibration = record["calibration"] or {}
    if "temperature" in calibration:
        return f"The calibrated probability of a logit is {function} of x = logit / {calibration['temperature']:.4g}."
    if "intercept" in calibration:
        return f"The calibrated probability of a logit is {function} of x = logit {_signed(calibration['intercept'])}."
    return f"The probability of a logit x is {function}; it is not calibrated."


def _signed(number: float) -> str:
    return f"{'-' if number < 0 else '+'} {abs(number):.4g}"


def _data(record: Record, study: Study) -> list[Block]:
    rows = [
        (site, f"{one['rounds_counted']} of {record['rounds']}", *_site_epsilon(record, one))
        for site, one in sorted(record["sites"].items())
    ]
    columns = ("site", "replies counted", *(("ε spent",) if record["kind"] == "simulation" else ()))
    missing = [
        f"round {one['round']}: {one['site']}, {code_text(one['code'])}" for one in record["missing"][:MISSING_SHOWN]
    ]
    more = len(record["missing"]) - MISSING_SHOWN
    kept = f"{of_study(study).ROW.capitalize()}s"
    return [
        paragraph(f"At each site: {reads(study)}. {kept}, names and individual scores never left the sites."),
        *([table(columns, rows)] if rows else []),
        paragraph("Missing replies:" if missing else "No reply was missing in any round."),
        *([bullets([*missing, *([f"and {count_text(more, 'other reply')}"] if more > 0 else [])])] if missing else []),
    ]


def _site_epsilon(record: Record, one: Record) -> tuple[str, ...]:
    if record["kind"] != "simulation":
        return ()
    return ("unknown" if one["epsilon"] is None else epsilon_text(one["epsilon"]),)


def _procedure(record: Record, study: Study) -> list[Block]:
    sections = {name: value for name, value in record["study"].items() if isinstance(value, dict)}
    rows = [
        (f"{name}.{key}", _setting(value))
        for name, section in sorted(sections.items())
        for key, value in sorted(section.items())
    ]
    return [paragraph("The settings of the study, with every default:"), table(("setting", "value"), rows)]


def _setting(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(_setting(one) for one in value) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_setting(one)}" for key, one in value.items()) or "none"
    return "none" if value is None else str(value)


def _evaluation(record: Record, study: Study) -> list[Block]:
    blocks, rows = [], f"{of_study(study).ROW}s"
    if record["federated_test"] is not None:
        figures = record["federated_test"]
        blocks += [paragraph(figures_heading(figures)), bullets(figures_lines(record["task"], figures))]
    if record["simulated_test"] is not None:
        lines = [
            f"by {unit.removesuffix('s')}: {auc_text(one)}, {count_text(one['patients'], 'patient')}"
            for unit, one in record["simulated_test"].items()
            if one.get("auc") is not None
        ]
        blocks += [paragraph("Exact figures about generated patients who were not trained on:"), bullets(lines)]
    if not blocks:
        blocks = [paragraph(NO_FIGURES)]
    if record["kind"] == "simulation" and not record["phantoms"]:
        blocks.append(
            paragraph(
                "The exact figures of the simulation are not covered by ε and are therefore not part of this card."
            )
        )
    if record["onnx"]:
        onnx = record["onnx"]
        blocks.append(
            paragraph(
                f"The ONNX file was compared with the network on {onnx['images_compared']} {rows}: the largest "
                f"difference is {onnx['largest_difference']:.1e} of the largest output (limit: 1e-05)."
            )
        )
    return blocks


def _calibration(record: Record) -> list[Block]:
    figures = record["federated_test"] or {}
    measured = figures.get("calibration")
    blocks = []
    if measured:
        blocks.append(
            paragraph(
                f"Before calibration, from the noised counts: expected calibration error {measured['ece']:.3f} "
                f"(a perfectly calibrated model: {measured['ece_if_perfect']:.3f}); mean probability minus share of "
                f"positives {measured['excess']:+.3f} (95 %: {measured['low']:+.3f} to {measured['high']:+.3f})."
            )
        )
    if record["calibration"] is None:
        return [*blocks, paragraph("None: the probabilities of this model were not calibrated.")]
    rows = [
        (key.replace("_", " "), f"{value:.4g}" if isinstance(value, float) else _setting(value))
        for key, value in sorted(record["calibration"].items())
    ]
    return [*blocks, paragraph("This calibration belongs to the model:"), table(("field", "value"), rows)]


def _privacy(record: Record, study: Study) -> list[Block]:
    spent = record["privacy"].get("epsilon")
    lines = privacy_statement(study.privacy.epsilon, study.privacy.delta)
    if spent is not None:
        accountant = record["privacy"].get("accountant", "unknown accountant")
        lines.append(f"Spent, as the ledgers' events give it: ε {epsilon_text(epsilon_of(spent))} ({accountant}).")
    return [paragraph(promised_line(record["privacy"])), bullets(lines)]


def _attack(record: Record) -> list[Block]:
    found = record["attack"]
    if found is None:
        return [paragraph("No attack on this model was reported. What it reveals about patients was not tested.")]
    whose = (
        "this run, with all of its files"
        if found["same_run"]
        else f"the simulated run {found['run']} of the same study. It shows that the study's noise, clipping and "
        "sampling keep their promise in this software. It says nothing about the hospitals of this run, whose data "
        "nobody can attack from outside"
    )
    rows = [(one["name"], one["measured"], one["limit"], one["verdict"]) for one in found["checks"]]
    blocks = [paragraph(f"The attacks of wardround-sim attack were made on {whose}. Verdict: {found['verdict']}.")]
    if canaries := found["canaries"]:
        blocks.append(
            paragraph(
                f"Planted patients ({canaries['canaries']} in each of {found['seeds']} audits) prove that ε is above "
                f"{canaries['epsilon_bound']:.2f} (95 %); {epsilon_text(canaries['epsilon_promised'])} was promised."
            )
        )
    return [*blocks, table(("check", "measured", "limit", "verdict"), rows)]


def _files(record: Record) -> list[Block]:
    rows = [(name, bytes_text(one["bytes"]), one["sha256"]) for name, one in sorted(record["files"].items())]
    return [
        table(("file", "size", "SHA-256"), rows),
        paragraph(
            "wardround-server model verify compares these hashes, the architecture, the ONNX file and this card. The "
            "hashes detect damage, not forgery: compare that of model.safetensors with the operator."
        ),
    ]
