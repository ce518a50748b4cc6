"""Words planted in features are found again by the default ranking, and not by the released formula."""

import pytest

from sparsesteer.benchmarks.planted_features import measured, synthetic, table
from sparsesteer.methods.mi.scores import DEFAULT, SCORES


@pytest.mark.usefixtures("one_thread")
def test_planted_words_are_recovered():
    rows = {row.ranking: row for row in measured(synthetic(1.0, n_features=512, n_words=800))}
    assert set(SCORES) < set(rows) and "top contexts" in rows
    assert rows[DEFAULT].first >= 0.95 and rows[DEFAULT].recall >= 0.95
    assert rows["literal"].first < 0.5
    assert rows[f"chance ({DEFAULT}, of noise)"].first < 0.05
    assert "| synthetic, noise 1 | literal |" in table(list(rows.values()))
