"""A realistic hospital network: outward connections only, slow, through a proxy, with middleboxes that drop state.

One server, three sites and a proxy run as real processes under TLS, each in a network namespace of this test, joined by
virtual cables. The kernel's traffic control at the ends of the cables acts as firewall, slow line and middlebox.
Nothing is changed outside those namespaces, and they are removed afterwards.

    north ── server      firewall at both ends: a site opens connections to one port, and nothing opens one to a site
    east  ── server
    west  ── proxy ── server      2 Mbit/s to the proxy, which is all that west reaches (HTTP CONNECT)
"""

import asyncio
import ctypes
import json
import os
import random
import shutil
import socket
import subprocess
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from builders.federation import write_patients

from wardround.identity import read_request
from wardround_server.runs.folder import find_run
from wardround_server.sites.registry import Registry
from wardround_simulation.local.programs import PROGRAMS, Daemon, asked, call_all, end, start

pytestmark = pytest.mark.slow

STUDY = """
[study]
name = "{name}"
rounds = {rounds}
[data]
image_size = 32
labels = ["benign", "malignant"]
[model]
name = "seed-cnn"
init = "random"
trainable = "all"
[training]
learning_rate = 0.1
[privacy]
epsilon = inf
delta = 1e-5
max_grad_norm = 1.0
sampling_rate = 1.0
nominal_patients = 8
[aggregation]
nominal_sites = 3
min_sites = {min_sites}
round_deadline_s = {deadline_s}
"""
SITES = ("east", "north", "west")
SERVER_ADDRESS, FLEET_PORT, PROXY_PORT = "10.77.0.1", 9092, 3128
SLOW = "2mbit"
PASSED, DROPPED = "1:10", "1:66"  # traffic classes of a firewall
CLONE_NEWNET = 0x40000000
ESTABLISHED, LISTENING = "01", "0A"
LONGEST_S = 900  # of any wait here: a machine that is busy with other things is no fault
TOLD_WITHIN_S = 120  # until the operator's `show` names what is wrong
HEALED_WITHIN_S = 60  # until a site whose connection was forgotten has another one; the kernel alone: 15 minutes


# Namespaces, cables, firewalls


def lacking() -> str:
    """What keeps this machine from having networks of our own, or nothing."""
    if not shutil.which("ip") or not shutil.which("tc"):
        return "`ip` and `tc` (iproute2) are needed"
    probe = f"wr{os.getpid()}-probe"
    made = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True)
    if made.returncode != 0:
        return f"no network namespace can be made here: {made.stderr.strip()}"
    try:
        for words in ("link add name v0 type veth peer name v1", "link set v0 up"):
            subprocess.run(["ip", "-n", probe, *words.split()], check=True, capture_output=True, text=True)
        for words in ("htb default 66", "tbf rate 1mbit burst 16k latency 50ms", "blackhole"):
            words = ["tc", "-n", probe, "qdisc", "replace", "dev", "v0", "root", *words.split()]
            subprocess.run(words, check=True, capture_output=True, text=True)
    except subprocess.CalledProcessError as error:
        return f"this kernel lacks something: {' '.join(error.cmd[3:])}: {error.stderr.strip()}"
    finally:
        subprocess.run(["ip", "netns", "del", probe], check=True, capture_output=True)
    return ""


@pytest.fixture(autouse=True, scope="module")
def machine():
    if reason := lacking():
        pytest.skip(reason)


