"""Named outputs measure phantoms, and their shares divide a linear score exactly."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from wardround.errors import ModelError
from wardround.metrics.classification import auc
from wardround.networks.phantom_encoder import load_phantom_encoder
from wardround.networks.public_head import PhantomHead
from wardround.phantoms.crops import CONCEPTS, generate_crops
from wardround.tasks.classification.explain.named_outputs import (
    OUTPUTS,
    decompose,
    load_readouts,
    measure_text,
    measures,
)

LABELS = ("benign", "malignant")


@pytest.fixture(scope="module")
def readouts():
    return load_readouts()


@pytest.fixture(scope="module")
def phantoms():
    return generate_crops(600, 907)


@pytest.fixture(scope="module")
def raw_NK(readouts, phantoms):
    return readouts.raw(phantoms.images_NHW[:, None])


def trained_head(seed=0):
    """A head as a federation would return it: the phantom model, moved in a random direction."""
    head = PhantomHead(load_phantom_encoder()[1], LABELS).eval()
    with torch.no_grad():
        generator = torch.Generator().manual_seed(seed)
        head.head.weight.add_(0.4 * torch.randn(head.head.weight.shape, generator=generator))
        head.head.bias.fill_(-0.3)
    return head


def test_the_stated_accuracy_holds_on_fresh_phantoms(readouts, phantoms, raw_NK):
    for column, output in enumerate(OUTPUTS):
        truth_N = phantoms.concepts_NK[:, CONCEPTS.index(output.concept)].double().numpy()
        values_N = raw_NK[:, column].double().numpy()
        if output.is_probability:
            found = auc(values_N, (truth_N > 0.5).astype(int))
        else:
            found = 1 - np.square(truth_N - values_N).sum() / np.square(truth_N - truth_N.mean()).sum()
        assert found == pytest.approx(readouts.accuracy[output.concept], abs=0.08), output.concept


def test_the_diameter_is_in_mm_of_the_images_pixels(phantoms, raw_NK):
    truth_N = phantoms.concepts_NK[:, CONCEPTS.index("log_pixels")].add(2.4).exp() * 0.7
    measured_N = measures(raw_NK, 0.7)[:, 0]
    assert float((measured_N / truth_N).log().abs().median()) < 0.2
    assert torch.allclose(measures(raw_NK, None)[:, 0] * 0.7, measured_N, rtol=1e-5)
    assert measure_text(OUTPUTS[0], 8.43, 0.7) == "8.4 mm" and measure_text(OUTPUTS[0], 12.2, None) == "12 pixels"
    assert measure_text(OUTPUTS[1], 0.731, 0.7) == "73 %"


@pytest.mark.parametrize("label", [0, 1])
def test_start_shares_and_remainder_add_up_to_the_score(readouts, phantoms, label):
    head = trained_head()
    for image in phantoms.images_NHW[:5]:
        found = decompose(readouts, head, image[None], label)
        with torch.no_grad():
            logit = float(head(image[None, None])[0, 0]) * (1 if label else -1)
        assert found.score == pytest.approx(logit, abs=1e-5)
        total = found.start + sum(share.value for share in found.shares) + found.remainder
        assert total == pytest.approx(found.score, abs=1e-5)


def test_the_remainder_is_not_correlated_with_any_output_over_phantoms(readouts, phantoms, raw_NK):
    head = trained_head()
    remainders = [decompose(readouts, head, image[None], 1).remainder for image in phantoms.images_NHW[:250]]
    for values_N in raw_NK[:250].T.numpy():
        assert abs(np.corrcoef(values_N, remainders)[0, 1]) < 0.25  # two deviations of a correlation are 0.13
    assert np.mean(remainders) == pytest.approx(0, abs=0.15)


def test_a_head_that_is_a_read_out_is_explained_completely(readouts):
    """The score of a head along the regression's own direction varies with the outputs as `explained` says."""
    found = decompose(
        readouts, PhantomHead(load_phantom_encoder()[1], LABELS).eval(), generate_crops(1, 3).images_NHW, 1
    )
    assert 0.9 < found.explained <= 1  # the phantom model judges by what the outputs name
    other = decompose(readouts, trained_head(3), generate_crops(1, 3).images_NHW, 1)
    assert 0 < other.explained < found.explained


def test_a_head_over_other_features_has_no_shares(readouts):
    head = trained_head()
    with torch.no_grad():
        head.public.mean_D.add_(1)
    assert decompose(readouts, head, generate_crops(1, 3).images_NHW, 1) is None


def test_an_altered_file_is_refused(tmp_path):
    from importlib.resources import files

    shipped = files("wardround.tasks.classification.explain") / "named_outputs.safetensors"
    tensors = load_file(str(shipped))
    tensors["bias_K"] = tensors["bias_K"] + 1
    save_file(tensors, tmp_path / "a.safetensors", metadata={"tensors_sha256": "0"})
    with pytest.raises(ModelError, match=r"a\.safetensors"):
        load_readouts(str(tmp_path / "a.safetensors"))
    del tensors["bias_K"]
    save_file(tensors, tmp_path / "b.safetensors")
    with pytest.raises(ModelError, match="not the named outputs of this version"):
        load_readouts(str(tmp_path / "b.safetensors"))
