"""Checks that run before heavy imports and before anything is written, and the claim on the output folder.

A wrong path or table is reported within a second and leaves no files behind. After the checks one process at a time
claims the output folder.

    survey -> claimed(out) -> ingest, training, report

Nothing here imports torch, Flower or Ray.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wardround.errors import DataError, StudyError, UsageError, WardroundError
from wardround.storage.atomic import partial_path, write_file
from wardround.storage.disk_errors import cause, require_writable, unwritable
from wardround.storage.locks import try_locked
from wardround.storage.text_file import path_key
from wardround.study.load import Study
from wardround_client.site.paths import CONFIG_FILE
from wardround_client.sources.registry import FoundSite, source_of
from wardround_server.runs.paths import CHECKPOINTS, RESULT_FILE, STUDY_FILE
from wardround_simulation.run.paths import CLAIM_FILE, COMPARISON_LOG, OUT_LOCK, SITES

LEFT_BY_A_FULL_DISK = (OUT_LOCK, partial_path(Path(CLAIM_FILE)).name)
RAY_ANSWERS_WITHIN_S = 3.0


@dataclass(frozen=True, kw_only=True)
class Material:
    """The sources of a run's data: the folders as given on the command line, and the sites found in them."""

    data: Path
    train: tuple[FoundSite, ...]
    test_data: Path | None = None
    test: tuple[FoundSite, ...] = ()


def survey(study: Study, data: Path, test_data: Path | None, sites: int | None) -> Material:
    """Find the sites of a run and check them against the study. Reads tables and headers, writes nothing.

    Raises (with one-line messages):
        DataError: If a folder does not exist, a table is wrong, a patient is at two sites or in both sets, or only one
            class occurs.
        StudyError: If the number of sites is not what the study asks for.
    """
    source = source_of(study.data)
    train = tuple(source.discover(data, study.data, sites))
    check_number_of_sites(study, str(data), len(train))
    if test_data is None:
        return Material(data=data, train=train)
    test = tuple(source.discover(test_data, study.data, None))
    if source.shared_patients(train, test):
        raise DataError(
            f"{test_data}: a patient of the test data is also in the training data; use other patients for the test"
        )
    return Material(data=data, train=train, test_data=test_data, test=test)


def check_number_of_sites(study: Study, place: str, sites: int) -> None:
    """Raise `StudyError` if there are more or fewer sites than the study allows."""
    most, least = study.aggregation.nominal_sites, study.aggregation.min_sites or study.aggregation.nominal_sites
    if not least <= sites <= most:
        asked = str(most) if least == most else f"{least} to {most}"
        raise StudyError(
            f"{place}: has {sites} sites, but the study requires {asked}; "
            f"add --set aggregation.nominal_sites={sites} --set aggregation.min_sites={sites}"
        )


def check_ray_address(address: str) -> None:
    """Raise `UsageError` if no gRPC server answers at HOST:PORT within `RAY_ANSWERS_WITHIN_S`.

    Ray itself would retry for minutes.
    """
    host, colon, port = address.rpartition(":")
    if not colon or not host or "/" in host or not port.isdigit() or int(port) > 65535:
        raise UsageError(f"--ray-address {address}: write HOST:PORT, as `ray start` prints it")
    import grpc

    with grpc.insecure_channel(address) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=RAY_ANSWERS_WITHIN_S)
        except grpc.FutureTimeoutError:
            raise UsageError(
                f"--ray-address {address}: no reply from a Ray cluster; check the address and that Ray is running"
            ) from None


def check_out(out: Path, study: Study, data: Path, test_data: Path | None) -> None:
    """Raise `UsageError` if a run of this study on these data may not use `out`. Writes nothing."""
    for option, folder in (("--data", data), ("--test-data", test_data)):
        if folder is not None and out.resolve().is_relative_to(folder.resolve()):
            raise UsageError(
                f"{out}: lies inside {option} {folder}, so the next run would take its files for data; choose an --out "
                "outside"
            )
    there = next(place for place in (out, *out.absolute().parents) if place.exists())
    if not there.is_dir():
        raise UsageError(f"{there}: is a file, not a folder; choose another --out")
    try:
        claim = _read_claim(out)
        if claim is not None and (_is_another(claim, study, data, test_data) and _has_begun(out)):
            name = claim["name"] if claim["study_sha256"] != study.sha256() else None
            what = f"a run of another study ({name})" if name else "a run on another --data or --test-data"
            raise UsageError(f"{out}: contains {what}; choose another --out")
        if claim is None and out.is_dir() and any(entry.name not in LEFT_BY_A_FULL_DISK for entry in out.iterdir()):
            raise UsageError(f"{out}: is not empty and contains no run; choose an empty folder for --out")
    except OSError as error:
        raise UsageError(f"{out}: cannot be read: {cause(error)}") from None
    require_writable(out)


