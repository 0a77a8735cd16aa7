"""A private Ray cluster for one run: on loopback, protected by a token, quiet and with bounded memory.

By default Ray listens on every interface, runs code for anyone who connects, makes outgoing connections, and joins any
cluster that is named in a shared temporary folder. So the environment is set before Ray is imported, the address is
always given, and each run has its own temporary folder. The cluster ends with the run. Ray's processes die with the
process that started them, even if that is killed with SIGKILL. They use PR_SET_PDEATHSIG, which follows the *thread*
that started them, so this thread must live as long as the run.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
import site
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from wardround.errors import UsageError, WardroundError
from wardround_simulation.run.preflight import check_ray_address

log = logging.getLogger(__name__)
log.addHandler(logging.NullHandler())

OBJECT_STORE_BYTES = 256 * 2**20  # for messages in transit between processes; when it is full, Ray spills to files
_PREFIX = "wardround-"
_LONGEST_FOLDER = 40  # Ray creates sockets in it, whose paths are limited to 107 bytes


def disable_telemetry() -> None:
    """Set the variables that stop Flower and Ray from making outgoing connections and installing packages.

    Must be called before either is imported.
    """
    os.environ.update(
        FLWR_TELEMETRY_ENABLED="0",
        FLWR_DISABLE_UPDATE_CHECK="1",
        FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION="1",
        UV_OFFLINE="1",
        RAY_USAGE_STATS_ENABLED="0",
        RAY_ENABLE_UV_RUN_RUNTIME_ENV="0",
        RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0",
    )


@contextlib.contextmanager
def ray_cluster(address: str | None, num_cpus: int, num_gpus: int, log_folder: Path | None) -> Iterator[float]:
    """Provide Ray for the duration of the block, and yield the cluster's number of CPUs.

    Args:
        address: An existing cluster to connect to; with None a private one is started and stopped.
        num_cpus, num_gpus: Resources of the private cluster.
        log_folder: The private cluster's logs are copied to `log_folder`/ray afterwards; with None they are deleted.

    Raises:
        UsageError: If there is no cluster at `address`.
        WardroundError: If Ray does not start.
    """
    disable_telemetry()
    if address is not None:
        with _connected(address) as cpus:
            yield cpus
        return
    _sweep()
    folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=_short_folder()))
    # Without this file in its home folder, Ray queries the cloud providers' metadata addresses to find where it runs.
    (folder / "ray_bootstrap_config.yaml").write_text("{}\n", encoding="utf-8")
    closed = {
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # despite its name: with 0 Ray stays on loopback on every system
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_gcs_rpc_server_reconnect_timeout_s": "10",  # how long Ray's agents survive a SIGKILL; 60 by default
    }
    try:
        with _environment(closed), _settings_read_again():
            try:
                with _environment({"HOME": str(folder), "PYTHONUSERBASE": _user_base()}), _sigterm_as_it_is():
                    _start(folder, num_cpus, num_gpus)
                with _no_chatter():
                    yield num_cpus
            finally:
                _stop()  # before the token is taken back: Ray's threads abort the process if they find none
    finally:
        _keep_logs(folder, log_folder)
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _environment(changes: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _settings_read_again() -> Iterator[None]:
    """Make Ray read its settings again.

    Ray reads them once per process, at its first import, which may have happened before this run set them.
    """
    from ray._private import ray_constants
    from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]  # compiled, untyped

    AuthenticationTokenLoader.instance().reset_cache()
    Config.initialize("")
    before, ray_constants.ENABLE_RAY_CLUSTER = ray_constants.ENABLE_RAY_CLUSTER, False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before
        AuthenticationTokenLoader.instance().reset_cache()


def _start(folder: Path, num_cpus: int, num_gpus: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        import ray

        try:
            with _fewer_processes(), _no_arguments():
                ray.init(
                    address="local",
                    num_cpus=num_cpus,
                    num_gpus=num_gpus,
                    object_store_memory=OBJECT_STORE_BYTES,
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    _temp_dir=str(folder),
                    job_config=_job_config(),
                )
        except Exception as error:
            raise WardroundError(f"the simulation engine (Ray) did not start: {_first_line(error)}") from error
        if ray.util.get_node_ip_address() != "127.0.0.1":
            raise WardroundError(
                "the simulation engine (Ray) uses an address other than this machine's loopback address"
            )


class _NoFolders(list[str]):
    """A list that stays empty, in place of the folders that Ray adds to its workers' import path."""

    def extend(self, folders: Iterable[str]) -> None:
        """Add nothing: the driver's working folder may hold a `numpy.py` of its user."""


