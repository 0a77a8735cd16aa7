"""The environment of Flower's processes: what the machine needs, without network callbacks and without secrets.

Without these settings, the processes send telemetry to the vendor, check for updates and install packages at run time.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

KEPT = ("HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
KEPT_PREFIXES = ("CUDA_", "NVIDIA_")

QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "UV_OFFLINE": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2",
    "PYTHONUNBUFFERED": "1",
    "PYTHONUTF8": "1",
    "PYTHONSAFEPATH": "1",  # no module is imported from the working folder
    "MKL_DYNAMIC": "FALSE",  # the same number of threads in every product: with another one the last bits may differ
}


def flower_environment(home: Path, proxy: str | None = None) -> dict[str, str]:
    """Return the environment variables for a Flower process whose FLWR_HOME is `home`.

    The proxy settings of the calling process are left out: only gRPC may use a proxy, and only the one named by `proxy`
    (HOST:PORT).
    """
    kept = {name: value for name, value in os.environ.items() if name in KEPT or name.startswith(KEPT_PREFIXES)}
    programs = Path(sys.executable).parent
    path = os.pathsep.join((str(programs), "/usr/local/bin", "/usr/bin", "/bin"))
    through = {"grpc_proxy": f"http://{proxy}"} if proxy else {}
    return {**kept, **QUIET, **through, "PATH": path, "FLWR_HOME": str(home)}
