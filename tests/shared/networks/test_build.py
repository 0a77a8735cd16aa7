"""Theorems about the networks: their layers, the independence of images, and which weight files may be loaded."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest
import torch
from paths import STUDIES
from safetensors.torch import save_file
from torch import nn

from wardround.errors import ModelError
from wardround.networks import build
from wardround.networks.build import build_model
from wardround.networks.densenet import DenseNet121
from wardround.networks.fingerprint import architecture_sha256
from wardround.networks.public_head import PhantomHead
from wardround.networks.weight_standardisation import ImageStandardise, WSConv2d
from wardround.networks.weights import TRAINABLE, exchanged_names
from wardround.sources.images.study import ImageData
from wardround.study.load import load_study
from wardround.study.schema import ModelSection
from wardround.tasks.classification.networks import FROM_SCRATCH
from wardround.tasks.reconstruction.study import ReconstructionSection

NAMES = tuple(FROM_SCRATCH)
LOW_DOSE = ReconstructionSection(degradation="low-dose")
GREY = ImageData(labels=("benign", "malignant"), image_size=64)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def scratch(name: str, trainable: str = "all") -> ModelSection:
    return ModelSection(name=name, init="random", trainable=trainable)


def from_file(name: str, path: Path, sha256: str | None = None, trainable: str = "all") -> ModelSection:
    return ModelSection(name=name, init=str(path), init_sha256=sha256, trainable=trainable)


def images(count: int, channels: int = 1, side: int = 64, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, channels, side, side), dtype=torch.uint8, generator=generator)


def awake(network: nn.Module) -> nn.Module:
    """A head that starts at zero hides what the features do: give it weights."""
    with torch.no_grad():
        network.head.weight.normal_(generator=torch.Generator().manual_seed(1))
    return network


def parameter_count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def same(one: nn.Module, other: nn.Module) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# What the networks are.


def test_densenet121_has_the_published_layers_and_parameters():
    network = DenseNet121(channels=3, outputs=1000)
    layers = [layer for layer in network.modules() if isinstance(layer, (nn.Conv2d, nn.Linear))]
    assert len(layers) == 121
    assert parameter_count(network) == 7_978_856  # torchvision's densenet121, whose BatchNorm has as many weights
    assert network.features(images(1, channels=3)).shape == (1, 1024)


@pytest.mark.parametrize(
    "name, low, high",
    [
        ("phantom-encoder", 23_000, 25_000),
        ("seed-cnn", 7_391_873, 7_391_873),
        ("resnet-small", 1_200_000, 1_300_000),
        ("resnet-large", 11_170_753, 11_170_753),  # ResNet18 with one channel in and one output
        ("densenet121", 6_900_000, 7_000_000),
    ],
)
def test_parameter_counts_at_128_pixels(name, low, high):
    assert low <= parameter_count(build_model(scratch(name), ImageData(labels=("a", "b")), seed=0)) <= high


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("channels, labels", [("grey", ("a", "b")), ("rgb", ("a", "b", "c"))])
def test_every_network_is_a_linear_head_over_features_of_grey_values(name, channels, labels):
    data = ImageData(labels=labels, channels=channels, image_size=64)
    network = awake(build_model(scratch(name), data, seed=0))
    batch = images(2, data.channel_count)
    features, outputs = network.features(batch), 1 if len(labels) == 2 else len(labels)
    assert isinstance(network.head, nn.Linear) and features.shape == (2, network.head.in_features)
    assert features.dtype == torch.float32
    assert network(batch).shape == (2, outputs)
    assert torch.equal(network(batch), network.head(features))
    assert torch.equal(network(batch), network(batch.float()))


@pytest.mark.parametrize("name", NAMES)
def test_an_image_answers_for_itself_alone_and_training_keeps_no_memory_of_it(name):
    network = awake(build_model(scratch(name), GREY, seed=0)).train()
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    batch = images(4)
    together = network(batch)
    alone = torch.cat([network(batch[row : row + 1]) for row in range(4)])
    assert together.std() > 1e-3  # the images do differ, so this compares something
    torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-4)
    assert all(torch.equal(tensor, before[key]) for key, tensor in network.state_dict().items())


@pytest.mark.parametrize("name", NAMES)
def test_no_layer_works_in_place_and_every_weight_gets_a_gradient(name):
    network = awake(build_model(scratch(name), GREY, seed=0))
    assert not any(getattr(layer, "inplace", False) for layer in network.modules())
    network(images(3)).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in network.parameters())


@pytest.mark.parametrize("name", ["resnet-small", "resnet-large", "densenet121"])
def test_group_norm_networks_start_undecided_and_the_last_layer_at_zero(name):
    network = build_model(scratch(name), GREY, seed=0)
    assert not network.head.weight.any() and not network.head.bias.any()
    assert not network(images(2)).any()


def test_a_standardised_filter_forgets_its_scale_and_offset_and_has_mean_0_and_variance_1():
    layer = WSConv2d(3, 5, 3, bias=False)
    batch = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    weight = layer.standardised_weight()
    torch.testing.assert_close(weight.mean((1, 2, 3)), torch.zeros(5), rtol=0, atol=1e-6)
    torch.testing.assert_close(weight.var((1, 2, 3), correction=0), torch.ones(5), rtol=2e-3, atol=0)
    torch.testing.assert_close(layer(batch), nn.functional.conv2d(batch, weight))
    before = layer(batch)
    with torch.no_grad():
        layer.weight.mul_(7).add_(3)
    torch.testing.assert_close(layer(batch), before, rtol=1e-2, atol=1e-2)


def test_an_images_brightness_and_contrast_do_not_matter_and_a_flat_image_stays_flat():
    normalise = ImageStandardise()
    batch = images(3, channels=3).float()
    torch.testing.assert_close(normalise(0.5 * batch + 40), normalise(batch), rtol=1e-2, atol=1e-2)
    faint = 100 + 0.1 * torch.randn(1, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    assert normalise(faint).abs().max() < 0.5
    assert not normalise(torch.full((1, 1, 8, 8), 255, dtype=torch.uint8)).any()


# Where the first weights come from.


@pytest.mark.parametrize("name", NAMES)
def test_random_weights_come_from_the_seed_alone_and_leave_the_callers_generator_as_it_was(name):
    torch.manual_seed(123)
    state = torch.random.get_rng_state()
    first = build_model(scratch(name), GREY, seed=5)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(321)
    assert same(build_model(scratch(name), GREY, seed=5), first)
    assert not same(build_model(scratch(name), GREY, seed=6), first)


def test_the_phantom_head_starts_as_the_phantom_model_and_turns_around_with_the_labels():
    batch = images(4, side=128, seed=3)
    network = build_model(ModelSection(), GREY, seed=0)
    turned = build_model(ModelSection(), ImageData(labels=("malignant", "benign"), image_size=64), seed=0)
    assert network.features(batch).shape == (4, 33)
    torch.testing.assert_close(network(batch)[:, 0], 2 * network.features(batch)[:, 0])
    assert torch.equal(turned(batch), -network(batch))
    assert same(build_model(ModelSection(), GREY, seed=9), network)  # the seed has no say


def test_the_whole_phantom_encoder_starts_with_the_shipped_trunk_and_its_logit():
    network = build_model(ModelSection(trainable="all"), GREY, seed=0)
    head = build_model(ModelSection(), GREY, seed=0)
    assert torch.equal(network.state_dict()["trunk.0.weight"], head.state_dict()["public.encoder.trunk.0.weight"])
    batch = images(4, side=128, seed=3)
    assert torch.equal(network(batch), head.public.encoder(batch)) and network(batch).any()
    turned = ImageData(labels=("malignant", "benign"), image_size=64)
    torch.testing.assert_close(build_model(ModelSection(trainable="all"), turned, seed=0)(batch), -network(batch))
    three = build_model(ModelSection(trainable="all"), ImageData(labels=("a", "b", "c"), image_size=64), seed=0)
    assert not three(batch).any()


# What trains and travels.


def test_only_the_head_of_the_phantom_pipeline_travels():
    network = build_model(ModelSection(), GREY, seed=0)
    assert exchanged_names(network, "head") == ("head.bias", "head.weight")
    assert [name for name, p in network.named_parameters() if p.requires_grad] == ["head.weight", "head.bias"]


@pytest.mark.parametrize("trainable", ["head", "norm+head", "all"])
@pytest.mark.parametrize("name", ["phantom-encoder", "resnet-small", "densenet121"])
def test_what_trains_is_exactly_what_travels_and_it_grows_from_head_to_all(name, trainable):
    network = build_model(scratch(name, trainable), GREY, seed=0)
    names = exchanged_names(network, trainable)
    assert set(names) == {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert list(names) == sorted(names)
    head, norm, everything = (set(exchanged_names(network, scope)) for scope in ("head", "norm+head", "all"))
    assert head < norm < everything == {name for name, _ in network.named_parameters()}
    owners = {network.get_submodule(name.rpartition(".")[0]) for name in norm}
    assert {type(owner) for owner in owners} == {nn.GroupNorm, nn.Linear}


def test_a_network_without_normalisation_layers_cannot_train_them():
    with pytest.raises(ModelError, match="no normalisation layers"):
        build_model(scratch("seed-cnn", "norm+head"), GREY, seed=0)


# What a site approves.


def test_the_architectures_hash_knows_layers_and_sizes_and_not_weights_or_what_trains():
    hashes = {architecture_sha256(build_model(scratch(name), GREY, seed=0)) for name in NAMES}
    hashes |= {architecture_sha256(build_model(ModelSection(), GREY, seed=0))}
    hashes |= {architecture_sha256(build_model(scratch("resnet-small"), ImageData(labels=tuple("abc")), seed=0))}
    assert len(hashes) == len(NAMES) + 2
    small = architecture_sha256(build_model(scratch("resnet-small"), GREY, seed=0))
    assert architecture_sha256(build_model(scratch("resnet-small", "head"), GREY, seed=1)) == small
    assert re.fullmatch("[0-9a-f]{64}", small)


@pytest.mark.parametrize(
    "change",
    [
        lambda network: setattr(network.stem[0], "stride", (1, 1)),
        lambda network: setattr(network.stem[0], "padding_mode", "circular"),
        lambda network: setattr(network.stem[1], "eps", 1.0),
        lambda network: setattr(network.stem[1], "num_groups", 1),
        lambda network: setattr(network.stem, "2", nn.Identity()),
        lambda network: setattr(network.blocks[0].body, "5", nn.ReLU()),
        lambda network: network.double(),
    ],
    ids=["stride", "padding", "epsilon", "groups", "activation", "one layer more", "dtype"],
)
def test_every_change_of_the_architecture_changes_its_hash(change):
    network = build_model(scratch("resnet-small"), GREY, seed=0)
    before = architecture_sha256(network)
    change(network)
    assert architecture_sha256(network) != before


def test_frozen_public_features_count_with_their_values_and_the_head_does_not():
    network = build_model(ModelSection(), GREY, seed=0)
    before = architecture_sha256(network)
    with torch.no_grad():
        network.head.weight.add_(1)
        assert architecture_sha256(network) == before
        network.public.projection_DC[0, 0] += 1e-3
    assert architecture_sha256(network) != before


@pytest.mark.parametrize("trainable", TRAINABLE)
@pytest.mark.parametrize("name", ["phantom-encoder", "restorer", "dcgan"])
def test_what_is_frozen_and_comes_from_a_file_counts_with_its_values_and_what_travels_does_not(name, trainable):
    network = build_model(ModelSection(name=name, trainable=trainable), GREY, seed=0, section=LOW_DOSE)
    before, travels = architecture_sha256(network), exchanged_names(network, trainable)
    counts = set()
    for parameter_name, parameter in network.named_parameters():
        kept = parameter.detach().clone()
        with torch.no_grad():
            parameter.view(-1)[0] += 1e-3
            if architecture_sha256(network) != before:
                counts.add(parameter_name)
            parameter.copy_(kept)
    assert counts == {parameter_name for parameter_name, _ in network.named_parameters()} - set(travels)
    assert bool(counts) == (trainable != "all" or isinstance(network, PhantomHead))


def test_frozen_weights_of_a_seed_do_not_count_for_their_last_bits_depend_on_the_processor():
    one, other = (build_model(scratch("restorer", "head"), GREY, seed, LOW_DOSE) for seed in (0, 1))
    assert not torch.equal(one.generator.stem.weight, other.generator.stem.weight)
    assert architecture_sha256(one) == architecture_sha256(other)


@pytest.mark.parametrize("name", ["restorer", "dcgan"])
def test_a_file_serves_a_study_in_which_another_part_trains(name, tmp_path):
    trained = build_model(ModelSection(name=name, trainable="head"), GREY, seed=0, section=LOW_DOSE)
    metadata, path = {"architecture_sha256": architecture_sha256(trained)}, tmp_path / "model.safetensors"
    save_file(trained.state_dict(), path, metadata=metadata)
    for trainable in TRAINABLE:
        assert same(build_model(from_file(name, path, trainable=trainable), GREY, seed=1), trained)
    with torch.no_grad():
        next(iter(trained.discriminator.parameters())).add_(1)  # another frozen part than the one of that hash
    save_file(trained.state_dict(), path, metadata=metadata)
    with pytest.raises(ModelError, match="a different architecture"):
        build_model(from_file(name, path), GREY, seed=1)


def test_a_layer_that_the_registry_cannot_describe_has_no_hash():
    network = build_model(scratch("seed-cnn"), GREY, seed=0)
    network.trunk[1] = nn.Softplus()
    with pytest.raises(ModelError, match="Softplus"):
        architecture_sha256(network)


@pytest.mark.parametrize(
    "layer",
    [nn.BatchNorm2d(4), nn.BatchNorm2d(4, track_running_stats=False), nn.InstanceNorm2d(4, track_running_stats=True)],
)
def test_statistics_of_a_batch_are_refused_wherever_they_sit(layer):
    network = build_model(scratch("resnet-small"), GREY, seed=0)
    build.refuse_batch_statistics(network)
    network.blocks[2].body[1] = layer
    with pytest.raises(ModelError, match=r"blocks\.2\.body\.1: .*Norm2d stores statistics of patients"):
        build.refuse_batch_statistics(network)


# Weights from a file.


@pytest.mark.parametrize("name", NAMES)
def test_a_written_network_is_read_back_bit_by_bit(name, tmp_path):
    network = awake(build_model(scratch(name), GREY, seed=3))
    path = tmp_path / "model.safetensors"
    save_file(network.state_dict(), path, metadata={"architecture_sha256": architecture_sha256(network)})
    assert same(build_model(from_file(name, path), GREY, seed=0), network)


def test_a_head_trained_over_the_public_features_is_read_back(tmp_path):
    network = awake(build_model(ModelSection(), GREY, seed=0))
    path = tmp_path / "model.safetensors"
    manifest = json.dumps({"architecture_sha256": architecture_sha256(network)})
    save_file(network.state_dict(), path, metadata={"manifest": manifest})
    again = build_model(from_file("phantom-encoder", path, trainable="head"), GREY, seed=0)
    assert same(again, network)
    assert exchanged_names(again, "head") == ("head.bias", "head.weight")


def test_a_file_from_pretraining_serves_in_place_of_the_shipped_encoder(tmp_path):
    shipped = Path(build.__file__).with_name("phantom_encoder.safetensors")
    path = tmp_path / "mine.safetensors"
    path.write_bytes(shipped.read_bytes())
    for trainable in ("head", "all"):
        mine = build_model(from_file("phantom-encoder", path, trainable=trainable), GREY, seed=0)
        assert same(mine, build_model(ModelSection(trainable=trainable), GREY, seed=0))


def tensors_of(name: str = "resnet-small") -> dict[str, torch.Tensor]:
    return dict(build_model(scratch(name), GREY, seed=0).state_dict())


def without(name: str) -> dict[str, torch.Tensor]:
    return {key: tensor for key, tensor in tensors_of().items() if key != name}


@pytest.mark.parametrize(
    "tensors, complaint",
    [
        (lambda: tensors_of("densenet121"), r"blocks\.0\.body\.0\.weight is missing"),
        (lambda: without("stem.1.bias"), r"stem\.1\.bias is missing"),
        (lambda: tensors_of() | {"extra": torch.zeros(1)}, "extra is not part of it"),
        (
            lambda: tensors_of() | {"head.weight": torch.zeros(2, 160)},
            r"head\.weight has shape \(2, 160\), needs \(1, 160\)",
        ),
        (lambda: tensors_of() | {"head.bias": torch.zeros(1).half()}, r"head\.bias has type torch\.float16"),
        (lambda: tensors_of() | {"head.bias": torch.full((1,), torch.nan)}, r"head\.bias holds values that are"),
    ],
    ids=["another network", "a tensor missing", "a tensor more", "another shape", "another type", "not a number"],
)
def test_a_file_of_another_architecture_is_refused_in_one_line_that_names_the_first_mismatch(
    tensors, complaint, tmp_path
):
    path = tmp_path / "other.safetensors"
    save_file(tensors(), path)
    with pytest.raises(ModelError, match=complaint) as caught:
        build_model(from_file("resnet-small", path), GREY, seed=0)
    assert "other.safetensors" in str(caught.value) and "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("key", ["architecture_sha256", "manifest"])
def test_a_file_whose_metadata_name_another_architecture_is_refused(key, tmp_path):
    value = "0" * 64 if key == "architecture_sha256" else json.dumps({"architecture_sha256": "0" * 64})
    path = tmp_path / "other.safetensors"
    save_file(tensors_of(), path, metadata={key: value})
    with pytest.raises(ModelError, match="written for a different architecture"):
        build_model(from_file("resnet-small", path), GREY, seed=0)


def test_a_file_that_changed_since_the_study_was_read_is_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file(tensors_of(), path)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    build_model(from_file("resnet-small", path, sha256), GREY, seed=0)
    save_file(tensors_of() | {"head.bias": torch.ones(1)}, path)
    with pytest.raises(ModelError, match="changed after the study was read"):
        build_model(from_file("resnet-small", path, sha256), GREY, seed=0)


@pytest.mark.parametrize(
    "content", [None, b"", b"\x80\x04pickle", b"\xff" * 64], ids=["absent", "empty", "pickle", "noise"]
)
def test_a_file_that_is_no_safetensors_file_is_refused_in_one_line(content, tmp_path):
    path = tmp_path / "model.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelError, match="model.safetensors: ") as caught:
        build_model(from_file("resnet-small", path), GREY, seed=0)
    assert "\n" not in str(caught.value)


def test_images_too_small_for_the_network_are_refused_before_any_round():
    with pytest.raises(ModelError, match="32 pixels"):
        build_model(scratch("densenet121"), ImageData(labels=("a", "b"), image_size=16), seed=0)
    for name in ("phantom-encoder", "seed-cnn", "resnet-small", "resnet-large"):
        tiny = ImageData(labels=("a", "b"), image_size=16)
        assert build_model(scratch(name), tiny, seed=0)(images(2, side=16)).shape == (2, 1)


# The classic recipe as a study.


def test_the_seed_study_is_the_classic_recipe_ten_epochs_of_it():
    study = load_study(STUDIES / "seed-cnn.toml")
    network = build_model(study.model, study.data, study.study.seed)
    layers = [type(layer).__name__ for layer in network.trunk]
    convolutional = ["Conv2d", "ReLU", "MaxPool2d"]
    assert layers == [*convolutional, *convolutional, "Flatten", "Linear", "ReLU"]
    assert (network.trunk[0].out_channels, network.trunk[3].out_channels) == (32, 64)
    assert network.trunk[7].out_features == 128
    assert network(images(2, channels=3, side=128)).shape == (2, 1)
    assert study.study.rounds * study.training.local_steps * study.privacy.sampling_rate == 10
    assert (study.training.optimizer, study.training.learning_rate) == ("adam", 1e-3)
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_every_key_of_the_seed_study_is_explained_on_its_line_and_the_private_variant_it_names_is_valid():
    lines = (STUDIES / "seed-cnn.toml").read_text(encoding="utf-8").splitlines()
    keys = [line for line in lines if re.match(r"[a-z_0-9]+ = ", line)]
    bare = [line for line in keys if "#" not in line]
    assert len(keys) > 25 and not bare
    private = ("privacy.epsilon=8.0", "privacy.max_grad_norm=1.0", "study.spare_rounds=2")
    assert load_study(STUDIES / "seed-cnn.toml", private).privacy.epsilon == 8
