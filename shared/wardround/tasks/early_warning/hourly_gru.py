"""`gru`: a recurrent network that reads a stay hour by hour and gives a risk at every hour.

A gated recurrent unit (Cho et al. 2014) as two linear layers. `inputs` maps all hours of a stay at once; `hidden` is
used once an hour. Clipping treats the hours as positions of one layer (`clipping/bookkeeping.py`), so that a patient's
gradient needs no more than one backward pass.

An hour's input has, for each measured variable, its last value, whether it was measured in this hour, and how recent
the value is. A head reads the state of the hour, the mean of all states up to it, and the facts of the stay, so that
the risk at an hour uses nothing that came later.

Shapes: N stays, T hours, V variables, D inputs of an hour, H units, S facts.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wardround.errors import ModelError
from wardround.networks.model_file import read_shipped
from wardround.sources.records.vocabulary import Vocabulary
from wardround.tasks.early_warning.features.scaling import ClinicalScale
from wardround.tasks.early_warning.features.summaries import RECENT_HOURS, two_sided

UNITS = 32
SHIPPED_FILE = "hourly_gru.safetensors"


class HourlyInputs(nn.Module):
    """Rows in a vocabulary's units -> what the network reads of each hour, and the facts of the stay."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        super().__init__()
        self.scale = ClinicalScale(vocabulary)
        variables = list(enumerate(vocabulary.variables))
        self._hourly = [column for column, one in variables if not one.of_the_stay]
        self._facts = [column for column, one in variables if one.kind == "static"]
        self._binary = [column for column, one in variables if one.kind == "category" and len(one.categories) == 2]
        self._many = [column for column, one in variables if one.kind == "category" and len(one.categories) > 2]
        self._codes = [len(vocabulary.variables[column].categories) for column in self._many]
        self.hour_width = 3 * len(self._hourly)
        self.fact_width = 2 * (len(self._facts) + len(self._binary)) + sum(self._codes)
        names = vocabulary.names
        known = [names[column] for column in self._facts + self._binary]
        marked = [names[c] for c, codes in zip(self._many, self._codes, strict=True) for _ in range(codes)]
        self._hour_names, self._fact_names = [names[column] for column in self._hourly], [*known, *known, *marked]

    @property
    def hour_names(self) -> tuple[str, ...]:
        """The variable of each of the values, and so of the masks and of the recencies, of an hour."""
        return tuple(self._hour_names)

    @property
    def fact_names(self) -> tuple[str, ...]:
        """The variable of each fact."""
        return tuple(self._fact_names)

    def forward(self, rows_NTV: Tensor) -> tuple[Tensor, Tensor]:
        """Rows (N, T, V) -> (N, T, D) by hour, and facts (N, S)."""
        scaled_NTV = self.scale(rows_NTV)
        return self.hours(scaled_NTV[..., self._hourly]), self._facts_of(rows_NTV[:, 0], scaled_NTV[:, 0])

    def hours(self, scaled_NTV: Tensor) -> Tensor:
        """Scaled hourly variables, NaN for what is missing -> last values (0 before the first), masks, recency."""
        there_NTV = ~scaled_NTV.isnan()
        hour_T = torch.arange(scaled_NTV.shape[1], device=scaled_NTV.device)[None, :, None]
        last_NTV = running_maximum(torch.where(there_NTV, hour_T, -1))
        seen_NTV = last_NTV >= 0
        values_NTV = torch.where(there_NTV, scaled_NTV, 0.0).gather(1, last_NTV.clamp(min=0))
        recent_NTV = torch.where(seen_NTV, torch.exp((last_NTV - hour_T) / RECENT_HOURS), 0.0)
        return torch.cat([torch.where(seen_NTV, values_NTV, 0.0), there_NTV.float(), recent_NTV], 2)

    def _facts_of(self, plain_NV: Tensor, scaled_NV: Tensor) -> Tensor:
        known_NV = ~plain_NV.isnan()
        parts = [torch.where(known_NV, scaled_NV, 0.0)[:, self._facts]]
        parts += [two_sided(plain_NV[:, column])[:, None] for column in self._binary]
        parts += [1 - known_NV[:, self._facts + self._binary].float()]
        for column, codes in zip(self._many, self._codes, strict=True):
            parts.append((plain_NV[:, column, None] == torch.arange(codes, device=plain_NV.device)).float())
        return torch.cat(parts, 1)


def running_maximum(values_NTV: Tensor) -> Tensor:
    """The largest value so far along T: `Tensor.cummax`, which no operator of ONNX computes and an export replaces."""
    return maximum_by_doubling(values_NTV) if torch.compiler.is_exporting() else values_NTV.cummax(1).values