class Network:
    """Namespaces by name, and the cables between them."""

    def __init__(self) -> None:
        self._mark = f"wr{os.getpid()}"
        self._names: list[str] = []
        self._forgotten = 0

    def of(self, name: str) -> str:
        return f"{self._mark}-{name}"

    def ip(self, name: str, words: str) -> None:
        subprocess.run(["ip", "-n", self.of(name), *words.split()], check=True, capture_output=True)

    def tc(self, name: str, words: str) -> None:
        subprocess.run(["tc", "-n", self.of(name), *words.split()], check=True, capture_output=True)

    def add(self, name: str, address: str = "") -> None:
        subprocess.run(["ip", "netns", "add", self.of(name)], check=True, capture_output=True)
        self._names.append(name)
        self.ip(name, "link set lo up")
        if address:
            self.ip(name, f"address add {address}/32 dev lo")

    def join(self, name: str, other: str, net: str) -> None:
        """A cable. In each namespace its end is called after whom it leads to; `name` has address .2, `other` .1, and
        `name` sends to `other` what is for elsewhere.
        """
        subprocess.run(
            ["ip", "link", "add", "name", other, "netns", self.of(name), "type", "veth", "peer", "name", name]
            + ["netns", self.of(other)],
            check=True, capture_output=True,
        )  # fmt: skip
        for end_of, device, address in ((name, other, f"{net}.2"), (other, name, f"{net}.1")):
            self.ip(end_of, f"address add {address}/24 dev {device}")
            self.ip(end_of, f"link set {device} up")
        self.ip(name, f"route add default via {net}.1")

    def firewall(self, name: str, other: str, port: int, rate: str = "10gbit") -> None:
        """Of all that `name` sends, only TCP to `port` of `other` passes; of all that `other` sends, only TCP from that
        port which answers (ACK), so that it opens no connection. `rate` holds for each way.
        """
        answers = "match u8 0x10 0x10 at 33"
        for sender, device, passes in ((name, other, f"at 22 {''}"), (other, name, f"at 20 {answers}")):
            at = f"dev {device}"
            self.tc(sender, f"qdisc add {at} root handle 1: htb default 66")
            for number in (PASSED, DROPPED):
                self.tc(sender, f"class add {at} parent 1: classid {number} htb rate 10gbit quantum 60000")
            self.tc(sender, f"qdisc add {at} parent {DROPPED} handle 66: blackhole")
            if rate != "10gbit":
                self.tc(sender, f"qdisc add {at} parent {PASSED} handle 10: tbf rate {rate} burst 16k latency 300ms")
            tcp = "u32 match u8 0x45 0xff at 0 match ip protocol 6 0xff"
            self.tc(sender, f"filter add {at} parent 1: pref 10 protocol arp u32 match u32 0 0 flowid {PASSED}")
            self.tc(
                sender,
                f"filter add {at} parent 1: pref 11 protocol ip {tcp} match u16 {port} 0xffff {passes} flowid {PASSED}",
            )

    def forget(self, name: str, other: str) -> set[int]:
        """Be the middlebox that has forgotten every connection of `name` over this cable: their packets are dropped
        from now on, and nobody is told. New connections pass. Returns the ports that `name` had them from.
        """
        ports = {local[1] for local, _ in self.connections(name)}
        for port in ports:
            self._forgotten += 1
            for sender, device, at in ((name, other, 20), (other, name, 22)):
                words = f"filter add dev {device} parent 1: pref 1 protocol ip u32 match u8 0x45 0xff at 0"
                self.tc(sender, f"{words} match u16 {port} 0xffff at {at} flowid {DROPPED}")
        return ports

    def inside(self, name: str, work):
        """What `work` returns when a thread calls it that sees this namespace's network."""
        return in_thread(self.of(name), work)

    def sockets(self, name: str) -> list[tuple[str, tuple[str, int], tuple[str, int]]]:
        """All TCP sockets: state, own end, other end."""

        def read() -> str:
            return Path("/proc/thread-self/net/tcp").read_text() + Path("/proc/thread-self/net/tcp6").read_text()

        rows = [line.split() for line in self.inside(name, read).splitlines() if ":" in line.split()[0]]
        return [(row[3], endpoint(row[1]), endpoint(row[2])) for row in rows]

    def connections(self, name: str) -> list[tuple[tuple[str, int], tuple[str, int]]]:
        """Established ones that leave the machine: own end, other end."""
        found = [(own, other) for state, own, other in self.sockets(name) if state == ESTABLISHED]
        return [(own, other) for own, other in found if not own[0].startswith("127.")]

    def connects(self, name: str, address: str, port: int, source: int = 0) -> bool:
        """Whether a program in `name` can open a connection there within 3 s; `source`: from a port of its own."""

        def attempt() -> bool:
            with socket.socket() as one, suppress(OSError):
                one.settimeout(3.0)
                one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                one.bind(("0.0.0.0", source))
                one.connect((address, port))
                return True
            return False

        return self.inside(name, attempt)

    def listener(self, name: str, port: int) -> socket.socket:
        return self.inside(name, lambda: socket.create_server(("0.0.0.0", port)))

    def carried(self, name: str, device: str) -> tuple[int, int]:
        """Bytes that `name` sent and received over a cable."""
        words = ["ip", "-n", self.of(name), "-s", "-j", "link", "show", device]
        told = json.loads(subprocess.run(words, check=True, capture_output=True).stdout)[0]["stats64"]
        return told["tx"]["bytes"], told["rx"]["bytes"]

    def close(self) -> None:
        for name in self._names:
            subprocess.run(["ip", "netns", "del", self.of(name)], check=True, capture_output=True)


