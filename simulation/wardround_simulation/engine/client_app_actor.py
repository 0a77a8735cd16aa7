"""What runs in a worker process of the simulation: Flower's ClientApp, called once a message.

It does what `ClientAppActor` of flwr.simulation.ray_transport does. To unpickle that class a worker must import the
whole of Flower's simulation with its server and databases: half a second of processor time and 40 MB in each worker.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.clientapp.client_app import ClientAppException

RARELY = 200_000  # new objects between two searches for garbage


class ClientAppActor:
    """A Ray actor of the engine, which Flower's pool of actors calls.

    Until the first message is answered the process mostly imports, torch above all. Python's search for cyclic garbage
    would take a fifth of that time, so it runs rarely until then.
    """

    def __init__(self) -> None:
        self._thresholds = gc.get_threshold()
        self._started = False
        gc.set_threshold(RARELY)

    def run(
        self, client_app: Callable[[], ClientApp], message: Message, site: str, context: Context
    ) -> tuple[str, Message, Context]:
        """Answer one message; `site` is the pool's name for the node.

        Raises:
            ClientAppException: The app failed.
        """
        try:
            reply = client_app()(message=message, context=context)
        except Exception as error:
            raise ClientAppException(str(error)) from error
        finally:
            if not self._started:
                self._started = True
                _load_optimizers()
                gc.freeze()
                gc.set_threshold(*self._thresholds)
        return site, reply, context


def _load_optimizers() -> None:
    """Construct an optimizer: the first one of a process makes torch import its compiler, whether it is used or not."""
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
