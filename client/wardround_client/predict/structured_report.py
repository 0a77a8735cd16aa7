"""A prediction as a DICOM Structured Report (TID 1500, Comprehensive 3D SR), which a PACS stores beside the images.

One report describes one examination (StudyInstanceUID). It repeats the patient's identification from the source, refers
to the source images, and states that it is research and not verified by a person. Probabilities use codes of this
project ("99WARDROUND"), because no standard has codes for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import highdicom as hd
import numpy as np
from highdicom import sr
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import UID, generate_uid

from wardround.tasks.classification.predict import Prediction

SCHEME = "99WARDROUND"
MANUFACTURER = "Wardround"
TITLE = "Research prediction - NOT FOR DIAGNOSTIC USE"
OBSERVER_ROOT = "wardround"  # from which the UID of the observing device is derived
RESEARCH = Code("RESEARCH", SCHEME, "Research use only, not for diagnosis")
STATUS, IN_SET = Code("STATUS", SCHEME, "Status of this result"), Code("LABELSET", SCHEME, "Label not ruled out")
OUT_OF_DISTRIBUTION = Code("UNKNOWN", SCHEME, "Not judged: unlike the training data")
PROCEDURES = {"CT": Code("25045-6", "LN", "CT unspecified body region")}
ANY_PROCEDURE = Code("44136-0", "LN", "Unspecified body region study")


@dataclass(frozen=True, kw_only=True, eq=False)
class Finding:
    """One lesion, or an examination as a whole.

    `sources` are the headers (`source_header`) of the images that the prediction comes from, with the frame of each,
    counted from 1.
    `mark_xy` is the point in the first of them (column, row, from 0), or None. `prediction` is None if the images were
    unlike the training data.
    """

    name: str
    sources: Sequence[tuple[Dataset, int]]
    mark_xy: tuple[float, float] | None
    prediction: Prediction | None


def structured_report(
    findings: Sequence[Finding], labels: Sequence[str], model: str, version: str, series_uid: str, number: int
) -> Dataset:
    """Return the report on one examination.

    Args:
        findings: What was found; all sources belong to one study.
        labels: The study's labels.
        model: The name of the model, as shown in the report.
        version: The first digits of the model's hash.
        series_uid: The UID of the new series of reports.
        number: The number of the report in its series.

    Raises:
        ValueError, AttributeError: The headers lack what a report needs, such as a patient or a study.
    """
    algorithm = sr.AlgorithmIdentification(name=model[:64], version=version, manufacturer=MANUFACTURER)
    device = sr.DeviceObserverIdentifyingAttributes(
        uid=generate_uid(entropy_srcs=[OBSERVER_ROOT, model, version]), name=model[:64], manufacturer_name=MANUFACTURER
    )
    observer = sr.ObserverContext(observer_type=codes.DCM.Device, observer_identifying_attributes=device)
    first = findings[0].sources[0][0]
    report = sr.MeasurementReport(
        observation_context=sr.ObservationContext(observer_device_context=observer),
        procedure_reported=PROCEDURES.get(str(first.get("Modality")), ANY_PROCEDURE),
        imaging_measurements=[_group(finding, labels, algorithm) for finding in findings],
        title=codes.DCM.ImagingMeasurementReport,
    )
    evidence = {str(source.SOPInstanceUID): source for finding in findings for source, _ in finding.sources}
    made = sr.Comprehensive3DSR(
        evidence=list(evidence.values()),
        content=report,
        series_number=9100,
        series_instance_uid=series_uid,
        sop_instance_uid=generate_uid(),
        instance_number=number,
        manufacturer=MANUFACTURER,
        is_complete=False,
        is_verified=False,
        series_description=TITLE,
    )
    made.ManufacturerModelName, made.SoftwareVersions = model[:64], version
    made.DeviceSerialNumber = version
    return made


def _group(
    finding: Finding, labels: Sequence[str], algorithm: sr.AlgorithmIdentification
) -> sr.MeasurementsAndQualitativeEvaluations | sr.PlanarROIMeasurementsAndQualitativeEvaluations:
    measurements: list[sr.Measurement] = []
    evaluations = [sr.QualitativeEvaluation(name=STATUS, value=RESEARCH)]
    prediction = finding.prediction
    if prediction is None:
        evaluations.append(sr.QualitativeEvaluation(name=STATUS, value=OUT_OF_DISTRIBUTION))
    else:
        one = Code("1", "UCUM", "no units")
        for index, (label, value) in enumerate(zip(labels, prediction.probabilities, strict=True)):
            name = Code(f"P{index}", SCHEME, f"Probability of {label}"[:64])
            measurements.append(sr.Measurement(name=name, value=round(value, 4), unit=one))
        if prediction.interval is not None:
            for code, end, value in zip(("PLOW", "PHIGH"), ("Lower", "Upper"), prediction.interval, strict=True):
                name = Code(code, SCHEME, f"{end} end of the 95 % interval of {labels[-1]}"[:64])
                measurements.append(sr.Measurement(name=name, value=round(value, 4), unit=one))
        for label in prediction.label_set or ():
            possible = Code(f"L{labels.index(label)}", SCHEME, label[:64])
            evaluations.append(sr.QualitativeEvaluation(name=IN_SET, value=possible))
        for decision in prediction.decisions:
            specificity = round(100 * decision.point.specificity)
            name = Code(f"AT{specificity}", SCHEME, f"Result at {specificity} % specificity")
            answer = codes.SCT.Positive if decision.positive else codes.SCT.Negative
            evaluations.append(sr.QualitativeEvaluation(name=name, value=answer))
    common = {
        "tracking_identifier": sr.TrackingIdentifier(uid=generate_uid(), identifier=finding.name),
        "finding_type": codes.SCT.Nodule if finding.mark_xy is not None else codes.SCT.MorphologicallyAbnormalStructure,
        "algorithm_id": algorithm,
        "measurements": measurements or None,
        "qualitative_evaluations": evaluations,
    }
    source, frame = finding.sources[0]
    if finding.mark_xy is None:
        images = [
            sr.SourceImageForMeasurementGroup.from_source_image(image, _frames(image, number))
            for image, number in finding.sources
        ]
        return sr.MeasurementsAndQualitativeEvaluations(source_images=images, **common)
    region = sr.ImageRegion(
        graphic_type=sr.GraphicTypeValues.POINT,
        graphic_data=np.array([finding.mark_xy], dtype=float),
        source_image=sr.SourceImageForRegion.from_source_image(source, _frames(source, frame)),
    )
    return sr.PlanarROIMeasurementsAndQualitativeEvaluations(referenced_region=region, **common)


def _frames(source: Dataset, frame: int) -> list[int] | None:
    """Return the frame to refer to, for an object of several frames."""
    return [frame] if int(source.get("NumberOfFrames") or 1) > 1 else None


def new_series_uid() -> UID:
    """Return a UID for one series of results."""
    return hd.UID()