def endpoint(text: str) -> tuple[str, int]:
    """Address and port of a line of /proc/net/tcp or tcp6."""
    address, port = text.split(":")
    raw = b"".join(bytes.fromhex(address[i : i + 8])[::-1] for i in range(0, len(address), 8))
    name = socket.inet_ntop(socket.AF_INET if len(raw) == 4 else socket.AF_INET6, raw)
    return name.removeprefix("::ffff:"), int(port, 16)


def enter(namespace: str) -> None:
    """The calling thread sees this namespace's network from now on."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open(f"/run/netns/{namespace}") as file:
        if libc.setns(file.fileno(), CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "setns")


def in_thread(namespace: str, work):
    found: list = []

    def run() -> None:
        enter(namespace)
        found.append(work())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return found[0]


# A proxy


@dataclass(eq=False)
class Tunnel:
    """One connection that the proxy passes on; a forgotten one stays open and swallows what it gets."""

    ends: list[asyncio.StreamWriter]
    forgotten: bool = False

    def cut(self) -> None:
        for one in self.ends:
            one.transport.abort()


class Proxy:
    """An HTTP proxy (CONNECT) in a namespace, which delays; and stalls, cuts or forgets when told to."""

    def __init__(self, namespace: str, port: int) -> None:
        self.delay_s = 0.05  # each way, for each piece of 64 kB at most
        self.life_s: tuple[float, float] | None = None  # if set, each new tunnel is cut after a time within these
        self.opened = self.cuts = 0
        self._random = random.Random(7)
        self._tunnels: set[Tunnel] = set()
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(namespace, port), daemon=True)
        self._thread.start()
        assert self._ready.wait(10)

    def stall(self) -> None:
        self._loop.call_soon_threadsafe(self._flowing.clear)

    def flow(self) -> None:
        self._loop.call_soon_threadsafe(self._flowing.set)

    def cut(self) -> None:
        self._loop.call_soon_threadsafe(lambda: [self._cut(tunnel) for tunnel in list(self._tunnels)])

    def forget(self) -> None:
        """Every open tunnel stays open, and nothing comes through it any more."""
        for tunnel in list(self._tunnels):
            tunnel.forgotten = True

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def _run(self, namespace: str, port: int) -> None:
        enter(namespace)
        asyncio.set_event_loop(self._loop)
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._loop.run_until_complete(asyncio.start_server(self._serve, "0.0.0.0", port))
        self._ready.set()
        self._loop.run_forever()
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            asked_for = (await reader.readuntil(b"\r\n\r\n")).split()
            assert asked_for[0] == b"CONNECT"
            host, port = asked_for[1].decode().rsplit(":", 1)
            await self._flowing.wait()
            there, back = await asyncio.open_connection(host, int(port))
            tunnel = Tunnel([writer, back])
            self._tunnels.add(tunnel)
            self.opened += 1
            if self.life_s:
                self._loop.call_later(self._random.uniform(*self.life_s), self._cut, tunnel)
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            await asyncio.gather(self._pass(reader, back, tunnel), self._pass(there, writer, tunnel))
            self._tunnels.discard(tunnel)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, tunnel: Tunnel) -> None:
        with suppress(OSError):
            while piece := await reader.read(65536):
                await asyncio.sleep(self.delay_s)
                await self._flowing.wait()
                if not tunnel.forgotten:
                    writer.write(piece)
                    await writer.drain()
        if not tunnel.forgotten:
            writer.close()

    def _cut(self, tunnel: Tunnel) -> None:
        if tunnel in self._tunnels:
            self._tunnels.discard(tunnel)
            self.cuts += 1
            tunnel.cut()


# A federation in it


@dataclass
class Federation:
    """The folders and daemons, each daemon in its namespace."""

    root: Path
    network: Network
    proxy: Proxy
    daemons: list[Daemon] = field(default_factory=list)

    @property
    def server(self) -> Path:
        return self.root / "server"

    def make(self) -> None:
        words = (self.server, "--host", SERVER_ADDRESS, "--port", FLEET_PORT)
        asked("server", "wardround-server", "init", *words, limit_s=120)
        for seed, name in enumerate(SITES):
            folder, through = self.root / name, ("--proxy", f"10.77.3.1:{PROXY_PORT}") if name == "west" else ()
            words = ("--server", f"{SERVER_ADDRESS}:{FLEET_PORT}", "--name", name, "--site", folder, *through)
            asked(name, "wardround-site", "init", *words, "--ca", self.server / "ca" / "ca.crt", limit_s=120)
            text = (folder / "site.toml").read_text()
            (folder / "site.toml").write_text(text.replace("allow_no_privacy = false", "allow_no_privacy = true"))
            request = read_request(folder / f"{name}.enrol.json")
            Registry(self.server).add(request.name, request.public_key)
            write_patients(folder, seed)

    def start(self) -> None:
        (self.root / "printed").mkdir()
        for name in ("server", *SITES):
            program, option = ("wardround-server", "--server") if name == "server" else ("wardround-site", "--site")
            words = ("netns", "exec", self.network.of(name), PROGRAMS / program, "start", option, self.root / name)
            log = self.root / name / "logs" / f"{option[2:]}.log"
            ip = shutil.which("ip") or ""
            self.daemons.append(start(name, ip, *words, printed=self.root / "printed" / name, log=log))
        for name in SITES:
            self.until(lambda name=name: "SuperNode ID:" in self.log(name), LONGEST_S, f"{name} is let in")

    def log(self, name: str) -> str:
        (path,) = [daemon.log for daemon in self.daemons if daemon.name == name]
        return path.read_text() if path.exists() else ""

    def until(self, what, limit_s: float, of: str):
        """What `what` gives once that is something; the test fails after `limit_s`."""
        ends = time.monotonic() + limit_s
        while not (found := what()):
            for daemon in self.daemons:
                daemon.check()
            if time.monotonic() > ends:
                logs = "\n".join(f"== {one.name}\n{self.log(one.name)[-3000:]}" for one in self.daemons)
                pytest.fail(f"not within {limit_s} s: {of}\n{logs}")
            time.sleep(1.0)
        return found

    def submit(self, name: str, **settings: int) -> str:
        """Approve a study at every site, then put it before them; the run's id."""
        path = self.root / f"{name}.toml"
        path.write_text(STUDY.format(name=name, **settings))
        words = {
            site: ("studies", "approve", path, "--yes", "--by", "Ada Lovelace", "--site", self.root / site)
            for site in SITES
        }
        call_all("wardround-site", words, limit_s=120)
        return asked("server", "wardround-server", "submit", path, "--server", self.server, limit_s=120)["run"]

    def shown(self, run: str, what, of: str, each=lambda: None) -> dict:
        """What the operator's `show` says as soon as `what` holds for it. Looked at are the files that it reads, for
        the command itself would keep a core busy; and it must say the same.
        """
        folder = find_run(self.server, run)

        def look() -> bool:
            each()
            return what({"state": folder.state(), "metrics": folder.metrics()})

        self.until(look, LONGEST_S, of)
        facts = asked("server", "wardround-server", "show", run, "--server", self.server, limit_s=120)
        assert what(facts), (of, facts)
        return facts


