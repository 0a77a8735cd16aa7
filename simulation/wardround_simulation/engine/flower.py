"""Flower's simulation engine on Ray, as one call: `with_flower(site_folders, body)`.

The server's part (`body`, usually `run_rounds`) runs in Flower's ServerApp thread and receives the `Exchange` with the
sites. Each site runs the ClientApp of a real site, in a worker process that keeps the sites it has opened. Tests in
tests/simulation/engine/test_flower.py and tests/test_flower_contract.py check the internals of Flower on which this
module relies.

    with_flower -> Ray (ray_cluster.py) -> run_simulation -> ServerApp thread: whoami, then body(FlowerExchange)
                                                          -> worker processes: ClientApp -> open_site, answer
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from wardround.errors import RoundError, UsageError, WardroundError
from wardround.processes.imports import collection_paused
from wardround_server.rounds.evaluation import SitesExchange
from wardround_simulation.engine.gpu_share import gpu_share
from wardround_simulation.engine.ray_cluster import disable_telemetry, log, ray_cluster
from wardround_simulation.engine.stop import Interrupted, Stop

if TYPE_CHECKING:
    from flwr.app import Context, Message
    from flwr.serverapp import Grid

T = TypeVar("T")

WHOAMI = "query.whoami"
START_LIMIT_S = 300.0  # Ray starts, and each worker imports torch: on a busy machine this takes minutes
END_LIMIT_S = 60.0
KILL_LIMIT_S = 10.0
SHORTEST_POLL_S = 0.001
LONGEST_POLL_S = 0.05


def with_flower(
    site_folders: Sequence[Path],
    body: Callable[[SitesExchange], T],
    *,
    device: str = "cpu",
    ray_address: str | None = None,
    log_folder: Path | None = None,
    cpus_per_site: int | None = None,
    gpu_step: Callable[[], None] | None = None,
    open_site: Callable[[Path], Any] | None = None,
    answer: Callable[[Any, Any], Any] | None = None,
    release: Callable[[Any, Any], Any] | None = None,
) -> T:
    """Run `body` with an exchange to simulated sites, and return its result.

    Must be called from a thread that outlives the call (see `ray_cluster`). Each site's log is FOLDER/site.log.

    Args:
        site_folders: One folder per site; the folder's name is the site's name.
        body: The server's part.
        device: "cpu" or "cuda".
        ray_address: A Ray cluster to use instead of this machine. The folders must be visible to the cluster's machines
            under the same paths.
        log_folder: Where the logs of Flower and Ray are written.
        cpus_per_site: Cores for each site, which limits how many sites train at once. Default: cores divided by sites,
            at least 1.
        gpu_step: A training step whose measured memory determines how many sites share a GPU on "cuda" (see
            `gpu_share`). Without it each site gets a whole GPU.
        open_site, answer, release: A site's functions. They default to a real site's; if `open_site` and `answer` are
            both given, there is no default for `release`.

    Raises:
        Interrupted: After Ctrl-C or SIGTERM, once the workers have ended, which takes seconds. Signals are handled only
            in the main thread.
        Exception: Any other exception of `body`, unchanged.
    """
    if open_site is None or answer is None:
        from wardround_client.rounds.evaluation import release_scores
        from wardround_client.rounds.training import answer as real_answer
        from wardround_client.site.site import open_site as real_open_site

        open_site, answer, release = open_site or real_open_site, answer or real_answer, release or release_scores
    folders = {folder.name: folder.resolve() for folder in site_folders}
    if len(folders) != len(site_folders) or not folders:
        raise UsageError("a simulation needs at least one site, and the sites' folders need different names")
    cores = len(os.sched_getaffinity(0))
    cpus = cpus_per_site or max(1, cores // len(folders))
    gpus, share = gpu_share(gpu_step) if device == "cuda" else (0, 0.0)
    at_once = max(1, min(len(folders), cores // cpus))
    task = _Task(body=body, names=tuple(sorted(folders)))
    disable_telemetry()
    cluster = ray_cluster(ray_address, at_once * cpus, gpus, log_folder)
    with task.stop.on_signals(), _engine_log(log_folder), cluster as found:
        task.stop.check()
        cpus = cpus_per_site or max(cpus, int(found) // len(folders))  # on a large cluster, one worker per site
        _simulate(task, _client_app(folders, open_site, answer, release), {"num_cpus": cpus, "num_gpus": share})
    if task.error is not None:
        raise task.error
    return cast(T, task.result)  # without an error the body has returned


@dataclass(kw_only=True)
class _Task(Generic[T]):
    """State of the body that runs in Flower's thread: its result or error, and the event that ends all waits."""

    body: Callable[[SitesExchange], T]
    names: tuple[str, ...]
    pushed: threading.Event = field(default_factory=threading.Event)
    stop: Stop = field(default_factory=Stop)
    ended: threading.Event = field(default_factory=threading.Event)
    result: T | None = None
    error: BaseException | None = None

    def main(self, grid: Grid) -> None:
        """Run the body as the ServerApp. Stores exceptions for the caller to raise, because Flower would print them."""
        from wardround_server.flower.exchange import FlowerExchange, Polling

        try:
            grid = cast("Grid", _PromptGrid(grid, self.pushed))  # implements the methods of a Grid that are used
            directory = _who_is_who(grid, self.names, self.stop.ended)
            polling = Polling(shortest_s=SHORTEST_POLL_S, longest_s=LONGEST_POLL_S)
            self.result = self.body(FlowerExchange(grid, directory, polling, self.stop.ended))
        except BaseException as error:
            self.error = error
        finally:
            self.ended.set()


