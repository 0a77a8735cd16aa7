"""A study's network before any patient moved it, as a file: what a server starts from without loading torch itself.

    python -I -m wardround.networks.initial_weights STUDY.json START.safetensors

The file holds the whole network; its manifest names the weights that travel and the architecture's hash. The same study
gives the same tensors on the same machine; a site takes the weights it receives as they are, and what does not travel
from its own files, which the hash covers.
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
    """Write the study's first weights to `path`. Raises `ModelError` where the study's network cannot be built."""
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
    """Write the file, or say in one line why not."""
    source, path = arguments
    try:
        write_start(study_from_json(Path(source).read_text(encoding="utf-8"), source), Path(path))
    except WardroundError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main(sys.argv[1:])
