"""Check an exported model completely: hashes, architecture, the ONNX file against torch, the bundle and the cards.

    python -I -m wardround.handover.verify DIR

The server starts this module as a process of its own, because it never imports torch. The process prints one line of
JSON, a list of `Finding`s, and ends with exit code 0 whatever they are.

The checks prove that the folder is intact and that its parts belong together. They do not prove who wrote it.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from wardround.errors import ModelError, WardroundError
from wardround.handover.bundle import bundle_files
from wardround.handover.export import cards_of
from wardround.handover.package import (
    BUNDLE,
    CARD,
    CARD_HTML,
    CARD_JSON,
    MODEL_FILE,
    ONNX_FILE,
    RECORD_FILE,
    Package,
    file_entry,
    model_files,
    open_package,
    read_model,
)
from wardround.sources.registry import of_study
from wardround.storage.text_file import path_text


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The result of one check. `detail` is what was checked, or one line with the fault."""

    name: str
    passed: bool
    detail: str


def verify(folder: Path) -> list[Finding]:
    """Return one finding for each check. A check after a failed one that it depends on is left out."""
    findings: list[Finding] = []

    def passes(name: str, check: Callable[[], str]) -> bool:
        try:
            findings.append(Finding(name=name, passed=True, detail=check()))
        except WardroundError as error:
            findings.append(Finding(name=name, passed=False, detail=str(error)))
        return findings[-1].passed

    opened: list[Package] = []

    def record() -> str:
        opened.append(open_package(folder))
        unsafe = "; exported with --force-unsafe" if opened[0].content["unsafe"] else ""
        return f"{RECORD_FILE}, and the hashes of {' and '.join(model_files(opened[0].study))}{unsafe}"

    if not passes("record", record):
        return findings
    package = opened[0]
    passes("files", lambda: _files(package))
    passes("architecture", lambda: _architecture(package))
    if package.has_onnx:
        passes("onnx", lambda: _onnx(package))
    passes("cards", lambda: _cards(package))
    if package.has_bundle:
        passes("bundle", lambda: _bundle(package))
    return findings


def _files(package: Package) -> str:
    """Compare every file of the record, and refuse files that it does not name."""
    named = package.content["files"]
    for name, entry in named.items():
        path = package.folder / name  # the record's validation allows no other folder
        if file_entry(path) != entry:
            raise ModelError(f"{path_text(path)}: damaged or altered: differs from its hash in {RECORD_FILE}")
    known = {
        *named,
        RECORD_FILE,
        CARD,
        CARD_HTML,
        CARD_JSON,
    }  # the cards are made from the record, and so compared with it
    for name in _all_files(package.folder):
        if name not in known:
            raise ModelError(f"{path_text(package.folder / name)}: is not part of the exported model; remove it")
    return f"{len(named)} files have the hashes of {RECORD_FILE}, and there are no others"


def _all_files(folder: Path) -> Iterator[str]:
    for place, _, names in os.walk(folder):
        for name in names:
            yield (Path(place) / name).relative_to(folder).as_posix()


def _architecture(package: Package) -> str:
    from wardround.handover.network import load_network

    numbers = sum(tensor.numel() for tensor in load_network(package).state_dict().values())
    if package.content["numbers"] not in (None, numbers):
        raise ModelError(f"{RECORD_FILE}: numbers is not that of the network")
    return f"{package.content['architecture']}, rebuilt from the study; {MODEL_FILE} fits strictly"


def _onnx(package: Package) -> str:
    from wardround.handover.equality import check_equality
    from wardround.handover.network import load_network
    from wardround.tasks.registry import exported_part

    released, threshold = exported_part(package.study.study.task).exported(load_network(package), package.study)
    if threshold != (package.content["familiarity"] or {}).get("threshold"):
        raise ModelError(f"{RECORD_FILE}: familiarity.threshold is that of another version; export the model again")
    compared = check_equality(released, read_model(package, ONNX_FILE), package.study)
    rows = f"{compared.rows} {of_study(package.study).ROW}s"
    return f"equals torch on {rows}; largest difference {compared.largest:.1e} of the largest output"


def _cards(package: Package) -> str:
    made = _made(lambda: cards_of(package.content, package.study))
    for name, content in made.items():
        _compare(package.folder / name, content)
    return f"{', '.join(made)} are those of {RECORD_FILE}"


def _bundle(package: Package) -> str:
    made = _made(lambda: bundle_files(package.content, package.study, read_model(package, ONNX_FILE)))
    for name, content in made.items():
        _compare(package.folder / BUNDLE / name, content)
    return f"{BUNDLE}/ runs {ONNX_FILE} and has no other code than that of this version"


def _made(make: Callable[[], dict[str, bytes]]) -> dict[str, bytes]:
    try:
        return make()
    except (KeyError, TypeError, ValueError, AttributeError, IndexError):  # figures of the record of any form
        raise ModelError(f"{RECORD_FILE}: its figures are incomplete; export the model again") from None


def _compare(path: Path, content: bytes) -> None:
    try:
        with open(path, "rb") as file:
            found = file.read(len(content) + 1)
    except OSError:
        raise ModelError(f"{path_text(path)}: is missing; give the complete folder that `model export` wrote") from None
    if found != content:
        raise ModelError(f"{path_text(path)}: differs from what {RECORD_FILE} gives; altered, or of another version")


def main(arguments: Sequence[str]) -> None:
    """Print the findings as one line of JSON."""
    (folder,) = arguments
    print(json.dumps([asdict(finding) for finding in verify(Path(folder))]))


if __name__ == "__main__":
    main(sys.argv[1:])