def _simulate(task: _Task[T], client_app: Any, resources: dict[str, Any]) -> None:
    """Run Flower's engine until the body has ended, and store the body's result or error in `task`."""
    with collection_paused():
        from flwr.simulation import run_simulation

        from wardround_server.flower.exchange import make_server_app

    began, failure = threading.Event(), None

    def main(grid: Grid) -> None:
        began.set()
        task.main(grid)

    try:
        with warnings.catch_warnings(), _replacements_in_flower(task.pushed, task.stop):
            warnings.simplefilter("ignore")
            run_simulation(
                server_app=make_server_app(main),
                client_app=client_app,
                num_supernodes=len(task.names),
                backend_config={"client_resources": resources},
            )
    except KeyboardInterrupt:
        pass  # raised by the handler of `task.stop`, which remembers it
    except Exception as error:
        if not task.ended.is_set():
            failure = WardroundError(f"the simulation engine stopped: {_deepest_line(error)}")
            failure.__cause__ = error
    finally:
        task.stop.main_thread_is_back()
        task.stop.ended.set()
        if began.is_set():
            task.ended.wait(END_LIMIT_S)
    if task.stop.requested:
        failure = Interrupted()
    task.error = failure or task.error  # after a failure the body's own error only reports that it was stopped


def _deepest_line(error: BaseException) -> str:
    """Return the first line of the original exception, which Flower wraps in uninformative ones."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


class _PromptGrid:
    """Flower's grid, with an event that is set when messages were pushed."""

    def __init__(self, grid: Grid, pushed: threading.Event) -> None:
        self._pushed = pushed
        self._push = grid.push_messages
        self.pull_messages = grid.pull_messages
        self.get_node_ids = grid.get_node_ids

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids = self._push(messages)
        self._pushed.set()
        return ids


@contextlib.contextmanager
def _replacements_in_flower(pushed: threading.Event, stop: Stop) -> Iterator[None]:
    """Patch four faults of Flower's engine for the duration of a run.

    Contract tests check that the replaced parts are still those that the patches were written for.

    - Flower keeps sending messages to a worker that died. The patch replaces a dead worker with a new one.
    - Flower polls for new messages every 0.1 s, so that a round of 0.12 s takes 0.2 s. The patch forwards messages as
      soon as they are pushed.
    - Flower shuts Ray down while threads wait for a busy worker. Those threads then wait for ever and the process
      cannot exit. The patch kills the workers first, so that the threads end.
    - Flower's actor makes each worker load its server and databases. The patch runs an actor of our own.
    """
    import ray
    from flwr.server.superlink.fleet.vce import vce_api
    from flwr.server.superlink.fleet.vce.backend import raybackend

    from wardround_simulation.engine.client_app_actor import ClientAppActor

    waiting: set[int] = set()  # threads that wait for a worker

    class EndingRayBackend(raybackend.RayBackend):
        def process_message(self, message: Message, context: Context) -> tuple[Message, Context]:
            waiting.add(threading.get_ident())
            try:
                return super().process_message(message, context)
            except ray.exceptions.RayActorError as error:
                self.replace(error.actor_id)
                raise
            finally:
                waiting.discard(threading.get_ident())

        def replace(self, dead: str) -> None:
            pool: Any = self.pool  # its actors are Ray handles, which Flower types as the actor class
            left = [actor for actor in pool.pool if actor._actor_id.hex() != dead]
            if len(left) < len(pool.pool):
                pool.pool[:] = [*left, pool.create_actor_fn()]

        def terminate(self) -> None:
            ends = time.monotonic() + KILL_LIMIT_S
            pool: Any = self.pool
            for actor in (*pool.pool, *pool._future_to_actor.values()) if pool else ():
                ray.kill(actor)
            while waiting and time.monotonic() < ends:
                time.sleep(0.01)
            ray.shutdown()

    def add_messages_to_queue(state: Any, queue: Any, nodes_mapping: dict[int, int], f_stop: threading.Event) -> None:
        stop.main_thread_waits()  # the workers have been started
        while not f_stop.is_set():
            for node_id in nodes_mapping:
                for message in state.get_message_ins(node_id=node_id, limit=1):
                    queue.put(message)
            pushed.wait(0.1)
            pushed.clear()

    before = vce_api.add_messages_to_queue, raybackend.RayBackend, raybackend.ClientAppActor
    vce_api.add_messages_to_queue = add_messages_to_queue
    raybackend.RayBackend = EndingRayBackend  # type: ignore[misc]  # a class of Flower's is replaced
    raybackend.ClientAppActor = ray.remote(ClientAppActor)  # type: ignore[misc, assignment]  # another one
    try:
        yield
    finally:
        vce_api.add_messages_to_queue, raybackend.RayBackend, raybackend.ClientAppActor = before  # type: ignore[misc]


