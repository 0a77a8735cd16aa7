"""Presentation of the attacks: the section "Attacks" of a run's report, and the table in the terminal."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from wardround.study.load import Study
from wardround_simulation.attack.canaries import Canaries
from wardround_simulation.attack.inversion import SIDE_PX, Inversion
from wardround_simulation.attack.membership import Attack, Membership
from wardround_simulation.attack.result import AttackResult
from wardround_simulation.report.page import render
from wardround_simulation.run.paths import REPORT_PAGE

BEGIN, END = "<!-- attacks: begin -->", "<!-- attacks: end -->"
TILE_PX = 150
COLUMNS = (
    ("true image", "the image"),
    ("raw", "from the raw gradient"),
    ("clipped", "from the clipped one"),
    ("private", "from what is sent"),
    ("mean image", "mean of other images"),
)


def attack_table(result: AttackResult) -> Table:
    """Return a table with one line per check: name, verdict, measured value and limit."""
    table = Table(
        caption=Text(f"Verdict: {result.verdict}. {_verdict_words(result)}"),
        caption_justify="left", pad_edge=False, box=None,
    )  # fmt: skip
    for name in ("check", "verdict", "measured", "limit"):
        table.add_column(name, overflow="fold")
    for finding in result.findings:
        style = {"FAIL": "bold red", "pass": "green"}.get(finding.verdict, "dim")
        verdict = Text(finding.verdict.replace("does not apply", "–"), style)
        table.add_row(finding.name, verdict, Text(finding.measured), Text(finding.limit))
    return table


def put_section(folder: Path, study: Study, result: AttackResult, show_images: bool) -> Path:
    """Write the section into `folder`/report.html atomically, and return the page's path.

    The section replaces the one between its marks; if the page has no marks yet, it is inserted before `</main>`.
    """
    path = folder / REPORT_PAGE
    page = path.read_text(encoding="utf-8") if path.is_file() else f"<main>{BEGIN}{END}</main>"
    section = f"{BEGIN}\n{render('attacks.html.j2', section_content(study, result, show_images))}\n{END}"
    if BEGIN in page and END in page:
        head, rest = page.split(BEGIN, 1)
        page = head + section + rest.split(END, 1)[1]
    else:
        page = page.replace("</main>", f"{section}\n</main>", 1)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(page, encoding="utf-8")
    draft.replace(path)
    return path


def section_content(study: Study, result: AttackResult, show_images: bool) -> dict[str, Any]:
    """Return the template's content, in sentences that a data-protection officer can understand."""
    return {
        "verdict": result.verdict,
        "verdict_words": _verdict_words(result),
        "checks": result.findings,
        "canaries": canary_words(result.canaries) if result.canaries else [],
        "membership": membership_words(result.membership) if result.membership else [],
        "membership_rows": _membership_rows(result.membership) if result.membership else [],
        "inversion": inversion_words(result.inversion, study, show_images) if result.inversion else [],
        "columns": [title for _, title in COLUMNS],
        "inversion_rows": _picture_rows(result.inversion, show_images) if result.inversion else [],
        "seconds": result.seconds,
    }


def _verdict_words(result: AttackResult) -> str:
    failed = [finding.name for finding in result.findings if finding.failed]
    if failed:
        return f"Failed: {', '.join(failed)}. Do not rely on the promised ε before this is explained."
    if not result.promised:
        return "The study promises nothing (ε = ∞), and the attacks below show what that means."
    tried = sum(finding.verdict == "pass" for finding in result.findings)
    return f"{tried} checks and attacks were made; none found more than the promise allows."


def canary_words(found: Canaries) -> list[str]:
    low, high = found.honest_low, found.honest_high
    return [
        f"{found.canaries} invented patients were made as conspicuous as a patient can be. A coin decided which of "
        f"them took part, and the study was trained on them {len(found.audits)} times with the real sampling, clipping "
        f"and noise. From the messages the auditor guessed {found.guesses} coins each time and was right "
        f"{min(a.right for a in found.audits)} to {max(a.right for a in found.audits)} times. That proves, with 95 % "
        f"confidence each, that ε is at least {found.epsilon_bound:.2f}; promised is at most {found.promised:g}.",
        "Such a proof is always far below the true ε, so it is also compared with a computed audit of a system that "
        f"keeps its plan exactly: that proves {low:.2f} to {high:.2f} in 99 of 100 cases. The canaries stood out by "
        f"{found.signal:.2f} standard deviations of the noise, expected {found.signal_expected:.2f} ± "
        f"{found.signal_limit:.2f}. With half of the noise it would be {2 * found.signal_expected:.2f}.",
    ]


