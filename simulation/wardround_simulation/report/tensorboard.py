"""Write a run's curves for TensorBoard.

They are the AUC or the task's other figures by round, and each site's seconds and bytes. A run on phantoms also adds
the images that its model generated.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wardround.tasks.assessment import CurvePoint

SITE_FIGURES = ("seconds", "bytes_up", "bytes_down")


def write_tensorboard(
    folder: Path,
    curve: Sequence[CurvePoint],
    metrics: Sequence[Mapping[str, Any]],
    series: Mapping[str, Mapping[int, float]] | None = None,
    samples: Mapping[int, np.ndarray] | None = None,
) -> Path:
    """Write `folder`/tensorboard/, replacing an earlier log of this run, and return its path.

    Args:
        curve: AUC by round, of all sites and of each.
        metrics: The lines of metrics.jsonl. A missing reply is a 0 in present/SITE, so that gaps are visible.
        series: Name -> round -> number.
        samples: Round -> sheet of images, uint8 (H, W).
    """
    from torch.utils.tensorboard import SummaryWriter

    log = folder / "tensorboard"
    log.mkdir(parents=True, exist_ok=True)
    for earlier in log.glob("events.out.tfevents.*"):
        earlier.unlink()
    with tempfile.TemporaryDirectory() as place:  # TensorBoard takes no path that is not text
        with SummaryWriter(place) as writer:
            for point in sorted(curve, key=lambda point: (point.round, point.site or "")):
                figures = {"auc": point.auc, "auc_low": point.auc_low, "auc_high": point.auc_high}
                for name, value in figures.items():
                    if value is not None:
                        writer.add_scalar(f"{name}/{point.site or 'all sites'}", value, point.round)
            for row in sorted(metrics, key=lambda row: (int(row["round"]), str(row["site"]))):
                site, at = str(row["site"]), int(row["round"])
                writer.add_scalar(f"present/{site}", 0.0 if row.get("code") else 1.0, at)
                for name in SITE_FIGURES:
                    if row.get(name) is not None and not row.get("code"):
                        writer.add_scalar(f"{name}/{site}", float(row[name]), at)
            for name, by_round in (series or {}).items():
                for at, value in sorted(by_round.items()):
                    writer.add_scalar(name, value, at)
            for at, sheet_HW in sorted((samples or {}).items()):
                writer.add_image("samples", sheet_HW, at, dataformats="HW")
        for written in Path(place).iterdir():
            shutil.copyfile(written, log / written.name)
    return log
