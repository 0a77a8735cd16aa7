"""The command that reproduces the shipped read-outs of the named outputs."""

import pytest

from wardround.errors import UsageError
from wardround.tasks.classification.explain.named_outputs import OUTPUTS, load_readouts
from wardround_simulation.cli.models import pretrain
from wardround_simulation.phantoms import pretrain_named_outputs as module


@pytest.mark.slow
def test_a_fit_is_reproduced_and_is_read_like_the_shipped_one(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "FRESH_CROPS", 200)
    first, second = (module.pretrain_named_outputs(tmp_path / f"{n}.safetensors", crops=1_000) for n in range(2))
    assert first["tensors_sha256"] == second["tensors_sha256"]
    assert first["command"] == "wardround-sim pretrain --network named-outputs --seed 41 --crops 1000"
    readouts = load_readouts(str(tmp_path / "0.safetensors"))
    assert readouts.accuracy.keys() == {output.concept for output in OUTPUTS}
    assert readouts.accuracy["log_pixels"] > 0.5 and readouts.accuracy["wall_contact"] > 0.8


def test_read_outs_are_not_fitted_in_epochs(tmp_path):
    with pytest.raises(UsageError, match="--epochs: is not for --network named-outputs"):
        pretrain(tmp_path / "a.safetensors", network="named-outputs", epochs=2)
