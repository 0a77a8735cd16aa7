"""The folder in which a released model leaves the project, and its checks before anything in it is used.

    model.safetensors    the weights, with a manifest (`storage/checkpoint.py`)
    model.onnx           the network with its preprocessing: see below; absent for tasks that are not exported to ONNX
    model.json           this model in one document, `ModelRecord`; names the hash of each file above and of the bundle
    model-card.md        the model card for people; model-card.html and model-card.json have the same content
    bundle/              the ONNX file as a MONAI bundle; for images only

The ONNX file of a classification has one input, `images`: uint8 (N, C, H, W), grey values 0..255, H = W =
`data.image_size` of the study, any N. It has two outputs: `logits`, float32 (N, K), with K = 1 for two labels, and
`distance`, float32 (N,), which is above `familiarity.threshold` of model.json for an image unlike those that the
network knows. That of an early warning reads `rows`, float32 (N, hours, variables), NaN for what is missing, and has
one output, `logits`, float32 (N, 1), or (N, hours) for a network with a risk at every hour. The card lists the
variables.

A folder comes from somebody else, so nothing in it is trusted: every size has a limit, every text is validated, and no
name from a file is used as a path. The hashes detect damage and files of different exports. They prove no origin: for
that, compare the hash of model.safetensors with the one in the server's audit log.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal, NoReturn

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from wardround.errors import ModelError, StudyError
from wardround.identity import SHA256
from wardround.printable import escaped, is_printable
from wardround.storage.disk_errors import cause
from wardround.storage.text_file import path_text
from wardround.storage.toml import MOST_OF_A_KEY
from wardround.study.load import Study, parse_study
from wardround.tasks.onnx_form import DISTANCE
from wardround.tasks.registry import commands_of, release_part

SCHEMA = 1
MODEL_FILE, ONNX_FILE, RECORD_FILE = "model.safetensors", "model.onnx", "model.json"
CARD, CARD_HTML, CARD_JSON = "model-card.md", "model-card.html", "model-card.json"
BUNDLE = "bundle"

MOST_RECORD_BYTES = 4 * 2**20  # a hundred times the record of a federation of 100 sites
MOST_MODEL_BYTES = 2**31 - 1  # the limit of protobuf, and so of an ONNX file; DenseNet121 has 28 MB
MOST_FILES, MOST_SITES, MOST_MISSING, MOST_REASONS = 100, 10_000, 100_000, 20
_PIECE_BYTES = 2**20
_NAME = r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,63}(/[A-Za-z0-9_][A-Za-z0-9._-]{0,63}){0,3}$"


def printable(text: str) -> str:
    """Return the text if each character shows as itself; a validator for pydantic."""
    if not is_printable(text):
        raise ValueError("has a character that does not show as itself")
    return text


Line = Annotated[str, Field(max_length=200), AfterValidator(printable)]
Reason = Annotated[str, Field(max_length=1000), AfterValidator(printable)]
Digest = Annotated[str, Field(pattern=SHA256)]
FileName = Annotated[str, Field(pattern=_NAME)]


class _Entry(BaseModel):
    """Part of model.json: frozen and strict. Unknown keys of a later version of this schema are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, allow_inf_nan=False)


class FileEntry(_Entry):
    """SHA-256 and size of one file of the folder."""

    sha256: Digest
    bytes: Annotated[int, Field(ge=0, le=MOST_MODEL_BYTES)]


class Familiarity(_Entry):
    """The largest `distance` of an image that resembles what the network knows."""

    threshold: float


class SiteEntry(_Entry):
    """One site: in how many rounds its reply counted, and for a simulation the ε that its ledger computed."""

    rounds_counted: Annotated[int, Field(ge=0)]
    epsilon: float | Literal["inf"] | None = None


class MissingEntry(_Entry):
    """A reply that did not count, with the code of the reason."""

    round: Annotated[int, Field(ge=0)]
    site: Line
    code: Line


class OnnxEntry(_Entry):
    """How the ONNX file was compared with the network (`equality.py`)."""

    images_compared: Annotated[int, Field(ge=0)]
    largest_difference: Annotated[float, Field(ge=0)]


