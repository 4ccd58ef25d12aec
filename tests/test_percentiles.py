"""What a p99 of few samples says: too little, and on average too low."""

import numpy as np
import pytest

from specdec_ref.errors import SpecdecError
from specdec_ref.teaching.percentiles import p99_estimates, p99_figure


def test_more_samples_say_more() -> None:
    few, many = p99_estimates(60, 0.3), p99_estimates(3000, 0.3)
    assert few.std() > 3 * many.std()
    assert abs(float(np.median(many)) - 1) < 0.02
    assert float(np.median(few)) < 0.97


def test_without_spread_every_estimate_is_right() -> None:
    np.testing.assert_allclose(p99_estimates(20, 0.0), 1)


def test_the_title_says_between_what() -> None:
    low, high = np.percentile(p99_estimates(60, 0.3), [5, 95])
    assert f"between {low:.2f} and {high:.2f}" in p99_figure(60).axes[0].get_title(loc="left")


def test_refuses() -> None:
    with pytest.raises(SpecdecError, match="samples=0"):
        p99_estimates(0, 0.3)