def maximum_by_doubling(values_NTV: Tensor) -> Tensor:
    """The same in log2(T) steps, five times slower."""
    reach = 1
    while reach < values_NTV.shape[1]:
        larger = torch.maximum(values_NTV[:, reach:], values_NTV[:, :-reach])
        values_NTV = torch.cat([values_NTV[:, :reach], larger], 1)
        reach *= 2
    return values_NTV


class HourlyGRU(nn.Module):
    """The recurrent network. Its gates are in the order reset, update, new, as in `nn.GRU`."""

    def __init__(self, vocabulary: Vocabulary, units: int = UNITS) -> None:
        super().__init__()
        self.units = units
        self.prepare = HourlyInputs(vocabulary)
        self.inputs = nn.Linear(self.prepare.hour_width, 3 * units)
        self.hidden = nn.Linear(units, 3 * units)
        self.head = nn.Linear(2 * units + self.prepare.fact_width, 1)

    def forward(self, rows_NTV: Tensor) -> Tensor:
        """Rows (N, T, V) in the vocabulary's units, NaN where missing -> logits at the end of each hour (N, T)."""
        with torch.no_grad():
            hours_NTD, facts_NS = self.prepare(rows_NTV)
        return self.of_prepared(hours_NTD, facts_NS)

    def of_prepared(self, hours_NTD: Tensor, facts_NS: Tensor) -> Tensor:
        """Inputs by hour (N, T, D) and facts (N, S) -> logits at the end of each hour (N, T)."""
        states_NTH = self.states(self.inputs(hours_NTD))
        return self.head(self._read(states_NTH, facts_NS)).squeeze(2)

    def states(self, gates_NTG: Tensor) -> Tensor:
        """The input part of the gates at each hour (N, T, 3H) -> the states (N, T, H)."""
        state_NH = gates_NTG.new_zeros(gates_NTG.shape[0], self.units)  # `len` would fix N in an export
        states, sizes = [], [2 * self.units, self.units]
        reset_update_NTG, new_NTG = torch.split_with_sizes(gates_NTG, sizes, 2)  # once, not in each hour: it is slow
        for reset_update, new in zip(reset_update_NTG.unbind(1), new_NTG.unbind(1), strict=True):
            hidden_reset_update, hidden_new = torch.split_with_sizes(self.hidden(state_NH), sizes, 1)
            reset_NH, update_NH = torch.sigmoid(reset_update + hidden_reset_update).chunk(2, 1)
            new_NH = torch.tanh(torch.addcmul(new, reset_NH, hidden_new))
            state_NH = torch.lerp(new_NH, state_NH, update_NH)
            states.append(state_NH)
        return torch.stack(states, 1)

    def _read(self, states_NTH: Tensor, facts_NS: Tensor) -> Tensor:
        """What the head reads at each hour, (N, T, 2H + S)."""
        hours = states_NTH.shape[1]
        count_T = torch.arange(1, hours + 1, device=states_NTH.device, dtype=states_NTH.dtype)
        mean_NTH = states_NTH.cumsum(1) / count_T[:, None]
        return torch.cat([states_NTH, mean_NTH, facts_NS[:, None].expand(-1, hours, -1)], 2)

    def features(self, rows_NTV: Tensor) -> Tensor:
        """Rows (N, T, V) -> what the head reads at the last hour, (N, 2H + S)."""
        hours_NTD, facts_NS = self.prepare(rows_NTV)
        return self._read(self.states(self.inputs(hours_NTD)), facts_NS)[:, -1]

    def label_logits(self, rows_NTV: Tensor) -> Tensor:
        """Rows (N, T, V) -> logits at the end of the last hour, (N, 1)."""
        return self.forward(rows_NTV)[:, -1:]


def load_simulated_start(network: HourlyGRU, path: str | None = None) -> None:
    """Load the weights that were trained on simulated stays: those that ship, or those of a file of `pretrain`.

    Raises:
        ModelError: The file is damaged, or was trained for another vocabulary.
    """
    stored = read_shipped(__package__, SHIPPED_FILE, path)
    stored.check_hash()
    wanted = dict(network.named_parameters())
    if {name: one.shape for name, one in stored.tensors.items()} != {name: one.shape for name, one in wanted.items()}:
        raise ModelError(f"{stored.name}: was trained for another vocabulary; train it anew: wardround-sim pretrain")
    with torch.no_grad():
        for name, parameter in wanted.items():
            parameter.copy_(stored.tensors[name])
