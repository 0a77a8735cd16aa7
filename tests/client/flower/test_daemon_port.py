"""`wardround-site start` does not report that it takes part while its port is taken."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import pytest

from wardround.errors import WardroundError
from wardround.operations import ports
from wardround.operations.ports import wait_for_port
from wardround_client.flower import daemon


def test_a_taken_port_is_one_line_and_nothing_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        (tmp_path / "site.toml").write_text(
            'name = "north"\n[privacy]\nepsilon_cap = 1.0\ndelta_cap = 1e-5\n'
            f'[server]\naddress = "a.example:9092"\nca_sha256 = "{"0" * 64}"\nruntime_port = {port}\n',
            encoding="utf-8",
        )
        for check in ("require_key", "pinned_ca"):
            monkeypatch.setattr(daemon, check, lambda *_: None)
        monkeypatch.setattr(daemon, "wait_for_port", lambda *words: wait_for_port(*words, limit_s=0.3))
        told: list[object] = []
        with pytest.raises(WardroundError, match=f"port {port} of 127.0.0.1 is taken .* runtime_port in site.toml"):
            daemon.run_daemon(tmp_path, threading.Event(), told.append)
        assert told == [] and not (tmp_path / "logs").exists()


def test_a_stop_ends_the_wait_for_a_port(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "listen_error", lambda *_: OSError(98, "Address already in use"))
    stopped = threading.Event()
    stopped.set()
    with pytest.raises(WardroundError, match="is taken by another program; stop that program, or choose"):
        wait_for_port("127.0.0.1", 1, "choose another", stopped, limit_s=3600)
