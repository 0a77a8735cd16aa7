"""A model card is made from model.json alone, has every figure of it, and lets no text of a peer become markup."""

from __future__ import annotations

import copy
import json
import math
import re
from html.parser import HTMLParser
from typing import Any

import pytest
from builders.handover import attack_report
from builders.runs import study_of

from wardround.handover.card.content import UNSAFE, card_of_record
from wardround.handover.card.formats import to_html, to_markdown
from wardround.handover.package import ModelRecord
from wardround.study.load import Study, parse_study

HOSTILE = "<script>alert(1)</script>"
FIGURES = {
    "unit": "patient", "epsilon": 1.0, "bins": 16, "sites": ["east", "north"], "missing": [], "auc": 0.8125,
    "auc_ci95": [0.7061, 0.9047], "patients_noised": 123, "positives_noised": 60, "per_site": {},
    "thresholds": [{"specificity": 0.9, "sensitivity": 0.4567, "low": 0.3, "high": 0.6, "threshold": 0.5}],
    "calibration": {
        "excess": -0.0123, "low": -0.1, "high": 0.05, "ece": 0.0789, "ece_if_perfect": 0.0321, "points": [],
    },
    "roc": None, "fitted_calibration": {"temperature": 1.37, "coverage": 0.9},
}  # fmt: skip


def record_of(study: Study, **changes: Any) -> dict[str, Any]:
    report = attack_report(study)
    attack = {
        "same_run": False, "run": report["run_id"], "report_sha256": "c" * 64, "verdict": "pass", "seeds": 5,
        "checks": [{key: one[key] for key in ("name", "measured", "limit", "verdict")} for one in report["checks"]],
        "canaries": {"canaries": 500, "epsilon_bound": 2.66, "epsilon_promised": 8.0}, "membership": None,
    }  # fmt: skip
    content = {
        "schema": 1, "run": "tiny-1", "kind": "federation", "task": study.study.task,
        "study": json.loads(study.canonical()), "study_sha256": study.sha256(), "architecture": study.model.name,
        "architecture_sha256": "d" * 64, "labels": list(study.data.labels), "numbers": 12345,
        "created": "2026-11-24T22:01:05Z",
        "privacy": {"unit": "patient", "relation": "add or remove one", "epsilon_promised": 8.0, "delta": 1e-5},
        "rounds": 2, "sites": {"east": {"rounds_counted": 2}, "north": {"rounds_counted": 1}},
        "missing": [{"round": 2, "site": "north", "code": "refused:no_spare_rounds"}],
        "federated_test": FIGURES, "calibration": FIGURES["fitted_calibration"], "familiarity": {"threshold": 4.25},
        "onnx": {"images_compared": 60, "largest_difference": 3.1e-6}, "unsafe": False, "attack": attack,
        "license": "cc-by-4.0", "software": {"torch": "2.13.0+cpu"},
        "files": {"model.onnx": {"sha256": "e" * 64, "bytes": 1234567}},
        **changes,
    }  # fmt: skip
    return ModelRecord.model_validate(content).model_dump(mode="json", by_alias=True)


def markdown(study: Study, **changes: Any) -> str:
    return to_markdown(card_of_record(record_of(study, **changes), study))


def test_the_card_has_every_figure_of_the_record() -> None:
    text = markdown(study_of(figures=1.0))
    for part in (
        "AUC 0.812 (95 %: 0.706–0.905)", "sensitivity 0.457 (0.300–0.600) at 90% specificity",
        "About 123 held-out patients of east, north", "ε 8 at δ 1e-05, for each patient",
        "differs by at most the factor",
        "expected calibration error 0.079", "-0.012 (95 %: -0.100 to +0.050)", "| temperature | 1.37 |",
        "prove that ε is above 2.66 (95 %); 8 was promised", "| noise-size | 0.996 of the planned size |",
        "12,345 numbers", "largest difference is 3.1e-06", "above 4.25", "e" * 64, "d" * 64,
        study_of(figures=1.0).sha256(),
        "1 of 2", "round 2: north, the site's budget", "| training.momentum | 0.0 |", "1.2 MB", "of x = logit / 1.37",
        "simulated run 20261129-025118-ef82ad of the same study", "not a medical device", "Out of scope",
    ):  # fmt: skip
        assert part.replace("_", r"\_") in text, part
    assert "UNSAFE" not in text