def rounds_of(facts: dict, site: str) -> dict[int, str | None]:
    """What became of a site in each round."""
    return {line["round"]: line["code"] for line in facts["metrics"] if line["site"] == site}


def finished(facts: dict) -> bool:
    return facts["state"] == "finished"


def begun(facts: dict) -> bool:
    """The first round is done."""
    return bool(facts["metrics"])


def every_round_has(quorum: int, facts: dict) -> bool:
    rounds = range(1, facts["rounds"] + 1)
    good = [sum(line["round"] == number and line["code"] is None for line in facts["metrics"]) for number in rounds]
    return finished(facts) and min(good) >= quorum


@pytest.fixture(scope="module")
def federation(machine, tmp_path_factory):
    network, daemons = Network(), []
    try:
        network.add("server", SERVER_ADDRESS)
        for name in (*SITES, "proxy"):
            network.add(name)
        for number, name in enumerate(("east", "north"), 1):
            network.join(name, "server", f"10.77.{number}")
            network.firewall(name, "server", FLEET_PORT)
        network.join("west", "proxy", "10.77.3")
        network.firewall("west", "proxy", PROXY_PORT, SLOW)
        network.join("proxy", "server", "10.77.4")
        network.firewall("proxy", "server", FLEET_PORT)
        proxy = Proxy(network.of("proxy"), PROXY_PORT)
        made = Federation(tmp_path_factory.mktemp("network"), network, proxy, daemons)
        made.make()
        made.start()
        yield made
        proxy.close()
    finally:
        end(daemons)
        network.close()


