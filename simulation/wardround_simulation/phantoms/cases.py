"""The kinds of lung nodules that phantom hospitals see, and how often each hospital sees them.

The phantoms of pre-training (`wardround.phantoms.nodule`) follow the textbook's first rule: large, lobulated or
spiculated nodules are malignant, small and round ones benign. Patients of a real hospital break that rule. Old
granulomas and hamartomas are benign and often large, and hamartomas are lobulated; organising pneumonia is benign and
spiculated. Early adenocarcinomas are small, smooth and partly ground glass, and metastases are small, smooth and round.
Size and outline therefore tell less at a hospital than in pre-training, and density tells more: calcium and fat argue
for a benign nodule, ground glass for a malignant one. The phantoms of hospitals are drawn from these kinds. The public
start does not know how often they occur; the hospitals' patients together can show it.

Diameters are medians in mm, densities in Hounsfield units. The ranges are rounded from textbook descriptions; no
real images and no statistics of a data set are used.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from wardround.phantoms.anatomy import FULL_TURN, Dice
from wardround.phantoms.nodule import HARMONICS, Nodule, draw_nodule

SMALLEST_MM, LARGEST_MM = 4.0, 32.0
SIZE_SPREAD = 0.35  # deviation of the logarithm of the diameter within one kind
POPCORN = (0.45, 0.70)  # ranges of `Nodule.calcium_pattern`, as `wardround.phantoms.nodule` paints them
ANY_PATTERN = (0.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of nodule: its label and how it looks. Pairs are (lowest, highest) of an even distribution."""

    name: str
    malignant: bool
    diameter_mm: float
    lobulation: tuple[float, float] = (0.0, 0.1)
    spiculated: float = 0.0
    elongation: tuple[float, float] = (0.0, 0.3)
    edge_mm: tuple[float, float] = (0.2, 0.7)
    solid_hu: tuple[float, float] = (-20.0, 80.0)
    calcified: float = 0.0
    calcium_pattern: tuple[float, float] = ANY_PATTERN
    ground_glass: float = 0.0
    part_solid: float = 0.0
    cavity: float = 0.0
    on_wall: float = 0.3


GRANULOMA = Kind(
    name="granuloma", malignant=False, diameter_mm=13, lobulation=(0.0, 0.2), spiculated=0.15, calcified=0.55
)
HAMARTOMA = Kind(
    name="hamartoma",
    malignant=False,
    diameter_mm=15,
    lobulation=(0.1, 0.3),
    solid_hu=(-100.0, 30.0),
    calcified=0.4,
    calcium_pattern=POPCORN,
    on_wall=0.2,
)
PNEUMONIA = Kind(
    name="organising pneumonia",
    malignant=False,
    diameter_mm=15,
    lobulation=(0.05, 0.25),
    spiculated=0.5,
    elongation=(0.2, 0.7),
    edge_mm=(0.5, 1.2),
    on_wall=0.6,
)
LYMPH_NODE = Kind(
    name="lymph node in the lung",
    malignant=False,
    diameter_mm=6,
    elongation=(0.2, 0.7),
    edge_mm=(0.2, 0.5),
    on_wall=0.6,
)
ADENOCARCINOMA = Kind(
    name="early adenocarcinoma",
    malignant=True,
    diameter_mm=11,
    edge_mm=(0.4, 1.0),
    ground_glass=0.35,
    part_solid=0.55,
    on_wall=0.2,
)
CARCINOMA = Kind(
    name="solid carcinoma",
    malignant=True,
    diameter_mm=15,
    lobulation=(0.05, 0.3),
    spiculated=0.5,
    edge_mm=(0.3, 1.0),
    cavity=0.1,
)
METASTASIS = Kind(name="metastasis", malignant=True, diameter_mm=8, lobulation=(0.0, 0.06), edge_mm=(0.2, 0.5))


BENIGN = (GRANULOMA, HAMARTOMA, PNEUMONIA, LYMPH_NODE)
MALIGNANT = (ADENOCARCINOMA, CARCINOMA, METASTASIS)


@dataclass(frozen=True, kw_only=True)
class CaseMix:
    """What a hospital sees: the share of patients with a malignant nodule, and the kinds of benign and malignant ones.

    `benign` and `malignant` are percentages, in the order of `BENIGN` and `MALIGNANT`.
    """

    prevalence: float
    benign: tuple[float, float, float, float]
    malignant: tuple[float, float, float]

    def is_malignant(self, number: int) -> bool:
        """Return whether nodule `number` (from 1) is malignant; the malignant ones are spread evenly."""
        return math.floor(number * self.prevalence + 0.5) > math.floor((number - 1) * self.prevalence + 0.5)

    def draw(self, malignant: bool, seed: int) -> Kind:
        """Return a kind with this label. The same seed gives the same kind."""
        chance = random.Random(seed)
        if malignant:
            return chance.choices(MALIGNANT, self.malignant)[0]
        return chance.choices(BENIGN, self.benign)[0]


def draw_nodule_of(one: Dice, kind: Kind) -> Nodule:
    """Draw one nodule of this kind, cut through its middle. `one` draws for one picture."""
    nodule = draw_nodule(one, torch.tensor([float(kind.malignant)]), torch.zeros(1))
    density = float(one.uniform(0, 1))
    ground_glass = density < kind.ground_glass
    part_solid = not ground_glass and density < kind.ground_glass + kind.part_solid
    solid = not ground_glass and not part_solid
    diameter_mm = one.lognormal(kind.diameter_mm, SIZE_SPREAD, SMALLEST_MM, LARGEST_MM)
    lobulation = one.uniform(*kind.lobulation)
    return replace(
        nodule,
        radius_mm=diameter_mm / 2,
        lobulation=lobulation,
        wave=lobulation[:, None] * one.normal(len(HARMONICS)) / torch.tensor(HARMONICS) ** 0.75,
        wave_phase=one.uniform(0, FULL_TURN, len(HARMONICS)),
        elongation=one.uniform(*kind.elongation),
        roughness=0.1 * one.uniform(0, 1) ** 2,
        edge_mm=one.uniform(*kind.edge_mm) * (2.5 if ground_glass else 1.0),
        spiculated=one.chance(kind.spiculated),
        ground_glass=_flag(ground_glass),
        part_solid=_flag(part_solid),
        calcified=one.chance(kind.calcified if solid else 0.0),
        calcium_pattern=one.uniform(*kind.calcium_pattern),
        cavity=one.chance(0.0 if ground_glass else kind.cavity) * (diameter_mm > 8).float(),
        solid_hu=one.uniform(*kind.solid_hu),
    )


def _flag(value: bool) -> Tensor:
    return torch.tensor([float(value)])
