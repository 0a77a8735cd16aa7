"""Predictions and explanations stay at the site: in a network that counts every packet, the commands send none."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from builders.exported import write_exported

from wardround_simulation.phantoms.dicom import write_phantom_hospitals

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for a network namespace"),
]
SITE = ("-m", "wardround_client.cli.main")
LIMIT_S = 300


@pytest.fixture
def network():
    """The words that run a program in a namespace whose default route counts packets, which nobody receives."""
    name = f"wardround-wire-{os.getpid()}"
    inside = ("ip", "netns", "exec", name)
    subprocess.run(["ip", "netns", "add", name], check=True, timeout=60)
    try:
        for words in (
            ("sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1"),  # it announces itself otherwise
            ("ip", "link", "set", "lo", "up"),
            ("ip", "link", "add", "line0", "type", "veth", "peer", "name", "line1"),
            ("ip", "address", "add", "10.99.0.1/24", "dev", "line0"),
            ("ip", "link", "set", "line0", "up"),
            ("ip", "link", "set", "line1", "up"),
            ("ip", "route", "add", "default", "via", "10.99.0.2", "dev", "line0"),
            ("ip", "neighbour", "add", "10.99.0.2", "lladdr", "02:00:00:00:00:02", "dev", "line0"),
        ):
            subprocess.run([*inside, *words], check=True, timeout=60)
        yield inside
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=True, timeout=60)


def sent(inside: tuple[str, ...]) -> dict[str, int]:
    """Packets sent so far, by device."""
    text = subprocess.run([*inside, "cat", "/proc/net/dev"], capture_output=True, text=True, check=True).stdout
    lines = [line.split(":") for line in text.splitlines() if ":" in line]
    return {name.strip(): int(numbers.split()[9]) for name, numbers in lines}


def run(inside: tuple[str, ...], *words: object) -> None:
    command = [*inside, sys.executable, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S)
    assert done.returncode == 0, done.stdout + done.stderr


def test_predict_and_explain_send_no_packet(tmp_path: Path, network) -> None:
    write_phantom_hospitals(tmp_path, 1, 2, seed=5)
    hospital, model = tmp_path / "hospital-1", write_exported(tmp_path / "model")
    points = hospital / "labels.csv"
    before = sent(network)
    run(network, *SITE, "predict", model, hospital, "--out", tmp_path / "predictions")
    explained = 0
    for number, path in enumerate(sorted(hospital.rglob("*.dcm"))):
        words = ("explain", model, path, "--points", points, "--out", tmp_path / f"explanation-{number}")
        done = subprocess.run([*network, sys.executable, *SITE, *map(str, words)], capture_output=True, timeout=LIMIT_S)
        explained += done.returncode == 0
        if explained:
            break
    assert explained and (tmp_path / "predictions" / "predictions.json").exists()
    assert sent(network) == before
    # the same measure sees a single packet
    program = "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('192.0.2.1', 9))"
    run(network, "-c", program)
    assert sent(network)["line0"] == before["line0"] + 1
