"""What a person decides about a run: submit, stop and resume it, each with its entry in the audit log."""

from __future__ import annotations

from pathlib import Path

from wardround.errors import StudyError
from wardround.study.load import Study
from wardround_server.runs.audit import RunRecord
from wardround_server.runs.folder import RunFolder, create_run


def submit_run(server: Path, study: Study, source: str, by: str | None) -> RunFolder:
    """Propose a study to every site, and return its run: a new one, or the one under way of the same study.

    `source` names the study in the message of an error. Raises `StudyError` if it starts from a file of weights.
    """
    if study.model.init not in ("phantom", "random"):
        raise StudyError(
            f"{source}: model.init: a study that starts from a file cannot be proposed over the network; "
            "use phantom or random"
        )
    return create_run(server, study, lambda new: RunRecord(new, study).decided("submitted", by))


def stop_run(run: RunFolder, by: str | None) -> None:
    """Mark a run as stopped; its process notices within seconds. Raises `UsageError` if it is finished."""
    run.stop()
    RunRecord(run, run.study()).decided("stopped", by)  # after the stop: a full disk must not prevent it


def resume_run(run: RunFolder, by: str | None) -> None:
    """Let a stopped run continue from its last checkpoint. Raises `UsageError` if it is not stopped."""
    run.resume(lambda: RunRecord(run, run.study()).decided("resumed", by))
