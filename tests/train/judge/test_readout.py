import math

import numpy as np
import pytest
import torch
from em_train.judge.readout import (
    average_precision,
    best_threshold,
    determination,
    dice,
    fit_readout,
)


def clouds(n=400, seed=0):
    generator = torch.Generator().manual_seed(seed)
    truth = torch.rand(n, 2, generator=generator) < torch.tensor([0.5, 0.1])
    features = torch.randn(n, 5, generator=generator)
    features[:, 0] += 2.0 * truth[:, 0]
    features[:, 3] = 100 + 7 * (features[:, 3] + 3.0 * truth[:, 1])  # other units
    return features, truth


def test_the_plane_is_that_of_scikit_learn():
    linear_model = pytest.importorskip("sklearn.linear_model")
    features, truth = clouds()
    found = fit_readout(features, truth)(features)
    x = ((features - features.mean(0)) / features.std(0, correction=0)).numpy()
    for number in range(2):
        wanted = linear_model.LogisticRegression(C=1.0, tol=1e-8).fit(x, truth[:, number].numpy())
        np.testing.assert_allclose(
            found[:, number].numpy(), wanted.predict_proba(x)[:, 1], rtol=1e-2, atol=1e-3
        )


def test_a_perceptron_reads_what_no_plane_can():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(600, 2, generator=generator)
    truth = (features[:, :1] * features[:, 1:]) > 0
    scores = [
        average_precision(
            fit_readout(features[:400], truth[:400], hidden=hidden)(features[400:])[:, 0],
            truth[400:, 0],
        )
        for hidden in (0, 32)
    ]
    assert scores[0] < 0.65 and scores[1] > 0.95
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, again = (fit_readout(features, truth, hidden=8, seed=1)(features) for _ in range(2))
    assert torch.equal(first, again) and torch.equal(torch.get_rng_state(), before)


def test_shares_are_learned_as_probabilities():
    features = torch.zeros(100, 1)
    found = fit_readout(features, torch.full((100, 1), 0.3))(features[:1])
    assert float(found) == pytest.approx(0.3, abs=1e-3)


def test_scores_against_a_search_over_thresholds():
    generator = torch.Generator().manual_seed(0)
    truth = torch.rand(60, generator=generator) < 0.3
    score = (torch.rand(60, generator=generator) + 0.4 * truth).mul(
        10
    ).round() / 10  # many are equal
    precision, recall_before, best = 0.0, 0.0, 0.0
    for threshold in sorted(set(score.tolist()), reverse=True):
        found = score >= threshold
        recall = float((found & truth).sum() / truth.sum())
        precision += (recall - recall_before) * float((found & truth).sum() / found.sum())
        recall_before = recall
        best = max(best, dice(found, truth))
    assert average_precision(score, truth) == pytest.approx(precision, rel=1e-6)
    assert dice(score >= best_threshold(score, truth), truth) == pytest.approx(best)
    nothing = torch.zeros(60, dtype=torch.bool)
    assert math.isnan(average_precision(score, nothing)) and math.isnan(dice(nothing, nothing))


def test_position_is_read_where_it_is_written():
    generator = torch.Generator().manual_seed(0)
    places = torch.rand(300, 3, generator=generator)
    features = torch.randn(300, 8, generator=generator)
    told = features.clone()
    told[:, 2:5] = 1000 * places + 3
    known = determination(told[:200], places[:200], told[200:], places[200:])
    unknown = determination(features[:200], places[:200], features[200:], places[200:])
    assert known > 0.999 and unknown < 0.1
