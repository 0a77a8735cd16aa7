"""Measure the cost of privacy for a training step in time and memory: our clipped sum, the plain gradient, Opacus.

    ./run bench private_step [--networks seed-cnn,resnet-small] [--batch 16] [--repeats 5] [--device cuda] [--markdown]

A step is forward, loss and backward, up to the gradient to which noise would be added. `plain` is the mean loss without
any clipping. Our engines are listed by name, with the one that a site would choose by its own trial. With k images per
patient the unit of clipping is the patient: our engines combine k images into one unit; for Opacus, which supports only
samples, the per-sample gradients of a patient are averaged before clipping. All modes of a network run one after the
other in each repeat, each on its own copy. Before timing, each is compared with the loop over one forward pass. Memory
is the peak of a fresh process for one mode, beyond weights and images.
"""

from __future__ import annotations

import copy
import ctypes
import os
import re
import resource
import tempfile
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch
from measure import MB, Sheet, arguments_of, clock_for, interleaved, machine, ratio, spread, tell
from opacus_modes import NotPossibleError, Step, opacus_step
from torch import Tensor, nn

from wardround.tasks.labelled.objective import loss_per_row
from wardround_client.clipping.bookkeeping import SpeedSettings
from wardround_client.clipping.engines import ROUNDING_ROOM, ClippingEngine, PatientBatch, clip_over_one_pass
from wardround_client.clipping.select import EngineMemory, Sample, candidates_of, checked_engine

IMAGE_PX = 128
MAX_GRAD_NORM = 0.1
# Relative to the loop over one forward pass. Rounding may carry an activation across zero; correct engines then differ
# by a thousandth.
LARGEST_GAP = {"fp32": 5e-3, "tf32": 2e-2, "bf16": 1e-1}
CLASSIFIERS = ("seed-cnn", "phantom-encoder", "resnet-small", "resnet-large", "densenet121")
DISCRIMINATORS = {"dcgan-64": 64, "dcgan-128": 128}
NETWORKS = (*CLASSIFIERS, *DISCRIMINATORS)
OURS = ("book-keeping", "book-keeping, channels last", "loop")  # names in `candidates_of`
MODES = ("plain", *OURS, "hooks", "ghost", "functorch")
# Goals on one CPU thread: ratios of time and peak memory to those of the plain step.
TIME_GOAL = {"seed-cnn": 1.15, "resnet-small": 1.5, "resnet-large": 1.5, "dcgan-64": 1.35, "dcgan-128": 1.35}
MEMORY_GOAL = 1.6
# Dense peak in TFLOP/s, from the vendor's data sheets.
GPU_PEAK_TFLOPS = {
    "H100": {"fp32": 66.9, "tf32": 494.7, "bf16": 989.4},
    "H200": {"fp32": 66.9, "tf32": 494.7, "bf16": 989.4},
    "A100": {"fp32": 19.5, "tf32": 156.0, "bf16": 312.0},
    "L4": {"fp32": 30.3, "tf32": 60.0, "bf16": 121.0},
}


def network_of(name: str) -> nn.Module:
    """Return a network for one channel and two labels, all trainable, with weights from a fixed seed."""
    torch.manual_seed(0)
    if name in DISCRIMINATORS:
        from wardround.tasks.synthesis.dcgan import Discriminator

        return Discriminator(DISCRIMINATORS[name], 1).train()
    from wardround.networks.build import build_model
    from wardround.sources.images.study import ImageData
    from wardround.study.schema import ModelSection

    data = ImageData(image_size=IMAGE_PX, labels=("benign", "malignant"))
    network = build_model(ModelSection(name=name, init="random", trainable="all"), data, seed=0)
    nn.init.normal_(network.head.weight, std=0.05)  # a head of zeros would send no gradient into the trunk
    return network.train()


