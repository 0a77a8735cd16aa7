"""Pulling from a real Orthanc: by each way, with limits of answers, and through kills, freezes and wrong settings."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from builders.archive import SMALL_STUDY, slices, small_ct
from pydicom import dcmread
from pydicom.uid import JPEGLSLossless, RLELossless
from whole.pacs import (
    DICOM_PORT,
    HTTP_PORT,
    PASSWORD,
    SITE_PORT,
    USER,
    certificates,
    https_before,
    missing,
    namespace,
    orthanc_in,
)

from wardround_client.pacs.manifest import manifest_path

pytestmark = pytest.mark.slow
WAYS = ("c-move", "c-get", "web")
STUDIES, EACH = 10, 50
LIMIT_S = 120

SITE = f"""\
name = "north"
[privacy]
epsilon_cap = 8.0
delta_cap = 1e-4
[pacs.archive]
timeout_s = 2
MORE
[pacs.archive.dicom]
address = "127.0.0.1:{DICOM_PORT}"
pacs_ae = "TESTPACS"
listen = "127.0.0.1:{SITE_PORT}"
[pacs.archive.web]
url = "http://127.0.0.1:{HTTP_PORT}/dicom-web"
user = "{USER}"
password_file = "password"
"""


@pytest.fixture(scope="module", autouse=True)
def systems() -> None:
    if why := missing():
        pytest.skip(why)


@pytest.fixture(scope="module")
def originals(tmp_path_factory) -> Path:
    """500 objects of 10 studies on 5 days, in files named by their UIDs."""
    folder = tmp_path_factory.mktemp("originals")
    for study in range(1, STUDIES + 1):
        for number in range(1, EACH + 1):
            content = small_ct(study, number, day=f"202401{1 + study // 2:02d}")
            (folder / f"1.2.3.{study}.1.{number}").write_bytes(content)
    return folder


@pytest.fixture(scope="module")
def filled(originals, tmp_path_factory):
    """A namespace and an Orthanc's store with the originals."""
    store = tmp_path_factory.mktemp("store")
    with namespace() as inside:
        with orthanc_in(inside, store) as pacs:
            pacs.store_all(originals)
        yield inside, store


def write_site(tmp_path: Path, more: str = "") -> Path:
    site = tmp_path / "site"
    site.mkdir(exist_ok=True)
    (site / "site.toml").write_text(SITE.replace("MORE", more))
    (site / "password").write_text(PASSWORD)
    (site / "password").chmod(0o600)
    return site


def words_of(inside, tmp_path: Path, *words: str) -> list[str]:
    base = [*inside, sys.executable, "-m", "wardround_client.cli.main", "pull", "archive"]
    given = [] if "--studies" in words else ["--from", "2024-01-01", "--to", "2024-03-01"]
    return [*base, *given, "--into-folder", str(tmp_path / "out"), "--site", str(tmp_path / "site"), "--json", *words]


def pull(inside, tmp_path: Path, *words: str) -> tuple[int, dict, str]:
    command = words_of(inside, tmp_path, *words)
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S)
    assert "Traceback" not in done.stderr, done.stderr
    assert len(done.stderr.strip().splitlines()) <= 1, done.stderr
    return done.returncode, json.loads(done.stdout) if done.stdout else {}, done.stderr.strip()


def body(content: bytes) -> bytes:
    """What follows the file meta information, which a sender writes anew."""
    with io.BytesIO(content) as file:
        header = dcmread(file, stop_before_pixels=True)
        return content[144 + header.file_meta.FileMetaInformationGroupLength :]


def assert_whole(tmp_path: Path, originals: Path) -> None:
    """Every object is there once, as it was stored, and nothing else."""
    found = {}
    for path in (tmp_path / "out").iterdir():
        content = path.read_bytes()
        found[str(dcmread(io.BytesIO(content), stop_before_pixels=True).SOPInstanceUID)] = content
    assert len(list((tmp_path / "out").iterdir())) == len(found) == STUDIES * EACH
    for uid, content in found.items():
        original = (originals / uid).read_bytes()
        assert body(content) == body(original)
        assert dcmread(io.BytesIO(content)).file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.1"


