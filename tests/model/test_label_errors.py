"""model/label_errors.py: labels that were changed on purpose are found."""

import numpy as np
from scipy.special import softmax

from bulktag.model.label_errors import find_label_errors, find_multi_label_errors


def test_changed_labels_are_found_with_what_they_were():
    generator = np.random.default_rng(0)
    truth_N = generator.integers(0, 5, 1000)
    scores_NL = softmax(generator.normal(size=(1000, 5)) + 5 * np.eye(5)[truth_N], axis=1)
    labels_N = truth_N.copy()
    changed = generator.choice(1000, 50, replace=False)
    labels_N[changed] = (truth_N[changed] + 1) % 5
    found = find_label_errors(scores_NL, labels_N)
    rows = {error.row for error in found}
    assert len(rows & set(changed)) > 40 and len(rows - set(changed)) < 25
    assert all(error.suggested == truth_N[error.row] for error in found[:30])
    assert [error.margin for error in found] == sorted((error.margin for error in found), reverse=True)
    assert find_label_errors(np.eye(3)[[0, 1, 2]], np.array([0, 1, 2])) == []


def test_missing_and_wrong_labels_among_several_are_found():
    generator = np.random.default_rng(0)
    truth_NL = generator.random((1000, 3)) < 0.4
    scores_NL = np.clip(truth_NL * 0.9 + generator.random((1000, 3)) * 0.1, 0, 1)
    given_NL = truth_NL.copy()
    lost, added = np.flatnonzero(truth_NL[:, 0])[:10], np.flatnonzero(~truth_NL[:, 1])[:10]
    given_NL[lost, 0], given_NL[added, 1] = False, True
    found = find_multi_label_errors(scores_NL, given_NL)
    missing = {(error.row, error.suggested) for error in found if error.given is None}
    wrong = {(error.row, error.given) for error in found if error.suggested is None}
    # Those that the model is as sure of as usual: about half of them.
    assert missing <= {(int(row), 0) for row in lost} and len(missing) >= 2
    assert wrong <= {(int(row), 1) for row in added} and len(wrong) >= 2
