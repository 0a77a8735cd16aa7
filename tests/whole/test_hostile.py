"""Attacks over real processes and TLS.

The cases are a site that has a key and sends anything, a server that asks for anything, and a patient's name in an
exception.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import threading
import time
import tomllib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import numpy as np
import pytest
from builders.processes import descendants
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.app import ConfigRecord
from flwr.common.constant import PUBLIC_KEY_HEADER
from flwr.proto.fleet_pb2 import ActivateNodeRequest, PullMessagesRequest
from flwr.proto.fleet_pb2_grpc import FleetStub
from flwr.proto.node_pb2 import Node
from flwr.supercore.constant import FLWR_PRIVATE_MAX_CONCURRENT_OBJ_PULLS
from hostile.hostile_pieces import COUNT_10_GB, large_proposal
from hostile.wiretap import tapped
from paths import HOSTILE

from wardround.accounting import spent
from wardround.errors import WardroundError
from wardround.identity import key_fingerprint
from wardround.processes.supervisor import supervise
from wardround.records.audit_log import verified
from wardround.study.load import load_study
from wardround.wire.packets import PROTOCOL_VERSION
from wardround.wire.protocol import CALL_BYTES
from wardround_client.flower.task_process import MOST_BYTES
from wardround_client.ledger.ledger import Ledger
from wardround_client.privacy.plan import plan_from_study
from wardround_client.sources.cohort import CohortRow, pseudonym, write_cohort
from wardround_server.flower.superlink import Ports, SuperLink
from wardround_server.operations.config import load_server_config
from wardround_server.sites.certificates import key_pem
from wardround_server.sites.registry import Registry
from wardround_simulation.cli.progress import RunProgress
from wardround_simulation.local.federation import SERVER, SITE, LocalFederation
from wardround_simulation.local.programs import Daemon, asked, call, end, start

pytestmark = pytest.mark.slow

STUDY = """
[study]
name = "tiny"
rounds = {rounds}
[data]
image_size = 32
labels = ["benign", "malignant"]
[model]
name = "phantom-encoder"
init = "random"
trainable = "all"
[training]
learning_rate = 0.01
[privacy]
epsilon = 8
delta = 1e-4
max_grad_norm = 1.0
sampling_rate = 1.0
nominal_patients = 8
[aggregation]
nominal_sites = 3
min_sites = 2
round_deadline_s = {deadline_s}
"""
KEY = b"k" * 32
MB = 2**20
DEADLINE_S = 90


def write_patients(folder: Path, seed: int, patients: int = 8, size: int = 32) -> None:
    generator = np.random.default_rng(seed)
    rows = [CohortRow(pseudonym=pseudonym(KEY, f"{seed}-{n}"), label=n % 2) for n in range(patients)]
    images = (generator.integers(0, 256, (1, size, size), dtype=np.uint8) for _ in rows)
    names = ("benign", "malignant")
    write_cohort(folder / "cohort", rows, images, row_shape=(1, size, size), label_names=names, site_key=KEY)


def made(folder: Path, sites: tuple[str, ...]) -> LocalFederation:
    """A server and enrolled sites with patients, on this machine; nothing runs."""
    here = LocalFederation(folder=folder, data=folder, sites=sites)
    from rich.console import Console

    here.found(RunProgress(Console(stderr=True), 1, quiet=True))
    for number, name in enumerate(sites):
        write_patients(here.site(name), number)
    return here


@contextmanager
def running(here: LocalFederation, *names: str) -> Iterator[dict[str, Daemon]]:
    """These daemons ("server" or a site), for as long as the block lasts."""
    daemons: dict[str, Daemon] = {}
    try:
        for name in names:
            daemons[name] = start_daemon(here, name)
        yield daemons
    finally:
        end(daemons.values())


def start_daemon(here: LocalFederation, name: str) -> Daemon:
    program, option, folder = (
        (SERVER, "--server", here.server) if name == "server" else (SITE, "--site", here.site(name))
    )
    words, log = ("start", option, folder, "--json"), folder / "logs" / "daemon.log"
    return start(name, program, *words, printed=here.folder / "logs" / f"{name}.log", log=log)


def approve(here: LocalFederation, name: str, study: object) -> None:
    asked(name, SITE, "studies", "approve", study, "--yes", "--by", "Ada", "--site", here.site(name), limit_s=120)


def show(here: LocalFederation, run: str) -> dict:
    return asked("server", SERVER, "show", run, "--server", here.server, limit_s=120)


def soon(what, limit_s: float, why=lambda: ""):
    ends = time.monotonic() + limit_s
    while not (found := what()):
        assert time.monotonic() < ends, f"not within {limit_s:.0f} s: {why()}"
        time.sleep(0.5)
    return found


def said_by(here: LocalFederation) -> str:
    return "\n".join(f"== {path}\n{path.read_text()[-4000:]}" for path in here.folder.glob("*/logs/*.log"))


def peak_mb(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return max([int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")], default=0.0)
    except OSError:
        return 0.0


def size_mb(folder: Path) -> float:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except OSError:
            continue
    return total / MB


# A hostile site

TRICKS = {
    "honest": None,
    "nan": "invalid:not-finite",
    "huge": "invalid:norm",
    "shape": "invalid:shape",
    "dtype": "invalid:dtype",
    "extra": "invalid:names",
    "stale": "invalid:stale",
    "named": "invalid:header",
    "rollback": "invalid:ledger-rollback",
    "garbled": "invalid:message",
    "raises": "failed",
    "says": "invalid:code",
    "impostor": None,
    "twice": None,
    "bomb": "invalid:size",
    "fat": "invalid:size",
    "ten_gb": "invalid:size",
    "endless": "late",
    "silence": "late",
}


def test_a_hostile_site_is_refused_by_name_at_every_trick_and_the_run_goes_on(tmp_path: Path) -> None:
    """It holds the key of an enrolled site and is no program of ours; two others answer as a hospital would, at once.
    The server's memory and disk stay bounded, each trick is in `show` within two minutes (of the deadline, where there
    is nothing to see before), and nothing that it said as text is anywhere at the server.
    """
    here = made(tmp_path / "f", ("east", "north", "west"))
    path = tmp_path / "tiny.toml"
    path.write_text(STUDY.format(rounds=len(TRICKS), deadline_s=DEADLINE_S))
    address = asked("server", SERVER, "init", here.server, limit_s=120)["address"]
    plays = {"east": ["honest"] * len(TRICKS), "north": ["honest"] * len(TRICKS), "west": list(TRICKS)}
    seen: dict[int, float] = {}
    memory: dict[int, float] = {}
    disk, known = [], -1
    with running(here, "server") as daemons:
        for name, tricks in plays.items():
            words = ("-u", HOSTILE / "hostile_site.py", here.site(name), address, ",".join(tricks))
            log = here.site(name) / "log"
            daemons[name] = start(name, "python", *words, printed=log, log=log)
        run = here.submit(path)["run"]
        soon(lambda: len(show(here, run)["words"]) == 3, 300, lambda: said_by(here))
        for name in plays:
            (here.site(name) / "go").touch()
        ends, folder = time.monotonic() + 1500, here.server / "runs" / run
        while not (folder / "result.json").exists():
            assert time.monotonic() < ends, f"{show(here, run)}\n{said_by(here)}"
            for pid in descendants(daemons["server"].process.pid):
                memory[pid] = max(memory.get(pid, 0.0), peak_mb(pid))
            disk.append(size_mb(here.server))
            size = (folder / "metrics.jsonl").stat().st_size if (folder / "metrics.jsonl").exists() else 0
            if size != known:
                known, shown = size, show(here, run)["metrics"]
                seen.update({line["round"]: time.time() for line in shown if line["round"] not in seen})
            time.sleep(0.5)
        facts = show(here, run)
    seen.update({line["round"]: time.time() for line in facts["metrics"] if line["round"] not in seen})
    lines = {(line["round"], line["site"]): line for line in facts["metrics"]}
    assert {trick: lines[number, "west"]["code"] for number, trick in enumerate(TRICKS, 1)} == TRICKS
    notes = {name: [json.loads(line) for line in (here.site(name) / "tricks.jsonl").open()] for name in plays}
    for name in ("east", "north"):  # what counted as theirs was theirs
        for number in range(1, len(TRICKS) + 1):
            head = hashlib.sha256(f"{name} {number}".encode()).hexdigest()
            assert (lines[number, name]["code"], lines[number, name]["ledger_head"]["sha256"]) == (None, head)

    played = {note["round"]: note["at"] for note in notes["west"] if "round" in note}
    silent = [number for number, code in enumerate(TRICKS.values(), 1) if code == "late"]
    after = {number: seen[number] - at - DEADLINE_S * (number in silent) for number, at in played.items()}
    assert max(after.values()) < 120, after
    (forged,) = [note["taken"] for note in notes["west"] if "taken" in note]
    assert forged == [0, 0], "neither as the server nor as another site is anything taken"
    assert [note["again"] for note in notes["west"] if "again" in note] == [0]
    counted = {trick: lines[number, "west"]["update_norm"] for number, trick in enumerate(TRICKS, 1)}
    assert counted["twice"] == counted["impostor"] == 0.0, "the first answer to its own question, and nothing else"
    done = {note["trick"]: note for note in notes["west"] if "trick" in note and "round" not in note}
    bomb, fat, ten_gb = done["bomb"], done["fat"], done["ten_gb"]
    print(json.dumps({"sent": done, "peaks_mb": sorted(memory.values())[-4:], "disk_mb": max(disk)}))
    assert bomb["taken_objects"] > 0 and bomb["bytes"] < 6 * MB, "it arrived, and was small on the wire"
    assert 0 < fat["taken_bytes"] < 16 * MB and "taken" not in fat["said"]
    assert ten_gb["wanted"] == ten_gb["taken_bytes"] == 0, "neither what was announced nor what was sent"
    assert sum(ten_gb["refused"].values()) == COUNT_10_GB, "all of it was sent, and each piece turned away"
    assert max(memory.values()) < 700 and max(disk) < 200
    assert said_at(here.server) == ""


def said_at(folder: Path) -> str:
    """Where the name stands in the files of a folder: their bytes as text, as they are and in UTF-16."""
    found = []
    for path in folder.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            found += [f"{path}: CANARY" for code in ("utf-8", "utf-16-le") if "CANARY".encode(code) in content]
    return "\n".join(found)


def metadata_of(key: ec.EllipticCurvePrivateKey, shown: bytes) -> list[tuple[str, str | bytes]]:
    """The head of a call that is signed with `key` and shows the public key `shown`."""
    from flwr.common.constant import SIGNATURE_HEADER, TIMESTAMP_HEADER
    from flwr.supercore.date import now

    stamp = now().isoformat()
    signature = key.sign(stamp.encode("ascii"), ec.ECDSA(hashes.SHA256()))
    return [(PUBLIC_KEY_HEADER, shown), (TIMESTAMP_HEADER, stamp), (SIGNATURE_HEADER, signature)]


def test_no_key_opens_another_sites_node_and_no_call_is_larger_than_a_piece(tmp_path: Path) -> None:
    here = made(tmp_path / "f", ("east", "west"))
    address = asked("server", SERVER, "init", here.server, limit_s=120)["address"]
    pem = {site.name: key_pem(site.public_key) for site in Registry(here.server).sites()}
    prints = {site.name: key_fingerprint(site.public_key) for site in Registry(here.server).sites()}
    key = load_ssh_private_key((here.site("west") / "keys" / "site_key").read_bytes(), None)
    stranger = ec.generate_private_key(ec.SECP384R1())
    with running(here, "server"):
        nodes = here.server / "flower" / "nodes.json"
        known = lambda: json.loads(nodes.read_text()) if nodes.exists() else {}  # noqa: E731
        soon(lambda: all(known().get(one) for one in prints.values()), 90, lambda: said_by(here))
        number = {name: int(known()[prints[name]]) for name in pem}
        trust = grpc.ssl_channel_credentials((here.server / "ca" / "ca.crt").read_bytes())
        options = [("grpc.max_send_message_length", -1)]
        with grpc.secure_channel(address, trust, options=options) as channel:
            stub = FleetStub(channel)

            def code(call, request, signer=key, shown=pem["west"]):
                try:
                    call(request, metadata=metadata_of(signer, shown), timeout=60)
                except grpc.RpcError as error:
                    return error.code().name
                return "OK"

            def activate(name):
                return ActivateNodeRequest(public_key=pem[name], heartbeat_interval=30)

            def pull(name):
                return PullMessagesRequest(node=Node(node_id=number[name]))

            assert code(stub.ActivateNode, activate("west")) == "OK"
            assert code(stub.PullMessages, pull("west")) == "OK"
            assert code(stub.PullMessages, pull("east")) == "UNAUTHENTICATED"
            assert code(stub.PullMessages, pull("east"), shown=pem["east"]) == "UNAUTHENTICATED"
            assert code(stub.ActivateNode, activate("east")) == "PERMISSION_DENIED"
            assert code(stub.ActivateNode, activate("east"), signer=stranger) != "OK"
            large = ActivateNodeRequest(public_key=b"x" * (16 * MB), heartbeat_interval=30)
            assert code(stub.ActivateNode, large) == "RESOURCE_EXHAUSTED"
            assert code(stub.ActivateNode, activate("east"), shown=pem["east"]) == "UNAUTHENTICATED"


# A hostile server

SAID = {
    "unapproved": "not_approved",
    "architecture": "architecture",
    "shape": "wire-shape",
    "nan": "wire-not-finite",
    "round 1": "",
    "round 1 again": "",
    "round 1, other weights": "other_weights",
    "round 1 of another run": "runs_used",
    "round 2": "",
    "round 1 after 2, other weights": "other_weights",
    "figures": "evaluation_not_asked",
    "own question": "question",
    "altered proposal": "wire-hash",
    "proposal, 1 MB": "wire-size",
    "last proposal": "proposed",
    "one too many": "too_many_proposals",
    "proposal, 1 GB": "too_large",
    "bomb": "wire-header",
    "10 GB, announced": "nothing",
    "10 GB": "too_large",
    "round 2 again": "",
    "still there": "question",
    "agent's words": "task_type",
    "agent's round": "task_type",
}
BUNDLE = """[project]
name = "hostile"
version = "1.0.0"
license = "MIT"
[tool.flwr.app]
publisher = "x"
[tool.flwr.app.components]
{components}
[tool.flwr.app.config]
noise-multiplier = 0.0
epsilon-cap = 1000000.0
"""
COMPONENTS = {
    "server": 'serverapp = "evil:app"\nclientapp = "wardround_client.flower.site_app:app"',
    "agent": 'agentapp = "evil:agent"',
}
# Flower's own command line, which has no word for the prompt without which it starts no agent.
WITH_PROMPT = """
import functools, importlib
inside = importlib.import_module("flwr.cli.run.run")
inside.StartRunRequest = functools.partial(inside.StartRunRequest, user_prompt="go on")
from flwr.cli.app import app
app()
"""


def write_bundle(folder: Path, components: str, ran: Path) -> None:
    """A bundle with the attacker's code, and packages of our names and torch's; whichever runs says so in `ran`."""
    canary = f"import os\nopen({str(ran)!r}, 'a').write(os.environ['FLWR_HOME'] + chr(10))\n"
    evil = (HOSTILE / "hostile_server.py").read_text()
    files = {
        "pyproject.toml": BUNDLE.format(components=components),
        "evil.py": evil.replace("import json\n", "import json\n" + canary, 1),
        "hostile_pieces.py": (HOSTILE / "hostile_pieces.py").read_text(),
        "torch.py": canary,
        "wardround_client/__init__.py": canary,
        "wardround_client/flower/site_app.py": canary + "app = None\n",
    }
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)


@contextmanager
def hostile_superlink(here: LocalFederation) -> Iterator[SuperLink]:
    """The server's SuperLink with the attacker's Fleet API in place of ours, up, and the key of east registered."""
    settings = load_server_config(here.server).server
    superlink = SuperLink(folder=here.server, ports=Ports(fleet=settings.fleet_port, control=settings.control_port))
    child, executor = superlink.children()
    options = child.command[child.command.index("flower-superlink") + 1 :]
    child.command = (sys.executable, str(HOSTILE / "hostile_superlink.py"), *options)
    stopped = threading.Event()
    thread = threading.Thread(target=supervise, args=([child, executor], stopped))
    thread.start()
    try:
        soon(lambda: child.is_up, 120)
        (registered,) = Registry(here.server).sites()
        superlink.register("east", registered.public_key)
        yield superlink
    finally:
        stopped.set()
        thread.join(60)


def study_of(tmp_path: Path, name: str, **changes: str):
    path = tmp_path / f"{name}.toml"
    text = STUDY.format(rounds=2, deadline_s=90).replace('name = "tiny"', f'name = "{name}"')
    for old, new in changes.values():
        text = text.replace(old, new)
    path.write_text(text)
    return path, load_study(path)


def test_a_hostile_server_gets_no_code_run_no_budget_and_no_memory_and_each_refusal_is_in_the_sites_log(
    tmp_path: Path,
) -> None:
    """A SuperLink without our bounds, a ServerApp, an agent and bundles of the attacker's own, against a site's daemon.

    The 10 GB are offered, and made as they are fetched: the site hangs up after 1 GiB, so that no more ever cross the
    line. The question that comes next is answered.
    """
    assert ConfigRecord.inflate(large_proposal(1000))["study"] == "x" * 1000, "it is a proposal"
    here = made(tmp_path / "f", ("east",))
    site, server = here.site("east"), here.server
    path, study = study_of(tmp_path, "agreed")
    dear_path, dear = study_of(tmp_path, "dear", epsilon=("epsilon = 8", "epsilon = 80"))
    _, more = study_of(tmp_path, "more")
    approve(here, "east", path)
    with pytest.raises(WardroundError, match="cap"):
        approve(here, "east", dear_path)
    (site / "proposals").mkdir()
    for number in range(99):
        (site / "proposals" / f"{number}.json").write_text("{}")
    (server / "study.json").write_text(study.to_json())
    words = ("-I", "-m", "wardround.networks.initial_weights", server / "study.json", server / "start.safetensors")
    call("server", "python", *words, limit_s=300)
    facts = {
        "protocol": PROTOCOL_VERSION, "study": study.to_json(), "study_sha256": study.sha256(),
        "dear": dear.to_json(), "dear_sha256": dear.sha256(), "more": more.to_json(), "more_sha256": more.sha256(),
    }  # fmt: skip
    (server / "hostile.json").write_text(json.dumps(facts))
    ran = server / "ran.txt"  # the attacker's own machine runs it; whose FLWR_HOME it is tells them apart
    bundles = {name: server / "flower" / f"{name}-bundle" for name in COMPONENTS}
    for name, components in COMPONENTS.items():
        write_bundle(bundles[name], components, ran)
    memory: dict[int, float] = {}
    said, ends = server / "said.jsonl", time.monotonic() + 3000

    def wait_for(word: str) -> None:
        while not said.exists() or f'"{word}"' not in said.read_text():
            assert time.monotonic() < ends, f"{said.exists() and said.read_text()}\n{said_by(here)}"
            for pid in descendants(daemons["east"].process.pid):
                memory[pid] = max(memory.get(pid, 0.0), peak_mb(pid))
            time.sleep(0.5)

    with hostile_superlink(here) as superlink, running(here, "east") as daemons:
        log = site / "logs" / "site.log"
        soon(lambda: log.exists() and "SuperNode ID" in log.read_text(), 200, lambda: said_by(here))
        words = ("--run-config", "noise-multiplier=0.0 epsilon-cap=9e9")
        superlink._flwr("run", str(bundles["server"]), "wardround", *words)
        wait_for("end")
        words = ("run", str(bundles["agent"]), "wardround", "--format", "json")
        done = subprocess.run(
            [sys.executable, "-c", WITH_PROMPT, *words], env=superlink._environment(), cwd=superlink.home,
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert '"success": true' in done.stdout, done.stdout + done.stderr
        wait_for("agent's end")
    lines = [json.loads(line) for line in said.read_text().splitlines()]
    answers = [line for line in lines if "code" in line]
    handed: Counter[str] = Counter()
    for line in (server / "handed.jsonl").read_text().splitlines():
        piece = json.loads(line)
        handed[piece["question"]] += piece["bytes"]
    print(json.dumps({"peaks_mb": sorted(memory.values()), "handed_mb": dict(handed), "answers": answers}))
    assert {one["question"]: one["code"] for one in answers} == SAID
    weights = {one["question"]: one["weights"] for one in answers if one.get("weights")}
    assert weights["round 1"] == weights["round 1 again"] != weights["round 2"] == weights["round 2 again"]
    assert len(weights) == 4
    pulls = FLWR_PRIVATE_MAX_CONCURRENT_OBJ_PULLS  # at once; each brings one call at most after the bound is reached
    assert MOST_BYTES < handed["10 GB"] <= MOST_BYTES + (1 + pulls) * CALL_BYTES, "of 10 GB the site took 1 GiB"
    assert handed["proposal, 1 GB"] >= 10**9 and max(memory.values()) < 1.5 * MOST_BYTES / MB

    refused = [entry["code"] for entry in verified(site / "audit.jsonl").entries if entry["event"] == "message-refused"]
    assert refused == [code for code in SAID.values() if code not in ("", "proposed", "nothing")]
    asked("east", SITE, "audit", "verify", site / "audit.jsonl", limit_s=120)
    assert set(ran.read_text().split()) == {str(server / "flower")}, "it ran where the attacker is, and nowhere else"
    assert not list(site.rglob("evil.py")) and not (site / "flower" / "apps").exists()
    ledger = Ledger(site / "ledger.sqlite3")
    assert ledger.spent(1e-4).value == spent([plan_from_study(study).event(2)], 1e-4).value, "the run config changed it"


# A patient's name in an exception


def test_a_patients_name_in_an_exception_stands_in_the_sites_own_log_and_nowhere_at_the_server(tmp_path: Path) -> None:
    """A hospital whose folders bear a name, and whose prepared images are damaged: what it says of that carries the
    name. It replies as a hospital with nobody: a code would show that somebody is there. Looked at, again and again
    while it happens: every byte of the server's folder, Flower's database included; and afterwards all that went
    between that hospital and the server, which a proxy with the server's key took down.
    """
    here = made(tmp_path / "f", ("east", "north"))
    named = tmp_path / "CANARY^PATIENT" / "east"
    named.parent.mkdir()
    here.site("east").rename(named)
    here.site("east").symlink_to(named)
    path = tmp_path / "tiny.toml"
    path.write_text(STUDY.format(rounds=4, deadline_s=150).replace("nominal_sites = 3", "nominal_sites = 2"))
    for name in here.sites:
        approve(here, name, path)
    values = named / "cohort" / "values.npy"
    values.write_bytes(values.read_bytes()[:-100])
    toml, port = named / "site.toml", here.ports.next()
    address = tomllib.loads(toml.read_text())["server"]["address"]
    toml.write_text(toml.read_text().replace(address, f"127.0.0.1:{port}"))
    with running(here, "server"), tapped(here.server, address, port) as heard, running(here, "east", "north"):
        run = here.submit(path)["run"]
        ends = time.monotonic() + 900
        while (facts := show(here, run))["state"] != "finished":
            assert time.monotonic() < ends, f"{facts}\n{said_by(here)}"
            assert said_at(here.server) == ""
            time.sleep(1)
    asked_for, sent = b"\n".join(heard.down), b"\n".join(heard.up)
    study = load_study(path).sha256().encode()
    print(json.dumps({"calls": len(heard.up), "up": len(sent), "down": len(asked_for), "of": sorted(heard.methods)}))
    assert {"ActivateNode", "PullMessages", "PullObject", "PushMessages", "PushObject"} <= heard.methods
    assert study in asked_for and run.encode() in asked_for, "the line is tapped: what must be there is there"
    assert study in sent and run.encode() in sent
    for secret in ("CANARY", "PATIENT", str(named), str(here.site("east")), str(tmp_path)):
        assert heard.holds(secret) == [], secret
    codes = {line["site"]: line["code"] for line in facts["metrics"]}
    assert codes == {"east": None, "north": None}
    assert said_at(here.server) == ""
    assert "CANARY^PATIENT" in (named / "logs" / "site.log").read_text()
    assert "CANARY" not in (named / "audit.jsonl").read_text()
    printed = [path.read_text() for path in (here.folder / "logs").glob("*.log") if path.stem != "east"]
    assert not any("CANARY" in text for text in printed)