def _job_config() -> Any:
    """Return Ray's settings of this run, under which workers import nothing from the working folder."""
    from ray.job_config import JobConfig

    config = JobConfig()
    config._py_driver_sys_path = _NoFolders()
    return config


@contextlib.contextmanager
def _fewer_processes() -> Iterator[None]:
    """Start Ray without dashboard, log monitor and autoscaler, which nothing here uses.

    That saves a second of processor time and three Python processes. `include_dashboard=False` alone still starts the
    dashboard's process.
    """
    from ray._private.node import Node

    def start_nothing(node: Node, **_: Any) -> None:
        pass

    unused = ("start_api_server", "start_log_monitor", "start_monitor")
    before = {name: getattr(Node, name) for name in unused}
    for name in unused:
        setattr(Node, name, start_nothing)
    try:
        yield
    finally:
        for name, method in before.items():
            setattr(Node, name, method)


@contextlib.contextmanager
def _no_arguments() -> Iterator[None]:
    """Hide the command from Ray, which stores it in its cluster as text.

    Its paths may be no text in the terminal's encoding, and may name a patient.
    """
    from ray._private import utils

    before = utils.get_entrypoint_name
    utils.get_entrypoint_name = lambda: "wardround-sim"
    try:
        yield
    finally:
        utils.get_entrypoint_name = before


@contextlib.contextmanager
def _connected(address: str) -> Iterator[float]:
    check_ray_address(address)  # Ray itself retries a dead address for many minutes
    import ray

    try:
        with _no_arguments(), _sigterm_as_it_is():
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, job_config=_job_config())
    except Exception as error:
        raise UsageError(f"--ray-address {address}: the Ray cluster cannot be used: {_first_line(error)}") from error
    try:
        with _no_chatter():
            yield ray.cluster_resources().get("CPU", 1.0)
    finally:
        _stop()


@contextlib.contextmanager
def _no_chatter() -> Iterator[None]:
    """Send errors of Ray's processes to our log; Ray prints them on the terminal even with `log_to_driver=False`."""
    from ray._private import worker

    def to_log(data: dict[str, Any], **_: Any) -> None:
        log.warning("%s", " ".join(data["lines"]))

    before = worker.print_to_stdstream
    worker.print_to_stdstream = to_log  # type: ignore[assignment]  # called with the same arguments
    try:
        yield
    finally:
        worker.print_to_stdstream = before


@contextlib.contextmanager
def _sigterm_as_it_is() -> Iterator[None]:
    """Keep Ray from handling SIGTERM by itself, which would end the process in the middle of its start."""
    from ray._private import utils

    before = utils.set_sigterm_handler
    utils.set_sigterm_handler = lambda handler: None
    try:
        yield
    finally:
        utils.set_sigterm_handler = before


def _user_base() -> str:
    """Return the folder of packages that the user installed; the working folder's parent where there is no home."""
    try:
        return site.getuserbase()
    except (KeyError, RuntimeError):  # neither HOME nor an entry in the system's list of users
        return tempfile.gettempdir()


def _stop() -> None:
    import ray

    ray.shutdown()


def _short_folder() -> str:
    folder = tempfile.gettempdir()
    return folder if len(folder) <= _LONGEST_FOLDER else "/tmp"


def _sweep() -> None:
    """Remove the temporary folders that killed runs left behind: those whose process no longer exists."""
    for folder in Path(_short_folder()).glob(f"{_PREFIX}*-*"):
        process = folder.name.removeprefix(_PREFIX).partition("-")[0]
        if process.isdigit() and not Path(f"/proc/{process}").exists() and folder.stat().st_uid == os.getuid():
            shutil.rmtree(folder, ignore_errors=True)


def _keep_logs(folder: Path, log_folder: Path | None) -> None:
    sources = sorted(folder.glob("session_2*/logs/*.*"))
    if log_folder is None or not sources:
        return
    target = log_folder / "ray"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True, exist_ok=True)
    for source in sources:
        with contextlib.suppress(OSError):
            if 0 < source.stat().st_size < 10 * 2**20:
                shutil.copyfile(source, target / source.name)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