def wait_for(tmp_path: Path, count: int) -> None:
    """Wait until so many objects are in the folder."""
    ends = time.monotonic() + LIMIT_S
    while not (tmp_path / "out").exists() or len(list((tmp_path / "out").iterdir())) < count:
        assert time.monotonic() < ends
        time.sleep(0.02)


@pytest.mark.parametrize("way", WAYS)
def test_500_objects_come_whole_by_each_way(filled, originals, tmp_path, way):
    inside, store = filled
    write_site(tmp_path)
    with orthanc_in(inside, store) as pacs:
        before = pacs.call("/changes?limit=100000")
        code, found, said = pull(inside, tmp_path, "--way", way)
        assert (code, said, found["came"], found["complete"]) == (0, "", 500, True)
        assert pacs.call("/changes?limit=100000") == before  # nothing was written to the PACS
        code, found, _ = pull(inside, tmp_path, "--way", way)
        assert (code, found["came"], found["before"]) == (0, 0, 500)
    assert_whole(tmp_path, originals)


@pytest.mark.parametrize("way", WAYS)
def test_limits_of_answers_hide_nothing(filled, originals, tmp_path, way):
    """10 studies and 50 objects of each, and a PACS that returns 6 of either (or 7, silently)."""
    inside, store = filled
    write_site(tmp_path)
    with orthanc_in(inside, store, LimitFindResults=6, LimitFindInstances=6):
        code, found, said = pull(inside, tmp_path, "--way", way)
    assert (code, said, found["came"], found["complete"]) == (0, "", 500, True)
    assert_whole(tmp_path, originals)


@pytest.mark.parametrize("way", WAYS)
def test_a_pacs_that_is_killed_is_one_line_and_the_same_command_completes(filled, originals, tmp_path, way):
    inside, store = filled
    write_site(tmp_path, "bandwidth_mbit_s = 1")
    with orthanc_in(inside, store) as pacs:
        command = words_of(inside, tmp_path, "--way", way)
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
            wait_for(tmp_path, 64)
            pacs.process.kill()
            told, said = running.communicate(timeout=LIMIT_S)
    assert running.returncode == 1 and len(said.strip().splitlines()) == 1 and "Traceback" not in said
    partly = json.loads(told)
    assert 64 <= partly["came"] < 500 and not partly["complete"]
    write_site(tmp_path)
    with orthanc_in(inside, store):
        code, found, said = pull(inside, tmp_path, "--way", way)
    assert (code, said, found["before"] + found["came"], found["complete"]) == (0, "", 500, True)
    assert found["before"] >= 64
    assert_whole(tmp_path, originals)


@pytest.mark.parametrize("way", WAYS)
def test_a_pacs_that_freezes_is_one_line_and_the_same_command_completes(filled, originals, tmp_path, way):
    inside, store = filled
    write_site(tmp_path, "bandwidth_mbit_s = 1")
    with orthanc_in(inside, store) as pacs:
        command = words_of(inside, tmp_path, "--way", way)
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
            wait_for(tmp_path, 64)
            pacs.process.send_signal(signal.SIGSTOP)
            frozen = time.monotonic()
            told, said = running.communicate(timeout=LIMIT_S)
        assert time.monotonic() - frozen < 90
        assert running.returncode == 1 and len(said.strip().splitlines()) == 1 and "Traceback" not in said
        assert 64 <= json.loads(told)["came"] < 500
        pacs.process.send_signal(signal.SIGCONT)
        write_site(tmp_path)
        code, found, said = pull(inside, tmp_path, "--way", way)
        assert (code, said, found["before"] + found["came"], found["complete"]) == (0, "", 500, True)
    assert_whole(tmp_path, originals)


@pytest.mark.parametrize("way", WAYS)
def test_a_pull_that_is_killed_is_completed_by_the_same_command(filled, originals, tmp_path, way):
    inside, store = filled
    write_site(tmp_path, "bandwidth_mbit_s = 1")
    with orthanc_in(inside, store):
        for count in (64, 192):
            command = words_of(inside, tmp_path, "--way", way)
            with subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True) as running:
                wait_for(tmp_path, count)
                os.killpg(running.pid, signal.SIGKILL)
        write_site(tmp_path)
        code, found, said = pull(inside, tmp_path, "--way", way)
        assert (code, said, found["complete"]) == (0, "", True)
        assert found["before"] + found["came"] == 500 and found["before"] >= 128
    assert_whole(tmp_path, originals)
    records = [json.loads(line) for line in manifest_path(tmp_path / "out").read_text().splitlines()]
    came = [one["sop"] for one in records if one["what"] == "came"]
    assert len(came) == len(set(came)) == 500


