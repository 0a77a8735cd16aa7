"""The environment that Flower's processes get: what the machine needs, nothing that calls out, no one's secrets.

Without these settings they report to the vendor, look for updates, and install packages at run time.
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
}


def flower_environment(home: Path, proxy: str | None = None) -> dict[str, str]:
    """Variables for a Flower process whose FLWR_HOME is `home`.

    Proxies of the surroundings are left out: only gRPC may go through one, and only where `proxy` (HOST:PORT) names it.
    """
    kept = {name: value for name, value in os.environ.items() if name in KEPT or name.startswith(KEPT_PREFIXES)}
    programs = Path(sys.executable).parent
    path = os.pathsep.join((str(programs), "/usr/local/bin", "/usr/bin", "/bin"))
    through = {"grpc_proxy": f"http://{proxy}"} if proxy else {}
    return {**kept, **QUIET, **through, "PATH": path, "FLWR_HOME": str(home)}
