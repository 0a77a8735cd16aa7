"""The book-keeping engine equals the loop on every network. What it cannot compute is left to the loop."""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
import logging
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from builders.randomness import KnownRandom
from torch import Tensor, nn

from wardround.errors import WardroundError
from wardround.networks.build import build_model, initial_network
from wardround.networks.weight_standardisation import WSConv2d
from wardround.networks.weights import trained_parameters
from wardround.processes.memory import control_group_bytes, total_bytes
from wardround.sources.images.study import ImageData
from wardround.study.load import parse_study
from wardround.study.schema import ModelSection
from wardround.tasks.labelled.objective import loss_per_row
from wardround.tasks.synthesis.dcgan import Discriminator
from wardround_client.clipping import batch_size, layer_rules, select
from wardround_client.clipping.bookkeeping import SpeedSettings, UnknownLayerError, clip_by_bookkeeping
from wardround_client.clipping.engines import (
    ClippedSum,
    PatientBatch,
    check_engine,
    clip_by_loop,
    clip_over_one_pass,
    synthetic_units,
)
from wardround_client.clipping.select import EngineMemory, Sample, candidates_of, checked_engine, engine_for
from wardround_client.privacy.plan import plan_from_study
from wardround_client.training.batches import material_of
from wardround_client.training.train import plan_speed, train

NETWORKS = {
    "seed-cnn": ("all", 32),
    "phantom-encoder": ("all", 32),
    "phantom-encoder norm+head": ("norm+head", 32),
    "resnet-small": ("all", 32),
    "resnet-small norm+head": ("norm+head", 32),
    "resnet-large": ("all", 32),
    "densenet121": ("all", 32),
    "discriminator 64": ("all", 64),
    "discriminator 128": ("all", 128),
}
UNITS = {"k = 1": [1, 1], "k = 2": [2, 2], "k = 4": [4, 4], "all, uneven": [3, 1, 2]}
BF16 = SpeedSettings(precision="bfloat16")
SMALL = {
    "study": {"name": "t", "rounds": 3, "spare_rounds": 1},
    "data": {"labels": ["a", "b"], "image_size": 32},
    "model": {"name": "seed-cnn", "init": "random", "trainable": "all"},
    "training": {"learning_rate": 0.5},
    "privacy": {"epsilon": 8.0, "delta": 1e-4, "max_grad_norm": 0.3, "nominal_patients": 8},
    "aggregation": {"nominal_sites": 1},
}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@functools.cache
def network_of(name: str) -> tuple[nn.Module, dict[str, nn.Parameter]]:
    trainable, size = NETWORKS[name]
    if name.startswith("discriminator"):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # of some weights that other tests' draws leave to it, no patient would be clipped
            network: nn.Module = Discriminator(size, 1)
        with torch.no_grad():  # larger than its first weights, which hardly tell images apart
            for parameter in network.parameters():
                parameter.mul_(3)
    else:
        model = ModelSection(name=name.split()[0], init="random", trainable=trainable)
        network = build_model(model, ImageData(labels=("a", "b"), image_size=size), 0)
        with torch.no_grad():  # a zero head sends no gradient into the layers below it, and would test nothing there
            generator = torch.Generator().manual_seed(1)
            network.head.weight.copy_(torch.randn(network.head.weight.shape, generator=generator) * 0.1)
    return network, {name: p for name, p in network.named_parameters() if p.requires_grad}


def batch_of(name: str, units: list[int], seed: int = 0) -> PatientBatch:
    generator = torch.Generator().manual_seed(seed)
    size = NETWORKS[name][1]
    images = torch.randint(0, 256, (sum(units), 1, size, size), generator=generator).float()
    images = images / 127.5 - 1 if name.startswith("discriminator") else images
    labels = torch.arange(sum(units)) % 2
    return PatientBatch(inputs_N=images, labels_N=labels, start_U1=torch.tensor([0, *np.cumsum(units)]))


def length(gradients: dict[str, Tensor]) -> float:
    return math.sqrt(sum(float(g.double().square().sum()) for g in gradients.values()))