def check_outside_data(target: Path, run: Path) -> None:
    """Raise `UsageError` if `target` lies inside the data of the run in the folder `run`."""
    claim = _read_claim(run) or {}
    for option, name in (("--data", "data"), ("--test-data", "test_data")):
        folder = claim.get(name)
        if folder is not None and target.resolve().is_relative_to(folder):
            raise UsageError(
                f"{target}: lies inside {folder}, the {option} of this run, so the next run would take its files for "
                "data; choose a place outside"
            )


def finished_result(out: Path, study: Study, data: Path, test_data: Path | None) -> dict[str, Any] | None:
    """Return the result in `out` if it is from a finished run of the same study on the same data, else None."""
    try:
        result = json.loads((out / RESULT_FILE).read_text(encoding="utf-8"))
        claim = _read_claim(out)
    except (OSError, ValueError, UsageError):
        return None
    if claim is None or _is_another(claim, study, data, test_data) or not isinstance(result, dict):
        return None
    return result if result.get("study_sha256") == study.sha256() and result.get("status") == "finished" else None


@contextlib.contextmanager
def claimed(out: Path, study: Study, data: Path, test_data: Path | None) -> Iterator[str]:
    """Create the run's folder or continue the run in it, locked for this process, and yield the run's id.

    A claim of another study or other data is replaced as long as its run has not written a checkpoint, a comparison
    or a result.

    Raises:
        UsageError: As `check_out` does, and if another process is working in the folder.
    """
    check_out(out, study, data, test_data)
    with contextlib.ExitStack() as stack:
        try:
            out.mkdir(parents=True, exist_ok=True)
            alone = stack.enter_context(try_locked(out / OUT_LOCK))
        except OSError as error:
            raise unwritable(out, error) from None
        if not alone:
            raise UsageError(f"{out}: another run is using this folder; wait until it ends or choose another --out")
        check_out(out, study, data, test_data)  # another process may have claimed it in the meantime
        claim = _read_claim(out)
        if claim is None or _is_another(claim, study, data, test_data):
            for rules in out.glob(f"{SITES}/*/{CONFIG_FILE}"):
                rules.unlink()  # made for the replaced study, whose run never began
            (out / STUDY_FILE).unlink(missing_ok=True)
            claim = _write_claim(out, study, data, test_data)
        if not (out / STUDY_FILE).exists():
            (out / STUDY_FILE).write_text(study.to_json() + "\n", encoding="utf-8")
        yield str(claim["run_id"])


def check_disk(out: Path, need_bytes: int) -> None:
    """Raise `WardroundError` if the disk of `out` has less free space than the run needs."""
    free = shutil.disk_usage(out).free
    if free < need_bytes:
        raise WardroundError(
            f"{out}: the run needs about {need_bytes / 1e6:.0f} MB on this disk, but only {free / 1e6:.0f} MB are "
            f"free; free some space or choose another --out"
        )


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file atomically and durably. Its mode follows the umask, because a run's results are shared."""
    write_file(path, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode(), mode=None)


def _write_claim(out: Path, study: Study, data: Path, test_data: Path | None) -> dict[str, Any]:
    claim = {
        "schema": 1,
        "run_id": f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}",
        "name": study.study.name,
        "study_sha256": study.sha256(),
        **_places(data, test_data),
    }
    write_json(out / CLAIM_FILE, claim)
    return claim


def _read_claim(out: Path) -> dict[str, Any] | None:
    path = out / CLAIM_FILE
    try:
        claim = json.loads(path.read_text(encoding="utf-8"))
        return {name: claim[name] for name in ("run_id", "name", "study_sha256", "data", "test_data")}
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, KeyError, TypeError):
        raise UsageError(f"{path}: damaged, so the run cannot be identified; choose another --out") from None


def _is_another(claim: dict[str, Any], study: Study, data: Path, test_data: Path | None) -> bool:
    places = _places(data, test_data)
    return claim["study_sha256"] != study.sha256() or any(claim[name] != place for name, place in places.items())


def _places(data: Path, test_data: Path | None) -> dict[str, str | None]:
    return {"data": path_key(data.resolve()), "test_data": path_key(test_data.resolve()) if test_data else None}


def _has_begun(out: Path) -> bool:
    """Return whether the folder holds work that another run would overwrite: a round, a comparison or a result."""
    return any((out / name).exists() for name in (CHECKPOINTS, COMPARISON_LOG, RESULT_FILE))
