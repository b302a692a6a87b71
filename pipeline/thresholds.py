"""From which score a label becomes a tag in a job: the model's thresholds, or what the user asks for."""

import math
from collections.abc import Sequence

from bulktag.model.bundle import Bundle
from bulktag.model.thresholds import as_scores, thresholds_for_precision
from bulktag.pipeline.config import TagConfig
from bulktag.pipeline.outcome import RunRecord

# Of a model without thresholds of its own, such as the 1,000 ImageNet classes.
LEAST_SCORE = 0.01
NAMES_SHOWN = 5


def choose_thresholds(config: TagConfig, bundle: Bundle, record: RunRecord) -> tuple[float, ...]:
    """Score from which each label counts as a tag, in the model's order; infinity for one that is switched off.

    Raises:
      ValueError: a precision is asked for, and the model has not been validated.
    """
    if config.target_precision:
        thresholds = _for_precision(config, bundle, record)
        least = config.min_score or 0.0
    elif config.min_score is not None:
        thresholds, least = [config.min_score] * len(bundle.labels), 0.0
    else:
        thresholds, least = list(bundle.thresholds), 0.0 if any(bundle.thresholds) else LEAST_SCORE
    thresholds = [max(threshold, least) for threshold in thresholds]
    record.note(thresholds={label: None if math.isinf(threshold) else round(threshold, 6)
                            for label, threshold in zip(bundle.labels, thresholds, strict=True)})  # fmt: skip
    return tuple(thresholds)


def _for_precision(config: TagConfig, bundle: Bundle, record: RunRecord) -> list[float]:
    known = bundle.threshold_record()
    if known is None:
        raise ValueError(f"expected target_precision only for a model that train validated, got {config.model}; "
                         "min_score takes one score for all labels")  # fmt: skip
    chosen = thresholds_for_precision(known, bundle.labels, config.target_precision)
    off = [row.label for row in chosen if row.threshold is None]
    if off:
        record.warn(f"{describe_off(off, len(chosen))} at target precision {config.target_precision:g}, as far as the "
                    "model's validation images tell")  # fmt: skip
    if len(off) == len(chosen):
        raise ValueError(f"expected a target_precision that a label reaches, got {config.target_precision:g}, which "
                         "none does on the model's validation images")  # fmt: skip
    return as_scores(chosen)


def check_novelty(config: TagConfig, bundle: Bundle) -> None:
    """Refuse to say how novel images are to a model that does not know.

    Raises:
      ValueError: it was trained on too few images, or not by `train`.
    """
    if config.novelty and bundle.novelty_model() is None:
        raise ValueError(f"expected novelty only for a model that train made from 50 validation images or more, got "
                         f"{config.model}")  # fmt: skip


def describe_off(labels: Sequence[str], num_labels: int) -> str:
    """Which labels are switched off."""
    verb = "is" if len(labels) == 1 else "are"
    return f"{len(labels)} of {count_noun(num_labels, 'label')} {verb} switched off ({name_some(labels)})"


def count_noun(count: int, noun: str) -> str:
    """A number and its noun, in the plural where it belongs."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def name_some(names: Sequence[str]) -> str:
    """The first of many names."""
    return ", ".join(names[:NAMES_SHOWN]) + (", ..." if len(names) > NAMES_SHOWN else "")
