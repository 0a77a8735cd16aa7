"""The same in NVFLARE: its simulator, its FedAvg, a process for each site; flare_site.py is what a site runs.

python flare.py SETTINGS.json
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import work
from nvflare.app_opt.pt.recipes.fedavg import FedAvgRecipe
from nvflare.recipe import SimEnv

HERE = Path(__file__).resolve().parent


def main() -> None:
    path = Path(sys.argv[1]).resolve()
    settings = work.settings_of(path)
    recipe = FedAvgRecipe(
        name="peers",
        model={"class_path": "work.SeedCNN", "args": {"image_size": settings["image_size"]}},
        min_clients=len(settings["sites"]),
        num_rounds=settings["rounds"],
        train_script=str(HERE / "flare_site.py"),
        train_args=str(path),
    )
    recipe.add_client_file(str(HERE / "work.py"))
    recipe.add_server_file(str(HERE / "work.py"))
    with tempfile.TemporaryDirectory() as workspace:
        run = recipe.execute(SimEnv(clients=settings["sites"], workspace_root=workspace))
        (model,) = Path(run.get_result()).rglob("FL_global_model.pt")
        scores = [score_of(model, settings)]
    print(json.dumps({"scores": scores}))


def score_of(model: Path, settings: dict) -> float:
    import torch

    network = work.SeedCNN(settings["image_size"])
    network.load_state_dict(torch.load(model, weights_only=False)["model"])
    return work.score(network, settings)


if __name__ == "__main__":
    main()
