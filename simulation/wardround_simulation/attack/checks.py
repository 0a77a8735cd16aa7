"""Named checks, one for each way in which a system can claim privacy without providing it.

Each check calls parts of a `System` on synthetic patients only, and compares the results with the plan.

    noise-size         the noise has the planned size, in every tensor
    sensitivity        one patient moves the sum by at most C, whatever the number of images
    plan               q, divisor and noise come from public numbers
    fresh-draws        the noise cannot be known in advance
    equal-sites        the mean does not depend on the sizes of the sites
    hostile-weights    one patient moves the sum by at most C, whatever weights the server sends

Thresholds are quantiles of the distribution that an honest system follows, so that an honest system fails a check with
probability below `FALSE_ALARM`. The faults that the checks are designed to find lie far beyond the thresholds.
"""

from __future__ import annotations

import math
import os
import warnings
from dataclasses import replace
from typing import cast

import numpy as np
import torch
from scipy import stats
from torch import nn

from wardround.accounting import GaussianEvent
from wardround.networks.build import initial_network
from wardround.networks.fingerprint import architecture_sha256
from wardround.networks.weights import trained_parameters, weights_of
from wardround.study.load import Study
from wardround.tasks.labelled.objective import reads_features, trained_part
from wardround.wire.packets import Broadcast
from wardround_client.clipping.hostile_weights import WEIGHTS, set_weights, weights_restored
from wardround_client.ledger.ledger import Cap, Ledger
from wardround_client.privacy.plan import PrivacyPlan, plan_from_study
from wardround_client.privacy.sampling import index_patients
from wardround_client.site.site import Site, Weights
from wardround_client.training.batches import Material
from wardround_simulation.attack.averaging_check import equal_sites
from wardround_simulation.attack.system import (
    CPU,
    Finding,
    System,
    difference,
    norm_of,
    passed,
    plain_training,
    released_sums,
    start_of,
    synthetic_material,
    without,
)

FALSE_ALARM = 1e-5
NOISE_VALUES = 5000
MOST_CALLS = 150
MANY_IMAGES = 16
HOSTILE_IMAGES = (2, 1, 3, 1, 2)  # images of each patient
LONGEST_STRETCH = 1e15  # the largest step that a study may request
PROBED_RATE = 0.3  # tried besides the study's own q, as no sampler can err at q = 1; Opacus' loader turns 0.3 into 0.25
SIZES = (7, 70)
DRAWS = 1500
ROUNDING = 0.01  # relative error of a measurement, which subtracts float32 weights before and after a step


