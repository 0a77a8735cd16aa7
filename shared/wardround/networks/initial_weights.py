"""Write a study's network before training to a file, so that a server can start without loading torch itself.

    python -I -m wardround.networks.initial_weights STUDY.json START.safetensors

The file contains the whole network; its manifest contains the names of the exchanged weights and the architecture's
hash. The same study gives the same tensors on the same machine. A site uses the weights that it receives unchanged, and
takes all other weights from its own files, which the hash covers.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from wardround.errors import WardroundError
from wardround.networks.build import initial_network
from wardround.networks.fingerprint import architecture_sha256
from wardround.networks.weights import exchanged_names
from wardround.storage.checkpoint import save_checkpoint
from wardround.study.load import Study, study_from_json


def write_start(study: Study, path: Path) -> None:
    """Write the study's initial weights to `path`. Raises `ModelError` if the study's network cannot be built."""
    network = initial_network(study)
    tensors = {name: tensor.detach().cpu().numpy() for name, tensor in network.state_dict().items()}
    manifest = {
        "kind": "start",
        "study_sha256": study.sha256(),
        "architecture_sha256": architecture_sha256(network),
        "exchanged": list(exchanged_names(network, study.model.trainable)),
    }
    save_checkpoint(path, tensors, manifest)


def main(arguments: Sequence[str]) -> None:
    """Write the file, or exit with a one-line error."""
    source, path = arguments
    try:
        write_start(study_from_json(Path(source).read_text(encoding="utf-8"), source), Path(path))
    except WardroundError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main(sys.argv[1:])
