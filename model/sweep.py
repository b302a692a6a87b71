"""Sweep over settings of a head: which ones are tried, what came of them, and which was best."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from scipy.stats import loguniform, uniform
from sklearn.model_selection import ParameterGrid, ParameterSampler

from bulktag.model.training import LEARNING_RATES, TrainOptions, train_head

# Ranges around the defaults, which came from cross-validation on flower photos (see `training`): wide enough for data
# of another kind, narrow enough that a dozen draws are of use.
DEFAULT_SPACE: dict[str, Any] = {
    "hidden": [(256,), (512,), (1024,), (2048,), (1024, 256), (2048, 512)],
    "learning_rate": loguniform(5e-5, 3e-3),
    "dropout": uniform(0.0, 0.7),
    "weight_decay": [0.0, 1e-4, 1e-3, 1e-2],
    "label_smoothing": [0.0, 0.05, 0.1, 0.2],
}
# Digits kept of drawn numbers: they are typed again by people.
DIGITS = 3


@dataclasses.dataclass(frozen=True)
class Trial:
    """One head to be trained.

    Attributes:
      number: counts from 1; the first has the settings as they were given.
      settings: fields of `TrainOptions` that differ from trial to trial.
    """

    number: int
    settings: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class TrialResult:
    """What came of a trial.

    Attributes:
      number, settings: of the trial.
      validation_cross_entropy, validation_accuracy: of its best epoch, calibrated; None where it failed.
      best_epoch, seconds: how long it took.
      history: figures of every epoch.
      error: why it failed; "" where it did not.
    """

    number: int
    settings: dict[str, Any]
    validation_cross_entropy: float | None
    validation_accuracy: float | None
    best_epoch: int
    seconds: float
    history: list[dict]
    error: str = ""


def draw_trials(base: TrainOptions, space: dict[str, Any], num: int) -> list[Trial]:
    """Draw settings.

    Args:
      base: settings as given, which are the first trial.
      space: lists of values, or distributions, by name; all combinations where those are lists and no more than `num`.
      num: trials, with the first.
    Raises:
      ValueError: values that no head can have.
    """
    names = sorted(space)
    if base.architecture != "mlp" and "architecture" not in space:
        names = [name for name in names if name != "hidden"]  # only an mlp has hidden layers
    if base.multi_label:
        names = [name for name in names if name != "label_smoothing"]
    used = {name: space[name] for name in names}
    own = {name: getattr(base, name) for name in names}
    if own.get("learning_rate", 0) is None:
        own["learning_rate"] = LEARNING_RATES[base.architecture]
    if all(isinstance(values, list) for values in used.values()) and len(ParameterGrid(used)) < num:
        drawn = list(ParameterGrid(used))
    else:
        drawn = list(ParameterSampler(used, num, random_state=base.seed))
    trials = [own]
    for settings in drawn:
        settings = {name: _rounded(value) for name, value in sorted(settings.items())}
        if settings not in trials and len(trials) < num:
            dataclasses.replace(base, **settings)  # refuses what cannot be
            trials.append(settings)
    return [Trial(number, settings) for number, settings in enumerate(trials, start=1)]


def _rounded(value: Any) -> Any:
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def run_trial(examples_dir: str, base: TrainOptions, trial: Trial) -> TrialResult:
    """Train one head, and see how it does on validation images.

    Args:
      examples_dir: on any file system that TensorFlow opens.
      base: settings that all trials share.
      trial: the others.
    """
    options = dataclasses.replace(base, **trial.settings, trial=True, checkpoint_dir=None, log_dir=None)
    try:
        trained = train_head(examples_dir, options)
    except ValueError as error:
        if not str(error).startswith("expected "):
            raise
        return TrialResult(trial.number, trial.settings, None, None, 0, 0.0, [], str(error))
    figures = trained.figures["validation"]
    return TrialResult(
        trial.number, trial.settings, figures["cross_entropy"], figures["accuracy"], trained.best_epoch,
        trained.seconds, trained.history,
    )  # fmt: skip


def rank_trials(results: Sequence[TrialResult]) -> list[TrialResult]:
    """The best first, by cross-entropy on validation images; those that failed last."""
    return sorted(
        results,
        key=lambda result: (
            result.validation_cross_entropy is None, result.validation_cross_entropy or 0.0, result.number
        ),
    )  # fmt: skip


def describe_settings(settings: dict[str, Any]) -> dict[str, str]:
    """Settings as a user would type them."""

    def describe(value: Any) -> str:
        if isinstance(value, tuple | list):
            return "x".join(map(str, value))
        return f"{value:g}" if isinstance(value, float) else str(value)

    return {name: describe(value) for name, value in settings.items()}
