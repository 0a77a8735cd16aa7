"""Phantoms with a mask: the same pictures for the same seed, and a mask that covers the nodule."""

import torch

from wardround.phantoms.masked import generate_masked_crops


def test_the_same_arguments_give_the_same_pictures_however_many_follow():
    few, many = (generate_masked_crops(count, seed=4, size_px=64, shift_px=5) for count in (3, 60))
    assert torch.equal(few.images_NHW, many.images_NHW[:3]) and torch.equal(few.masks_NHW, many.masks_NHW[:3])


def test_a_mask_lies_near_the_middle_and_moves_with_the_nodule():
    still, moved = (generate_masked_crops(100, seed=4, size_px=128, shift_px=shift) for shift in (0, 20))
    assert still.images_NHW.shape == still.masks_NHW.shape == (100, 128, 128)
    assert still.masks_NHW[:, 64, 64].float().mean() > 0.85
    assert moved.masks_NHW[:, 64, 64].float().mean() < 0.5
    assert 0.003 < still.masks_NHW.float().mean() < 0.1


def test_the_nodule_differs_from_its_surroundings():
    crops = generate_masked_crops(100, seed=4)
    inside, outside = crops.masks_NHW, ~crops.masks_NHW
    brighter = [
        float(image[one].float().mean()) > float(image[other].float().mean())
        for image, one, other in zip(crops.images_NHW, inside, outside, strict=True)
    ]
    assert sum(brighter) > 75  # some nodules are of ground glass or beside a bright wall
