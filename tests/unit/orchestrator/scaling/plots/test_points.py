"""Points of a panel: limits are widened by those alone that lie beyond, and come out as of all of them."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from orchestrator.scaling.plots.points import Points


@pytest.mark.parametrize("low", [1e-3, -1.0])
def test_limits_of_the_data_are_those_of_all_points(low: float) -> None:
    places = np.random.default_rng(0).uniform(low, 2.0, size=(200, 2)).tolist()
    ours, plain = Figure().subplots(), Figure().subplots()
    points = Points()
    ours.add_artist(points)
    for place in places:
        points.add(tuple(place), marker="o", edge="#000000", face="#000000", gid="p", url=None)
        plain.update_datalim([place])
        plain.autoscale_view()
        assert ours.dataLim.get_points().tolist() == plain.dataLim.get_points().tolist()
        assert np.array_equal(ours.dataLim.minpos, plain.dataLim.minpos)
    assert ours.get_xlim() == plain.get_xlim()
    assert ours.get_ylim() == plain.get_ylim()