def front_matter(text: str) -> dict[str, Any]:
    """Read the metadata: each line is `key: JSON`, which is YAML."""
    _, head, _ = text.split("---\n", 2)
    return {key: json.loads(value) for key, value in (line.split(": ", 1) for line in head.splitlines())}


def test_the_metadata_are_those_of_hugging_face() -> None:
    found = front_matter(markdown(study_of(figures=1.0)))
    assert found["license"] == "cc-by-4.0" and found["pipeline_tag"] == "image-classification"
    assert {"medical", "federated-learning", "differential-privacy", "seed-cnn"} <= set(found["tags"])
    (model,) = found["model-index"]
    (result,) = model["results"]
    assert set(result) == {"task", "dataset", "metrics"} and set(result["dataset"]) == {"type", "name"}
    assert result["metrics"][0]["type"] == "roc_auc" and result["metrics"][0]["value"] == 0.812
    without = front_matter(markdown(study_of(), federated_test=None, calibration=None, license="other"))
    assert "model-index" not in without and without["metrics"] == [] and without["license_name"] == "not-stated"


def test_an_unsafe_model_says_so_before_anything_else() -> None:
    study, reasons = study_of(), ["there is no attack report"]
    record = record_of(study, unsafe=True, unsafe_reasons=reasons, attack=None)
    card = card_of_record(record, study)
    assert card.warnings == (UNSAFE, "Reason: there is no attack report.")
    text, page = to_markdown(card), to_html(card)
    assert text.index("UNSAFE") < text.index("## Model details") and page.index("UNSAFE") < page.index("Model details")
    assert "No attack on this model was reported" in text and card.to_json()["warnings"] == list(card.warnings)


def test_a_model_without_privacy_promises_none() -> None:
    study = study_of(epsilon=math.inf)
    privacy = {"unit": "patient", "relation": "add or remove one", "epsilon_promised": "inf", "delta": 1e-5}
    text = markdown(study, privacy=privacy)
    assert "No privacy: this model was trained without noise" in text and "ε ∞" in text


def test_a_generative_model_says_that_only_safetensors_leave() -> None:
    content = study_of().model_dump()
    content["study"]["task"] = "synthesis"
    content["model"].update(name="phantom-sampler", init="phantom", trainable="head")
    content["data"].update(image_size=64)
    study = parse_study(content)
    text = markdown(study, onnx=None, familiarity=None, federated_test=None, calibration=None)
    assert "leaves as model.safetensors only" in text and "There is no ONNX file" in text


class Tags(HTMLParser):
    """Collects the elements of a page and what a browser would load."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found.append(tag)
        self.loads += [f"{name}={value}" for name, value in attributes if name in ("src", "href", "srcset", "data")]


@pytest.mark.parametrize("text", [HOSTILE, '"><img src=x onerror=alert(1)>', "{{ 7 * 7 }}", "{% raw %}"])
def test_texts_of_a_record_are_never_markup(text: str) -> None:
    study = study_of()
    record = record_of(
        study, run=text, sites={text: {"rounds_counted": 2}}, unsafe=True, unsafe_reasons=[text], software={text: text}
    )
    card = card_of_record(record, study)
    page, tags = to_html(card), Tags()
    tags.feed(page)
    assert not {"script", "img", "iframe", "link", "object", "a"} & set(tags.found) and tags.loads == []
    assert "49" not in re.sub(r"[0-9a-f]{12,}", "", page.partition("<body>")[2].partition("Training procedure")[0])
    body = to_markdown(card).split("---\n", 2)[2]
    assert "<script" not in body and "<img" not in body


def test_markdown_tables_keep_their_columns_whatever_a_cell_contains() -> None:
    study = study_of()
    text = markdown(study, sites={"a|b": {"rounds_counted": 2}, "`c`": {"rounds_counted": 2}})
    assert r"| a\|b | 2 of 2 |" in text and r"| \`c\` | 2 of 2 |" in text


def test_the_page_loads_nothing() -> None:
    study = study_of()
    page = to_html(card_of_record(record_of(study), study))
    assert "default-src 'none'" in page and "http://" not in page and "https://" not in page and "url(" not in page


def test_a_card_does_not_depend_on_the_order_of_the_record() -> None:
    study = study_of(figures=1.0)
    record = record_of(study)
    turned = dict(reversed(list(copy.deepcopy(record).items())))
    assert to_markdown(card_of_record(record, study)) == to_markdown(card_of_record(turned, study))
