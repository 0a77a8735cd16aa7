"""A manifest that was damaged or edited is one clear line, and never names a file of its own choice."""

from __future__ import annotations

import json

import pytest

from wardround.errors import UsageError
from wardround_client.pacs.manifest import CAME, file_name, manifest_path, open_manifest

WHOLE = {"what": CAME, "sop": "1.2", "series": "1.1", "file": file_name("1.2")}


@pytest.mark.parametrize(
    "change",
    [{}, {"sop": None}, {"sop": ["1.2"]}, {"sop": "\ud800"}, {"series": []}, {"file": []}, {"file": "a.dcm"}],
    ids=str,
)
def test_a_line_of_an_object_is_whole_or_refused(tmp_path, change):
    folder = tmp_path / "out"
    folder.mkdir()
    for name in ("a.dcm", file_name("1.2")):
        (folder / name).write_bytes(b"x")
    manifest_path(folder).write_text(json.dumps({**WHOLE, **change}) + "\n")
    if not change:
        with open_manifest(folder) as manifest:
            assert "1.2" in manifest and len(manifest) == 1
        return
    with pytest.raises(UsageError, match="pull into a new folder") as caught, open_manifest(folder):
        pass
    assert "\n" not in str(caught.value)
