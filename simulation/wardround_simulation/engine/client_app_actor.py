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


class ClientAppActor:
    """The engine makes it a Ray actor, and Flower's pool of actors calls it.

    Until the first message is answered the process mostly imports, torch above all, and collects no garbage: that would
    take a fifth of the time.
    """

    def __init__(self) -> None:
        gc.disable()

    def run(
        self, client_app: Callable[[], ClientApp], message: Message, site: str, context: Context
    ) -> tuple[str, Message, Context]:
        """Answer one message; `site` is what the pool calls the node by."""
        try:
            reply = client_app()(message=message, context=context)
        except Exception as error:
            raise ClientAppException(str(error)) from error
        finally:
            if not gc.isenabled():
                _load_optimizers()
                gc.freeze()
                gc.enable()
        return site, reply, context


def _load_optimizers() -> None:
    """The first optimizer of a process makes torch import its compiler, whether it is used or not: do that here."""
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
