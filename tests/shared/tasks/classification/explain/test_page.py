"""Lookalikes, pictures and the page: self-contained, escaped, without scripts."""

import io
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from wardround.networks.phantom_encoder import load_phantom_encoder
from wardround.networks.public_head import PhantomHead
from wardround.tasks.classification.explain import lookalikes as module
from wardround.tasks.classification.explain.lookalikes import lookalikes
from wardround.tasks.classification.explain.maps import Maps
from wardround.tasks.classification.explain.named_outputs import OUTPUTS, Decomposition, Share
from wardround.tasks.classification.explain.page import Explanation, Measured, bars, html_page, map_pictures
from wardround.tasks.classification.explain.pictures import overlay
from wardround.tasks.classification.explain.sanity import Likeness, SanityCheck
from wardround.tasks.classification.explain.surrogate import Rule, Surrogate

EVIL = '<script>alert("x")</script>'
ALIKE = Likeness(rank_correlation=0.1, structural_similarity=0.2)
DECOMPOSITION = Decomposition(
    score=1.5,
    start=0.5,
    shares=tuple(
        Share(output=output, value=value) for output, value in zip(OUTPUTS, (1, -2, 0, 0, 1, 0, 0), strict=True)
    ),
    remainder=1.0,
    explained=0.4,
)


def explanation(**changes):
    map_HW = np.zeros((64, 64), np.float32)
    map_HW[20, 40], map_HW[50, 10] = 2, -1
    plain = Explanation(
        label="malignant",
        score=1.5,
        statement=("The model says: malignant 80 %.",),
        facts=(("File", "a.dcm"),),
        image_HW=np.full((64, 64), 100, np.uint8),
        maps=Maps(evidence_HW=map_HW, occlusion_HW=-map_HW),
        sanity=SanityCheck(evidence=ALIKE, occlusion=ALIKE),
    )
    return replace(plain, **changes)


def complete(**changes):
    rule = Rule(conditions=("Diameter above 9.0 mm",), decision="malignant", rows=40)
    return explanation(
        measured=tuple(Measured(output=output, value=0.5, accuracy=0.8) for output in OUTPUTS),
        spacing_mm=0.7,
        decomposition=DECOMPOSITION,
        surrogate=Surrogate(
            rules=(rule,), fidelity=0.86, by_majority=0.6, fitted_patients=80, tested_patients=40, applies=rule
        ),
        **changes,
    )


def test_the_page_is_complete_and_loads_nothing():
    page = html_page(complete())
    for text in ("Research software, not a medical device", "Diameter above 9.0 mm", "86 %", "Spiculation", "passed"):
        assert text in page
    assert "<script" not in page and not re.search(r"(src|href)\s*=\s*\"(?!data:image/png;base64,)", page)
    assert "http" not in page.replace('http-equiv="Content-Security-Policy"', "")


def test_a_page_of_maps_alone_says_what_is_left_out():
    page = html_page(explanation(left_out=("simple rules: no site",)))
    assert "Left out: simple rules: no site" in page and "Named output" not in page and "Looks like" not in page


def test_text_of_files_and_studies_is_escaped():
    rule = Rule(conditions=(EVIL,), decision=EVIL, rows=40)
    surrogate = replace(complete().surrogate, rules=(rule,), applies=rule)
    page = html_page(
        replace(complete(), label=EVIL, statement=(EVIL,), facts=((EVIL, EVIL),), left_out=(EVIL,), surrogate=surrogate)
    )
    assert "<script" not in page and page.count("&lt;script&gt;") > 6


def test_a_failed_check_is_written_in_plain_words():
    failed = SanityCheck(evidence=replace(ALIKE, rank_correlation=0.9), occlusion=ALIKE)
    assert "do not rely on it" in html_page(explanation(sanity=failed))
    assert "do not rely on it" not in html_page(explanation())


def test_the_page_says_which_map_to_rely_on():
    maps = replace(explanation().maps, prefer_occlusion=True)
    assert "rely on the occlusion map" in html_page(explanation(maps=maps))
    assert "rely on the occlusion map" not in html_page(explanation())


def test_the_bars_follow_each_other_and_end_at_the_score():
    drawn = bars(DECOMPOSITION)
    assert [bar.text for bar in drawn][0] == "+0.50" and drawn[-1].text == "+1.50"
    assert all(bar.left >= 0 and bar.left + bar.width <= 100.5 for bar in drawn)
    assert drawn[2].kind == "lowers" and drawn[1].kind == "raises"


def test_pictures_colour_what_raises_red_and_what_lowers_blue():
    pixels = np.asarray(overlay(np.full((64, 64), 100, np.uint8), explanation().maps.evidence_HW, side_px=64)).astype(
        int
    )
    assert pixels[20, 40, 0] - pixels[20, 40, 2] > 50 and pixels[50, 10, 2] - pixels[50, 10, 0] > 20
    assert np.ptp(pixels[2, 2]) == 0
    for _, content in map_pictures(explanation()):
        assert Image.open(io.BytesIO(content)).size == (448, 448)


def test_a_phantom_of_the_set_looks_like_itself(monkeypatch):
    monkeypatch.setattr(module, "PHANTOMS", 40)
    head = PhantomHead(load_phantom_encoder()[1], ("benign", "malignant")).eval()
    phantom = module.generate_masked_crops(40, module.SEED, 64).images_NHW[7]

    def score_of(images_NCHW):
        with torch.no_grad():
            return head(images_NCHW)[:, 0]

    found = lookalikes(head, phantom[None].numpy(), score_of)
    assert found.nearest[0].distance == pytest.approx(0, abs=1e-2)
    assert np.array_equal(found.nearest[0].image_HW, phantom.numpy())
    assert [one.distance for one in found.nearest] == sorted(one.distance for one in found.nearest)
    noise = torch.randint(0, 256, (1, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert lookalikes(head, noise.numpy(), score_of).farther < 0.1
