"""The checks of a hospital's `doctor`: keys, server, clock, device, disk, archives, data, ledger, budget."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import numpy as np
import torch
from cryptography.hazmat.primitives import serialization

from wardround.errors import WardroundError
from wardround.networks.build import initial_network
from wardround.networks.weights import trained_parameters
from wardround.operations.health_checks import Check, checked, clock, disk, fault, files_closed, ok
from wardround.study.load import parse_study
from wardround_client.privacy.plan import plan_from_study
from wardround_client.privacy.secure_random import SecretRandom
from wardround_client.site import checks
from wardround_client.site.config import SiteConfig, load_site_config
from wardround_client.site.enrolment import pseudonym_key
from wardround_client.site.paths import CA_CERTIFICATE, CONFIG_FILE, PSEUDONYM_KEY, SITE_KEY
from wardround_client.site.server_info import clock_against_server, version_against_server
from wardround_client.site.site import choose_device
from wardround_client.training.batches import material_of
from wardround_client.training.train import plan_speed, train

NEEDED_BYTES = 2 * 10**9  # for replies and features; ingest checks its own disk space
STEP = {
    "study": {"name": "doctor", "rounds": 1, "spare_rounds": 0},
    "data": {"labels": ["a", "b"], "image_size": 64, "channels": "grey", "modality": "any"},
    "model": {"name": "seed-cnn", "init": "random", "trainable": "all"},
    "training": {"local_steps": 1, "learning_rate": 0.1},
    "privacy": {"epsilon": 1.0, "delta": 1e-5, "max_grad_norm": 1.0, "sampling_rate": 1.0, "nominal_patients": 8},
    "aggregation": {"nominal_sites": 1},
}


def examine(folder: Path, timeout_s: float) -> Iterator[Check]:
    """Run every check in turn; a failed check does not stop the others.

    Raises:
        UsageError: `site.toml` is invalid.
    """
    config = load_site_config(folder / CONFIG_FILE)
    yield ok(CONFIG_FILE, f"{config.name}, cap ε = {config.privacy.epsilon_cap:g} at δ = {config.privacy.delta_cap:g}")
    yield files_closed(folder, [SITE_KEY, PSEUDONYM_KEY, CA_CERTIFICATE])
    yield checked("keys", lambda: _keys(folder), "put keys/ back from a backup")
    yield checked(
        "CA", lambda: checks.ca(folder, config), "ask the operator for the CA, and compare fingerprints again"
    )
    todo = "check the address in site.toml, DNS, proxy and firewall; one outgoing port is needed"
    yield checked("server", lambda: checks.server(folder, config, timeout_s), todo)
    yield version_against_server(folder)
    yield clock()
    yield clock_against_server(folder)
    yield checked("device", lambda: _device(config), "set compute.device in site.toml to cpu, or repair the driver")
    yield disk(folder, NEEDED_BYTES)
    if config.pacs:
        from wardround_client.pacs.checks import archives

        yield from archives(folder, config, timeout_s, date.today())
    yield checked("cohort", lambda: checks.cohort(folder), "run wardround-site ingest again")
    yield checked("studies", lambda: checks.studies(folder), "see wardround-site studies list")
    todo = "put the newest copy of the ledger back; no study can train without it"
    yield checked("ledger", lambda: checks.ledger(folder), todo)
    yield checked("budget", lambda: checks.budget(folder, config), "see the check of the ledger")


def _keys(folder: Path) -> Check:
    """Check that the private key can be read and belongs to the public one."""
    pseudonym_key(folder)
    try:
        private = serialization.load_ssh_private_key((folder / SITE_KEY).read_bytes(), password=None)
        public = serialization.load_ssh_public_key((folder / f"{SITE_KEY}.pub").read_bytes())
    except (OSError, ValueError) as error:
        raise WardroundError(f"a key in keys/ cannot be read ({type(error).__name__})") from None
    if private.public_key() != public:
        raise WardroundError(f"{SITE_KEY} and {SITE_KEY}.pub are not a pair")
    return ok("keys", "the site's key and the pseudonym key are intact")


def _device(config: SiteConfig) -> Check:
    """Check one step of private training as in a round (draw, clip, noise) on eight synthetic patients."""
    device, started = choose_device(config), time.monotonic()
    torch.set_num_threads(config.compute.threads)
    study = parse_study(STEP)
    plan, network = plan_from_study(study), initial_network(study)
    generator = torch.Generator().manual_seed(0)  # synthetic images: no patient, no secret
    images = torch.randint(0, 256, (8, 1, 64, 64), generator=generator, dtype=torch.uint8).numpy()
    rows = np.arange(8)
    material = material_of(images, rows % 2, rows, rows >= 0)
    try:
        speed = plan_speed(network, study, plan, device, precision=config.compute.precision)
        parameters = trained_parameters(network, study)
        before = {name: p.detach().cpu().numpy().copy() for name, p in parameters.items()}
        after = train(study, plan, network, before, material, 1, SecretRandom(), device, speed)
    except RuntimeError as error:  # raised by torch for a driver that does not fit or memory that is in use
        return fault(
            "device", f"{device}: {str(error).splitlines()[0]}", "repair the driver, or free the device's memory"
        )
    if not all(np.isfinite(after[name]).all() and (after[name] != before[name]).any() for name in before):
        return fault("device", f"{device}: one private step gave no usable weights", "set compute.device to cpu")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"
    return ok("device", f"{name}: one private step, its clipping checked, in {time.monotonic() - started:.1f} s")
