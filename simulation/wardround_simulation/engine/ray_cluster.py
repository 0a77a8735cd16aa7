"""A Ray of our own for one run: on loopback, behind a token, quiet, bounded in memory, and gone when the run is.

Left alone, Ray listens on every interface and runs code for whoever connects, calls out, and joins any cluster it finds
named in a shared temporary folder. So the environment is set before Ray is imported, the address is always given, and
the temporary folder is the run's own. Ray's processes die with the process that called `start` (PR_SET_PDEATHSIG
follows the *thread* that started them, so that must be one that lives as long as the run), also when that is killed
with SIGKILL.
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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wardround.errors import UsageError, WardroundError
from wardround_simulation.run.preflight import check_ray_address

log = logging.getLogger(__name__)
log.addHandler(logging.NullHandler())

OBJECT_STORE_BYTES = 256 * 2**20  # messages on their way between processes; Ray goes on in files when it is full
_PREFIX = "wardround-"
_LONGEST_FOLDER = 40  # Ray makes sockets in it, whose path may have 107 bytes


def quiet_environment() -> None:
    """Set what keeps Flower and Ray from calling out, installing or listening abroad; before either is imported."""
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
    """Ray for the time of the block: one of our own, or with an `address` the cluster that is there. Yields its CPUs.

    Of our own, it has the given CPUs and GPUs, and what its processes wrote is copied to `log_folder`/ray afterwards.
    Raises `UsageError` when there is no cluster at `address`, `WardroundError` when Ray does not start.
    """
    quiet_environment()
    if address is not None:
        with _connected(address) as cpus:
            yield cpus
        return
    _sweep()
    folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=_short_folder()))
    # Ray asks the cloud providers' metadata addresses where it runs, unless this file in its home tells.
    (folder / "ray_bootstrap_config.yaml").write_text("{}\n", encoding="utf-8")
    closed = {
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # its name hides it: Ray then stays on loopback, on every system
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_gcs_rpc_server_reconnect_timeout_s": "10",  # after a SIGKILL Ray's agents go on for so long; by default 60
    }
    try:
        with _environment(closed), _settings_read_again():
            with _environment({"HOME": str(folder), "PYTHONUSERBASE": site.getuserbase()}):
                _start(folder, num_cpus, num_gpus)
            with _no_chatter():
                yield num_cpus
    finally:
        _stop()
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
    """Ray reads these settings once a process, when first imported, which may have been before: make it look again."""
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
            ray.init(
                address="local",
                num_cpus=num_cpus,
                num_gpus=num_gpus,
                object_store_memory=OBJECT_STORE_BYTES,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                _temp_dir=str(folder),
            )
        except Exception as error:
            raise WardroundError(f"the simulation engine (Ray) did not start: {_first_line(error)}") from error
        if ray.util.get_node_ip_address() != "127.0.0.1":
            raise WardroundError("the simulation engine (Ray) did not stay on this machine's loopback address")


@contextlib.contextmanager
def _connected(address: str) -> Iterator[float]:
    check_ray_address(address)  # by itself Ray asks a dead address for many minutes
    import ray

    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:
        raise UsageError(f"--ray-address {address}: no Ray cluster answers there: {_first_line(error)}") from error
    try:
        with _no_chatter():
            yield ray.cluster_resources().get("CPU", 1.0)
    finally:
        _stop()


@contextlib.contextmanager
def _no_chatter() -> Iterator[None]:
    """Ray prints errors of its processes to the driver's output, whatever `log_to_driver` says: to our log instead."""
    from ray._private import worker

    def to_log(data: dict[str, Any], **_: Any) -> None:
        log.warning("%s", " ".join(data["lines"]))

    before = worker.print_to_stdstream
    worker.print_to_stdstream = to_log  # type: ignore[assignment]  # called with the same arguments
    try:
        yield
    finally:
        worker.print_to_stdstream = before


def _stop() -> None:
    import ray

    ray.shutdown()


def _short_folder() -> str:
    folder = tempfile.gettempdir()
    return folder if len(folder) <= _LONGEST_FOLDER else "/tmp"


def _sweep() -> None:
    """Remove what killed runs left behind: folders named by a process that is no more."""
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
