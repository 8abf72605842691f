"""The config of a lens job: its identity, what it refuses, and how it is read back."""

import json
from typing import Any

import pytest

from orchestrator.config.lens.reading import parse_lens, read_lens
from orchestrator.config.lens.training import LensConfig
from orchestrator.errors import ConfigError

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"subject": {"layer": 2}}, "leave layer out"),
    ({"subject": {"layers": [0, 1]}}, "leave layers out"),
    ({"subject": {"hook": "transformer.h.1"}}, "leave hook out"),
    ({"subject": {"dtype": "auto"}}, "give float32 or bfloat16, not auto"),
    ({"subject": {"site": "mlp_delta"}}, "leave site out"),
    ({"subject": {"model": "synthetic:gaussian?d_model=8"}}, "is no language model"),
    ({"data": {"context_length": 100}}, "not a whole number of contexts of 100"),
    ({"data": {"activations": "cache"}}, "no cache"),
    ({"training": {"max_tokens": 128}}, "less than one batch"),
    ({"training": {"batch": 128}}, "did you mean 'training.batch_tokens'"),
    ({"optimiser": {}}, "did you mean 'optimizer'"),
    ({"optimizer": {"lr": 0.0}}, "optimizer.lr: Input should be greater than 0"),
    ({"sae": {"k": 4}}, "unknown key 'sae'"),
]


@pytest.mark.parametrize(("values", "said"), REFUSED, ids=[said for _, said in REFUSED])
def test_what_is_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as told:
        parse_lens(values, "lens.yaml")
    assert said in told.value.message
    assert told.value.message.startswith("lens.yaml: ")
    assert told.value.hint == "Every key and what it takes: orch config schema --lens"


def test_a_stored_config_is_read_back_under_its_id() -> None:
    config = parse_lens({"optimizer": {"lr": 0.01}})
    again = read_lens(config.canonical_json(), config.config_id)
    assert (again, again.config_id) == (config, config.config_id)
    assert config.config_id != LensConfig().config_id
    older = json.loads(config.canonical_json())
    del older["stop"]
    assert read_lens(json.dumps(older), "id of then").stop == LensConfig().stop
    with pytest.raises(ConfigError, match="unknown key"):
        read_lens('{"shape": {}}', "id")
    with pytest.raises(ConfigError, match="not JSON"):
        read_lens("{", "id")


def test_every_layer_is_read_whether_it_says_so_or_not() -> None:
    assert parse_lens({"subject": {"layers": "all"}}) == parse_lens({}) == LensConfig()
    reading = LensConfig().reading
    assert (reading.subject, reading.training.heldout_tokens) == (LensConfig().subject, 16_384)
