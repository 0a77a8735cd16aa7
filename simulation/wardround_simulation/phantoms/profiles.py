"""The phantom hospitals: what each one's scanner, size, share of malignant nodules and kinds of nodules are.

The five differ as hospitals do. A university hospital sees everything; a screening centre sees small nodules, few of
them malignant; a hospital in a valley where fungal infections are common sees many granulomas; a clinic for thoracic
surgery sees what was sent to be removed; a community hospital sees a little of everything with an old scanner. The
shares of the kinds are round numbers that follow these descriptions; no statistics of real hospitals are used.
"""

from __future__ import annotations

from dataclasses import dataclass

from wardround_simulation.phantoms.cases import CaseMix
from wardround_simulation.phantoms.volume import Site


@dataclass(frozen=True, kw_only=True)
class ScannerProfile:
    """One type of scanner: its imaging (`site`), the values in its headers, and its storage of Hounsfield units."""

    site: Site
    manufacturer: str
    model: str
    kernel: str
    tube_voltage_kv: int
    tube_current_ma: int
    intercept: int
    signed: bool
    round_field: bool
    feet_first: bool


@dataclass(frozen=True, kw_only=True)
class HospitalProfile:
    """One phantom hospital. `size` is its number of patients relative to that of an average hospital."""

    scanner: ScannerProfile
    size: float
    mix: CaseMix


UNIVERSITY_SCANNER = ScannerProfile(
    site=Site(
        spacing_mm=(0.64, 0.74),
        thickness_mm=2.5,
        slices=5,
        blur_px=(0.5, 0.7),
        sharpening=0.0,
        noise_hu=(12, 28),
        noise_blur_px=0.6,
        streak=1.0,
    ),
    manufacturer="AURORA IMAGING",
    model="Helix 64",
    kernel="STANDARD",
    tube_voltage_kv=120,
    tube_current_ma=220,
    intercept=-1024,
    signed=True,
    round_field=True,
    feet_first=False,
)
SCREENING_SCANNER = ScannerProfile(
    site=Site(
        spacing_mm=(0.60, 0.68),
        thickness_mm=2.0,
        slices=5,
        blur_px=(0.35, 0.5),
        sharpening=0.9,
        noise_hu=(35, 70),
        noise_blur_px=0.4,
        streak=2.5,
    ),
    manufacturer="BOREAL MEDICAL",
    model="Spectra 128",
    kernel="B60f",
    tube_voltage_kv=120,
    tube_current_ma=60,
    intercept=-1024,
    signed=True,
    round_field=False,
    feet_first=True,
)
VALLEY_SCANNER = ScannerProfile(
    site=Site(
        spacing_mm=(0.72, 0.80),
        thickness_mm=3.0,
        slices=5,
        blur_px=(0.7, 0.9),
        sharpening=0.0,
        noise_hu=(8, 18),
        noise_blur_px=0.9,
        streak=1.0,
    ),
    manufacturer="CASCADE SYSTEMS",
    model="Orbit 16",
    kernel="FC10",
    tube_voltage_kv=135,
    tube_current_ma=150,
    intercept=0,
    signed=True,
    round_field=False,
    feet_first=False,
)
SURGERY_SCANNER = ScannerProfile(
    site=Site(
        spacing_mm=(0.66, 0.78),
        thickness_mm=1.25,
        slices=7,
        blur_px=(0.4, 0.6),
        sharpening=0.4,
        noise_hu=(25, 45),
        noise_blur_px=0.5,
        streak=4.0,
    ),
    manufacturer="DELTA DIAGNOSTICS",
    model="Scout 40",
    kernel="L",
    tube_voltage_kv=120,
    tube_current_ma=90,
    intercept=-1024,
    signed=False,
    round_field=False,
    feet_first=True,
)
COMMUNITY_SCANNER = ScannerProfile(
    site=Site(
        spacing_mm=(0.70, 0.82),
        thickness_mm=3.0,
        slices=5,
        blur_px=(0.8, 1.1),
        sharpening=0.3,
        noise_hu=(18, 40),
        noise_blur_px=0.7,
        streak=2.0,
    ),
    manufacturer="EQUINOX HEALTH",
    model="Classic 4",
    kernel="BONE",
    tube_voltage_kv=130,
    tube_current_ma=100,
    intercept=-1024,
    signed=True,
    round_field=True,
    feet_first=False,
)

PROFILES = (
    HospitalProfile(
        scanner=UNIVERSITY_SCANNER,
        size=2.0,
        mix=CaseMix(prevalence=0.45, benign=(40, 15, 5, 40), malignant=(60, 35, 5)),
    ),
    HospitalProfile(
        scanner=SCREENING_SCANNER, size=0.9, mix=CaseMix(prevalence=0.3, benign=(30, 10, 5, 55), malignant=(75, 20, 5))
    ),
    HospitalProfile(
        scanner=VALLEY_SCANNER, size=0.7, mix=CaseMix(prevalence=0.4, benign=(65, 10, 5, 20), malignant=(60, 35, 5))
    ),
    HospitalProfile(
        scanner=SURGERY_SCANNER, size=0.8, mix=CaseMix(prevalence=0.6, benign=(40, 30, 5, 25), malignant=(55, 35, 10))
    ),
    HospitalProfile(
        scanner=COMMUNITY_SCANNER, size=0.6, mix=CaseMix(prevalence=0.5, benign=(45, 15, 10, 30), malignant=(60, 35, 5))
    ),
)


def patients_at(site: int, patients: int) -> int:
    """Return the number of patients of hospital `site` (from 1), where an average hospital has `patients`."""
    return max(1, round(patients * PROFILES[(site - 1) % len(PROFILES)].size))