def noise_size(system: System, study: Study, seed: int = 0) -> Finding:
    """Check the size of the noise: the standard deviation of what a site without patients releases.

    Without patients the release is noise alone, in every tensor that travels. For n values, (s / sigma C)^2 n is
    chi-squared with n degrees of freedom, and the values are normal (Kolmogorov-Smirnov test). Both tests are at level
    `FALSE_ALARM`, divided among the tensors.
    """
    asked = Finding(
        name="noise-size",
        question="Is the noise as strong as planned in every part of the model?",
        measured="–", limit="–", verdict="does not apply",
    )  # fmt: skip
    plan = plan_from_study(study)
    if plan.noise_multiplier == 0:
        return replace(asked, measured="no noise: ε = ∞")
    network = initial_network(study)
    start = {name: np.zeros_like(array) for name, array in start_of(study).items()}
    nobody = without(synthetic_material(study, network, (1,), seed), 0)
    calls = max(1, min(MOST_CALLS, -(-NOISE_VALUES // sum(array.size for array in start.values()))))
    sums = released_sums(system, study, plan, network, nobody, calls, start)
    unit = plan.noise_multiplier * plan.max_grad_norm
    values_of = {name: np.concatenate([one[name].ravel() for one in sums]) / unit for name in start}
    chance_of = {name: _chi_squared_p(values) for name, values in values_of.items()}
    least = min(chance_of, key=lambda name: chance_of[name])
    values = np.concatenate(list(values_of.values()))
    share = FALSE_ALARM / (len(values_of) + 1)
    normal = stats.kstest(values[:100_000], "norm").pvalue
    measured = f"{_spread(values):.3f} of the planned size ({len(values):,} values)"
    if chance_of[least] <= share:
        measured += f"; {least}: {_spread(values_of[least]):.2f}"
    elif normal <= share:
        measured += ", and not normal"
    return replace(
        asked,
        measured=measured,
        limit=f"1 within {_chi_reach(len(values), share):.1%}, normal, in every tensor",
        verdict=passed(chance_of[least] > share and normal > share),
    )


def _spread(values: np.ndarray) -> float:
    return math.sqrt(float(np.square(values).mean()))


def _chi_squared_p(values: np.ndarray) -> float:
    """Return the two-sided p-value of the sum of squares of standard normal values."""
    total, n = float(np.square(values).sum()), len(values)
    return 2 * min(stats.chi2.sf(total, n), stats.chi2.cdf(total, n))


def _chi_reach(n: int, share: float) -> float:
    return math.sqrt(stats.chi2.isf(share / 2, n) / n) - 1


def sensitivity(system: System, study: Study, seed: int = 0) -> Finding:
    """Check how far one patient moves the sum, without noise.

    Each patient in turn is left out: a patient with one image, one with many similar images, and, where the study reads
    features, one with NaN values.
    """
    asked = Finding(
        name="sensitivity",
        question="Does one patient, with any number of images, change the sum by no more than C?",
        measured="–", limit="–", verdict="does not apply",
    )  # fmt: skip
    plan = plan_from_study(study)
    if not math.isfinite(plan.max_grad_norm):
        return replace(asked, measured="not clipped: C = ∞")
    network, start = initial_network(study), start_of(study)
    images = (1, MANY_IMAGES, 3, 2)
    material = synthetic_material(study, network, images, seed)
    if reads_features(study):
        poisoned = material.index.rows_of(2)
        if plan.images_per_patient is None:  # else the draw would decide whether this patient has a gradient
            poisoned = poisoned[:1]
        np.asarray(material.inputs_N)[poisoned] = np.nan
    bare = _without_noise(plan)
    bare = replace(bare, max_grad_norm=_clip_that_bites(system, study, bare, network, material, start))
    whole = released_sums(system, study, bare, network, material, 1, start)[0]
    moves = [
        norm_of(difference(whole, released_sums(system, study, bare, network, without(material, patient), 1, start)[0]))
        / bare.max_grad_norm
        for patient in range(len(images))
    ]
    largest = max(moves) if all(map(math.isfinite, moves)) else math.inf
    # With smaller moves the clip took no effect, and the check tested nothing.
    clipped_well = min(moves[0], moves[1]) > 0.5 or bare.images_per_patient is not None
    return replace(
        asked,
        measured=f"{largest:.3f} C at most; {moves[0]:.2f} C with 1 image, {moves[1]:.2f} C with {MANY_IMAGES}",
        limit=f"C within {ROUNDING:.0%}",
        verdict=passed(largest <= 1 + ROUNDING and clipped_well),
    )


def hostile_weights(system: System, study: Study, seed: int = 0) -> Finding:
    """Check how far one patient moves the sum, without noise, from weights that a malicious server may send.

    The weights are constant, huge, cancelling, designed to amplify rounding, and others
    (`wardround_client/clipping/hostile_weights.py`).
    """
    asked = Finding(
        name="hostile-weights",
        question="Does one patient change the sum by no more than C, even if a malicious server sends other weights?",
        measured="–", limit="–", verdict="does not apply",
    )  # fmt: skip
    plan = plan_from_study(study)
    if not math.isfinite(plan.max_grad_norm):
        return replace(asked, measured="not clipped: C = ∞")
    network = initial_network(study)
    parameters = trained_parameters(network, study)
    part = trained_part(network, plain_training(study, 1.0))
    local = {name.removeprefix("head.") if part is not network else name: p for name, p in parameters.items()}
    material = synthetic_material(study, network, HOSTILE_IMAGES, seed)
    inputs_N = torch.from_numpy(np.array(material.inputs_N))
    bare = replace(_without_noise(plan), nominal_patients=1)
    moves = {}
    for kind in WEIGHTS:
        with weights_restored(local):
            set_weights(kind, part, local, inputs_N, seed)
            start = weights_of(parameters)
        largest = max(1.0, *(float(np.abs(array).max()) for array in start.values()))
        # So long that rounding of the start's weights is small relative to the step.
        stretch = min(LONGEST_STRETCH, 1e6 * largest / bare.max_grad_norm)
        whole, *rest = (
            released_sums(system, study, bare, network, one, 1, start, stretch)[0]
            for one in (material, without(material, 0), without(material, 2))
        )
        moves[kind] = max(norm_of(difference(whole, one)) / bare.max_grad_norm for one in rest)
    worst = max(moves, key=lambda kind: moves[kind] if math.isfinite(moves[kind]) else math.inf)
    return replace(
        asked,
        measured=f"{moves[worst]:.4g} C at most, of {len(moves)} kinds of weights ({worst})",
        limit=f"C within {ROUNDING:.0%}",
        verdict=passed(all(move <= 1 + ROUNDING for move in moves.values())),
    )


def _without_noise(plan: PrivacyPlan) -> PrivacyPlan:
    """Return the plan with sampling rate 1 and no noise, under which a site releases the clipped sum itself."""
    return replace(plan, epsilon_asked=math.inf, noise_multiplier=0.0, sampling_rate=1.0)


def _clip_that_bites(
    system: System, study: Study, plan: PrivacyPlan, network: nn.Module, material: Material, start: Weights
) -> float:
    """Return the plan's C, or half the norm of the first patient's gradient if that is smaller.

    A bound that no gradient reaches would leave the clipping untested.
    """
    free, lone = replace(plan, max_grad_norm=math.inf), material
    for patient in reversed(range(1, material.index.patients)):
        lone = without(lone, patient)
    own = norm_of(released_sums(system, study, free, network, lone, 1, start)[0])
    return min(plan.max_grad_norm, own / 2) if own > 0 else plan.max_grad_norm


def plan_is_public(system: System, study: Study, seed: int = 0) -> Finding:
    """Check that noise, sampling rate and divisor do not depend on the number of patients.

    The same study runs at a small site and at one with ten times as many patients (`SIZES`). The event in the ledger,
    the share of patients drawn (exact binomial test, and a test of its variance, at `FALSE_ALARM`) and the divisor of
    the sum must be the same.
    """
    plan, faults = plan_from_study(study), []
    network = initial_network(study)
    for patients in SIZES:
        material = synthetic_material(study, network, [1] * patients, seed)
        (event,) = _charged(system, study, network, material)
        if event != plan.event(1):
            faults.append(f"ledger at {patients} patients: σ {event.noise_multiplier:.4g}, q {event.sampling_rate:.4g}")
    drawn = {}
    for rate in dict.fromkeys((plan.sampling_rate, PROBED_RATE)):
        for patients in SIZES:
            share, fault = _drawn_share(system, replace(plan, sampling_rate=rate), patients)
            drawn[rate, patients] = share
            faults += [fault] if fault else []
    divisors = [_divisor(system, study, plan, network, patients, seed) for patients in SIZES]
    public = plan.nominal_patients
    faults += [
        f"divisor {divisor:.1f} at {patients} patients"
        for divisor, patients in zip(divisors, SIZES, strict=True)
        if not abs(divisor / public - 1) <= ROUNDING
    ]
    small, large = (drawn[PROBED_RATE, patients] for patients in SIZES)
    measured = f"q {PROBED_RATE:g} drew {small:.3f} and {large:.3f}, divisors {divisors[0]:.4g} and {divisors[1]:.4g}"
    return Finding(
        name="plan",
        question="Are noise, sampling rate and divisor the study's public values, for any number of patients?",
        measured="; ".join(faults) if faults else f"at {SIZES[0]} and {SIZES[1]} patients: {measured}",
        limit=f"σ {plan.noise_multiplier:.4g}, q as asked, divisor {public:g} at q = 1",
        verdict=passed(not faults),
    )


def _charged(system: System, study: Study, network: nn.Module, material: Material) -> list[GaussianEvent]:
    """Return the events in a site's ledger after one real round on `material`."""
    private = math.isfinite(study.privacy.epsilon)
    # So high that nothing is refused: the check is about the events.
    cap = Cap(epsilon=1e9, delta=study.privacy.delta, allow_no_privacy=not private)
    ledger = Ledger(None)
    simple = study.model_copy(update={"training": study.training.model_copy(update={"augmentation": "none"})})
    site = Site(
        name="audited", cap=cap, ledger=ledger, replies={}, study_of=lambda _: simple, material_of=lambda _: material,
        randomness=system.randomness(), device=CPU,
    )  # fmt: skip
    broadcast = Broadcast(
        study_sha256=simple.sha256(), run_id="attack", round=1, weights=start_of(simple),
        architecture_sha256=architecture_sha256(network),
    )  # fmt: skip
    try:
        system.answer(broadcast, site)
        return cast(list[GaussianEvent], ledger.events("attack"))
    finally:
        ledger.close()


def _drawn_share(system: System, plan: PrivacyPlan, patients: int) -> tuple[float, str]:
    index, randomness = index_patients(np.arange(patients)), system.randomness()
    sizes = np.array([system.draw(plan, index, randomness).units for _ in range(DRAWS)])
    share, rate = float(sizes.sum()) / (DRAWS * patients), plan.sampling_rate
    if rate == 1:
        return share, "" if share == 1 else f"q 1 drew {share:.3f}"
    alarm = FALSE_ALARM / 10
    p = stats.binomtest(int(sizes.sum()), DRAWS * patients, rate).pvalue
    spread = float(sizes.var(ddof=1)) / (patients * rate * (1 - rate))
    # the variance of a binomial's sample variance, from its fourth moment
    kurtosis = float(stats.binom.stats(patients, rate, moments="k"))
    reach = stats.norm.isf(alarm / 2) * math.sqrt((2 + kurtosis) / DRAWS)
    if p < alarm:
        return share, f"q {rate:g} drew {share:.3f} of {patients} patients"
    return share, "" if abs(spread - 1) < 1.2 * reach else f"draws of {patients} patients spread {spread:.2f} times"


def _divisor(system: System, study: Study, plan: PrivacyPlan, network: nn.Module, patients: int, seed: int) -> float:
    """Return the divisor of a clipped patient's step at q = 1, measured as C over the length of that step."""
    bare, start = _without_noise(plan), start_of(study)
    material = synthetic_material(study, network, [1] * patients, seed)
    norm = _clip_that_bites(system, study, bare, network, material, start)
    bare = replace(bare, max_grad_norm=norm)
    whole, less = (
        released_sums(system, study, bare, network, one, 1, start)[0] for one in (material, without(material, 0))
    )
    move = norm_of(difference(whole, less))
    if not math.isfinite(norm):  # nothing is clipped: compare with the norm of the patient's own gradient
        alone = material
        for patient in reversed(range(1, patients)):
            alone = without(alone, patient)
        norm = norm_of(released_sums(system, study, bare, network, alone, 1, start)[0])
    return bare.expected_patients * norm / move if move > 0 else math.inf


def fresh_draws(system: System, study: Study, seed: int = 0) -> Finding:
    """Check that no random word occurs twice, in this process or in others, and that rounds' noise is uncorrelated.

    By chance, two of n 64-bit words coincide with probability n^2 / 2^65, which is below 1e-10 here.
    """
    sources = [system.randomness().words(1024) for _ in range(3)]
    sources += [_words_of_another_process(system) for _ in range(2)]
    words = np.concatenate(sources)
    shared = len(words) - len(np.unique(words))
    plan = plan_from_study(study)
    measured, linked = f"{shared} of {len(words):,} random words were repeated", 0.0
    if plan.noise_multiplier > 0:
        network = initial_network(study)
        start = {name: np.zeros_like(array) for name, array in start_of(study).items()}
        nobody = without(synthetic_material(study, network, (1,), seed), 0)
        calls = 2 * max(1, min(20, -(-1000 // sum(array.size for array in start.values()))))
        sums = released_sums(system, study, plan, network, nobody, calls, start)
        rounds = np.stack([np.concatenate([array.ravel() for array in one.values()]) for one in sums])
        one, two = rounds[0::2].ravel(), rounds[1::2].ravel()
        linked = float((one * two).mean() / math.sqrt(np.square(one).mean() * np.square(two).mean())) * math.sqrt(
            one.size
        )
        measured += f"; correlation of two rounds' noise {linked:+.1f} standard errors"
    limit = float(stats.norm.isf(FALSE_ALARM / 2))
    return Finding(
        name="fresh-draws",
        question="Is every random draw new and secret, so that the noise cannot be subtracted?",
        measured=measured,
        limit=f"0 words; correlation within ±{limit:.1f}",
        verdict=passed(shared == 0 and abs(linked) < limit and system.randomness().secret),
    )


def _words_of_another_process(system: System) -> np.ndarray:
    """Return random words from a forked child, which starts with a copy of this process's whole state."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        # Python warns of a fork while threads are running; the child uses none of them.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        try:
            os.close(reading)
            os.write(writing, system.randomness().words(1024).tobytes())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        content = pipe.read()
    os.waitpid(child, 0)
    return np.frombuffer(content, dtype="<u8")


CHECKS = (noise_size, sensitivity, plan_is_public, fresh_draws, equal_sites, hostile_weights)
