"""The shipped familiarity score: nodules are familiar, other pictures are not, and an altered file is refused."""

import pytest
import torch
from builders.exported import nodule_study
from safetensors.torch import load_file, save_file

from wardround.errors import ModelError
from wardround.phantoms.crops import generate_crops
from wardround.phantoms.outliers import EMPTY_SHARE, generate_outliers
from wardround.tasks.classification.familiarity import THRESHOLD, Familiarity, familiarity_of, load_familiarity
from wardround_simulation.phantoms import pretrain_familiarity as pretraining

COUNT = 300


@pytest.fixture(scope="module")
def shipped():
    return load_familiarity()


def refused(shipped, images_NHW):
    network, threshold = shipped
    with torch.no_grad():
        return float((network(images_NHW[:, None]) > threshold).float().mean())


def test_fresh_nodules_are_familiar_and_other_pictures_are_not(shipped):
    others = generate_outliers(COUNT, 5001)
    empty = round(EMPTY_SHARE * COUNT)
    assert refused(shipped, generate_crops(COUNT, 5001).images_NHW) < 0.05
    assert refused(shipped, others[:empty]) > 0.88
    assert refused(shipped, others[-60:]) > 0.93
    assert refused(shipped, torch.randint(0, 256, (50, 64, 64), dtype=torch.uint8)) == 1.0


def test_the_distance_of_an_image_depends_on_that_image_alone_and_not_on_its_orientation(shipped):
    images_NCHW = generate_crops(6, 5002).images_NHW[:, None]
    network = shipped[0]
    with torch.no_grad():
        together = network(images_NCHW)
        alone = torch.cat([network(one[None]) for one in images_NCHW])
        turned = network(images_NCHW.rot90(1, (2, 3)).flip(3))
    assert torch.allclose(together, alone, atol=1e-4)
    assert torch.allclose(together, turned, atol=1e-3)


def test_the_middle_of_a_larger_image_is_judged(shipped):
    (crop,) = generate_crops(1, 5003).images_NHW
    larger = torch.zeros(1, 1, 128, 128, dtype=torch.uint8)
    larger[0, 0, 32:96, 32:96] = crop
    with torch.no_grad():
        assert shipped[0](larger) == pytest.approx(shipped[0](crop[None, None]).item(), abs=1e-4)


@pytest.mark.parametrize("data", [{"modality": "MR"}, {"region": "whole", "spacing_mm": None}, {"modality": "any"}])
def test_other_studies_have_no_reference_and_refuse_nothing(data):
    network, threshold = familiarity_of(nodule_study(**data))
    assert not isinstance(network, Familiarity)
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    assert (network(images) <= threshold).all()


def test_an_altered_file_is_refused(tmp_path):
    from safetensors import safe_open

    from wardround.tasks.classification import familiarity

    path = familiarity.__file__.replace("familiarity.py", familiarity.SHIPPED_FILE)
    tensors = load_file(path)
    with safe_open(path, framework="pt") as stored:
        metadata = stored.metadata()
    for change, message in (
        ({"tensors": {**tensors, "mean_D": tensors["mean_D"] + 1}}, "do not match its hash"),
        ({"tensors": {"mean_D": tensors["mean_D"]}}, "not a familiarity network"),
        ({"metadata": {name: value for name, value in metadata.items() if name != THRESHOLD}}, "states no threshold"),
    ):
        save_file(change.get("tensors", tensors), tmp_path / "a.safetensors", change.get("metadata", metadata))
        with pytest.raises(ModelError, match=message):
            load_familiarity(str(tmp_path / "a.safetensors"))


@pytest.mark.slow
def test_pretraining_repeats_itself_and_what_it_writes_loads(tmp_path, monkeypatch):
    monkeypatch.setattr(pretraining, "REFERENCE_CROPS", 400)
    monkeypatch.setattr(pretraining, "THRESHOLD_CROPS", 400)
    random_state = torch.get_rng_state()
    made = [
        pretraining.pretrain_familiarity(tmp_path / f"{number}.safetensors", crops=1_000, epochs=1)
        for number in range(2)
    ]
    assert made[0] == made[1]
    assert torch.equal(torch.get_rng_state(), random_state)
    assert load_familiarity(str(tmp_path / "0.safetensors"))[1] == float(made[0][THRESHOLD])
