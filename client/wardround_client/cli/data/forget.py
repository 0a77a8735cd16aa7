"""`wardround-site forget`: remove the images of a patient who objects."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from wardround.cli.options import JsonOption, SiteOption, YesOption
from wardround.errors import UsageError
from wardround.text import count_text
from wardround_client.site.paths import CONFIG_FILE


def forget(
    patient: Annotated[
        str,
        typer.Argument(
            metavar="PATIENT",
            help="PatientID, or patient_id of records, as in the data; - prompts for it, which keeps it out of the "
            "shell history.",
        ),
    ],
    issuer: Annotated[
        str,
        typer.Option(
            "--issuer", metavar="I", help="IssuerOfPatientID; only for cohorts that an earlier version prepared."
        ),
    ] = "",
    yes: YesOption = False,
    site: SiteOption = Path("."),
    as_json: JsonOption = False,
) -> None:
    """Record a patient's objection: exclude the patient from now on and remove their prepared images or records here.

    What was learned before stays accounted for in the ledger. Source files are not changed.
    """
    from wardround_client.site.config import load_site_config
    from wardround_client.site.enrolment import pseudonym_key
    from wardround_client.sources.forget import forget as forget_patient

    load_site_config(site / CONFIG_FILE)
    key = pseudonym_key(site)
    if patient == "-":
        patient = (
            typer.prompt("PatientID", hide_input=True) if sys.stdin.isatty() else sys.stdin.readline().rstrip("\n")
        )
    if not yes:
        if as_json or not sys.stdin.isatty():
            raise UsageError("no command can undo this; run it again with --yes to confirm")
        if not typer.confirm(
            "Keep this patient out of everything from now on, and remove their prepared images or records?"
        ):
            raise UsageError("nothing was changed")
    done = forget_patient(site, key, patient, issuer, record=lambda count: _record_objections(site, count))
    if as_json:
        print(json.dumps(asdict(done)))
        return
    recorded = "Already recorded" if done.already else "Objection recorded"
    print(f"{recorded}; prepared images or records removed: {done.rows_removed}")
    if not done.rows_removed and not done.already:
        print("This patient had no prepared image or record; if that is unexpected, compare the ID with the data.")
    if done.similar:
        print(
            f"Not sure: {count_text(done.similar, 'prepared patient')} with an ID that differs only in case, spaces, "
            "hyphens or leading zeros. If it is the same person, run forget with that spelling too."
        )
    if done.earlier_identity:
        print(
            "Not sure: this cohort was prepared by an earlier version, in which one patient's images under different "
            "issuers were different patients. Run ingest again; it leaves out all images of this PatientID."
        )


def _record_objections(site: Path, count: int) -> None:
    """Record in the audit log how many patients object, unless the number is there already."""
    from wardround.records.audit_events import PatientForgotten
    from wardround.records.audit_log import AUDIT_FILE, AuditLog, verified

    path = site / AUDIT_FILE
    entries = verified(path).entries if path.exists() else ()
    known = next((entry["count"] for entry in reversed(entries) if entry["event"] == "forgot"), 0)
    if count > known:
        AuditLog(path).append(PatientForgotten(count=count))
