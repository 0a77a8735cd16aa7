"""Flower's simulation engine on Ray: what reaches the server, the cost of a faulty site, and how runs end.

The sites are a few lines of arithmetic, which the engine receives as functions; everything else is the real code.
"""

import inspect
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from builders import tiny_sites
from builders.processes import descendants
from builders.tiny_sites import (
    NAMES,
    QUESTION,
    START,
    a_study,
    answer_tiny,
    open_tiny,
    said,
    site_folders,
    trained,
)
from paths import TESTS

from wardround.errors import PolicyRefusal, RoundError, UsageError, WardroundError
from wardround.wire.packets import SiteReply
from wardround_server.rounds.loop import run_rounds
from wardround_simulation.engine.flower import with_flower
from wardround_simulation.engine.gpu_share import share_of


def answer_with_faults(broadcast, site):
    """What goes wrong is in the round's number; `west` is always well."""
    site.calls += 1
    number, name = broadcast.round, site.name
    if number == 2 and name == "east":
        raise ValueError("cannot read /data/CANARY^ANNA.dcm")
    if number == 2 and name == "north":
        raise PolicyRefusal("not_approved", "the study of CANARY^ANNA was not approved")
    if number == 3 and name == "east":
        return said({key: array * np.float32(np.nan) for key, array in broadcast.weights.items()})
    if number == 3 and name == "north":
        return said({**broadcast.weights, "head.bias": np.zeros(2, np.float32)})
    if number == 4 and name == "north":
        os.kill(os.getpid(), signal.SIGKILL)
    if number == 6 and name == "east":
        time.sleep(60)
    if number == 7:
        return said({key: np.full_like(array, site.calls) for key, array in broadcast.weights.items()})
    return said(trained(broadcast.weights, name, number))


def listening_abroad():
    """Sockets that this process or its children listen on, other than on loopback: (pid, address in hex)."""
    sockets = {}
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            address = fields[1].split(":")[0]
            loopback = address.endswith("0100007F") or address == "0" * 24 + "01000000"
            if fields[3] == "0A" and not loopback:
                sockets[f"socket:[{fields[9]}]"] = address
    found = []
    for pid in family(os.getpid()):
        for handle in Path(f"/proc/{pid}/fd").iterdir():
            try:
                found += [(pid, sockets[os.readlink(handle)])] if os.readlink(handle) in sockets else []
            except OSError:
                continue
    return found


def family(root):
    return {root} | descendants(root)


@pytest.fixture(scope="module")
def run_with_faults(tmp_path_factory):
    """One run of the engine through all the faults; its replies by round, and what else was seen."""
    folder = tmp_path_factory.mktemp("engine")
    import ray.cloudpickle

    for module in (sys.modules[__name__], tiny_sites):  # the workers cannot import modules of the tests
        ray.cloudpickle.register_pickle_by_value(module)
    seen = {"folder": folder, "family before": family(os.getpid())}  # other tests leave multiprocessing's tracker

    def body(exchange):
        seen["abroad"], seen["family"] = listening_abroad(), family(os.getpid())
        for number in range(1, 8):
            deadline_s = 2.0 if number == 6 else 60.0
            seen[number] = list(exchange(replace(QUESTION, round=number), deadline_s))
        started, seen["seconds"] = time.monotonic(), []
        for number in range(8, 28):
            started = time.monotonic()
            assert [reply.code for reply in exchange(replace(QUESTION, round=number), 60.0)] == [None] * 3
            seen["seconds"].append(time.monotonic() - started)
        return "done"

    arguments = {"log_folder": folder / "log", "open_site": open_tiny, "answer": answer_with_faults}
    seen["result"] = with_flower(site_folders(folder / "sites"), body, **arguments)
    seen["family after"] = family(os.getpid())
    return seen


def codes(replies):
    return [reply.code for reply in replies]


def test_replies_come_from_the_right_sites_in_the_order_of_names(run_with_faults):
    replies = run_with_faults[1]
    assert [reply.site for reply in replies] == list(NAMES) and run_with_faults["result"] == "done"
    for reply in replies:
        expected = trained(START, reply.site, 1)
        assert reply.code is None and reply.bytes_up == 16 and reply.seconds > 0
        assert all(reply.weights[name].tobytes() == expected[name].tobytes() for name in expected)


