"""What a report shows of synthetic images: sheets over the rounds, figures beside the public start, the curve."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import torch

from wardround import text
from wardround.networks.build import initial_network
from wardround.networks.phantom_encoder import CROP_PX
from wardround.networks.preprocessing import CentreCrop
from wardround.study.load import Study
from wardround.tasks.assessment import Panel, ReportSection, ReportTable, RoundPlot, Sheet
from wardround.tasks.synthesis.dcgan import to_grey
from wardround.tasks.synthesis.gan import SharedGAN
from wardround.tasks.synthesis.measures.figures import RealImages

COLUMNS = 8
REAL_SHOWN = 24
SPACE = "the phantom encoder's features"


def shown(
    study: Study,
    figures: Mapping[str, Any],
    notes: Mapping[int, Mapping[str, float]],
    sheets: Mapping[int, np.ndarray],
    real_NCHW: np.ndarray | None,
) -> dict[str, Any]:
    """What an `Assessed` shows: `asked`, `headline`, `sections`, `series`, `samples`.

    `real_NCHW`: held-out images to show beside the synthetic ones, or None to show none.
    """
    section = ReportSection(
        anchor="synthesis",
        title="Synthetic images",
        lines=_lines(study, figures),
        tables=[_table(figures)],
        plots=[_curve(notes, figures)],
        sheets=[*_sheets(sheets, study), *(() if real_NCHW is None else [_real_sheet(real_NCHW)])],
    )
    series: dict[str, dict[int, float]] = {}
    for round_, note in notes.items():
        for name, value in note.items():
            series.setdefault(f"synthesis/{name}", {})[round_] = value
    return {
        "asked": _asked(study),
        "headline": _headline(figures),
        "sections": [section],
        "series": series,
        "samples": {round_: _one_picture(images) for round_, images in sheets.items()},
    }


def _asked(study: Study) -> str:
    told = " or ".join(f"“{label}”" for label in study.data.labels)
    ways = {
        "phantom-sampler": "It chooses among public phantoms those that look like the patients, and labels them.",
        "dcgan": "It is a generator trained against a discriminator, which alone sees patients.",
    }
    return (
        f"Asked: to make new images, of no patient, that look like those labelled {told}. {ways[study.model.name]} "
        f"{text.count_text(study.study.rounds, 'round')}. No image leaves its hospital."
    )


def _headline(figures: Mapping[str, Any]) -> list[str]:
    model, start, real = figures["model"], figures["start"], figures["real"]
    lines = []
    if model["auc"] is not None:
        lines.append(
            f"A classifier that has seen only these synthetic images reaches an AUC of {_interval(model['auc'], 3)} on "
            f"held-out real patients; one that has seen only the public start's reaches {_interval(start['auc'], 3)}"
            + (f", one trained on the patients themselves {_interval(real['auc'], 3)}." if real["auc"] else ".")
        )
    lines.append(
        f"Their Fréchet distance from held-out patients in {SPACE} is {_interval(model['frechet'], 2)}; the public "
        f"start's is {_interval(start['frechet'], 2)}, and that of other real patients {_interval(real['frechet'], 2)}."
    )
    check = model["copies"]
    lines.append(
        f"Check for copies: {check['share']:.1%} of the images lie nearest to a patient who trained, where chance "
        f"gives {check['by_chance']:.1%} (p = {check['p_value']:.2g}): "
        + ("no sign of copies." if check["passed"] else "MORE THAN CHANCE EXPLAINS.")
    )
    return lines


def _lines(study: Study, figures: Mapping[str, Any]) -> list[str]:
    lines = [
        f"The Fréchet distance is measured in {SPACE}, the fewer images the larger, so that only figures of equally "
        "many images compare. Neither it nor the AUC sees everything that an eye sees: look at the images.",
    ]
    if study.model.name == "dcgan":
        lines.append(
            "With fewer than some 3,000 patients a generator trained under differential privacy makes blurry images; "
            "what is sharp in them comes from its public start."
        )
    return lines


def _table(figures: Mapping[str, Any]) -> ReportTable:
    rows = []
    for name, title in (
        ("model", "this model"),
        ("start", "public start, ε = 0"),
        ("real", "real patients who trained"),
    ):
        one = figures[name]
        told = one.get("told_apart")
        check = one.get("copies")
        rows.append([
            title,
            f"{one['images']:,}",
            _interval(one["auc"], 3) if one["auc"] else "–",
            _interval(one["frechet"], 2),
            _interval(told, 3) if told else "–",
            f"{check['share']:.3f} / {check['by_chance']:.3f}, p = {check['p_value']:.2g}" if check else "–",
        ])  # fmt: skip
    return ReportTable(
        caption="Held against the held-out patients; 95 % intervals. “Told apart”: AUC of a linear classifier that "
        "tells the images from real ones, .5 is perfect. “Nearest to who trained”: found, by chance, and the "
        "probability of as much by chance.",
        columns=[
            "images of",
            "images",
            "AUC of a classifier",
            "Fréchet distance",
            "told apart",
            "nearest to who trained",
        ],
        rows=rows,
    )


def _interval(figure: Mapping[str, float], digits: int) -> str:
    return f"{figure['value']:.{digits}f} ({figure['low']:.{digits}f}–{figure['high']:.{digits}f})"


def _curve(notes: Mapping[int, Mapping[str, float]], figures: Mapping[str, Any]) -> RoundPlot:
    rounds = sorted(notes)
    distance = Panel(
        label="Fréchet distance",
        values=[notes[at]["frechet"] for at in rounds],
        reference=figures["real"]["frechet"]["value"],
        limits=(0.0, None),
    )
    return RoundPlot(
        name="frechet",
        title="Fidelity round by round",
        description="Fréchet distance by round",
        caption="Fréchet distance of the model's images from held-out patients after each round. The dashed line: "
        "other real patients, more of them, so that it is a floor and not a goal.",
        rounds=rounds,
        panels=[distance],
    )


def _sheets(sheets: Mapping[int, np.ndarray], study: Study) -> list[Sheet]:
    order = ", then ".join(f"“{label}”" for label in study.data.labels)
    return [
        Sheet(
            title="Public start" if round_ == 0 else f"After round {round_}",
            images_NCHW=sheets[round_],
            columns=COLUMNS,
            caption=f"Synthetic images, {order}.",
            tile_px=64,
        )
        for round_ in sorted(sheets)
        if len(sheets[round_])
    ]


def _real_sheet(real_NCHW: np.ndarray) -> Sheet:
    return Sheet(
        title="Held-out images",
        images_NCHW=real_NCHW,
        columns=COLUMNS,
        caption="What the synthetic images are held against, in the contrast in which the model sees them.",
        tile_px=64,
    )


def held_out_shown(study: Study, real: RealImages) -> np.ndarray:
    """Held-out images for the report, as many of each label, as the model sees them."""
    rows = [
        np.flatnonzero(real.held_out_N & (real.labels_N == label))[: REAL_SHOWN // len(study.data.labels)]
        for label in range(len(study.data.labels))
    ]
    return as_made(study, real.images_NCHW[np.concatenate(rows)])


def as_made(study: Study, images_NCHW: np.ndarray) -> np.ndarray:
    """Real images as the model sees them: the middle 64 x 64 pixels that a phantom shows, or a GAN's one contrast."""
    images = torch.from_numpy(np.ascontiguousarray(images_NCHW))
    if study.model.name != "dcgan":
        return CentreCrop(CROP_PX)(images).numpy()
    return to_grey(cast(SharedGAN, initial_network(study)).prepare(images)).numpy()


def _one_picture(images_NCHW: np.ndarray) -> np.ndarray:
    """Images side by side, `COLUMNS` to a row, uint8 (H, W): the middle channel of each."""
    count, channels, height, width = images_NCHW.shape
    rows = -(-count // COLUMNS)
    sheet = np.zeros((rows * COLUMNS, height, width), dtype=np.uint8)
    sheet[:count] = images_NCHW[:, channels // 2]
    return sheet.reshape(rows, COLUMNS, height, width).swapaxes(1, 2).reshape(rows * height, COLUMNS * width)
