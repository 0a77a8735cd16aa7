"""Presentation of the attacks: the section "Attacks" of a run's report, and the table in the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from wardround.study.load import Study
from wardround_simulation.attack.canaries import Canaries
from wardround_simulation.attack.inversion import SIDE_PX, Inversion
from wardround_simulation.attack.membership import Attack, Membership
from wardround_simulation.attack.result import AttackResult
from wardround_simulation.report.page import render, write_html
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
    write_html(path, page)
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
        return f"Failed: {', '.join(failed)}. Do not rely on the promised ε until the failure is explained."
    if not result.promised:
        return "The study promises no privacy (ε = ∞); the attacks below show the consequences."
    tried = sum(finding.verdict == "pass" for finding in result.findings)
    return f"{tried} checks and attacks were run; none found more than the promise allows."


def canary_words(found: Canaries) -> list[str]:
    low, high = found.honest_low, found.honest_high
    return [
        f"{found.canaries} invented patients (canaries) were made as conspicuous as a patient can be. Coin tosses "
        f"decided which of them took part, and the study was trained on them {len(found.audits)} times with the real "
        f"sampling, clipping and noise. From the messages the auditor guessed {found.guesses} tosses each time and was "
        f"right {min(a.right for a in found.audits)} to {max(a.right for a in found.audits)} times. This proves, with "
        f"95 % confidence each, that ε is at least {found.epsilon_bound:.2f}; the promise is at most "
        f"{found.promised:g}.",
        "This lower bound is always far below the true ε, so it is also compared with the computed audit of a system "
        f"that follows its plan exactly: its bound is {low:.2f} to {high:.2f} in 99 of 100 cases. The canaries stood "
        f"out by {found.signal:.2f} standard deviations of the noise; {found.signal_expected:.2f} ± "
        f"{found.signal_limit:.2f} is expected. With half of the noise it would be {2 * found.signal_expected:.2f}.",
    ]


def membership_words(found: Membership) -> list[str]:
    tested = found.released
    lines = [
        f"An attacker has the released model and the public start weights, and tests for each patient whether training "
        f"improved the model's prediction. All {tested.members} training patients and {tested.others} held-out "
        "patients were tested. An AUC of 0.5 is guessing. The limit for any attacker follows from the noise alone.",
    ]
    if found.contrast is not None:
        lines.append(
            f"To show that the attack can work, it was also run on a network that memorised the images of "
            f"{found.contrast.members} of these patients, without any privacy."
        )
    if tested.others < 100:
        lines.append(f"With {tested.others} held-out patients, “at 1 % false alarms” means without any false alarm.")
    return lines


def _membership_rows(found: Membership) -> list[dict[str, str]]:
    rows = [_attack_row("the released model", found.released)]
    if found.contrast is not None:
        rows.append(_attack_row("without privacy, for comparison", found.contrast))
    limit = f"{found.auc_limit:.3f}", f"{found.true_positive_rate_limit:.1%}"
    return [*rows, {"name": "limit for any attacker", "auc": limit[0], "auc_ci": "", "found": limit[1], "found_ci": "",
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
        "Sending only weights is not a protection by itself: the first step on one patient’s image reveals the image. "
        f"Here {len(found.psnr['raw'])} training images were rebuilt from the raw gradient, from the clipped one, and "
        f"from the clipped one with {noise}. The attacker has every advantage: the step contains this patient only, "
        "with one image. Above 30 dB the image is clearly visible; a value below that of the mean of other patients’ "
        "images shows nothing specific to this patient.",
    ]
    if not found.own_network:
        lines.append(
            f"This demonstration uses a small convolutional network on the middle {SIDE_PX} pixels, with the clipping "
            "and noise of the study."
            + (
                f" The study itself sends the gradient of a linear layer over {_features(study)}: without noise it "
                f"determines the patient’s values exactly (error {found.feature_error[0]:.0e}), with the noise their "
                f"error is {found.feature_error[1]:.1f} times their size."
                if found.feature_error is not None
                else ""
            )
        )
    if not show_images:
        lines.append("The images are not shown because they may be of patients; use --show-images to show them.")
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