def test_a_study_that_grows_meanwhile_is_whole(originals, tmp_path):
    write_site(tmp_path, "bandwidth_mbit_s = 1")
    halves = tmp_path / "first", tmp_path / "rest"
    for folder in halves:
        folder.mkdir()
    for path in originals.iterdir():
        late = path.name.startswith("1.2.3.1.1.") and int(path.name.rpartition(".")[2]) > 10
        (halves[late] / path.name).write_bytes(path.read_bytes())
    with namespace() as inside, orthanc_in(inside, tmp_path / "store") as pacs:
        pacs.store_all(halves[0])
        command = words_of(inside, tmp_path)
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
            wait_for(tmp_path, 64)
            pacs.store_all(halves[1])
            told, said = running.communicate(timeout=LIMIT_S)
        assert running.returncode == 0, said
        found = json.loads(told)
        if found["objects"] < 500:  # it was listed for the last time before it grew
            code, found, said = pull(inside, tmp_path)
            assert (code, said) == (0, "")
        assert found["complete"]
    assert_whole(tmp_path, originals)


@pytest.mark.parametrize(
    "old, new, way, says",
    [
        ('"TESTPACS"', '"ELSE"', "c-move", "rejects the association: called ae title not recogni"),
        (f":{DICOM_PORT}", ":9", "c-get", "no connection to 127.0.0.1:9"),
        (f":{SITE_PORT}", ":11113", "c-move", "could not send the objects to this site (status 0xC000)"),
        ('"127.0.0.1:11112"', '"127.0.0.1:11112"\nsends_from = ["10.9.9.9"]', "c-move", "not in sends_from"),
        ("/dicom-web", "/none", "web", "(HTTP 404)"),
        (f":{HTTP_PORT}", ":9", "web", "the connection to the web service failed"),
        (f'"{USER}"', '"nobody"', "web", "(HTTP 401)"),
    ],
)
def test_a_wrong_setting_is_one_clear_line(filled, tmp_path, old, new, way, says):
    inside, store = filled
    site = write_site(tmp_path)
    text = (site / "site.toml").read_text()
    assert old in text
    (site / "site.toml").write_text(text.replace(old, new))
    with orthanc_in(inside, store):
        code, found, said = pull(inside, tmp_path, "--way", way)
    assert code == 1 and says in said, said
    assert found.get("came", 0) == 0


def test_the_doctor_checks_each_way(filled, tmp_path):
    inside, store = filled
    site = write_site(tmp_path)

    def lines() -> dict[str, dict]:
        words = [*inside, sys.executable, "-m", "wardround_client.cli.main", "doctor", "--timeout", "2", "--json"]
        done = subprocess.run([*words, "--site", str(site)], capture_output=True, text=True, timeout=LIMIT_S)
        return {check["name"]: check for check in json.loads(done.stdout)["checks"]}

    with orthanc_in(inside, store):
        found = lines()
    assert found["pacs archive"]["state"] == found["pacs archive web"]["state"] == "ok"
    assert "answers an echo and a query" in found["pacs archive"]["found"]
    found = lines()
    assert found["pacs archive"]["state"] == found["pacs archive web"]["state"] == "fault"
    assert "no connection" in found["pacs archive"]["found"]


@pytest.fixture(scope="module")
def keys(tmp_path_factory) -> Path:
    return certificates(tmp_path_factory.mktemp("keys"))


def with_tls(tmp_path: Path, keys: Path) -> Path:
    """The site with its own certificate, and TLS for its DICOM connections in both directions."""
    site = write_site(tmp_path)
    for name in ("ca.pem", "site.pem", "site.key"):
        (site / name).write_bytes((keys / name).read_bytes())
    (site / "site.key").chmod(0o600)
    ours = 'tls = true\nca_file = "ca.pem"\ncertificate_file = "site.pem"\nkey_file = "site.key"\n'
    path = site / "site.toml"
    path.write_text(path.read_text().replace("[pacs.archive.web]", f"{ours}[pacs.archive.web]"))
    return path


