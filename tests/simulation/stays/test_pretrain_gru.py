"""The shipped start of `gru` comes from simulated stays alone, and the command that made it makes such a file again."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import pytest
import torch
from builders.networks import records_study
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from wardround.errors import ModelError, UsageError
from wardround.metrics.classification import auc
from wardround.networks.build import initial_network
from wardround.phantoms.stays import stays
from wardround.tasks.early_warning.hourly_gru import SHIPPED_FILE, HourlyGRU
from wardround_simulation.cli.main import app
from wardround_simulation.stays import pretrain_gru as module
from wardround_simulation.stays.pretrain_gru import pretrain_gru

SHIPPED = Path(str(files("wardround.tasks.early_warning") / SHIPPED_FILE))


def gru(init: str, **model: str) -> HourlyGRU:
    network = initial_network(records_study("gru", hours=48, model={"init": init, **model}))
    assert isinstance(network, HourlyGRU)
    return network


def test_the_shipped_start_foresees_simulated_deaths_better_with_every_day() -> None:
    rows_NTV, died_N = stays(600, 99)  # not among those of the training
    with torch.no_grad():
        scores_NT = gru("phantom")(torch.from_numpy(rows_NTV)).sigmoid().numpy()
    early, late = (auc(scores_NT[:, hour], died_N) for hour in (5, 47))
    assert early is not None and late is not None and 0.7 < early < late and late > 0.85


def test_the_same_seed_gives_the_same_weights(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(module, "BATCH", 16)
    facts = [pretrain_gru(tmp_path / f"{n}.safetensors", stays=32, epochs=1) for n in range(2)]
    assert facts[0] == facts[1] and "--network gru --seed 1 --stays 32 --epochs 1" in facts[0]["command"]
    network = gru(str(tmp_path / "0.safetensors"))
    stored = load_file(tmp_path / "0.safetensors")
    assert all(torch.equal(one, stored[name]) for name, one in network.named_parameters())


def test_a_damaged_start_is_refused(tmp_path: Path) -> None:
    from safetensors import safe_open

    with safe_open(SHIPPED, framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(SHIPPED)
    tensors["head.bias"] = tensors["head.bias"] + 1
    save_file(tensors, tmp_path / "other.safetensors", metadata=metadata)
    with pytest.raises(ModelError, match="its tensors do not match its hash"):
        gru(str(tmp_path / "other.safetensors"))


@pytest.mark.parametrize(
    "words, says",
    [
        (("--network", "gru", "--crops", "2000"), "--crops: is not for --network gru, which trains on simulated stays"),
        (("--stays", "2000"), "--stays: is only for --network gru"),
    ],
)
def test_stays_and_phantoms_are_not_confused(tmp_path: Path, words: tuple[str, ...], says: str) -> None:
    result = CliRunner().invoke(app, ["pretrain", str(tmp_path / "one.safetensors"), *words])
    assert isinstance(result.exception, UsageError) and says in str(result.exception)
    assert not list(tmp_path.iterdir())