def gap(one: ClippedSum, two: ClippedSum) -> float:
    """Relative L2 distance of two sums."""
    difference = {name: one.gradients[name] - two.gradients[name] for name in two.gradients}
    return length(difference) / length(two.gradients)


@functools.cache
def some_length(name: str) -> float:
    """The length of an average image's gradient: as a clipping norm, some units exceed it and some do not."""
    network, parameters = network_of(name)
    total = clip_over_one_pass(network, parameters, batch_of(name, [1, 1], seed=9), loss_per_row, math.inf)
    return 0.6 * length(total.gradients)


# Equality


@pytest.mark.parametrize("units", UNITS)
@pytest.mark.parametrize("name", NETWORKS)
def test_it_is_the_loop_on_every_network_whatever_patients_bring(name: str, units: str) -> None:
    network, parameters = network_of(name)
    batch = batch_of(name, UNITS[units])
    clip = some_length(name)
    fast = clip_by_bookkeeping(network, parameters, batch, loss_per_row, clip)
    assert fast.sensitivity == clip and list(fast.gradients) == list(parameters)
    assert all(fast.gradients[key].shape == parameters[key].shape for key in parameters)
    # 121 layers carry the rounding of another batch size across zero here and there: over one batch the two agree
    oracle = clip_over_one_pass if name == "densenet121" else clip_by_loop
    assert gap(fast, oracle(network, parameters, batch, loss_per_row, clip)) < 1e-5
    assert all(parameter.requires_grad and parameter.grad is None for parameter in parameters.values())


