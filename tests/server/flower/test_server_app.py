"""A phase of a run ends with the daemon that keeps it, however that ends."""

from __future__ import annotations

import subprocess
import sys

PHASE = """
import sys, threading
from wardround_server.flower.server_app import end_with_daemon
end_with_daemon(int(sys.argv[1]))
print("waits", flush=True)
threading.Event().wait(60)
"""


def test_a_phase_whose_daemon_was_killed_ends_at_once() -> None:
    with subprocess.Popen(["sleep", "60"]) as daemon:
        words = [sys.executable, "-c", PHASE, str(daemon.pid)]
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as phase:
            assert phase.stdout is not None and phase.stdout.readline() == "waits\n" and phase.poll() is None
            daemon.kill()
            daemon.wait()
            assert phase.wait(10) == 1