def test_an_exception_is_a_code_and_its_text_stays_at_the_site(run_with_faults):
    assert codes(run_with_faults[2]) == ["failed", "refused:not_approved", None]
    folder = run_with_faults["folder"]
    for site in ("east", "north"):
        assert "CANARY" in (folder / "sites" / site / "site.log").read_text()
    told = [path for path in (folder / "log").rglob("*") if path.is_file() and b"CANARY" in path.read_bytes()]
    west = folder / "sites" / "west" / "site.log"  # of a site where nothing failed
    assert told == [] and not (west.exists() and "CANARY" in west.read_text())


def test_weights_that_do_not_fit_never_leave_the_site(run_with_faults):
    assert codes(run_with_faults[3]) == ["refused:wire-not-finite", "refused:wire-shape", None]


def test_a_worker_that_dies_costs_one_round_and_is_replaced(run_with_faults):
    failed = codes(run_with_faults[4])
    assert failed[1] == "failed" and failed[2] is None
    assert codes(run_with_faults[5]) == [None] * 3


def test_a_site_that_hangs_is_late_and_well_again_in_the_next_round(run_with_faults):
    assert codes(run_with_faults[6]) == ["late", None, None]
    assert run_with_faults[6][0].seconds < 3.0
    assert codes(run_with_faults[7]) == [None] * 3


def test_a_site_stays_open_in_its_worker(run_with_faults):
    """Of 21 questions, each worker opened each site once: some site object has answered several rounds."""
    assert max(float(reply.weights["head.bias"]) for reply in run_with_faults[7]) >= 2


@pytest.mark.slow  # a time: it says something on a machine that does nothing else
def test_a_round_costs_milliseconds(run_with_faults):
    assert np.median(run_with_faults["seconds"]) < 0.09  # Flower by itself looks for messages every 0.1 s


def test_the_engine_listens_on_loopback_only_and_leaves_no_process(run_with_faults):
    started = run_with_faults["family"] - run_with_faults["family before"]
    assert run_with_faults["abroad"] == [] and len(started) > 5
    assert run_with_faults["family after"] - run_with_faults["family before"] == set()


def plain_exchange(broadcast, deadline_s):
    for name in NAMES:
        weights = trained(broadcast.weights, name, broadcast.round)
        yield SiteReply(site=name, weights=weights, code=None, seconds=0.0, bytes_up=16)


def test_a_run_through_flower_equals_the_plain_loop_and_its_exceptions_come_out_as_they_are(tmp_path):
    import ray.cloudpickle

    for module in (sys.modules[__name__], tiny_sites):
        ray.cloudpickle.register_pickle_by_value(module)
    study, settings = a_study(5, strategy="fedadam", release="ema"), ("run-1", "b" * 64, START)
    plain = run_rounds(study, *settings, plain_exchange, None)
    outcomes = []

    def body(exchange):
        outcomes.append(run_rounds(study, *settings, exchange, tmp_path / "run"))
        first, *_ = exchange(replace(QUESTION, round=1), 60.0)
        raise RoundError(f"as it is: {first.site}")

    with pytest.raises(RoundError, match="^as it is: east$"):
        with_flower(site_folders(tmp_path / "sites"), body, open_site=open_tiny, answer=answer_tiny)
    for name, array in plain.weights.items():
        assert outcomes[0].weights[name].tobytes() == array.tobytes()
    resumed = run_rounds(study, *settings, plain_exchange, tmp_path / "run")
    assert resumed.rounds_completed == 5 and resumed.weights["head.bias"] == plain.weights["head.bias"]


def test_sites_need_different_names_and_there_must_be_one(tmp_path):
    for folders in ([], [tmp_path / "a" / "north", tmp_path / "b" / "north"]):
        with pytest.raises(UsageError, match="different names"):
            with_flower(folders, lambda exchange: None, open_site=open_tiny, answer=answer_tiny)


def test_sites_share_a_gpu_by_what_they_need():
    gib = 2**30
    assert share_of(needed_bytes=2 * gib, free_bytes=24 * gib) == 0.1111  # nine of 2.3 GiB in 21.6
    assert share_of(needed_bytes=18 * gib, free_bytes=24 * gib) == 1.0
    assert share_of(needed_bytes=1, free_bytes=24 * gib) == 0.01
    with pytest.raises(WardroundError, match="24.0 GiB are free; use --device cpu"):
        share_of(needed_bytes=22 * gib, free_bytes=24 * gib)
    for sites in range(1, 101):  # as many as measured fit by Ray's count too, and not one more
        share = share_of(needed_bytes=gib, free_bytes=int(gib * 1.15 * (sites + 0.01) / 0.9))
        assert int(1.0 / share) == sites