class Odd(nn.Module):
    """What the shipped networks do not have: groups, dilation, uneven strides, biases, 1 x 1 with stride, sequences."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 16, (3, 5), stride=(2, 1), padding=(1, 2))
        self.grouped = WSConv2d(16, 16, 3, padding=2, dilation=2, groups=4)
        self.narrow = WSConv2d(16, 64, 1, stride=2)
        self.last = WSConv2d(64, 128, 3, padding=1)
        self.tokens = nn.Linear(128, 24)
        self.head = nn.Linear(24, 3)

    def forward(self, images: Tensor) -> Tensor:
        maps = torch.relu(self.grouped(torch.relu(self.first(images))))
        maps = torch.tanh(self.last(torch.tanh(self.narrow(maps))))
        return self.head(torch.tanh(self.tokens(maps.flatten(2).transpose(1, 2))).mean(1))


@pytest.mark.parametrize("rule", ["ghost", "direct", "as chosen"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_direct_and_ghost_are_the_loop_for_odd_layers(rule: str, channels_last: bool, monkeypatch) -> None:
    if rule != "as chosen":
        choice = functools.partial(lambda ghost, layer, positions, device: ghost and layer.groups == 1, rule == "ghost")
        monkeypatch.setattr(layer_rules, "ghost_is_cheaper", choice)
    torch.manual_seed(0)
    network = Odd()
    parameters = dict(network.named_parameters())
    batch = PatientBatch(
        inputs_N=torch.randn(7, 2, 12, 12), labels_N=torch.arange(7) % 3, start_U1=torch.tensor([0, 2, 3, 7])
    )
    for clip in (1e-2, 1e3):
        speed = SpeedSettings(channels_last=channels_last)
        fast = clip_by_bookkeeping(network, parameters, batch, loss_per_row, clip, speed=speed)
        assert gap(fast, clip_by_loop(network, parameters, batch, loss_per_row, clip)) < 1e-5


@pytest.mark.parametrize("name", ["seed-cnn", "resnet-small", "discriminator 64"])
def test_an_empty_draw_is_zero_and_a_patient_too_large_for_a_group_goes_through_the_loop(name: str) -> None:
    network, parameters = network_of(name)
    empty = clip_by_bookkeeping(network, parameters, batch_of(name, []), loss_per_row, 0.5)
    assert empty.sensitivity == 0.5 and length(empty.gradients) == 0
    assert {key: g.shape for key, g in empty.gradients.items()} == {key: p.shape for key, p in parameters.items()}
    alone = batch_of(name, [3])
    small = SpeedSettings(group_images=2)
    fast = clip_by_bookkeeping(network, parameters, alone, loss_per_row, 0.5, speed=small)
    assert gap(fast, clip_by_loop(network, parameters, alone, loss_per_row, 0.5)) == 0


@pytest.mark.parametrize("poison", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["seed-cnn", "resnet-small", "discriminator 64"])
def test_a_patient_with_nan_counts_as_zero_and_changes_nobody_else(name: str, poison: float) -> None:
    network, parameters = network_of(name)
    healthy = batch_of(name, [2, 1, 2, 1])
    sick = healthy.inputs_N.clone()
    sick[2, 0, 5, 5] = poison  # the second patient
    batch = PatientBatch(inputs_N=sick, labels_N=healthy.labels_N, start_U1=healthy.start_U1)
    rest = PatientBatch(
        inputs_N=healthy.inputs_N[[0, 1, 3, 4, 5]],
        labels_N=healthy.labels_N[[0, 1, 3, 4, 5]],
        start_U1=torch.tensor([0, 2, 4, 5]),
    )
    expected = clip_by_loop(network, parameters, rest, loss_per_row, 0.1)
    assert gap(clip_by_loop(network, parameters, batch, loss_per_row, 0.1), expected) < 1e-5
    assert gap(clip_by_bookkeeping(network, parameters, batch, loss_per_row, 0.1), expected) < 1e-5


@pytest.mark.parametrize("name", ["seed-cnn", "discriminator 64"])
def test_physical_batches_add_up_to_the_logical_one(name: str) -> None:
    network, parameters = network_of(name)
    batch, total = batch_of(name, [2, 1, 3, 2, 1, 3]), {}
    for first in (0, 2, 4):
        begin, end = int(batch.start_U1[first]), int(batch.start_U1[first + 2])
        part = PatientBatch(
            inputs_N=batch.inputs_N[begin:end],
            labels_N=batch.labels_N[begin:end],
            start_U1=batch.start_U1[first : first + 3] - begin,
        )
        for key, gradient in clip_by_bookkeeping(network, parameters, part, loss_per_row, 0.1).gradients.items():
            total[key] = total[key] + gradient if key in total else gradient
    whole = clip_by_bookkeeping(network, parameters, batch, loss_per_row, 0.1)
    assert gap(ClippedSum(gradients=total, sensitivity=0.1), whole) < 1e-5


# The bound


@pytest.mark.parametrize("speed", [SpeedSettings(), SpeedSettings(channels_last=True), BF16], ids=str)
@pytest.mark.parametrize("name", ["seed-cnn", "resnet-small", "discriminator 64"])
def test_a_patients_share_of_the_sum_is_never_longer_than_c_in_any_precision(name: str, speed: SpeedSettings) -> None:
    """The other patient of each batch is not finite, so the sum is one patient's share: all of it, and nothing else."""
    network, parameters = network_of(name)
    clip = 1e-3  # every patient is clipped: the bound is reached, so the test has power
    for images in (1, 3):
        batch = batch_of(name, [images, images], seed=images)
        batch.inputs_N[images:] = math.nan
        share = clip_by_bookkeeping(network, parameters, batch, loss_per_row, clip, speed=speed)
        assert share.sensitivity == clip
        assert 0.98 * clip < length(share.gradients) <= clip


# What it cannot do


class Small(nn.Module):
    def __init__(self, middle: nn.Module) -> None:
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.middle = middle
        self.head = nn.Linear(8, 1)

    def forward(self, rows: Tensor) -> Tensor:
        return self.head(torch.tanh(self.middle(torch.tanh(self.first(rows)))))


class Tied(Small):
    """Its head's weight works once more outside the head: no hook sees that."""

    def forward(self, rows: Tensor) -> Tensor:
        hidden = self.middle(torch.tanh(self.first(rows)))
        return self.head(hidden) + (hidden * self.head.weight.square()).sum(1, keepdim=True)


class Twice(Small):
    def forward(self, rows: Tensor) -> Tensor:
        return self.head(self.middle(torch.tanh(self.middle(self.first(rows)))))


class InPlace(Small):
    def forward(self, rows: Tensor) -> Tensor:
        hidden = self.first(rows) + 1
        kept = self.middle(hidden)
        hidden.mul_(2)
        return self.head(kept + hidden)


