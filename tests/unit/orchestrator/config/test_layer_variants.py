"""How scores of several layers are named, and read."""

import pytest

from orchestrator.config.evaluation.layer_variants import MEAN, VARIATION, OverLayers, at_layer, over_all, read_variant


@pytest.mark.parametrize("variant", ["", "first", "raw, positions=2-3"])
def test_what_is_written_is_read(variant: str) -> None:
    assert read_variant(at_layer(12, variant)) == OverLayers(12, "", variant)
    for over in (MEAN, VARIATION):
        assert read_variant(over_all(over, variant)) == OverLayers(None, over, variant)


@pytest.mark.parametrize("variant", ["", "first", "raw", "layer=all", "layer=", "layers=0-1", "as released"])
def test_others_say_nothing_of_layers(variant: str) -> None:
    assert read_variant(variant) is None
