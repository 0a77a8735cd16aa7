"""The personalisation of a released model, as a study of one round at one site.

A site that personalises a model trains as in any round. Its plan, learning rate and engines therefore come from a
study, which is derived here from the section `[personalisation]`. Nobody approves the derived study: the approved one
determines every value of it.
"""

from __future__ import annotations

from wardround.study.load import Study, parse_study


def personal_study(study: Study) -> Study | None:
    """Return the study of one round at one site that personalises a model; None without `[personalisation]`.

    It has the data, network, sampling, clipping, delta and optimizer of `study`, and trains the parameters of
    `personalisation.trainable` for `personalisation.steps` steps at `personalisation.epsilon`, which covers the spare
    attempts. Nothing is released about it: `evaluation.epsilon` is 0.

    Raises:
        StudyError: The settings contradict each other (one line).
    """
    personal = study.personalisation
    if personal is None:
        return None
    content = study.model_dump()
    content["personalisation"] = None
    content["study"].update(rounds=1, spare_rounds=personal.spare_attempts)
    content["model"].update(trainable=personal.trainable)
    content["training"].update(
        learning_rate=personal.learning_rate, local_steps=personal.steps, schedule="constant", warmup_rounds=0
    )
    content["privacy"].update(epsilon=personal.epsilon)
    content["aggregation"] = {"nominal_sites": 1}
    content["evaluation"].update(epsilon=0.0)
    return parse_study(content, source="personalisation")
