"""Measure a clipped training step of the recurrent network against plain `nn.GRU`, in time, in the same run.

    ./run bench recurrent_step [--stays 64] [--hours 48] [--units 64] [--repeats 15] [--json] [--markdown]

`nn.GRU` is torch's own recurrent layer with the same inputs, the same head and the same loss, without any clipping.
`book-keeping` gives every patient's clipped gradient, `plain` is our network without clipping. All of them get inputs
that were prepared before (last values, masks, recency), which every step would otherwise do alike. The modes take
turns in each repeat, with one thread. Before timing, book-keeping is compared with the loop over patients.
"""

from __future__ import annotations

import torch
from measure import Sheet, Spread, arguments_of, interleaved, machine, ratio, spread, tell
from torch import Tensor, nn

from wardround.processes.memory import keep_freed_memory
from wardround.sources.records.vocabulary import load_vocabulary
from wardround.tasks.early_warning.hourly_gru import HourlyGRU
from wardround.tasks.early_warning.objective import mean_over_hours
from wardround_client.clipping.bookkeeping import SpeedSettings, clip_by_bookkeeping
from wardround_client.clipping.engines import PatientBatch, clip_by_loop, length_of

MAX_GRAD_NORM = 0.1
GOAL = 1.6
LARGEST_GAP = 1e-4


class Prepared(nn.Module):
    """The network on prepared inputs: hours (N, T, D), with the facts of the stay repeated in every hour."""

    def __init__(self, network: HourlyGRU) -> None:
        super().__init__()
        self.network = network

    def forward(self, inputs_NTD: Tensor) -> Tensor:
        width = self.network.prepare.hour_width
        return self.network.of_prepared(inputs_NTD[..., :width], inputs_NTD[:, 0, width:])


class TorchGRU(nn.Module):
    """`nn.GRU` with the same head."""

    def __init__(self, network: HourlyGRU) -> None:
        super().__init__()
        self.width = network.prepare.hour_width
        self.gru = nn.GRU(self.width, network.units, batch_first=True)
        self.head = nn.Linear(network.head.in_features, 1)

    def forward(self, inputs_NTD: Tensor) -> Tensor:
        states_NTH, _ = self.gru(inputs_NTD[..., : self.width])
        count_T = torch.arange(1, states_NTH.shape[1] + 1)[:, None]
        read = torch.cat([states_NTH, states_NTH.cumsum(1) / count_T, inputs_NTD[..., self.width :]], 2)
        return self.head(read).squeeze(2)


def measured(stays: int, hours: int, units: int, repeats: int) -> dict:
    """Return the seconds of each mode, their ratios to `nn.GRU`, and the gap between book-keeping and the loop."""
    torch.manual_seed(0)
    network = HourlyGRU(load_vocabulary("icu"), units)
    ours, torchs = Prepared(network), TorchGRU(network)
    inputs_NTD = torch.randn(stays, hours, network.prepare.hour_width + network.prepare.fact_width)
    labels_N = torch.arange(stays) % 2
    batch = PatientBatch(inputs_N=inputs_NTD, labels_N=labels_N, start_U1=torch.arange(stays + 1))
    parameters = dict(ours.named_parameters())
    speed = SpeedSettings(group_images=stays, images_per_unit=1)

    def plain(part: nn.Module) -> None:
        torch.autograd.grad(mean_over_hours(part(inputs_NTD), labels_N).mean(), list(part.parameters()))

    def clipped() -> dict[str, Tensor]:
        return clip_by_bookkeeping(ours, parameters, batch, mean_over_hours, MAX_GRAD_NORM, speed=speed).gradients

    found, right = clipped(), clip_by_loop(ours, parameters, batch, mean_over_hours, MAX_GRAD_NORM).gradients
    gap = length_of({name: found[name] - right[name] for name in right}) / length_of(right)
    if not gap <= LARGEST_GAP:
        raise SystemExit(f"book-keeping differs from the loop by {gap:.1e}")
    works = {"nn.GRU": lambda: plain(torchs), "plain": lambda: plain(ours), "book-keeping": clipped}
    seconds = interleaved(works, repeats)
    return {
        "gap_to_loop": gap,
        "seconds": {name: spread(values).to_json() for name, values in seconds.items()},
        "ratios": {name: ratio(values, seconds["nn.GRU"]).to_json() for name, values in seconds.items()},
    }


def main() -> None:
    parser = arguments_of(__doc__.splitlines()[0])
    parser.add_argument("--stays", type=int, default=64)
    parser.add_argument("--hours", type=int, default=48)
    parser.add_argument("--units", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()  # as a site does
    here = machine()
    found = measured(arguments.stays, arguments.hours, arguments.units, arguments.repeats)
    rows = [
        [name, Spread(**found["seconds"][name]).text(1, 1e3), Spread(**found["ratios"][name]).text()]
        for name in found["seconds"]
    ]
    title = f"A step of {arguments.stays} stays, {arguments.hours} hours, {arguments.units} units, one thread"
    notes = [f"Goal of book-keeping: {GOAL}. Its gap to the loop over patients is {found['gap_to_loop']:.1e}."]
    sheet = Sheet(title=title, columns=["mode", "CPU ms", "times nn.GRU"], rows=rows, notes=notes)
    sizes = {"stays": arguments.stays, "hours": arguments.hours, "units": arguments.units, "goal": GOAL}
    tell(arguments, here, {**sizes, **found}, [sheet])


if __name__ == "__main__":
    main()