def test_a_firewall_lets_a_site_out_to_one_port_and_the_server_not_in():
    """And without it the same connections open: the test has power."""
    network = Network()
    try:
        network.add("server", SERVER_ADDRESS)
        network.add("site")
        network.join("site", "server", "10.77.1")
        fleet, other = network.listener("server", FLEET_PORT), network.listener("server", 9999)
        own = network.listener("site", 9094)

        def ways() -> list[bool]:
            outward = [network.connects("site", SERVER_ADDRESS, port) for port in (FLEET_PORT, 9999)]
            return [*outward, network.connects("server", "10.77.1.2", 9094)]

        assert ways() == [True, True, True]
        network.firewall("site", "server", FLEET_PORT)
        assert ways() == [True, False, False]
        fleet.close()  # so that an attacker at the server may call from that port
        assert not network.connects("server", "10.77.1.2", 9094, source=FLEET_PORT)
        other.close()
        own.close()
    finally:
        network.close()


def test_sites_that_may_only_open_connections_outward_train_together_and_each_needs_one_port(federation):
    """West reaches nothing but its proxy, over 2 Mbit/s. No site listens anywhere but on loopback."""
    network, before = federation.network, federation.network.carried("west", "proxy")
    run = federation.submit("outward", rounds=2, min_sites=3, deadline_s=120)
    seen: dict[str, set] = {name: set() for name in SITES}
    listening: set[str] = set()

    def look() -> None:
        for name in SITES:
            seen[name] |= {other for _, other in network.connections(name)}
            listening.update(own[0] for state, own, _ in network.sockets(name) if state == LISTENING)

    facts = federation.shown(run, finished, "the run is finished", each=look)
    assert [line["code"] for line in facts["metrics"]] == [None] * 6
    server = (SERVER_ADDRESS, FLEET_PORT)
    assert seen == {"east": {server}, "north": {server}, "west": {("10.77.3.1", PROXY_PORT)}}
    assert listening <= {"127.0.0.1", "::1"} and listening
    for number, name in enumerate(("east", "north"), 1):
        with network.listener(name, 8000):
            assert not network.connects("server", f"10.77.{number}.2", 8000)
            assert not network.connects(name, SERVER_ADDRESS, 9093)
    assert not network.connects("west", SERVER_ADDRESS, FLEET_PORT)  # only through its proxy
    sent, received = (now - then for now, then in zip(network.carried("west", "proxy"), before, strict=True))
    slow = [line["seconds"] for line in facts["metrics"] if line["site"] == "west"]
    print(f"\nwest, 2 Mbit/s: {sent} bytes sent, {received} received; rounds of {slow} s; tensors {facts['bytes_up']}")