def batch_of(name: str, images: int, k: int, device: str) -> PatientBatch:
    """Return random images for the network: `images` // k patients with k images each."""
    image_px = DISCRIMINATORS.get(name, IMAGE_PX)
    generator = torch.Generator().manual_seed(1)
    inputs_N = torch.randint(0, 256, (images, 1, image_px, image_px), generator=generator, dtype=torch.uint8)
    return PatientBatch(
        inputs_N=(inputs_N.float() / 127.5 - 1 if name in DISCRIMINATORS else inputs_N).to(device),
        labels_N=(torch.arange(images) % 2).to(device),
        start_U1=torch.arange(0, images + 1, k),
    )


def step_of(mode: str, network: nn.Module, batch: PatientBatch, k: int, precision: str) -> Step:
    """Return a step of the mode; each call computes the gradient anew.

    Raises:
        NotPossibleError: With the reason, if the mode cannot run the network.
    """
    parameters = dict(network.named_parameters())
    device_type = batch.inputs_N.device.type

    def context() -> AbstractContextManager:
        return torch.autocast(device_type, torch.bfloat16) if precision == "bf16" else nullcontext()

    def plain() -> dict[str, Tensor]:
        network.zero_grad(set_to_none=True)
        with context():
            loss = loss_per_row(network(batch.inputs_N), batch.labels_N).mean()
        loss.backward()
        return {name: parameter.grad for name, parameter in parameters.items()}

    if mode == "plain":
        return plain
    if mode in OURS:
        engine = candidates_of(speed_of(precision, k))[mode]
        return lambda: engine(network, parameters, batch, loss_per_row, MAX_GRAD_NORM).gradients
    return opacus_step(mode, network, batch, k, MAX_GRAD_NORM * (1 - ROUNDING_ROOM), context)


def speed_of(precision: str, k: int) -> SpeedSettings:
    return SpeedSettings(precision="bfloat16" if precision == "bf16" else "float32", images_per_unit=k)


def chosen_by_trial(network: nn.Module, batch: PatientBatch, k: int, precision: str) -> str:
    """Return the name of the engine that a site would choose for this network on this machine."""
    images_N = batch.inputs_N[torch.arange(7) % len(batch.inputs_N)]  # as many as a site uses
    sample = Sample(images_N=images_N, outputs=1, images_per_unit=k)
    with tempfile.TemporaryDirectory() as folder:
        engine = checked_engine(
            network,
            dict(network.named_parameters()),
            loss_per_row,
            sample,
            MAX_GRAD_NORM,
            speed=speed_of(precision, k),
            memory=EngineMemory(choices=Path(folder)),
        )

    def settings(one: ClippingEngine) -> tuple:
        return (one.func, one.keywords) if isinstance(one, partial) else (one, {})

    found = [name for name, one in candidates_of(speed_of(precision, k)).items() if settings(one) == settings(engine)]
    return found[0]


