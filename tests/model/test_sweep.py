"""model/sweep.py: which settings are tried, and which of them is best."""

import pytest
from example_shards import draw_clusters, split_names, write_examples

from bulktag.model.sweep import DEFAULT_SPACE, Trial, draw_trials, rank_trials, run_trial
from bulktag.model.sweep_space import parse_space
from bulktag.model.training import LEARNING_RATES, TrainOptions

BASE = TrainOptions(hidden=(16,), epochs=3)


def test_first_trial_has_the_settings_as_given_and_none_stands_twice():
    trials = draw_trials(BASE, DEFAULT_SPACE, 20)
    assert [trial.number for trial in trials] == list(range(1, 21))
    assert trials[0].settings["hidden"] == (16,) and trials[0].settings["learning_rate"] == LEARNING_RATES["mlp"]
    assert len({str(trial.settings) for trial in trials}) == 20
    assert draw_trials(BASE, DEFAULT_SPACE, 20) == trials
    assert {len(trial.settings["hidden"]) for trial in trials} == {1, 2}
    assert all(0 <= trial.settings["dropout"] < 1 for trial in trials)


def test_small_space_is_tried_whole():
    trials = draw_trials(BASE, parse_space(["hidden=8,16x4", "dropout=0,0.5"]), 50)
    found = {(trial.settings["hidden"], trial.settings["dropout"]) for trial in trials}
    assert found == {((8,), 0.0), ((16, 4), 0.0), ((8,), 0.5), ((16, 4), 0.5), ((16,), 0.5)}


def test_settings_that_a_head_does_not_have_are_not_tried():
    assert "label_smoothing" not in draw_trials(TrainOptions(multi_label=True), DEFAULT_SPACE, 3)[1].settings
    assert "hidden" not in draw_trials(TrainOptions(architecture="linear"), DEFAULT_SPACE, 3)[1].settings


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hiden=8", "expected NAME=VALUE,VALUE with a name of architecture, hidden"),
        ("dropout", "expected NAME=VALUE,VALUE"),
        ("dropout=much", "expected values of dropout such as 0.1,0.5"),
        ("hidden=8+4", "expected values of hidden such as 512,1024x256"),
    ],
)
def test_wrong_spaces_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse_space([text])
    with pytest.raises(ValueError, match="expected learning_rate above 0"):
        draw_trials(BASE, {"learning_rate": [-1.0]}, 5)


def test_trials_are_ranked_by_validation_and_failures_come_last(tmp_path):
    x_ND, ids_N = draw_clusters(300, 8, 3)
    folder = write_examples(tmp_path, x_ND, ids_N, split_names(300), ["a", "b", "c"])
    settings = [{"learning_rate": 1e38}, {"learning_rate": 1e-7}, {"learning_rate": 3e-2}]
    results = [run_trial(folder, BASE, Trial(i, values)) for i, values in enumerate(settings, start=1)]
    assert [result.number for result in rank_trials(results)] == [3, 2, 1]
    assert results[0].error.startswith("expected a finite loss") and results[0].validation_accuracy is None
    assert len(results[1].history) == 3 and results[2].validation_cross_entropy < results[1].validation_cross_entropy
