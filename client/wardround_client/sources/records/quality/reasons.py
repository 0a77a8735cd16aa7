"""The reasons for not using or for repairing a value or a patient: a code, a title and advice for users.

The texts quote no value and no id. `docs/records.md` lists the same codes; a test keeps the two in agreement.
"""

from __future__ import annotations

from wardround_client.sources.quality import Reason

REASONS: dict[str, Reason] = {
    # of patients
    "no_measurement": Reason(
        title="Patients without any measurement",
        advice="Nothing usable was measured within the study's window. Nothing to do, unless the export lost them.",
    ),
    "outcome_in_window": Reason(
        title="Patients whose outcome came before the prediction",
        advice="The outcome happened within the observation window, so nothing is left to be predicted. Nothing to do.",
    ),
    "two_outcomes": Reason(
        title="Patients with two different outcomes",
        advice="The table of outcomes has rows that contradict each other. Decide which is right; until then the "
        "patient counts as without an outcome.",
        error=True,
    ),
    "opted_out": Reason(
        title="The patient has objected",
        advice="The patient is on this site's list of objections and takes part in no study. Nothing to do.",
    ),
    "no_admission": Reason(
        title="Values of patients whose time of admission is unknown",
        advice="Measurements have dates, but the admission has none. Add admission_time to the table of patients, with "
        "the time of day.",
    ),
    # of values and rows
    "impossible": Reason(
        title="Impossible values",
        advice="They lie outside the range that the vocabulary calls possible. Check the unit of the variable if there "
        "are many; a few typing errors are normal.",
    ),
    "not_a_number": Reason(
        title="Values that are not numbers",
        advice="Texts and results such as <0.5 are not guessed. Export numbers; a category by its code or its name.",
    ),
    "unknown_unit": Reason(
        title="Values in a unit that the vocabulary does not convert",
        advice="Export the variable in one of the units that the vocabulary lists.",
    ),
    "before_admission": Reason(
        title="Measurements before admission",
        advice="Their time lies before the patient's admission. Check the clock if there are many.",
    ),
    "after_outcome": Reason(
        title="Measurements after the outcome",
        advice="They would betray the outcome to the model. Nothing to do.",
    ),
    "duplicate": Reason(
        title="Exact repetitions",
        advice="The same patient, time, variable and value occur more than once; one is used. Nothing to do.",
    ),
    "contradiction": Reason(
        title="Pairs of values that contradict each other",
        advice="A diastolic pressure above the systolic one of the same time, for example. Neither is used.",
    ),
    "no_time": Reason(
        title="Measurements without a time",
        advice="Their time is missing or not a time. Export hours since admission, or times like 2026-01-31T08:15.",
    ),
    "day_only": Reason(
        title="Measurements with a day and no time of day",
        advice="Their hour is unknown. Export the time of day too.",
    ),
    "mixed_zones": Reason(
        title="Times with and without a time zone",
        advice="The time names its zone and the admission does not, or the other way round. Export both alike.",
    ),
    "no_patient": Reason(
        title="Rows without a patient",
        advice="patient_id is empty or not readable, so the row cannot be protected with its patient.",
    ),
    "unknown_patient": Reason(
        title="Rows of patients who are not in the table of patients",
        advice="Check that both tables come from the same export, with patient_id spelt alike (leading zeros).",
    ),
    "unreadable_row": Reason(
        title="Rows that do not fit the header",
        advice="They have more or fewer cells than the header. Export the table again; quote cells with separators.",
    ),
    "unreadable_resource": Reason(
        title="FHIR resources that cannot be read",
        advice="A line is not valid JSON, or a resource lacks what its type requires. Export it again.",
    ),
    "not_final": Reason(
        title="Observations that were cancelled or entered in error",
        advice="Their status says that they are not valid. Nothing to do.",
    ),
    # repaired
    "fahrenheit": Reason(
        title="Temperatures in Fahrenheit", advice="Converted to Celsius. Nothing to do.", fault=False
    ),
    "percent": Reason(title="Fractions in percent", advice="Divided by 100. Nothing to do.", fault=False),
    "factor_100": Reason(
        title="Values without their decimal point", advice="Divided by 100. Nothing to do.", fault=False
    ),
    "factor_10": Reason(
        title="Values with a misplaced decimal point", advice="Divided by 10. Nothing to do.", fault=False
    ),
    "metres": Reason(title="Heights in metres", advice="Converted to centimetres. Nothing to do.", fault=False),
    "inches_twice": Reason(
        title="Heights converted from inches twice", advice="Divided by 2.54. Nothing to do.", fault=False
    ),
    "unit_converted": Reason(
        title="Values in another known unit",
        advice="Converted to the vocabulary's unit. Nothing to do.",
        fault=False,
    ),
    # remarks
    "missing_code": Reason(
        title="Codes for a missing value",
        advice="A number such as -1, or 0 where 0 is not possible, stands for 'not measured' and was treated so.",
        fault=False,
    ),
    "age_cut": Reason(
        title="Ages cut at 90",
        advice="Exports without identity give 90 for all who are older. The age is used as it is.",
        fault=False,
    ),
    "two_values": Reason(
        title="Two values at the same time",
        advice="They differ, so both are used: the mean of the hour, or its sum. Nothing to do.",
        fault=False,
    ),
    "at_end_of_window": Reason(
        title="Measurements exactly at the end of the window",
        advice="They count for the last hour. Nothing to do.",
        fault=False,
    ),
    "few_measurements": Reason(
        title="Patients with fewer than three measurements",
        advice="They are used; the model knows little of them.",
        fault=False,
    ),
    "late_start": Reason(
        title="Patients first measured after a third of the window",
        advice="They are used. Check the time of admission if there are many.",
        fault=False,
    ),
    "early_outcome": Reason(
        title="Patients whose outcome came within the window",
        advice="The study counts the outcome whenever it happened, so they are used; measurements after it are not.",
        fault=False,
    ),
    "no_outcome_time": Reason(
        title="Outcomes without a time",
        advice="The study needs to know when the outcome happened, so these patients count as without an outcome.",
        fault=False,
    ),
    "unknown_outcome": Reason(
        title="Outcomes that are neither a number nor a label of the study",
        advice="These patients count as without an outcome. The labels are under data.labels of the study.",
        fault=False,
    ),
    "same_values": Reason(
        title="Patients with exactly the same values as another",
        advice="In a table of few columns that is chance. With many measurements one person may have two ids: check.",
        fault=False,
    ),
    "few_of_class": Reason(
        title="Few patients of an outcome",
        advice="Figures for so few patients are unreliable, and each patient affects them strongly.",
        fault=False,
    ),
    "one_outcome": Reason(
        title="Only one outcome occurs here",
        advice="The site alone cannot train a model of it. Check the column of the outcome.",
        fault=False,
    ),
    "no_label": Reason(
        title="Patients without an outcome", advice="They are kept, but no outcome is learned from them.", fault=False
    ),
    # left out on purpose
    "unknown_variable": Reason(
        title="Measurements of variables that the study does not read",
        advice="Nothing to do. If a variable should be read, compare its name with the vocabulary: quarantine.csv "
        "lists the names.",
        fault=False,
    ),
    "unknown_column": Reason(
        title="Columns that the study does not read",
        advice="Nothing to do. If a column should be read, compare its name with the vocabulary.",
        fault=False,
    ),
    "after_window": Reason(
        title="Measurements after the study's window",
        advice="The study reads the first hours only (data.window_hours). Nothing to do.",
        fault=False,
    ),
    "later_stay": Reason(
        title="Later stays of a patient",
        advice="A patient takes part with the first stay. Nothing to do.",
        fault=False,
    ),
    "no_value": Reason(title="Rows without a value", advice="The cell is empty. Nothing to do.", fault=False),
    "skipped": Reason(
        title="Files that are not records",
        advice="Other tables, texts and hidden files in the folder are not read. Nothing to do.",
        fault=False,
    ),
}