def gap_to_loop(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    """Return the distance of two gradients divided by the norm of the second, over all parameters."""
    square = sum(float((found[name].double() - wanted[name].double()).square().sum()) for name in wanted)
    return (square / sum(float(one.double().square().sum()) for one in wanted.values())) ** 0.5


def measured(name: str, k: int, modes: list[str], arguments) -> dict:
    """Return seconds, ratios and gaps of the modes on one network, and the reasons for modes that cannot run."""
    network = network_of(name).to(arguments.device)
    batch = batch_of(name, arguments.batch, k, arguments.device)
    parameters = dict(network.named_parameters())
    wanted = clip_over_one_pass(network, parameters, batch, loss_per_row, MAX_GRAD_NORM).gradients
    steps: dict[str, Step] = {}
    refused: dict[str, str] = {}
    gaps: dict[str, float] = {}
    for mode in modes:
        try:
            step = step_of(mode, copy.deepcopy(network), batch, k, arguments.precision)
            found = step()
        except (NotPossibleError, RuntimeError) as error:
            refused[mode] = " ".join(str(error).split())[:160]
            continue
        if mode != "plain":
            gaps[mode] = gap_to_loop(found, wanted)
            if not gaps[mode] <= LARGEST_GAP[arguments.precision]:
                refused[mode] = f"its sum differs from the loop's by {gaps[mode]:.1e}"
                continue
        steps[mode] = step
        del found

    seconds = interleaved(steps, arguments.repeats, clock=clock_for(arguments.device, arguments.threads))
    return {
        "network": name,
        "images_per_patient": k,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "chosen": chosen_by_trial(network, batch, k, arguments.precision),
        "seconds": {mode: spread(values).to_json() for mode, values in seconds.items()},
        "ratio": {mode: ratio(values, seconds["plain"]) for mode, values in seconds.items() if mode != "plain"},
        "gap_to_loop": gaps,
        "not_possible": refused,
        "plain_gflop": flops_of(step_of("plain", copy.deepcopy(network), batch, k, arguments.precision)) / 1e9,
    }


def flops_of(step: Step) -> float:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        step()
    return float(counter.get_total_flops())


# Memory: each mode in a separate process


def peak_bytes(mode: str, name: str, k: int, arguments) -> int:
    """Return the peak memory of two steps beyond that before them: weights, images, libraries, warm caches."""
    set_precision(arguments.precision, arguments.threads)
    network = network_of(name).to(arguments.device)
    if mode != "plain":
        step_of(mode, copy.deepcopy(network), batch_of(name, k, k, arguments.device), k, arguments.precision)()
    step_of("plain", network, batch_of(name, k, k, arguments.device), k, arguments.precision)()
    network.zero_grad(set_to_none=True)
    step = step_of(mode, network, batch_of(name, arguments.batch, k, arguments.device), k, arguments.precision)
    if arguments.device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets the kernel's peak value
        before = _status_bytes("VmRSS")
    for _ in range(2):
        step()
    return (torch.cuda.max_memory_allocated() if arguments.device == "cuda" else _status_bytes("VmHWM")) - before


def _status_bytes(field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"), re.MULTILINE)
    if found is None:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return int(found[1]) * 1024


def fresh_processes() -> ProcessPoolExecutor:
    """Return a pool with one process per task, forked from a process that has only imported the libraries.

    Use it in a `with` statement, which closes it.
    """
    # Large tensors are allocated from the system and returned to it, so that the peak excludes what an allocator keeps.
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "131072"
    context = get_context("forkserver")
    context.set_forkserver_preload(["torch.func", "opacus.grad_sample", "wardround_client.training.train"])
    return ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1)


# Tables


def sheets_of(results: list[dict], arguments) -> list[Sheet]:
    """Return tables of time ratios and peak memory ratios, and on a GPU of absolute figures.

    The notes list the modes that cannot run.
    """
    shown = [mode for mode in MODES if any(mode in result["seconds"] for result in results)]
    others = [mode for mode in shown if mode != "plain"]
    notes = [
        f"{result['network']}, k = {result['images_per_patient']}, {mode}: not possible: {reason}"
        for result in results
        for mode, reason in result["not_possible"].items()
        if mode != "ghost" or result["images_per_patient"] == 1
    ]
    if any("ghost" in result["not_possible"] and result["images_per_patient"] > 1 for result in results):
        notes.append("ghost, k > 1: not possible: it never has a sample's gradient to form a patient's mean from")
    rows, memory = [], []
    for result in results:
        first = [result["network"], str(result["images_per_patient"])]
        cells = [result["ratio"][mode].text() if mode in result["ratio"] else "not possible" for mode in others]
        plain_ms = f"{result['seconds']['plain']['median'] * 1e3:,.1f}"
        chosen = result["chosen"]
        goal = _goal(result["ratio"][chosen].median, TIME_GOAL.get(result["network"])) if chosen in others else ""
        rows.append([*first, plain_ms, *cells, chosen, goal])
        peaks = result.get("peak_mb")
        if peaks:
            base = peaks["plain"]
            cells = [f"{peaks[mode] / base:.2f}" if mode in peaks else "not possible" for mode in others]
            goal = _goal(peaks[chosen] / base, MEMORY_GOAL) if chosen in peaks else ""
            memory.append([*first, f"{base:,.0f}", *cells, goal])
    kind = "CPU time" if arguments.device == "cpu" and arguments.threads == 1 else "time"
    title = f"{kind} over the plain step's, {arguments.batch} images, {arguments.precision}, on {arguments.device}"
    sheets = [
        Sheet(
            title=f"{title}; median (smallest–largest) of {arguments.repeats}",
            columns=["network", "k", "plain, ms", *others, "chosen", "goal of the chosen"],
            rows=rows,
            notes=notes,
        )
    ]
    if memory:
        columns = ["network", "k", "plain, MB", *others, "goal of the chosen"]
        sheets.append(Sheet(title="Peak memory over the plain step's, beyond weights", columns=columns, rows=memory))
    if arguments.device == "cuda":
        sheets.append(_absolute(results, arguments))
    return sheets


def _goal(value: float, goal: float | None) -> str:
    return "" if goal is None else f"≤ {goal:.2f} {'held' if value <= goal else 'missed'}"


def _absolute(results: list[dict], arguments) -> Sheet:
    """Return images per second and the share of the GPU's peak, with the plain step's FLOPs for every mode."""
    peak = arguments.peak_tflops or next(
        (peaks[arguments.precision] for name, peaks in GPU_PEAK_TFLOPS.items() if name in torch.cuda.get_device_name()),
        None,
    )
    rows = []
    for result in results:
        for mode in ("plain", result["chosen"]):
            if mode in result["seconds"]:
                seconds = result["seconds"][mode]["median"]
                share = f"{result['plain_gflop'] / 1e3 / seconds / peak:.1%}" if peak else "peak unknown"
                first = [result["network"], str(result["images_per_patient"]), mode]
                rows.append([*first, f"{seconds * 1e3:.2f}", f"{arguments.batch / seconds:,.0f}", share])
    title = f"Absolute, {arguments.precision}" + (f", peak {peak:g} TFLOP/s" if peak else "")
    return Sheet(title=title, columns=["network", "k", "mode", "ms", "images/s", "share of peak"], rows=rows)


def set_precision(precision: str, threads: int) -> None:
    torch.set_num_threads(threads)
    torch.backends.cuda.matmul.allow_tf32 = precision != "fp32"
    torch.backends.cudnn.allow_tf32 = precision != "fp32"


def main() -> None:
    parser = arguments_of(__doc__.splitlines()[0])
    parser.add_argument("--networks", default=",".join(NETWORKS), help=f"of {', '.join(NETWORKS)}")
    parser.add_argument("--modes", default=";".join(MODES), help=f"of {'; '.join(MODES)}, with ; between them")
    parser.add_argument("--images-per-patient", default="1,4")
    parser.add_argument("--batch", type=int, default=16, help="images in a step")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=tuple(LARGEST_GAP), default="fp32")
    parser.add_argument("--peak-tflops", type=float, help="of this GPU at this precision, where it is not known here")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--without-memory", action="store_true")
    arguments = parser.parse_args()
    names, ks = arguments.networks.split(","), [int(k) for k in arguments.images_per_patient.split(",")]
    modes = ["plain", *(mode for mode in arguments.modes.split(";") if mode != "plain")]
    unknown = {*names} - {*NETWORKS} | {*modes} - {*MODES}
    if unknown or any(arguments.batch % k for k in ks):
        parser.error(f"unknown: {', '.join(sorted(unknown))}" if unknown else "--batch must hold whole patients")
    set_precision(arguments.precision, arguments.threads)
    found = machine()
    results = [measured(name, k, modes, arguments) for name in names for k in ks]
    if not arguments.without_memory:
        with fresh_processes() as processes:
            for result in results:
                task = (result["network"], result["images_per_patient"], arguments)
                peaks = {mode: processes.submit(peak_bytes, mode, *task).result() for mode in result["seconds"]}
                result["peak_mb"] = {mode: peak / MB for mode, peak in peaks.items()}
    document = [{**r, "ratio": {mode: one.to_json() for mode, one in r["ratio"].items()}} for r in results]
    settings = {name: getattr(arguments, name) for name in ("batch", "repeats", "device", "precision", "threads")}
    tell(arguments, found, {"settings": settings, "steps": document}, sheets_of(results, arguments))


if __name__ == "__main__":
    main()
