"""One plain loop: federated averaging over the sites in one process, without any framework.

python loop.py SETTINGS.json
"""

from __future__ import annotations

import json
import sys

import work


def main() -> None:
    settings = work.settings_of(sys.argv[1])
    network = work.SeedCNN(settings["image_size"])
    weights, scores = network.state_dict(), []
    for _ in range(settings["rounds"]):
        replies = []
        for site in settings["sites"]:
            network.load_state_dict(weights)
            replies.append(work.train(network, settings, site))
        weights = work.mean_of(replies)
        network.load_state_dict(weights)
        scores.append(work.score(network, settings))
    print(json.dumps({"scores": scores}))


if __name__ == "__main__":
    main()
