"""Synthetic images from a trained model: which phantoms are kept, and how each is labelled."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from paths import STUDIES

from wardround.errors import ModelError, StudyError
from wardround.networks.build import build_model, initial_network
from wardround.networks.fingerprint import architecture_sha256
from wardround.sources.images.study import ImageData
from wardround.study.load import Study, load_study, parse_study
from wardround.study.schema import ModelSection
from wardround.tasks.synthesis import use
from wardround.tasks.synthesis.phantom_sampler import BANK_PHANTOMS, phantom_sampler

LABELS = ("benign", "malignant")


def gan_study(**model) -> Study:
    return parse_study({
        "study": {"name": "made", "task": "synthesis", "rounds": 1},
        "data": {"labels": list(LABELS), "image_size": 64},
        "model": {"name": "dcgan", "init": "random", "trainable": "all"} | model,
        "training": {"learning_rate": 0.1},
        "privacy": {"epsilon": 8.0, "delta": 1e-4, "max_grad_norm": 0.3, "nominal_patients": 8},
        "aggregation": {"nominal_sites": 1},
    })  # fmt: skip


def test_the_shipped_study_is_the_samplers() -> None:
    study = load_study(STUDIES / "synthesis.toml")
    assert (study.study.task, study.model.name) == ("synthesis", "phantom-sampler")
    network = initial_network(study)
    assert network.bank_MD.shape == (BANK_PHANTOMS, 33)
    assert sum(p.numel() for p in network.parameters() if p.requires_grad) == 67


def test_the_samplers_start_keeps_all_phantoms_alike_and_is_turned_around_with_the_labels() -> None:
    network, turned = phantom_sampler(LABELS), phantom_sampler(LABELS[::-1])
    outputs = network.head(network.bank_MD[:50])
    assert not outputs[:, 1].any()
    torch.testing.assert_close(turned.head(network.bank_MD[:50])[:, 0], -outputs[:, 0])
    tilted = network.head.tilted(network.bank_MD)
    assert abs(float(tilted.square().sum(1).mean()) - 1) < 0.01 and tilted.mean(0).abs().max() < 1e-4


def test_the_bank_and_its_centre_are_part_of_what_a_site_approves() -> None:
    network = build_model(ModelSection(name="phantom-sampler"), ImageData(labels=LABELS), seed=0)
    before = architecture_sha256(network)
    with torch.no_grad():
        network.head.realness.weight += 1  # what trains does not count
    assert architecture_sha256(network) == before
    network.bank_MD[0, 0] += 1
    assert architecture_sha256(network) != before


def test_three_labels_or_a_trainable_trunk_are_refused_in_one_line() -> None:
    with pytest.raises(ModelError, match="two labels|2 labels"):
        phantom_sampler(("a", "b", "c"))
    study = load_study(STUDIES / "synthesis.toml", ("model.trainable=all",))
    with pytest.raises(ModelError, match="only heads"):
        build_model(study.model, study.data, 0)
    with pytest.raises(StudyError, match="not a network for"):
        load_study(STUDIES / "synthesis.toml", ("study.task=classification",))


def pool_of(count: int = 4000) -> use.PhantomPool:
    """The bank's own features as if just painted: what is kept can then be compared with the odds."""
    network = phantom_sampler(LABELS)
    dice = torch.Generator().manual_seed(3)
    return use.PhantomPool(
        images_NCHW=np.zeros((count, 1, 64, 64), dtype=np.uint8),
        malignant_N=np.arange(count) % 2 == 1,
        pooled_ND=torch.zeros(count, 128),
        features_ND=network.bank_MD[:count],
        draws_N2=torch.rand(count, 2, generator=dice),
    )


def test_kept_phantoms_have_the_mean_features_that_training_saw() -> None:
    network, pool = phantom_sampler(LABELS), pool_of()
    with torch.no_grad():
        network.head.realness.weight[0, :3] = torch.tensor([8.0, -4.0, 4.0])
        tilted = network.head.tilted(pool.features_ND)
        kept = use.kept_of(network, pool)
        assert 100 < kept.sum() < 2000
        wanted = network.mean_of_kept()[0]
        error = 5 * tilted[kept].std(0) / math.sqrt(kept.sum()) + 0.02
        assert ((tilted[kept].mean(0) - wanted).abs() < error).all()
        assert not ((tilted.mean(0) - wanted).abs() < error).all()  # all phantoms alike would be noticed


def test_labels_are_drawn_as_sure_as_the_label_head_is() -> None:
    network, pool = phantom_sampler(LABELS), pool_of()
    made = use.chosen_from(network, pool)
    with torch.no_grad():
        sure = torch.sigmoid(network.head(pool.features_ND)[:, 0]).numpy()[use.kept_of(network, pool)]
    assert abs(made.labels_N.mean() - sure.mean()) < 4 * 0.5 / math.sqrt(len(sure))
    assert made.labels_N[sure > 0.9].mean() > 0.85 and made.labels_N[sure < 0.1].mean() < 0.15


def test_a_seed_gives_the_same_images_and_a_label_only_its_own() -> None:
    network = initial_network(gan_study()).eval()
    one, again = (use.make_images(network, 5, seed=4) for _ in range(2))
    np.testing.assert_array_equal(one.images_NCHW, again.images_NCHW)
    assert (one.images_NCHW != use.make_images(network, 5, seed=5).images_NCHW).any()
    assert set(use.make_images(network, 4, seed=4, label=1).labels_N) == {1}
    chosen = use.make_images(phantom_sampler(LABELS), 3, seed=4, label=1)
    assert chosen.images_NCHW.shape == (3, 1, 64, 64) and set(chosen.labels_N) == {1}
