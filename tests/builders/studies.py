"""Study files as text."""

from __future__ import annotations

STUDY = """
[study]
name = "t"
rounds = 2
[data]
labels = ["benign", "malignant"]
image_size = 64
modality = "any"
[privacy]
epsilon = 3.0
delta = 1e-4
max_grad_norm = 0.3
nominal_patients = 8
[aggregation]
nominal_sites = 1
"""
