"""Measure the ingest of records: time against plain reading with pyarrow, and peak memory against a smaller table.

    ./run bench records [--rows 2000000] [--repeats 3] [--markdown]

The benchmark writes a long table of measurements (CSV, sorted by patient, 400 rows each) and one with a tenth of its
rows and as many patients. "Plain" iterates over the same columns of the same file with pyarrow and keeps nothing.
Ingestion does that too, and repairs, checks, sorts into hours, and writes the quality report and the cohort. Each runs
in a fresh process, whose peak memory is what the kernel reports (VmHWM). The last line is of a FHIR export in NDJSON
with a tenth of the measurements.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
from measure import Sheet, arguments_of, interleaved, machine, ratio, spread, tell

from wardround.sources.records.study import RecordsData
from wardround.sources.records.vocabulary import load_vocabulary
from wardround_client.sources.records import source

KEY = b"bench" * 7
ROWS_A_PATIENT = 400
CHUNK = 2_000_000
STUDY = RecordsData(vocabulary="icu", outcome="died", labels=("survived", "died"))
COLUMNS = ("patient_id", "hours", "variable", "value")


def write_table(folder: Path, rows: int, patients: int) -> Path:
    """Write events.csv and patients.csv of synthetic measurements around the centre of each variable."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    measured = [variable for variable in load_vocabulary("icu").variables if variable.kind == "series"]
    centre_V = np.array([variable.centre for variable in measured])
    names = pa.array([variable.name for variable in measured])
    schema = pa.schema(
        [("patient_id", pa.int64()), ("hours", pa.float64()), ("variable", pa.string()), ("value", pa.float64())]
    )
    with pa_csv.CSVWriter(
        folder / "events.csv", schema, write_options=pa_csv.WriteOptions(quoting_style="none")
    ) as out:
        for first in range(0, rows, CHUNK):
            count = min(CHUNK, rows - first)
            variable_N = generator.integers(0, len(measured), count)
            value_N = np.round(centre_V[variable_N] * generator.uniform(0.95, 1.05, count), 2)
            hours_N = np.round(generator.uniform(0, 48, count), 4)
            patients_N = np.arange(first, first + count) * patients // rows
            out.write_table(pa.table([patients_N, hours_N, names.take(pa.array(variable_N)), value_N], schema=schema))
    lines = [f"{patient},{patient % 2},{20 + patient % 70}" for patient in range(patients)]
    (folder / "patients.csv").write_text("\n".join(["patient_id,died,age", *lines]) + "\n")
    return folder