def tls_settings(keys: Path) -> dict[str, object]:
    site = {"AET": "WARDROUND", "Host": "127.0.0.1", "Port": SITE_PORT, "UseDicomTls": True}
    return {
        "DicomTlsEnabled": True, "DicomTlsCertificate": f"{keys}/pacs.pem", "DicomTlsPrivateKey": f"{keys}/pacs.key",
        "DicomTlsTrustedCertificates": f"{keys}/ca.pem", "DicomModalities": {"wardround": site},
    }  # fmt: skip


@pytest.mark.parametrize("way", ["c-move", "c-get"])
def test_mutual_tls_carries_dicom_in_both_directions(filled, originals, keys, tmp_path, way):
    inside, store = filled
    with_tls(tmp_path, keys)
    with orthanc_in(inside, store, **tls_settings(keys)):
        code, found, said = pull(inside, tmp_path, "--way", way)
    assert (code, said, found["came"], found["complete"]) == (0, "", 500, True)
    assert_whole(tmp_path, originals)


def test_another_ca_and_a_connection_without_tls_are_one_clear_line(filled, keys, tmp_path):
    inside, store = filled
    path = with_tls(tmp_path, keys)
    other = certificates(tmp_path / "other")
    with orthanc_in(inside, store, **tls_settings(keys)):
        (path.parent / "ca.pem").write_bytes((other / "ca.pem").read_bytes())
        code, _, said = pull(inside, tmp_path)
        assert code == 1 and "TLS on both sides" in said
        path.write_text(path.read_text().replace("tls = true", "tls = false"))
        code, _, said = pull(inside, tmp_path)
        assert code == 1 and "TLS on both sides" in said
    (path.parent / "site.key").chmod(0o644)
    path.write_text(path.read_text().replace("tls = false", "tls = true"))
    code, _, said = pull(inside, tmp_path)
    assert code == 2 and "other users can read it; chmod go=" in said


USER_LINES = f'user = "{USER}"\npassword_file = "password"\n'
SECRETS = {
    "basic": (18443, USER_LINES),
    "bearer": (18444, 'token_file = "token"\n'),
    "certificate": (18445, 'certificate_file = "site.pem"\nkey_file = "site.key"\n'),
}


def web_over(path: Path, port: int, lines: str) -> None:
    text = path.read_text()
    web = f'[pacs.archive.web]\nurl = "https://127.0.0.1:{port}/dicom-web"\nca_file = "ca.pem"\n'
    path.write_text(text[: text.index("[pacs.archive.web]")] + web + lines)


@pytest.mark.parametrize("secret", SECRETS)
def test_https_with_a_password_a_token_or_a_certificate(filled, originals, keys, tmp_path, secret):
    inside, store = filled
    path = with_tls(tmp_path, keys)
    (path.parent / "token").write_text("a-secret-token\n")
    (path.parent / "token").chmod(0o600)
    web_over(path, *SECRETS[secret])
    with orthanc_in(inside, store), https_before(inside, tmp_path / "nginx", keys, "a-secret-token"):
        code, found, said = pull(inside, tmp_path, "--way", "web")
    assert (code, said, found["came"], found["complete"]) == (0, "", 500, True)
    assert_whole(tmp_path, originals)
    assert "a-secret-token" not in manifest_path(tmp_path / "out").read_text()