def shared() -> nn.Module:
    network = Small(nn.Linear(8, 8))
    network.head.bias = nn.Parameter(torch.zeros(1))
    network.middle.weight = network.first.weight = nn.Parameter(torch.randn(8, 8) * 0.3)
    network.first.in_features = 8
    return network


def sample_of(width: int) -> Sample:
    rows = torch.randn(7, width, generator=torch.Generator().manual_seed(0))
    return Sample(images_N=rows, outputs=1, images_per_unit=2)


@pytest.mark.parametrize("k", [None, 1, 2])
def test_a_linear_layer_used_several_times_counts_every_use(k: int | None) -> None:
    """The rule of a recurrent network: each use is a further position of the same unit."""
    torch.manual_seed(0)
    network = Twice(nn.Linear(8, 8))
    parameters = dict(network.named_parameters())
    rows = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))
    sizes = (1, 4, 3) if k is None else (k,) * 4
    batch = synthetic_units(rows, 1, sizes)
    right = clip_by_loop(network, parameters, batch, loss_per_row, 0.3)
    speed = SpeedSettings(group_images=4, images_per_unit=k)
    found = clip_by_bookkeeping(network, parameters, batch, loss_per_row, 0.3, speed=speed)
    assert gap(found, right) < 1e-6


@pytest.mark.parametrize(
    "make, width, says",
    [
        (lambda: Small(nn.LayerNorm(8)), 6, "middle: LayerNorm has no clipping rule"),
        (lambda: Small(nn.PReLU()), 6, "middle: PReLU has no clipping rule"),
        (shared, 8, "middle: Linear shares a parameter"),
        (lambda: Tied(nn.Linear(8, 8)), 6, "differs from the one-patient loop"),
        (lambda: Twice(nn.GroupNorm(2, 8)), 6, "middle: used twice in one pass"),
    ],
    ids=["LayerNorm", "PReLU", "shared", "outside its layer", "twice"],
)
@pytest.mark.parametrize("cached", [False, True])
def test_what_it_cannot_do_falls_back_to_the_loop_in_one_line(make, width, says, cached, caplog, tmp_path) -> None:
    torch.manual_seed(0)
    network = make()
    parameters, sample = dict(network.named_parameters()), sample_of(width)
    with caplog.at_level(logging.WARNING):
        engine = checked_engine(
            network, parameters, loss_per_row, sample, 0.3, memory=EngineMemory(choices=tmp_path) if cached else None
        )
    assert engine.func is clip_by_loop or cached  # a trial may take the loop of itself, and then there is no line
    batch = PatientBatch(inputs_N=sample.images_N, labels_N=torch.arange(7) % 2, start_U1=torch.tensor([0, 3, 7]))
    right = clip_by_loop(network, parameters, batch, loss_per_row, 0.3)
    assert gap(engine(network, parameters, batch, loss_per_row, 0.3), right) < 1e-5
    lines = [record.getMessage() for record in caplog.records]
    if not cached:
        assert len(lines) == 1 and "\n" not in lines[0] and says in lines[0]


def test_the_check_at_the_start_catches_a_fast_engine_that_is_wrong() -> None:
    network, parameters = network_of("seed-cnn")
    images = batch_of("seed-cnn", [7]).inputs_N

    def per_image(network, parameters, batch, loss, clip):
        each = torch.arange(len(batch.inputs_N) + 1)
        single = PatientBatch(inputs_N=batch.inputs_N, labels_N=batch.labels_N, start_U1=each)
        return clip_by_bookkeeping(network, parameters, single, loss, clip)

    def one_layer_forgotten(network, parameters, batch, loss, clip):
        few = {name: p for name, p in parameters.items() if name != "trunk.0.bias"}
        found = clip_by_bookkeeping(network, few, batch, loss, clip).gradients
        rest = {"trunk.0.bias": torch.zeros_like(parameters["trunk.0.bias"])}
        return ClippedSum(gradients={name: (found | rest)[name] for name in parameters}, sensitivity=clip)

    check_engine(clip_by_bookkeeping, network, parameters, loss_per_row, images, 1, 0.3)
    for wrong in (per_image, one_layer_forgotten):
        with pytest.raises(WardroundError, match="differs from the one-patient loop"):
            check_engine(wrong, network, parameters, loss_per_row, images, 1, 0.3)