def write_export(folder: Path, count: int, patients: int) -> Path:
    """Write a FHIR export in NDJSON with `count` heart rates, and a table of outcomes."""
    folder.mkdir(parents=True)
    begin = datetime(2026, 1, 1, tzinfo=UTC)
    people = [
        {"resourceType": "Patient", "id": f"{patient}", "gender": "female", "birthDate": "1960-01-01"}
        for patient in range(patients)
    ]
    stays = [
        {
            "resourceType": "Encounter",
            "status": "finished",
            "class": {"code": "IMP"},
            "subject": {"reference": f"Patient/{patient}"},
            "period": {"start": begin.isoformat()},
        }
        for patient in range(patients)
    ]
    with open(folder / "Observation.ndjson", "w", encoding="utf-8") as file:
        for number in range(count):
            observation = {
                "resourceType": "Observation",
                "status": "final",
                "category": [{"coding": [{"code": "vital-signs"}]}],
                "code": {"coding": [{"system": "http://loinc.org", "code": "8867-4", "display": "Heart rate"}]},
                "subject": {"reference": f"Patient/{number % patients}"},
                "effectiveDateTime": (begin + timedelta(seconds=number * 172_000 // count)).isoformat(),
                "valueQuantity": {"value": 60 + number % 40, "unit": "/min", "code": "/min"},
            }
            file.write(json.dumps(observation) + "\n")
    for name, resources in (("Patient", people), ("Encounter", stays)):
        (folder / f"{name}.ndjson").write_text("".join(json.dumps(one) + "\n" for one in resources))
    lines = [f"{patient},{patient % 2}" for patient in range(patients)]
    (folder / "outcomes.csv").write_text("\n".join(["patient_id,died", *lines]) + "\n")
    return folder


def plain(folder: Path) -> int:
    """Iterate over the table with pyarrow alone, and return the number of rows."""
    with pa_csv.open_csv(folder / "events.csv") as reader:
        return sum(batch.num_rows for batch in reader)


def ingest(folder: Path) -> int:
    """Ingest the folder, and return the number of values in the cohort."""
    (site,) = source.discover(folder, STUDY)
    with tempfile.TemporaryDirectory(dir=folder.parent) as out:
        return source.ingest(site, STUDY, Path(out) / "cohort", KEY, workers=1).values


def measured_alone(work: str, folder: Path) -> dict[str, float]:
    """Run `plain` or `ingest` in a fresh process; return its seconds, without the start, and its peak memory in MB."""
    command = [sys.executable, __file__, "--alone", work, "--folder", str(folder)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def noted(runs: list[dict[str, float]], work: str, folder: Path) -> None:
    runs.append(measured_alone(work, folder))


def alone(work: str, folder: Path) -> None:
    begin = time.perf_counter()
    {"plain": plain, "ingest": ingest}[work](folder)
    seconds = time.perf_counter() - begin
    status = Path("/proc/self/status").read_text()
    peak_kb = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    print(json.dumps({"seconds": seconds, "peak_mb": peak_kb / 1024}))


def main() -> None:
    parser = arguments_of(__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--patients", type=int, help="by default one for 400 rows")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where the files lie; by default the system's temporary folder")
    parser.add_argument("--alone", choices=("plain", "ingest"), help="only this, on the files in --folder")
    arguments = parser.parse_args()
    if arguments.alone:
        alone(arguments.alone, arguments.folder)
        return
    found = machine()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as place:
        patients = arguments.patients or -(-arguments.rows // ROWS_A_PATIENT)
        large = write_table(Path(place) / "large", arguments.rows, patients)
        small = write_table(Path(place) / "small", arguments.rows // 10, patients)
        observations = max(arguments.rows // 10, 100)
        fhir = write_export(Path(place) / "fhir", observations, max(observations // ROWS_A_PATIENT, 2))
        megabytes = (large / "events.csv").stat().st_size / 1e6
        runs: dict[str, list[dict[str, float]]] = {}
        works = {
            name: partial(noted, runs.setdefault(name, []), work, folder)
            for name, work, folder in (
                ("plain", "plain", large),
                ("ingest", "ingest", large),
                ("ingest, a tenth", "ingest", small),
                ("ingest, FHIR", "ingest", fhir),
            )
        }
        interleaved(works, arguments.repeats, clock=time.perf_counter)
    kept = {name: own[-arguments.repeats :] for name, own in runs.items()}  # without the warm-up
    seconds = {name: [one["seconds"] for one in own] for name, own in kept.items()}
    peak_mb = {name: [one["peak_mb"] for one in own] for name, own in kept.items()}
    over = ratio(seconds["ingest"], seconds["plain"])
    growth = ratio(peak_mb["ingest"], peak_mb["ingest, a tenth"])
    per_s = spread([arguments.rows / one / 1e6 for one in seconds["ingest"]])
    each_us = spread([one / observations * 1e6 for one in seconds["ingest, FHIR"]])
    rows = [
        ["ingestion, million rows/s", per_s.text()],
        ["pyarrow alone, million rows/s", spread([arguments.rows / one / 1e6 for one in seconds["plain"]]).text()],
        ["ingestion's time over pyarrow's", over.text()],
        *([f"peak memory of {name}, MB", spread(own).text(0)] for name, own in peak_mb.items()),
        ["peak memory over that of a tenth", growth.text()],
        [f"{observations:,} observations of FHIR, µs each", each_us.text(1)],
    ]
    document = {
        "settings": {
            "rows": arguments.rows,
            "patients": patients,
            "repeats": arguments.repeats,
            "file_mb": round(megabytes, 1),
        },
        "seconds": {name: spread(own).to_json() for name, own in seconds.items()},
        "peak_mb": {name: spread(own).to_json() for name, own in peak_mb.items()},
        "million_rows_per_s": per_s.to_json(),
        "observation_us": each_us.to_json(),
        "ratio": {"ingest over plain": over.to_json(), "peak over that of a tenth": growth.to_json()},
    }
    title = f"Ingestion of {arguments.rows:,} measurements of {patients:,} patients ({megabytes:,.0f} MB of CSV)"
    columns = ["what", f"median (smallest–largest) of {arguments.repeats}"]
    tell(arguments, found, document, [Sheet(title=title, columns=columns, rows=rows)])


if __name__ == "__main__":
    main()