def membership_words(found: Membership) -> list[str]:
    tested = found.released
    lines = [
        f"An attacker who has the released model and the public start looks at each patient: did the model learn to be "
        f"surer about this one? Tried on all {tested.members} patients of the training and {tested.others} held-out "
        "ones. An AUC of 0.5 is a coin. What no attacker can exceed follows from the noise alone.",
    ]
    if found.contrast is not None:
        lines.append(
            f"To show that the attack can work, it was also made on a network that learned the images of "
            f"{found.contrast.members} of these patients by heart, without any privacy."
        )
    if tested.others < 100:
        lines.append(f"With {tested.others} others, “at 1 % false alarms” means without any false alarm among them.")
    return lines


def _membership_rows(found: Membership) -> list[dict[str, str]]:
    rows = [_attack_row("the released model", found.released)]
    if found.contrast is not None:
        rows.append(_attack_row("without privacy, for comparison", found.contrast))
    limit = f"{found.auc_limit:.3f}", f"{found.true_positive_rate_limit:.1%}"
    return [*rows, {"name": "no attacker can exceed", "auc": limit[0], "auc_ci": "", "found": limit[1], "found_ci": "",
                    "patients": ""}]  # fmt: skip


def _attack_row(name: str, found: Attack) -> dict[str, str]:
    (low, high), (least, most) = found.auc_ci95, found.true_positive_rate_ci95
    return {
        "name": name,
        "auc": f"{found.auc:.3f}",
        "auc_ci": f"{low:.3f}–{high:.3f}",
        "found": f"{found.true_positive_rate:.1%}",
        "found_ci": f"{least:.1%}–{most:.1%}",
        "patients": f"{found.members} and {found.others}",
    }


def inversion_words(found: Inversion, study: Study, show_images: bool) -> list[str]:
    noise = "the study’s noise" if found.finding.verdict != "does not apply" else "the study’s noise (none at ε = ∞)"
    lines = [
        "“Only weights leave” is no protection by itself: the first step on one patient’s image gives the image away. "
        f"Here {len(found.psnr['raw'])} training images were rebuilt from the gradient as it is, from the clipped one, "
        f"and from the clipped one with {noise}. The attacker is given every advantage: the patient is alone in the "
        "step, with one image. Above 30 dB an image is plainly there; below the mean of other patients’ images, "
        "nothing of this patient is.",
    ]
    if not found.own_network:
        lines.append(
            f"The network of this demonstration is a small convolutional one on the middle {SIDE_PX} pixels, with the "
            "clipping and noise of the study."
            + (
                f" The study itself sends the gradient of a linear layer over {_features(study)}: without noise the "
                f"patient’s values follow from it exactly (error {found.feature_error[0]:.0e}), with the noise they "
                f"are off by {found.feature_error[1]:.1f} times their size."
                if found.feature_error is not None
                else ""
            )
        )
    if not show_images:
        lines.append("The images are not shown, for they may be of patients; --show-images would show them.")
    return lines


def _features(study: Study) -> str:
    return "public features" if study.model.init != "random" else "fixed features"


def _picture_rows(found: Inversion, show_images: bool) -> list[list[dict[str, str]]]:
    from wardround_simulation.report.style import montage_png

    rows = []
    for patient in range(len(found.psnr["raw"])):
        row = []
        for kind, title in COLUMNS:
            decibel = "" if kind == "true image" else f"{found.psnr[kind][patient]:.1f} dB"
            png = montage_png(found.images[kind][patient : patient + 1], 1, TILE_PX) if show_images else ""
            row.append({"title": title, "png": png, "psnr": decibel})
        rows.append(row)
    return rows