def test_an_input_changed_in_place_is_noticed() -> None:
    network = InPlace(nn.Linear(8, 8))
    batch = PatientBatch(inputs_N=torch.randn(4, 6), labels_N=torch.arange(4) % 2, start_U1=torch.tensor([0, 2, 4]))
    with pytest.raises(WardroundError, match="middle: its input is changed in place"):
        clip_by_bookkeeping(network, dict(network.named_parameters()), batch, loss_per_row, 0.3)


def test_a_parameter_of_no_layer_is_refused() -> None:
    network, parameters = network_of("seed-cnn")
    stray = parameters | {"stray": nn.Parameter(torch.zeros(3))}
    with pytest.raises(UnknownLayerError, match="stray belongs to no layer"):
        clip_by_bookkeeping(network, stray, batch_of("seed-cnn", [1, 1]), loss_per_row, 0.3)


# The choice


def test_without_a_folder_no_clock_decides_and_the_rule_is_the_same_every_time() -> None:
    network, parameters = network_of("seed-cnn")
    sample = Sample(images_N=batch_of("seed-cnn", [7]).inputs_N, outputs=1, images_per_unit=1)
    for _ in range(3):
        engine = checked_engine(network, parameters, loss_per_row, sample, 0.3)
        assert engine.func is clip_by_bookkeeping and engine.keywords == engine_for(network, 0.3).keywords


def test_a_site_times_once_and_its_later_processes_take_what_the_first_found(tmp_path: Path, monkeypatch) -> None:
    network, parameters = network_of("seed-cnn")
    sample = Sample(images_N=batch_of("seed-cnn", [7]).inputs_N, outputs=1, images_per_unit=1)
    memory = EngineMemory(choices=tmp_path)
    choose = functools.partial(checked_engine, network, parameters, loss_per_row, sample, 0.3, memory=memory)
    choose()
    (path,) = tmp_path.iterdir()
    said = json.loads(path.read_text())
    rule, fastest = next(iter(candidates_of(SpeedSettings()))), min(said["seconds"], key=said["seconds"].get)
    assert said["seconds"][said["engine"]] == said["seconds"][fastest] or said["engine"] == rule
    assert set(said["seconds"]) == set(candidates_of(SpeedSettings()))

    def no_trial(*_) -> None:
        raise AssertionError("timed again")

    for name, engine in candidates_of(SpeedSettings()).items():  # whatever stands there is taken, without a clock
        monkeypatch.setattr(select, "_trial", no_trial)
        path.write_text(json.dumps({"engine": name}))
        taken = choose()
        assert taken.func is engine.func and taken.keywords == engine.keywords
        assert json.loads(path.read_text()) == {"engine": name}
    monkeypatch.undo()
    path.write_text("{ torn")
    choose()
    assert json.loads(path.read_text())["engine"] in candidates_of(SpeedSettings())
    other = Sample(images_N=sample.images_N, outputs=1, images_per_unit=4)
    checked_engine(network, parameters, loss_per_row, other, 0.3, memory=memory)
    assert len(list(tmp_path.iterdir())) == 2  # another k is another choice


@pytest.mark.parametrize("rule_too", [False, True])
def test_a_kept_engine_that_fails_its_proof_gives_way_to_the_rules_and_that_to_the_loop(
    rule_too: bool, tmp_path: Path, monkeypatch, caplog
) -> None:
    network, parameters = network_of("seed-cnn")
    sample = Sample(images_N=batch_of("seed-cnn", [7]).inputs_N, outputs=1, images_per_unit=1)

    def wrong(*arguments, speed=None):
        right = clip_by_bookkeeping(*arguments)
        return dataclasses.replace(right, gradients={name: 1.01 * g for name, g in right.gradients.items()})

    names = list(candidates_of(SpeedSettings()))
    engines = candidates_of(SpeedSettings()) | {names[1]: wrong} | ({names[0]: wrong} if rule_too else {})
    monkeypatch.setattr(select, "candidates_of", lambda speed: engines)
    monkeypatch.setattr(select, "_trial", lambda *_: {names[0]: 1.0, names[1]: 0.5, "loop": 2.0})
    taken = checked_engine(network, parameters, loss_per_row, sample, 0.3, memory=EngineMemory(choices=tmp_path))
    assert taken.func is (clip_by_loop if rule_too else clip_by_bookkeeping)
    assert caplog.text.count("one at a time instead") == rule_too


