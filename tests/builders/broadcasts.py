"""Messages that a server sends to a site in a round."""

from __future__ import annotations

import dataclasses

from wardround.networks.build import initial_network
from wardround.networks.fingerprint import architecture_sha256
from wardround.networks.weights import trained_parameters
from wardround.study.load import Study
from wardround.wire.packets import Broadcast


def broadcast_of(study: Study, round_: int = 1, **changes) -> Broadcast:
    network = initial_network(study)
    weights = {name: p.detach().numpy() for name, p in trained_parameters(network, study).items()}
    message = Broadcast(
        study_sha256=study.sha256(),
        run_id="run",
        round=round_,
        weights=weights,
        architecture_sha256=architecture_sha256(network),
    )
    return dataclasses.replace(message, **changes)