def test_wrong_secrets_and_certificates_of_the_web_are_one_clear_line(filled, keys, tmp_path):
    inside, store = filled
    path = with_tls(tmp_path, keys)
    (path.parent / "token").write_text("another")
    (path.parent / "token").chmod(0o600)
    other = certificates(tmp_path / "other")
    with orthanc_in(inside, store), https_before(inside, tmp_path / "nginx", keys, "a-secret-token"):
        web_over(path, *SECRETS["bearer"])
        code, _, said = pull(inside, tmp_path, "--way", "web")
        assert code == 1 and "(HTTP 401)" in said and "another" not in said.replace("another ", "")
        web_over(path, 18445, "")
        code, _, said = pull(inside, tmp_path, "--way", "web")
        assert code == 1 and "HTTP status 400" in said  # how nginx asks for a certificate
        (path.parent / "ca.pem").write_bytes((other / "ca.pem").read_bytes())
        web_over(path, *SECRETS["bearer"])
        code, _, said = pull(inside, tmp_path, "--way", "web")
        assert code == 1 and "TLS failed" in said
        path.write_text(path.read_text().replace("https://127.0.0.1:18444", "http://127.0.0.1:18446"))
        code, _, said = pull(inside, tmp_path, "--way", "web")
        assert code == 1 and "redirects to another address" in said


@pytest.mark.parametrize("way", WAYS)
def test_compressed_objects_come_as_they_are_stored(tmp_path, way):
    """JPEG-LS and RLE, beside an uncompressed object of the same series: nothing is transcoded."""
    write_site(tmp_path)
    given = tmp_path / "given"
    given.mkdir()
    for number, syntax in enumerate((None, JPEGLSLossless, RLELossless), 1):
        dataset = dcmread(io.BytesIO(small_ct(1, number)))
        dataset.Rows = dataset.Columns = 32
        dataset.PixelData = np.arange(1024, dtype="<u2").tobytes()
        if syntax is not None:
            dataset.compress(syntax, generate_instance_uid=False)
        dataset.save_as(given / str(dataset.SOPInstanceUID), enforce_file_format=True)
    with namespace() as inside, orthanc_in(inside, tmp_path / "store") as pacs:
        pacs.store_all(given)
        code, found, said = pull(inside, tmp_path, "--way", way)
    assert (code, said, found["came"], found["complete"]) == (0, "", 3, True)
    for path in (tmp_path / "out").iterdir():
        stored = dcmread(path)
        original = given / str(stored.SOPInstanceUID)
        assert stored.file_meta.TransferSyntaxUID == dcmread(original).file_meta.TransferSyntaxUID
        assert body(path.read_bytes()) == body(original.read_bytes())


@pytest.mark.parametrize("way", ["c-move", "web"])
def test_a_pull_into_the_cohort_that_is_killed_goes_on_and_keeps_no_original(tmp_path, way):
    site = write_site(tmp_path, "bandwidth_mbit_s = 0.5")
    (site / "keys").mkdir(mode=0o700)
    (site / "keys" / "pseudonym.key").write_bytes(bytes(32))
    (tmp_path / "study.toml").write_text(SMALL_STUDY)
    (tmp_path / "labels.csv").write_text("PatientID,label\nCANARY-1,benign\nCANARY-2,malignant\n")
    given = tmp_path / "given"
    given.mkdir()
    for patient in range(1, 13):
        for number, content in enumerate(slices(patient)):
            (given / f"{patient}-{number}").write_bytes(content)
    words = [sys.executable, "-m", "wardround_client.cli.main", "pull", "archive", "--from", "2024-01-01", "--way", way]
    words += ["--into", "cohort", "--study", str(tmp_path / "study.toml"), "--labels", str(tmp_path / "labels.csv")]
    words += ["--site", str(site), "--json"]
    prepared = site / "pulled" / ".prepared" / "scans.jsonl"
    with namespace() as inside, orthanc_in(inside, tmp_path / "store") as pacs:
        pacs.store_all(given)
        with subprocess.Popen([*inside, *words], stdout=subprocess.DEVNULL, start_new_session=True) as running:
            ends = time.monotonic() + LIMIT_S
            while not prepared.exists() or len(prepared.read_bytes().splitlines()) < 9:
                assert time.monotonic() < ends
                time.sleep(0.02)
            os.killpg(running.pid, signal.SIGKILL)
        assert not (site / "cohort" / "cohort.json").exists()
        assert len(list((site / "pulled").glob("*.dcm"))) < 27
        done = subprocess.run([*inside, *words], capture_output=True, text=True, timeout=LIMIT_S)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["quality"]["images"], report["quality"]["patients"]) == (36, 12)
    assert not (site / "pulled").exists() and not list(site.rglob("*.dcm"))