def test_a_gpu_that_is_not_there_is_one_line(tmp_path):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(WardroundError, match="no CUDA GPU; use --device cpu"):
        with_flower([tmp_path / "north"], lambda exchange: None, device="cuda", open_site=open_tiny, answer=answer_tiny)


def test_flower_and_ray_have_inside_what_the_engine_mends():
    """A new version of either must pass here before it is pinned."""
    from flwr.common.constant import PARTITION_ID_KEY
    from flwr.server.superlink.fleet.vce import vce_api
    from flwr.server.superlink.fleet.vce.backend.raybackend import RayBackend
    from flwr.simulation.ray_transport.ray_actor import BasicActorPool
    from ray._private import node, ray_constants, services, utils, worker
    from ray.job_config import JobConfig

    assert version("flwr") == "1.39.0"
    parameters = ["state", "queue", "nodes_mapping", "f_stop"]
    assert list(inspect.signature(vce_api.add_messages_to_queue).parameters) == parameters
    assert "add_messages_to_queue" in vce_api.run_api.__code__.co_names
    assert "import RayBackend" in inspect.getsource(vce_api.start_vce)
    assert list(inspect.signature(RayBackend.process_message).parameters) == ["self", "message", "context"]
    assert list(inspect.signature(RayBackend.terminate).parameters) == ["self"]
    assert "if not ray.is_initialized()" in inspect.getsource(RayBackend.init_ray)
    pool, worker_source = inspect.getsource(BasicActorPool), inspect.getsource(worker)
    assert all(f"self.{name}" in pool for name in ("pool", "_future_to_actor", "create_actor_fn"))
    assert "print_to_stdstream" in worker.listen_error_messages.__code__.co_names
    assert ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR == "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
    assert "if not ray_constants.ENABLE_RAY_CLUSTER" in inspect.getsource(services.get_node_ip_address)
    assert PARTITION_ID_KEY == "partition-id"
    assert "utils.set_sigterm_handler(" in inspect.getsource(node) and "utils.set_sigterm_handler(" in worker_source
    assert "entrypoint=ray._private.utils.get_entrypoint_name()," in worker_source
    assert inspect.signature(utils.get_entrypoint_name).parameters == {}
    assert "and not job_config._runtime_env_has_working_dir():\n            current_directory = " in worker_source
    assert JobConfig()._runtime_env_has_working_dir() is False


