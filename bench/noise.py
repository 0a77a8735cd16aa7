"""Measure the cost of secret noise: 11 million normal numbers from AES, against torch's generator and a training step.

    ./run bench noise [--batch 64] [--repeats 5] [--device cuda] [--markdown]

The step is that of resnet-large (ResNet18's layout) on 128 x 128 images. `noisy step` is the part of training after the
clipped sum: noise on every weight, the division and SGD. The noise's share is that minus SGD alone, divided by a step
without privacy.
"""

from __future__ import annotations

import torch
from measure import Sheet, arguments_of, clock_for, interleaved, machine, ratio, spread, tell
from private_step import batch_of, network_of, step_of
from simulated_round import study_of

from wardround_client.privacy.noise import PatientOptimizer
from wardround_client.privacy.plan import plan_from_study
from wardround_client.privacy.secure_random import SecretRandom

GOAL = 0.05  # largest share of a step at batch 64
WORDS = {
    "secret": "secret normal numbers (AES)",
    "torch": "torch.normal",
    "in place": "normal_ in place",
    "noisy": "noisy step: noise, division, SGD",
    "sgd": "SGD alone",
    "plain": "gradient without privacy",
    "clipped": "clipped sum, book-keeping",
}


def works_of(network_name: str, batch_size: int, device: str) -> tuple[dict, int]:
    """Return the works to time, by the keys of `WORDS`, and the number of normal numbers in one noise."""
    network = network_of(network_name).to(device)
    parameters = dict(network.named_parameters())
    count = sum(parameter.numel() for parameter in parameters.values())
    batch = batch_of(network_name, batch_size, 1, device)
    plan = plan_from_study(study_of(1, 1, "resnet-large", 1))
    secret = SecretRandom()
    private = PatientOptimizer(torch.optim.SGD(parameters.values(), lr=1e-9), plan, parameters, secret)
    other = network_of(network_name).to(device)
    sgd = torch.optim.SGD(other.parameters(), lr=1e-9)
    for parameter in other.parameters():
        parameter.grad = torch.zeros_like(parameter)
    buffer = torch.empty(count, device=device)
    works = {
        "secret": lambda: secret.normal(count),
        "torch": lambda: torch.normal(0.0, 1.0, (count,), device=device),
        "in place": buffer.normal_,
        "noisy": private.noisy_step,
        "sgd": sgd.step,
        "plain": step_of("plain", network, batch, 1, "fp32"),
        "clipped": step_of("book-keeping", network, batch, 1, "fp32"),
    }
    return works, count


def main() -> None:
    parser = arguments_of(__doc__.splitlines()[0])
    parser.add_argument("--network", default="resnet-large")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    found = machine()
    works, count = works_of(arguments.network, arguments.batch, arguments.device)
    seconds = interleaved(works, arguments.repeats, clock=clock_for(arguments.device, arguments.threads))
    noise_s = [max(0.0, noisy - sgd) for noisy, sgd in zip(seconds["noisy"], seconds["sgd"], strict=True)]
    shares = {name: ratio(noise_s, seconds[name]) for name in ("plain", "clipped")}
    speeds = {name: ratio(seconds["secret"], seconds[name]) for name in ("torch", "in place")}
    rows = [[word, spread(seconds[name]).text(1, 1e3)] for name, word in WORDS.items()]
    rows += [[f"secret over {WORDS[name]}", one.text()] for name, one in speeds.items()]
    rows += [[f"noise over the {WORDS[name]}, %", one.text(1, 100)] for name, one in shares.items()]
    held = shares["plain"].median <= GOAL
    title = f"Noise on {count:,} weights, and a step of {arguments.network} at batch {arguments.batch}"
    notes = [f"Goal: noise at most {GOAL:.0%} of a step without privacy: {'held' if held else 'missed'}."]
    columns = ["what", f"ms; median (smallest–largest) of {arguments.repeats}"]
    document = {
        "settings": {name: getattr(arguments, name) for name in ("network", "batch", "repeats", "device", "threads")},
        "numbers": count,
        "seconds": {name: spread(values).to_json() for name, values in seconds.items()},
        "secret_over": {name: one.to_json() for name, one in speeds.items()},
        "noise_share_of": {name: one.to_json() for name, one in shares.items()},
    }
    tell(arguments, found, document, [Sheet(title=title, columns=columns, rows=rows, notes=notes)])


if __name__ == "__main__":
    main()
