"""`sae.lens` of a config: where it may stand, and that configs without one keep their ids."""

import json
from typing import Any

import pytest

from orchestrator.config.validation import parse, read_stored
from orchestrator.errors import ConfigError


def test_a_config_without_a_lens_keeps_its_id() -> None:
    plain, named = parse({}), parse({"sae": {"lens": "mine"}})
    assert "lens" not in json.loads(plain.canonical_json())["sae"]
    assert json.loads(named.canonical_json())["sae"]["lens"] == "mine"
    assert named.config_id != plain.config_id
    assert named.stream_key == plain.stream_key, "raw activations are what jobs share"
    assert read_stored(named.canonical_json(), named.config_id).sae.lens == "mine"


@pytest.mark.parametrize("place", [{"layer": 2}, {"layers": "all"}, {"layers": [0, 2]}, {}])
def test_any_layers_of_the_stream_may_be_mapped(place: dict[str, Any]) -> None:
    assert parse({"subject": place, "sae": {"lens": "mine"}}).sae.lens == "mine"


@pytest.mark.parametrize(
    ("subject", "said"),
    [
        ({"site": "mlp_post"}, "sae.lens maps the output of a block, and subject.site = mlp_post reads another place"),
        ({"hook": "transformer.h.1"}, "subject.hook = transformer.h.1 reads another place"),
        ({"model": "synthetic:gaussian?d_model=8"}, "sae.lens means nothing to synthetic:gaussian"),
    ],
)
def test_at_another_place_there_is_nothing_to_map(subject: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse({"subject": subject, "sae": {"lens": "mine"}})