DRIVER = """
import os, sys, time
sys.path.insert(0, {tests!r})
from pathlib import Path
import ray.cloudpickle
from builders import tiny_sites
from builders.tiny_sites import QUESTION, open_tiny, said, site_folders
from wardround.errors import WardroundError
from wardround_simulation.engine.flower import with_flower

ray.cloudpickle.register_pickle_by_value(tiny_sites)

def answer(broadcast, site):
    time.sleep(300)

def body(exchange):
    print("started", flush=True)
    list(exchange(QUESTION, 600.0))

try:
    folder, arguments = Path(sys.argv[1]), {{"open_site": open_tiny, "answer": answer}}
    address = sys.argv[2] if len(sys.argv) > 2 else None
    with_flower(site_folders(folder), body, log_folder=folder / "log", ray_address=address, **arguments)
except WardroundError as error:
    print(error)
    sys.exit(error.exit_code)
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_ends_everything_in_seconds(tmp_path, number):
    """Ctrl-C reaches the whole group, the others the driver; after a SIGKILL, training ends at once."""
    script = DRIVER.format(tests=str(TESTS))
    command = [sys.executable, "-c", script, str(tmp_path)]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    driver = subprocess.Popen(command, start_new_session=True, **streams)
    assert driver.stdout.readline() == "started\n"
    time.sleep(5)
    children = family(driver.pid) - {driver.pid}
    workers = {pid for pid in children if "ClientAppActor" in Path(f"/proc/{pid}/cmdline").read_text()}
    assert workers
    (os.killpg if number == signal.SIGINT else os.kill)(driver.pid, number)
    said = driver.communicate(timeout=20)[0]
    if number == signal.SIGKILL:
        assert gone(workers, within_s=10), "training goes on"
        assert gone(children, within_s=60), "something of Ray goes on"
    else:
        assert driver.returncode == 130
        assert said == "stopped; the same command continues with the unfinished round\n"
        assert gone(children, within_s=10)


def gone(pids, within_s):
    ends = time.monotonic() + within_s
    while time.monotonic() < ends:
        if not any(is_alive(pid) for pid in pids):
            return True
        time.sleep(0.1)
    return False


def is_alive(pid):
    try:
        return "Z (zombie)" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


QUICK = DRIVER.replace("time.sleep(300)", "return said(broadcast.weights)").replace("list(exchange", "print(*exchange")


@pytest.mark.slow
def test_the_engine_needs_no_network_and_calls_nobody(tmp_path):
    command = [sys.executable, "-c", QUICK.format(tests=str(TESTS)), str(tmp_path)]
    alone = ["unshare", "--map-root-user", "--net", "sh", "-c", 'ip link set lo up; exec "$@"', "sh"]
    if subprocess.run([*alone, "true"], capture_output=True).returncode:
        pytest.skip("this machine lets nobody make a network namespace")
    done = subprocess.run([*alone, *command], capture_output=True, text=True, timeout=180)
    assert done.returncode == 0 and done.stdout.count("code=None") == 3, done.stdout + done.stderr
    if not shutil.which("strace"):
        pytest.skip("the calls themselves were not watched: no strace here")
    trace = tmp_path / "trace"
    watch = ["strace", "-f", "-qq", "-e", "trace=connect,sendto", "-o", str(trace)]
    subprocess.run([*watch, *command], capture_output=True, timeout=300, check=True)
    calls = [line for line in trace.read_text().splitlines() if "AF_INET" in line]
    abroad = [line for line in calls if "127.0.0.1" not in line and '"::1"' not in line]
    assert calls and abroad == []


CLUSTER = """
import ray, sys
context = ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, _temp_dir=sys.argv[1])
print(context.address_info["gcs_address"], flush=True)
sys.stdin.read()
"""


@pytest.mark.slow
def test_the_sites_can_run_on_a_cluster_that_is_there_and_it_stays(tmp_path):
    with tempfile.TemporaryDirectory(prefix="ray-") as short:
        streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        cluster = subprocess.Popen([sys.executable, "-c", CLUSTER, short], **streams)
        try:
            address = cluster.stdout.readline().strip()
            command = [sys.executable, "-c", QUICK.format(tests=str(TESTS)), str(tmp_path), address]
            for _ in range(2):
                done = subprocess.run(command, capture_output=True, text=True, timeout=180)
                assert done.returncode == 0 and done.stdout.count("code=None") == 3, done.stdout + done.stderr
        finally:
            cluster.communicate()


def test_a_ray_address_where_nothing_is_is_one_line(tmp_path):
    for address, mend in (("127.0.0.1:9", "no reply from a Ray cluster"), ("auto", "write HOST:PORT")):
        arguments = {"ray_address": address, "open_site": open_tiny, "answer": answer_tiny}
        with pytest.raises(UsageError, match=mend):
            with_flower(site_folders(tmp_path), lambda exchange: None, **arguments)


MEMORY = """
import re, sys, threading, time
sys.path.insert(0, {tests!r})
from pathlib import Path
import numpy as np
import ray.cloudpickle
from builders import tiny_sites
from builders.tiny_sites import a_study, open_tiny, said
from wardround_server.rounds.loop import run_rounds
from wardround_simulation.engine.flower import with_flower

ray.cloudpickle.register_pickle_by_value(tiny_sites)
count, size, peak = int(sys.argv[2]), {size}, [0]
folders = [Path(sys.argv[1]) / f"site-{{i:02d}}" for i in range(count)]
for folder in folders:
    folder.mkdir()

def watch():
    while True:  # the memory of this process itself, without what it shares with its workers
        peak[0] = max(peak[0], int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]))
        time.sleep(0.005)

def answer(broadcast, site):
    return said({{"w": broadcast.weights["w"] + np.float32(1e-3)}})

def body(exchange):
    threading.Thread(target=watch, daemon=True).start()
    start = {{"w": np.zeros(size, np.float32)}}
    run_rounds(a_study(3, nominal_sites=count), "run-1", "b" * 64, start, exchange, None)

with_flower(folders, body, open_site=open_tiny, answer=answer)
print(peak[0] * 1024)
"""


@pytest.mark.slow
def test_the_servers_memory_is_flat_from_2_to_32_sites(tmp_path):
    """What grows is only the replies that wait for their turn: two a worker, and no more workers than cores."""
    values, peaks = 5_000_000, []
    script = MEMORY.format(tests=str(TESTS), size=values)
    for count in (2, 32):
        folder = tmp_path / str(count)
        folder.mkdir()
        done = subprocess.run(
            [sys.executable, "-c", script, str(folder), str(count)], capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout.split()[-1]))
    waiting = 2 * min(32, len(os.sched_getaffinity(0)))
    assert peaks[1] - peaks[0] < waiting * 4 * values * 1.25, peaks