@pytest.mark.parametrize("name", ["seed-cnn", "head"])
def test_an_engine_is_proved_once_in_a_start_of_the_daemon_and_once_again_in_the_next(
    name: str, tmp_path: Path, monkeypatch
) -> None:
    if name == "head":
        network = nn.Linear(5, 1)
        parameters, images_N = dict(network.named_parameters()), torch.randn(7, 5)
    else:
        network, parameters = network_of(name)
        images_N = batch_of(name, [7]).inputs_N
    sample = Sample(images_N=images_N, outputs=1, images_per_unit=1)
    proofs: list[int] = []

    def counted(engine, **words) -> None:
        proofs.append(1)
        check_engine(engine, **words)

    def choose(start: str | None) -> int:
        memory = EngineMemory(choices=tmp_path / "cache", proofs=tmp_path / start if start else None)
        proofs.clear()
        checked_engine(network, parameters, loss_per_row, sample, 0.3, memory=memory)
        return len(proofs)

    monkeypatch.setattr(select, "check_engine", counted)
    assert [choose("first"), choose("first"), choose("second"), choose("first")] == [1, 0, 1, 0]
    assert [choose(None), choose(None)] == [1, 1]  # who shares no start proves each time
    with torch.no_grad():  # another network is another proof; the same one with other weights is not
        next(iter(parameters.values())).add_(1.0)
    assert choose("first") == 0
    sample = Sample(images_N=images_N, outputs=1, images_per_unit=4)
    assert choose("first") == 1


def test_an_engine_that_failed_is_not_proved_by_asking_again(tmp_path: Path, monkeypatch) -> None:
    def fails(*arguments, **words) -> None:
        raise WardroundError("it differs")

    network = nn.Linear(5, 1)
    sample = Sample(images_N=torch.randn(7, 5), outputs=1, images_per_unit=1)
    memory = EngineMemory(choices=tmp_path / "cache", proofs=tmp_path / "proofs")
    monkeypatch.setattr(select, "check_engine", fails)
    for _ in range(2):
        with pytest.raises(WardroundError, match="differs"):
            checked_engine(network, dict(network.named_parameters()), loss_per_row, sample, 0.3, memory=memory)


def test_a_site_trains_images_with_the_engine_it_keeps_and_a_twin_without_folder_by_the_rule(tmp_path: Path) -> None:
    """The whole round: with the loop's name in the site's folder the loop trains, and the reply is the same patients'
    step up to rounding (known noise, which only a site without privacy admits)."""
    study = parse_study(SMALL)
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (18, 1, 32, 32), dtype=np.uint8)
    labels = generator.integers(0, 2, 18).astype(np.int16)
    material = material_of(images, labels, np.repeat(np.arange(6), 3), np.ones(18, bool))
    network = initial_network(study)
    start = {name: p.detach().numpy().copy() for name, p in trained_parameters(network, study).items()}
    plan, replies, kept = plan_from_study(study), [], EngineMemory(choices=tmp_path / "cache")
    for turn, memory in enumerate((None, kept, kept)):
        if turn == 2:
            (path,) = kept.choices.iterdir()
            path.write_text(json.dumps({"engine": "loop"}))
        speed = plan_speed(network, study, plan, torch.device("cpu"), memory)
        arguments = (start, material, 1, KnownRandom(b"k"), torch.device("cpu"), speed)
        replies.append(train(study, plan, network, *arguments))
    assert speed.engine.func is clip_by_loop and speed.images_per_batch == 256
    moved = math.sqrt(sum(float(np.square(replies[0][name] - start[name]).sum()) for name in start))
    for other in replies[1:]:
        assert math.sqrt(sum(float(np.square(replies[0][name] - other[name]).sum()) for name in start)) < 1e-5 * moved
    again = train(study, plan, network, *arguments[:3], KnownRandom(b"k"), *arguments[4:])
    assert all(np.array_equal(again[name], replies[2][name]) for name in start)  # the same engine: the same bits


