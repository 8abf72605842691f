"""Dotted keys and nested values are two shapes of one config."""

import subprocess
import sys

from orchestrator.config.flat_keys import LATER_FIELDS, flatten, flatten_stored, nest, varied_keys
from orchestrator.config.job import JobConfig
from orchestrator.config.validation import field_paths, parse


def test_a_config_is_flattened_and_nested_again() -> None:
    values = JobConfig().model_dump(mode="json")
    flat = flatten(values)
    assert list(flat) == field_paths()
    assert flat["sae.k"] == 32
    assert nest(flat) == values


def test_deeper_values_are_flattened_too() -> None:
    assert flatten({"a": {"b": {"c": 1}}, "d": [1, 2]}) == {"a.b.c": 1, "d": [1, 2]}


def test_keys_that_vary() -> None:
    points: list[dict[str, object]] = [
        {"sae.k": 8, "optimizer.lr": "auto", "a": None},
        {"sae.k": 8, "optimizer.lr": 1e-3, "a": None, "b": [1]},
    ]
    assert varied_keys(points) == ["optimizer.lr"], "a key that one lacks is no difference"
    assert varied_keys(points[:1]) == varied_keys([]) == []


def test_a_field_that_came_later_is_null_where_a_stored_config_is_without_it() -> None:
    parts = ((name, info.annotation) for name, info in JobConfig.model_fields.items())
    later = [f"{name}.{key}" for name, part in parts for key in part.later_fields]  # type: ignore[union-attr]
    assert sorted(LATER_FIELDS) == sorted(later)
    unset, every = (parse({"subject": {"layers": layers}}).canonical_json() for layers in (None, "all"))
    assert varied_keys(map(flatten_stored, (unset, every))) == ["subject.layers"]
    assert flatten_stored(unset).keys() == set(field_paths())


def test_no_pydantic_is_loaded() -> None:
    probe = "import sys; from orchestrator.config import flat_keys; sys.exit('pydantic' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", probe], check=False).returncode == 0
