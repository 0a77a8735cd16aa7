"""For the warm process of `executor.py` alone, which imports this and is forked for each message: its end is tied
to the executor's, and then all is loaded that an answer needs.

Nothing here may start a thread, look at a device, read data or make a secret: every fork would share it.
"""

import signal

from wardround.processes.parent_death import tie_this_process

tie_this_process(signal.SIGKILL, "wardround-warm")  # first: loading takes seconds, and the executor may end meanwhile

import flwr.supernode.runtime.run_clientapp  # noqa: E402, F401

import wardround_client.flower.site_app  # noqa: E402, F401
import wardround_client.flower.task_process  # noqa: E402, F401
import wardround_client.rounds.evaluation  # noqa: E402, F401
import wardround_client.rounds.training  # noqa: E402, F401
import wardround_client.site.site  # noqa: E402, F401
