"""The reasons for refusing or remarking on a file or image: a code for programs, a title and advice for users.

The texts quote no tag's value. They state what is wrong and what can be done, and never ask anyone to remove data.
`docs/data.md` lists the same codes; a test keeps the two in agreement.
"""

from __future__ import annotations

from wardround_client.sources.quality import Reason

REASONS: dict[str, Reason] = {
    "unreadable": Reason(
        title="The file cannot be read as an image",
        advice="It is damaged, cut short, or not an image. Send it again from the archive (PACS).",
    ),
    "unreachable": Reason(
        title="The file could not be read from its disk or share",
        advice="The disk, the network share or the file's permissions did not allow it at the moment. Check them and "
        "run ingest again.",
    ),
    "out_of_memory": Reason(
        title="Too little memory for this file",
        advice="Decoding needed more memory than this machine can give to one process. Run ingest again with fewer "
        "--workers; if it happens again, export the image in parts.",
    ),
    "no_decoder": Reason(
        title="The picture's compression is not supported",
        advice="No decoder here supports the transfer syntax of the pixel data. Export as Explicit VR Little Endian.",
    ),
    "decoder_crashed": Reason(
        title="The decoder failed on this file",
        advice="Damaged pixel data stopped the decoder twice. Send the file again from the archive.",
    ),
    "too_slow": Reason(
        title="The file took longer than the time limit",
        advice="Check whether the file or its disk is damaged, then run ingest again.",
    ),
    "too_large": Reason(
        title="The image is larger than the size limit",
        advice="The header declares more pixels than fit into memory. If that is correct, export the image in parts.",
    ),
    "no_pixels": Reason(
        title="The DICOM object contains no image",
        advice="Reports, plans and presentation states have no pixels. Nothing to do if that was expected.",
    ),
    "not_an_image": Reason(
        title="A mask or a dose, not an image",
        advice="Segmentations and radiotherapy objects are overlays on an image. Nothing to do if that was expected.",
    ),
    "archive": Reason(
        title="A packed archive",
        advice="ZIP, TAR, 7z and gzip are not opened. Unpack it into the data folder.",
    ),
    "volume": Reason(
        title="A volume in a research format",
        advice="NIfTI, MetaImage, NRRD and HDF5 are not read: they have no patient ID. Give the DICOM series from "
        "which the volume was made, or its slices as pictures with a manifest.csv.",
    ),
    "phone_photo": Reason(
        title="A photo in HEIC or AVIF format",
        advice="These formats are not read. Convert it to JPEG or PNG.",
    ),
    "several_pictures": Reason(
        title="The file contains several pictures",
        advice="A TIFF, GIF or WebP with more than one page. Save each page as its own file.",
    ),
    "no_patient": Reason(
        title="The patient ID is missing",
        advice="PatientID is missing or empty, so the images of one patient cannot be grouped and protected together. "
        "Export with PatientID, or provide a manifest.csv with a patient_id for each file.",
    ),
    "several_patients": Reason(
        title="The file names several patients",
        advice="PatientID holds more than one ID, so it is unclear whose image this is. Correct it in the archive and "
        "export again.",
    ),
    "opted_out": Reason(
        title="The patient has objected",
        advice="The patient is on this site's list of objections and takes part in no study. Nothing to do.",
    ),
    "not_human": Reason(
        title="An image of an animal",
        advice="The header names a species or a breed. Nothing to do if that was expected.",
    ),
    "wrong_modality": Reason(
        title="The modality differs from the study's",
        advice="The study requires the modality given in data.modality. Nothing to do if the folder is mixed.",
    ),
    "wrong_body_part": Reason(
        title="The body part differs from the study's",
        advice="BodyPartExamined differs from data.body_part. Nothing to do if the folder is mixed.",
    ),
    "screenshot": Reason(
        title="A secondary capture, not the original image",
        advice="Screenshots and dose sheets have no calibrated values. Export the original series. If the images exist "
        'only in this form (some public X-ray collections), a study with data.modality = "any" accepts them.',
    ),
    "localizer": Reason(
        title="A localizer (scout) image",
        advice="A localizer is a planning view, not a slice. Nothing to do.",
    ),
    "not_axial": Reason(
        title="The slice is not axial",
        advice="Coronal and sagittal reformats look different to the network. Export the axial series.",
    ),
    "no_position": Reason(
        title="The slice has no position",
        advice="ImagePositionPatient or ImageOrientationPatient is missing, so adjacent slices and points in "
        "millimetres cannot be found. Export the series again.",
    ),
    "slice_gap": Reason(
        title="A neighbouring slice is missing",
        advice="The study reads adjacent slices together and the series has a gap here. Export the whole series.",
    ),
    "implausible_hu": Reason(
        title="The values cannot be Hounsfield units",
        advice="Air should be near -1000 and soft tissue near 0 to 100. Check rescale slope and intercept, or the "
        "conversion that made the file.",
    ),
    "blank": Reason(
        title="The image is blank",
        advice="All pixels, or all pixels of the cut region, have nearly the same value.",
    ),
    "no_spacing": Reason(
        title="The size of a pixel is unknown",
        advice="The study cuts regions in millimetres (data.spacing_mm) and PixelSpacing is missing.",
    ),
    "no_mark": Reason(
        title="No point is marked in this image",
        advice="The study cuts around marked points. Add x and y, or coordX, coordY and coordZ, to labels.csv.",
    ),
    "mark_outside": Reason(
        title="The marked point lies outside the image",
        advice="Check the units: x and y are pixels counted from 0, coordX, coordY and coordZ are millimetres in the "
        "patient's system.",
    ),
    "mark_unclear": Reason(
        title="The marked point has no frame number",
        advice="The file has several frames. Add a column frame (counted from 1) to labels.csv.",
    ),
    "two_labels": Reason(
        title="One image has two labels",
        advice="Two rows or folders contradict each other. Decide which is right.",
        error=True,
    ),
    "two_patients": Reason(
        title="The same picture under two patients",
        advice="Identical pixels have different patient IDs: one person has two IDs, or a file was mixed up. Find out "
        "who the patient is; until then no copy is used.",
        error=True,
    ),
    "duplicate": Reason(
        title="Duplicate picture of the same patient",
        advice="Only one copy is used. Nothing to do.",
    ),
    "burned_in": Reason(
        title="Text is burned into the picture",
        advice="The header has BurnedInAnnotation = YES, so the pixels may contain a name. Have the text masked first.",
    ),
    "slice_gap_seen": Reason(
        title="The series has a gap between slices",
        advice="Some slices may not have been exported. The others are used.",
        fault=False,
    ),
    "few_of_class": Reason(
        title="Few patients of a class",
        advice="Figures for a class with so few patients are unreliable, and each patient affects them strongly.",
        fault=False,
    ),
    "no_label": Reason(
        title="Images without a label",
        advice="They are kept, but no label is learned from them.",
        fault=False,
    ),
    "unmatched_label": Reason(
        title="Rows of labels.csv that match no image",
        advice="Check that the identifiers are spelt as in the files.",
        fault=False,
    ),
    "label_left_out": Reason(
        title="Rows whose label is not in the study",
        advice="The study's labels are under data.labels. Nothing to do if that was expected.",
        fault=False,
    ),
    "skipped": Reason(
        title="Files skipped by their name or folder",
        advice="Texts, tables and hidden files, and what network storage adds by itself (thumbnails, recycle bins, "
        "snapshots). Nothing to do.",
        fault=False,
    ),
    "broken_link": Reason(
        title="Links to files that do not exist",
        advice="The file behind the link was moved, or its disk is not connected. Put the file itself in the folder.",
        fault=False,
    ),
    "not_marked": Reason(
        title="Files without a marked point",
        advice="labels.csv gives points, so only the images that contain one are used. Nothing to do.",
        fault=False,
    ),
    "image_left_out": Reason(
        title="Files whose label is not in the study",
        advice="The study's labels are under data.labels. Nothing to do if that was expected.",
        fault=False,
    ),
    "several_issuers": Reason(
        title="Patient IDs with several issuers",
        advice="One PatientID occurs with different values of IssuerOfPatientID, or with and without one. All files of "
        "one PatientID count as one patient here.",
        fault=False,
    ),
    "no_hu": Reason(
        title="Images without Hounsfield units",
        advice="window_hu was ignored for them: the values were scaled image by image.",
        fault=False,
    ),
}
