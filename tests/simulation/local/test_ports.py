"""Ports of local federations: two of one user never collide, whenever they choose, and a taken port is skipped."""

import multiprocessing
import socket
import tomllib
from pathlib import Path

import pytest

from wardround.errors import WardroundError
from wardround.processes.supervisor import sole
from wardround_simulation.local.federation import LocalFederation
from wardround_simulation.local.ports import LOOPBACK, LocalPorts

SERVER = 'host = "127.0.0.1"\n[server]\nfleet_port = {fleet}\ncontrol_port = {control}\n'
SITE = '[server]\naddress = "127.0.0.1:{fleet}"\nruntime_port = {runtime}\n'


def free(count: int) -> list[int]:
    """Ports that nobody uses now."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind((LOOPBACK, 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def choose(choice: list[int], folder: Path, said, leave) -> None:
    ports = LocalPorts(choice=choice, folder=folder)
    said.put([ports.next() for _ in range(4)])
    leave.wait(60)


def test_processes_that_choose_at_once_never_choose_the_same_port_and_their_end_gives_all_back(tmp_path) -> None:
    """None of them listens on any: only the claims keep them apart. They are killed, not ended."""
    context, choice = multiprocessing.get_context("fork"), free(12)
    said, leave = context.Queue(), context.Event()
    processes = [context.Process(target=choose, args=(choice, tmp_path, said, leave)) for _ in range(3)]
    for process in processes:
        process.start()
    chosen = [port for _ in processes for port in said.get(timeout=60)]
    assert sorted(chosen) == sorted(choice)
    with pytest.raises(WardroundError, match="no free port"):
        LocalPorts(choice=choice, folder=tmp_path).next()
    for process in processes:
        process.kill()
        process.join()
    assert LocalPorts(choice=choice, folder=tmp_path).next() == choice[0]


def test_a_port_that_another_program_listens_on_is_left_alone(tmp_path) -> None:
    choice = free(3)
    with socket.socket() as other:
        other.bind((LOOPBACK, choice[0]))
        other.listen()
        ports = LocalPorts(choice=choice, folder=tmp_path)
        assert not ports.claim(choice[0]) and [ports.next(), ports.next()] == choice[1:]
    assert ports.claim(choice[0]) and ports.claim(choice[1])
    ports.release()
    assert ports.next() == choice[0]


def test_a_folder_whose_ports_were_taken_meanwhile_gets_others_and_its_sites_know_the_servers(tmp_path) -> None:
    taken, others = free(3), free(4)
    for name, text in (("server/server.toml", SERVER), ("a/site.toml", SITE)):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(text.format(fleet=taken[0], control=taken[1], runtime=taken[2]))
    mine = LocalPorts(choice=others, folder=tmp_path / "ports")
    here = LocalFederation(folder=tmp_path, data=tmp_path, sites=("a",), ports=mine)
    here._keep_ports()
    assert (tmp_path / "server" / "server.toml").read_text() == SERVER.format(fleet=taken[0], control=taken[1])
    mine.release()
    theirs = LocalPorts(choice=taken, folder=tmp_path / "ports")
    assert theirs.claim(taken[0]) and theirs.claim(taken[2])
    here._keep_ports()
    server = tomllib.loads((tmp_path / "server" / "server.toml").read_text())["server"]
    site = tomllib.loads((tmp_path / "a" / "site.toml").read_text())["server"]
    assert server["control_port"] == taken[1] and {server["fleet_port"], site["runtime_port"]} == set(others[:2])
    assert site["address"] == f"{LOOPBACK}:{server['fleet_port']}"


def test_a_folder_is_one_commands_and_daemons_of_a_killed_one_are_waited_for(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("wardround_simulation.local.federation.ENDING_LIMIT_S", 0.5)
    ports = LocalPorts(choice=free(1), folder=tmp_path / "ports")
    here = LocalFederation(folder=tmp_path / "out", data=tmp_path, sites=("a",), ports=ports)
    window = "another process of this command uses this folder; stop it with Ctrl-C or choose another --out"
    with here.alone(), pytest.raises(WardroundError, match=window), here.alone():
        pass
    (here.folder / "a").mkdir()
    busy = pytest.raises(
        WardroundError, match=f"^{here.folder}/a: a daemon is running in this folder; end that process"
    )
    with sole(here.folder / "a"), busy, here.alone():
        pass
    with here.alone():
        pass
