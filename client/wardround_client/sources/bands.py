"""The values that a cohort keeps of a patient's sex and age: bands, never a date or a number of years."""

from __future__ import annotations

SEXES = ("female", "male", "other")
OLDEST_BAND = 90  # from this age on there are too few people for a band of ten years
AGES = (*(f"{first} to {first + 9}" for first in range(0, OLDEST_BAND, 10)), f"{OLDEST_BAND} or older")


def age_band(years: float) -> str:
    """Return the band of ten years of an age of at least 0."""
    return AGES[min(int(years), OLDEST_BAND) // 10]