class ModelRecord(_Entry):
    """The content of model.json. The model card is made from it alone.

    `study` is the canonical form of the study (`Study.canonical`). `unsafe` is True if the release gate was overridden
    with `--force-unsafe`, and `unsafe_reasons` says why the gate was closed. `attack` is the summary of the attack on
    this model, or None if there was none (`release_gate.py`). `simulated_test` has exact figures; only a model of
    generated patients has them.
    """

    schema_: Literal[1] = Field(alias="schema")
    run: Line
    kind: Literal["federation", "simulation"] = "federation"
    task: Line
    study: dict[str, Any]
    study_sha256: Digest
    architecture: Line
    architecture_sha256: Digest
    labels: Annotated[list[Line], Field(min_length=2, max_length=64)]
    numbers: Annotated[int, Field(ge=0)] | None = None
    created: Line
    privacy: dict[str, Any]
    rounds: Annotated[int, Field(ge=0)] | None = None
    sites: Annotated[dict[Line, SiteEntry], Field(max_length=MOST_SITES)] = {}
    missing: Annotated[list[MissingEntry], Field(max_length=MOST_MISSING)] = []
    phantoms: bool = False
    released: Literal["trained", "start"] | None = None
    federated_test: dict[str, Any] | None
    simulated_test: dict[str, Any] | None = None
    calibration: dict[str, Any] | None
    familiarity: Familiarity | None
    onnx: OnnxEntry | None = None
    unsafe: bool
    unsafe_reasons: Annotated[list[Reason], Field(max_length=MOST_REASONS)] = []
    attack: dict[str, Any] | None
    license: Line = "other"
    software: Annotated[dict[Line, Line], Field(max_length=50)] = {}
    files: Annotated[dict[FileName, FileEntry], Field(max_length=MOST_FILES)]


@dataclass(frozen=True, kw_only=True)
class Package:
    """A folder with a released model whose record and hashes were checked.

    `content` is model.json as plain values (`ModelRecord`); `study` is the study in it.
    """

    folder: Path
    study: Study
    content: Mapping[str, Any]

    @property
    def has_onnx(self) -> bool:
        """Whether the model left as an ONNX file too."""
        return ONNX_FILE in self.content["files"]

    @property
    def has_bundle(self) -> bool:
        """Whether the ONNX file left as a MONAI bundle too, and explains pictures."""
        return self.has_onnx and commands_of(self.study.study.task).explain


def open_package(folder: Path) -> Package:
    """Read model.json and check the hashes of the model's files.

    The cards and the bundle are checked by `verify.py`, since no program reads them.

    Raises:
        ModelError: There is no such folder, the record is missing, wrong or of another version, or a file of the model
            is missing or differs from its hash (one line).
    """
    record_path = folder / RECORD_FILE
    if not folder.is_dir():
        raise ModelError(f"{path_text(folder)}: no such folder; give the folder that `model export` wrote")
    with _opened(record_path, MOST_RECORD_BYTES) as file:
        record = _record_of(file.read(), record_path)
    study = study_of(record.study, record_path)
    _check_agreement(record, study, record_path)
    for name in model_files(study):
        _check_file(folder, name, record)
    return Package(folder=folder, study=study, content=record.model_dump(mode="json", by_alias=True))


def read_model(package: Package, name: str) -> bytes:
    """Return the content of model.safetensors or model.onnx, after comparing its hash with the record once more.

    A program that uses these bytes uses what was checked, even if the file is replaced at the same time. Raises
    `ModelError` as `open_package` does.
    """
    if name not in model_files(package.study):
        raise ModelError(f"{path_text(package.folder)}: a model of {package.study.study.task} leaves without {name}")
    path, entry = package.folder / name, package.content["files"][name]
    with _opened(path, MOST_MODEL_BYTES) as file:
        content = file.read()
    if hashlib.sha256(content).hexdigest() != entry["sha256"]:
        _differs(path)
    return content


def model_files(study: Study) -> tuple[str, ...]:
    """Return the names of the files that hold the model of a study."""
    return (MODEL_FILE, ONNX_FILE) if commands_of(study.study.task).onnx else (MODEL_FILE,)