def _client_app(
    folders: dict[str, Path],
    open_site: Callable[[Path], Any],
    answer: Callable[[Any, Any], Any],
    release: Callable[[Any, Any], Any] | None,
) -> Any:
    from wardround_client.flower.client_app import make_client_app

    places = tuple(str(folders[name]) for name in sorted(folders))
    app = make_client_app(functools.partial(_opened, places, open_site), answer, release)
    app.query("whoami")(_say_who)
    return app


_open_sites: dict[str, Any] = {}  # in a worker process: the sites that it has opened, by folder


def _opened(places: tuple[str, ...], open_site: Callable[[Path], Any], context: Context) -> Any:
    """Return the site of this node, which is opened once per process."""
    place = places[int(context.node_config["partition-id"])]
    _log_to(Path(place))
    if place not in _open_sites:
        _open_sites[place] = open_site(Path(place))
    return _open_sites[place]


def _log_to(folder: Path) -> None:
    """Redirect this process's log to that of the site that it now works for."""
    root = logging.getLogger("wardround_client")
    for handler in list(root.handlers):
        if isinstance(handler, logging.FileHandler):
            root.removeHandler(handler)
            handler.close()
    handler = logging.FileHandler(folder / "site.log", encoding="utf-8", delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root.addHandler(handler)
    root.setLevel(logging.INFO)


def _say_who(message: Message, context: Context) -> Message:
    from flwr.app import ConfigRecord, Message, RecordDict

    partition = int(context.node_config["partition-id"])
    return Message(RecordDict({"whoami": ConfigRecord({"partition": partition})}), reply_to=message)


def _who_is_who(grid: Grid, names: tuple[str, ...], stopped: threading.Event) -> dict[str, int]:
    """Return site name -> node id. Each node is queried once for its index in the sorted list of names."""
    from flwr.app import Message, RecordDict

    ends = time.monotonic() + START_LIMIT_S
    nodes: list[int] = []
    while len(nodes) < len(names) and time.monotonic() < ends and not stopped.wait(0.01):
        nodes = list(grid.get_node_ids())
    messages = [Message(RecordDict(), dst_node_id=node, message_type=WHOAMI, ttl=START_LIMIT_S) for node in nodes]
    asked, directory = set(grid.push_messages(messages)), {}
    while asked and time.monotonic() < ends and not stopped.wait(0.01):
        for reply in grid.pull_messages(asked):
            asked.discard(reply.metadata.reply_to_message_id)
            if reply.has_error():
                raise WardroundError("a worker of the simulation engine did not start; see the run's log folder")
            partition = int(cast(int, reply.content.config_records["whoami"]["partition"]))
            directory[names[partition]] = reply.metadata.src_node_id
    if stopped.is_set() or len(directory) < len(names):
        raise RoundError("the simulation engine's workers did not start in time")
    return directory


@contextlib.contextmanager
def _engine_log(log_folder: Path | None) -> Iterator[None]:
    """Redirect the logs of Flower and Ray from the terminal to `log_folder`/engine.log; without a folder drop them."""
    from flwr.supercore.logger import FLOWER_LOGGER

    handler: logging.Handler = logging.NullHandler()
    if log_folder is not None:
        log_folder.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(log_folder / "engine.log", encoding="utf-8")
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        handler.setLevel(logging.INFO)
    loggers = (FLOWER_LOGGER, log)
    before = [(list(logger.handlers), logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.handlers[:], logger.propagate = [handler], False
    try:
        yield
    finally:
        for logger, (handlers, propagate) in zip(loggers, before, strict=True):
            logger.handlers[:], logger.propagate = handlers, propagate
        handler.close()
