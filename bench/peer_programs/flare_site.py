"""What a site runs under NVFLARE's simulator: a round's training for each model that arrives."""

from __future__ import annotations

import sys

import nvflare.client as flare
import work


def main() -> None:
    settings = work.settings_of(sys.argv[1])
    flare.init()
    site = flare.get_site_name()
    network = work.SeedCNN(settings["image_size"])
    while flare.is_running():
        received = flare.receive()
        network.load_state_dict(received.params)
        received_score = work.score(network, {**settings, "sites": [site]})
        weights = work.train(network, settings, site)
        flare.send(flare.FLModel(params=weights, metrics={"accuracy": received_score}))


if __name__ == "__main__":
    main()