def study_of(canonical: Mapping[str, Any], path: Path) -> Study:
    """Rebuild a study from its canonical form. Raises a `ModelError` that names the file `path`.

    The canonical form gives a model file only by its hash, so `model.init` of such a study names no file that exists.
    """
    sections = {name: section for name, section in canonical.items() if name != "schema"}
    model = sections.get("model")
    if isinstance(model, Mapping) and model.get("init") == "file":
        sections["model"] = {**model, "init": "file.safetensors"}
    try:
        return parse_study(sections, source="study")
    except StudyError as error:
        raise ModelError(f"{path_text(path)}: {error}") from None


def file_entry(path: Path) -> dict[str, Any]:
    """Return the SHA-256 and the size of a file, as in `FileEntry`. Raises `ModelError` if it cannot be read."""
    digest, size = hashlib.sha256(), 0
    with _opened(path, MOST_MODEL_BYTES) as file:
        while piece := file.read(_PIECE_BYTES):
            digest.update(piece)
            size += len(piece)
    return {"sha256": digest.hexdigest(), "bytes": size}


def _record_of(content: bytes, path: Path) -> ModelRecord:
    where = path_text(path)
    try:
        plain = json.loads(content, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):  # not JSON, not UTF-8, a number of thousands of digits, or deep nesting
        raise ModelError(f"{where}: damaged or not a model record; export the model again") from None
    if isinstance(plain, dict) and plain.get("schema") != SCHEMA:
        raise ModelError(f"{where}: not of schema {SCHEMA}; use the version of Wardround that wrote it")
    try:
        return ModelRecord.model_validate(plain)
    except ValidationError as error:
        fault = error.errors()[0]
        place = ".".join(escaped(str(part)[:MOST_OF_A_KEY]) for part in fault["loc"]) or "its content"
        raise ModelError(f"{where}: {place} is missing or wrong; export the model again") from None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number of JSON")


def _check_agreement(record: ModelRecord, study: Study, path: Path) -> None:
    """Raise `ModelError` unless the record repeats what its study says."""
    written = {
        "study_sha256": record.study_sha256,
        "task": record.task,
        "architecture": record.architecture,
        "labels": tuple(record.labels),
        "files": set(model_files(study)) & record.files.keys(),
        "familiarity": record.familiarity is not None,
    }
    right = {
        "study_sha256": study.sha256(),
        "task": study.study.task,
        "architecture": study.model.name,
        "labels": study.data.labels,
        "files": set(model_files(study)),
        "familiarity": has_distance(study),
    }
    for name, value in written.items():
        if value != right[name]:
            raise ModelError(f"{path_text(path)}: {name} does not fit the study in it; export the model again")


def has_distance(study: Study) -> bool:
    """Return whether the ONNX file of a study's model has the output `distance`, for which a record has a threshold."""
    task = study.study.task
    return commands_of(task).onnx and DISTANCE in release_part(task).onnx_form(study).outputs


def _check_file(folder: Path, name: str, record: ModelRecord) -> None:
    if file_entry(folder / name) != record.files[name].model_dump():
        _differs(folder / name)


def _differs(path: Path) -> NoReturn:
    raise ModelError(f"{path_text(path)}: damaged or altered: differs from its hash in {RECORD_FILE}; copy it again")


@contextmanager
def _opened(path: Path, most_bytes: int) -> Iterator[BinaryIO]:
    """Open a regular file of at most `most_bytes` bytes, without waiting for a pipe. Raises a one-line `ModelError`."""
    where = path_text(path)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise ModelError(f"{where}: is missing; give the complete folder that `model export` wrote") from None
    except OSError as error:
        raise ModelError(f"{where}: cannot be read: {cause(error)}") from None
    with open(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise ModelError(f"{where}: not a file; give the folder that `model export` wrote")
        if found.st_size > most_bytes:
            raise ModelError(f"{where}: larger than {most_bytes} bytes, which no exported file is")
        try:
            yield file
        except OSError as error:
            raise ModelError(f"{where}: cannot be read: {cause(error)}") from None
