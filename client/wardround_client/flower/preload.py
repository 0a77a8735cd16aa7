"""Imports of `executor.py`'s warm process, which is forked for each message.

Importing this module first ties the end of the process to the executor's, and then loads everything that an answer
needs. Nothing here may start a thread, use a device, read data or make a secret, because every fork would share it.
"""

import signal

from wardround.processes.parent_death import end_with_parent

end_with_parent(signal.SIGKILL, "wardround-warm")  # first, because the executor may end during the seconds of loading

import flwr.supernode.runtime.run_clientapp  # noqa: E402, F401

import wardround_client.flower.site_app  # noqa: E402, F401
import wardround_client.flower.task_process  # noqa: E402, F401
import wardround_client.privacy.noise  # noqa: E402, F401  # Opacus, which training loads only for a plan with noise
import wardround_client.rounds.evaluation  # noqa: E402, F401
import wardround_client.rounds.training  # noqa: E402, F401
import wardround_client.site.site  # noqa: E402, F401
