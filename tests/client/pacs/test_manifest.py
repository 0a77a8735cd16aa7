"""A manifest that was damaged or edited is one clear line, and never names a file of its own choice."""

from __future__ import annotations

import json

import pytest

from wardround.errors import UsageError
from wardround_client.pacs.manifest import CAME, Pulled, file_name, manifest_path, open_manifest, summary_of

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


def test_the_summary_counts_one_and_many_in_plain_english():
    values = {"unmatched_rows": (7,), "remarks": (), "incomplete": False, "stopped": ""}
    names = ("studies", "series", "objects", "came", "before", "missing", "duplicates", "unasked", "damaged")
    one = Pulled(**dict.fromkeys(names, 1), **values)
    assert summary_of(one)[:3] == [
        "1 matching study with 1 matching series and 1 object: 1 received now, 1 already in the folder, 1 missing",
        "Not kept: 1 object received again, 1 object not asked for, 1 object not readable",
        "The PACS has no study for 1 row of the list (row 7)",
    ]
    many = Pulled(**dict.fromkeys(names, 2000), **{**values, "unmatched_rows": (7, 9)})
    assert summary_of(many)[:3] == [
        "2,000 matching studies with 2,000 matching series and 2,000 objects: 2,000 received now, 2,000 already in the "
        "folder, 2,000 missing",
        "Not kept: 2,000 objects received again, 2,000 objects not asked for, 2,000 objects not readable",
        "The PACS has no study for 2 rows of the list (rows 7, 9)",
    ]