# Memory


def test_images_at_once_are_a_power_of_two_that_fits_the_memory(monkeypatch) -> None:
    network, parameters = network_of("resnet-small")
    images = batch_of("resnet-small", [2]).inputs_N
    need = batch_size.bytes_per_image(network, parameters, images)
    twice, four_times = (
        batch_size.bytes_per_image(network, parameters, nn.functional.interpolate(images, scale_factor=scale))
        for scale in (2, 4)
    )
    assert four_times - twice == pytest.approx(4 * (twice - need), rel=0.1)  # maps grow with the pixels
    for free, expected in ((need * 1e6, 64), (need * 4 * 11, 8), (need, 1), (0, 1)):
        monkeypatch.setattr(batch_size, "memory_bytes", lambda _, free=free: free)
        assert batch_size.images_at_once(network, parameters, images) == expected


def test_layers_that_keep_nothing_for_a_gradient_need_memory_all_the_same() -> None:
    """Only the head trains: autograd keeps almost nothing, but the maps are there during the pass."""
    network = copy.deepcopy(network_of("resnet-small")[0])
    parameters = dict(network.named_parameters())
    images = nn.functional.interpolate(batch_of("resnet-small", [2]).inputs_N, scale_factor=8)
    gradients = batch_size.UNIT_GRADIENT_COPIES * sum(4 * parameter.numel() for parameter in parameters.values())
    maps = batch_size.bytes_per_image(network, parameters, images) - gradients
    head = {name: parameter for name, parameter in parameters.items() if name.startswith("head.")}
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in head)
    assert batch_size.bytes_per_image(network, head, images) > maps / 4


@pytest.mark.parametrize("engine", ["book-keeping", "loop"])
def test_a_patient_of_many_images_takes_no_larger_pass_than_start_up_tried(engine) -> None:
    plan = plan_from_study(parse_study(SMALL))
    speed = select.speed_of(plan, "float32", 64)
    network, parameters = network_of("seed-cnn")
    passes = []
    hook = network.register_forward_hook(lambda layer, inputs, output: passes.append(len(inputs[0])))
    batch = batch_of("seed-cnn", [3 * speed.group_images + 1])
    select.candidates_of(speed).get(engine, select._loop(speed))(network, parameters, batch, loss_per_row, 1.0)
    hook.remove()
    assert passes and max(passes) <= speed.group_images


@pytest.mark.parametrize("fitting", [1, 3, 24, 63, 64])
def test_a_group_is_a_power_of_two_and_no_larger_than_what_fits(fitting: int) -> None:
    """So that a group's numbers are whole vectors, or all of them a part of one, and are rounded alike."""
    plan = plan_from_study(parse_study(SMALL | {"privacy": SMALL["privacy"] | {"nominal_patients": 500}}))
    group = select.speed_of(plan, "float32", fitting, 64).group_images
    assert group <= fitting < 2 * group and group & (group - 1) == 0


def test_memory_is_what_the_machine_has_or_its_control_group_allows_and_never_what_is_free(tmp_path: Path) -> None:
    """What is free goes down with each patient's files that were read: patients would decide how they are rounded."""
    (tmp_path / "meminfo").write_text("MemTotal:  99 kB\nMemAvailable:   7 kB\n")
    assert total_bytes(tmp_path / "meminfo") == 99 * 1024
    assert control_group_bytes(tmp_path) is None
    (tmp_path / "memory.current").write_text("600\n")
    for most, limit in (("max", None), ("1000", 1000)):
        (tmp_path / "memory.max").write_text(f"{most}\n")
        assert control_group_bytes(tmp_path) == limit
    assert batch_size.memory_bytes(torch.device("cpu")) > 1 << 20
