"""Labels from reports and segmentations as other software writes them, here highdicom."""

from __future__ import annotations

import highdicom as hd
import numpy as np
import pytest
from builders.dicom_files import ct_dataset, ct_study, slice_hu
from highdicom import sr
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from wardround_client.sources.images.decoding.annotations import read_annotations
from wardround_client.sources.images.folder.tables import read_label_table

MALIGNANT, BENIGN = Code("M", "99TEST", "Malignant"), Code("B", "99TEST", "benign")
MARKED = ct_study(region="marked", spacing_mm=0.7)
EMPTY = {
    **{name: "" for name in ("StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName")},
    **{name: "" for name in ("PatientBirthDate", "PatientSex", "StudyDate")},
}


def images(count=3):
    frame_of_reference, uids = generate_uid(), [generate_uid() for _ in range(2)]
    return [
        ct_dataset(
            slice_hu(number),
            StudyInstanceUID=uids[0],
            SeriesInstanceUID=uids[1],
            FrameOfReferenceUID=frame_of_reference,
            ImagePositionPatient=[0.0, 0.0, 4.0 * number],
            InstanceNumber=number + 1,
            SliceThickness=4.0,
            SeriesNumber=1,
            **EMPTY,
        )
        for number in range(count)
    ]


def group(source, value, points=None):
    """A measurement group: of a region if points are given, else of the image as a whole."""
    common = {
        "tracking_identifier": sr.TrackingIdentifier(uid=generate_uid(), identifier="a"),
        "finding_type": codes.SCT.Nodule,
        "qualitative_evaluations": [sr.QualitativeEvaluation(name=Code("D", "99TEST", "Diagnosis"), value=value)],
    }
    if points is None:
        of = [sr.SourceImageForMeasurementGroup.from_source_image(source)]
        return sr.MeasurementsAndQualitativeEvaluations(source_images=of, **common)
    region = sr.ImageRegion(
        graphic_type=sr.GraphicTypeValues.POLYLINE,
        graphic_data=np.array(points, float),
        source_image=sr.SourceImageForRegion.from_source_image(source),
    )
    return sr.PlanarROIMeasurementsAndQualitativeEvaluations(referenced_region=region, **common)


def report(path, sources, groups):
    observer = sr.ObserverContext(
        observer_type=codes.DCM.Person, observer_identifying_attributes=sr.PersonObserverIdentifyingAttributes("A^B")
    )
    content = sr.MeasurementReport(
        observation_context=sr.ObservationContext(observer_person_context=observer),
        procedure_reported=codes.LN.CTUnspecifiedBodyRegion,
        imaging_measurements=groups,
    )
    made = sr.ComprehensiveSR(
        evidence=sources,
        content=content,
        series_number=2,
        series_instance_uid=generate_uid(),
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="other",
    )
    made.save_as(path)
    return path


def test_a_report_labels_images_and_regions(tmp_path):
    sources = images()
    square = [(10, 20), (14, 20), (14, 24), (10, 24), (10, 20)]
    path = report(
        tmp_path / "sr.dcm",
        sources,
        [
            group(sources[0], MALIGNANT, square),
            group(sources[1], BENIGN),
            group(sources[2], Code("U", "99TEST", "odd")),
        ],
    )
    found = read_annotations([path], "sr", MARKED)
    assert (found.objects, found.without_label, found.without_place, found.unreadable) == (1, 1, 0, 0)
    first, second = found.places
    assert (first.sop_uid, first.label, first.xy) == (sources[0].SOPInstanceUID, "malignant", (11.5, 21.5))
    assert (second.sop_uid, second.label, second.xy) == (sources[1].SOPInstanceUID, "benign", None)
    (tmp_path / "labels.csv").write_text(found.table())
    table = read_label_table(tmp_path / "labels.csv")
    assert [(row.label, row.xy) for row in table.rows] == [("malignant", (11.5, 21.5)), ("benign", None)]


def test_a_study_of_whole_images_gets_no_points(tmp_path):
    sources = images()
    square = [(10, 20), (14, 20), (14, 24), (10, 20)]
    path = report(tmp_path / "sr.dcm", sources, [group(sources[0], MALIGNANT, square)])
    found = read_annotations([path], "sr", ct_study())
    assert found.table().splitlines() == ["SOPInstanceUID,frame,label", f"{sources[0].SOPInstanceUID},,malignant"]


def test_a_segmentation_labels_the_images_on_which_a_segment_lies(tmp_path):
    sources = images()
    masks_FHWS = np.zeros((3, 48, 48, 2), np.uint8)
    masks_FHWS[1, 10:13, 20:25, 0] = 1
    masks_FHWS[2, 10:11, 20:21, 0] = 1
    masks_FHWS[0, 1:9, 1:9, 1] = 1
    described = [
        hd.seg.SegmentDescription(
            segment_number=number,
            segment_label=label,
            segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
            segmented_property_type=codes.SCT.Nodule,
            algorithm_type=hd.seg.SegmentAlgorithmTypeValues.MANUAL,
        )
        for number, label in ((1, "malignant"), (2, "vessel"))
    ]
    made = hd.seg.Segmentation(
        source_images=sources,
        pixel_array=masks_FHWS,
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=described,
        series_instance_uid=generate_uid(),
        series_number=3,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="other",
        manufacturer_model_name="other",
        software_versions="1",
        device_serial_number="1",
        transfer_syntax_uid=ExplicitVRLittleEndian,
    )
    made.save_as(tmp_path / "seg.dcm")
    found = read_annotations([tmp_path / "seg.dcm"], "seg", MARKED)
    assert (found.objects, found.without_label, found.unreadable) == (1, 1, 0)
    assert {(one.sop_uid, one.label, one.xy) for one in found.places} == {
        (sources[1].SOPInstanceUID, "malignant", (22.0, 11.0)),
        (sources[2].SOPInstanceUID, "malignant", (20.0, 10.0)),
    }


@pytest.mark.parametrize("kind", ["sr", "seg"])
def test_damaged_and_foreign_objects_are_counted_or_passed_over(tmp_path, kind):
    (tmp_path / "text.dcm").write_text("no DICOM")
    sources = images(1)
    sources[0].save_as(tmp_path / "ct.dcm", enforce_file_format=True)
    sources[0].Modality = kind.upper()
    del sources[0].PixelData
    sources[0].save_as(tmp_path / "empty.dcm", enforce_file_format=True)
    found = read_annotations(sorted(tmp_path.glob("*.dcm")), kind, MARKED)
    assert found.places == () and found.objects == 1
    assert found.unreadable == (1 if kind == "sr" else 2)
