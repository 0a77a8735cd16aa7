"""The same in stock Flower: its simulation on Ray, its FedAvg, the score taken by the server after each round.

python flower.py SETTINGS.json
"""

from __future__ import annotations

import json
import sys

import work
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation


def client_app(settings: dict) -> ClientApp:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        site = settings["sites"][int(context.node_config["partition-id"])]
        network = work.SeedCNN(settings["image_size"])
        network.load_state_dict(message.content["arrays"].to_torch_state_dict())
        weights = work.train(network, settings, site)
        metrics = MetricRecord({"num-examples": len(work.read_site(settings["data"], site)[0])})
        return Message(RecordDict({"arrays": ArrayRecord(weights), "metrics": metrics}), reply_to=message)

    return app


def server_app(settings: dict, scores: list[float]) -> ServerApp:
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        network = work.SeedCNN(settings["image_size"])

        def evaluate(round_: int, arrays: ArrayRecord) -> MetricRecord:
            network.load_state_dict(arrays.to_torch_state_dict())
            scores.append(work.score(network, settings))
            return MetricRecord({"score": scores[-1]})

        strategy = FedAvg(fraction_evaluate=0.0, min_available_nodes=len(settings["sites"]))
        strategy.start(
            grid=grid,
            initial_arrays=ArrayRecord(network.state_dict()),
            train_config=ConfigRecord({}),
            num_rounds=settings["rounds"],
            evaluate_fn=evaluate,
        )

    return app


def main() -> None:
    settings, scores = work.settings_of(sys.argv[1]), []
    run_simulation(
        server_app=server_app(settings, scores),
        client_app=client_app(settings),
        num_supernodes=len(settings["sites"]),
        backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}},
    )
    print(json.dumps({"scores": scores[-settings["rounds"] :]}))


if __name__ == "__main__":
    main()