def test_a_line_that_stalls_and_is_cut_costs_its_site_rounds_and_nobody_the_run(federation):
    """The site is named while its line stalls, and takes part again afterwards; being cut every few seconds too."""
    proxy, opened = federation.proxy, federation.proxy.opened
    run = federation.submit("stalls", rounds=5, min_sites=2, deadline_s=600)
    federation.shown(run, begun, "the first round is done")
    proxy.stall()
    stalled = time.monotonic()
    facts = federation.shown(run, lambda facts: any(rounds_of(facts, "west").values()), "west is named")
    told_s = time.monotonic() - stalled
    lost = max(number for number, code in rounds_of(facts, "west").items() if code)
    proxy.flow()
    flowing = time.monotonic()

    def back(facts: dict) -> bool:
        return any(number > lost and not code for number, code in rounds_of(facts, "west").items())

    federation.shown(run, back, "west is back")
    back_s = time.monotonic() - flowing
    proxy.life_s, cuts = (0.0, 12.0), proxy.cuts
    proxy.cut()
    try:
        facts = federation.shown(run, finished, "the run is finished")
    finally:
        proxy.life_s = None
    assert told_s < TOLD_WITHIN_S
    assert every_round_has(2, facts) and set(rounds_of(facts, "east").values()) == {None}
    assert set(rounds_of(facts, "west").values()) - {None} <= {"late", "unreachable"}
    assert proxy.cuts - cuts >= 3
    print(f"\nstalled: named after {told_s:.0f} s; a reply counted {back_s:.0f} s after the stall; then cut")
    print(f"{proxy.cuts - cuts} times ({proxy.opened - opened} tunnels in all); by round: {rounds_of(facts, 'west')}")


def test_a_connection_that_a_middlebox_forgot_in_silence_is_replaced_within_a_minute(federation):
    """East's by dropped packets, west's by a proxy that keeps its sockets open: once while idle, once in a round."""
    network, proxy = federation.network, federation.proxy
    for name in ("east", "west"):
        federation.until(lambda name=name: network.connections(name), LONGEST_S, f"{name} is connected")
    healed_s = {}
    forgot, opened = time.monotonic(), proxy.opened
    old = network.forget("east", "server")
    proxy.forget()
    renewed = {
        "east": lambda: {own[1] for own, _ in network.connections("east")} - old,
        "west": lambda: proxy.opened > opened,
    }
    for name in renewed:
        federation.until(renewed[name], LONGEST_S, f"{name} has another connection")
        healed_s[name] = round(time.monotonic() - forgot)
    run = federation.submit("forgotten", rounds=4, min_sites=2, deadline_s=600)
    both = ("east", "west")

    def counted(facts: dict, after: int) -> bool:
        return all(any(n > after and not code for n, code in rounds_of(facts, name).items()) for name in both)

    facts = federation.shown(run, lambda facts: counted(facts, after=0), "both answer again")
    assert facts["round"] <= 2 and set(rounds_of(facts, "east").values()) == {None}
    again = time.monotonic()
    network.forget("east", "server")
    proxy.forget()
    facts = federation.shown(run, finished, "the run is finished")
    print(f"\nforgotten while idle: another connection after {healed_s} s; then in a round: {rounds_of(facts, 'east')}")
    print(f"(east), {rounds_of(facts, 'west')} (west), and the run was finished {time.monotonic() - again:.0f} s later")
    assert max(healed_s.values()) < HEALED_WITHIN_S
    assert every_round_has(2, facts) and counted(facts, after=2)
