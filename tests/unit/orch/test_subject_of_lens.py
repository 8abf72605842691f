"""`orch.Subject` and an SAE in the space of a tuned lens: refused, never run on activations as they are."""

from dataclasses import replace
from pathlib import Path

import pytest

from orch.subject import Reading, Subject
from orchestrator.config.job import SubjectConfig
from orchestrator.errors import ConfigError
from tests.unit.worker.evaluation.tiny_contexts import random_sae
from tests.unit.worker.subject.tiny_models import WIDTH, save_model


def test_an_sae_in_lens_space_is_not_put_into_a_model_as_it_is(tmp_path: Path) -> None:
    config = SubjectConfig(model=str(save_model("gpt2", tmp_path / "model")), layer=1)
    subject = Subject.load(Reading(config, prepend_bos=False))
    sae = random_sae(WIDTH)
    assert subject.run([2, 3, 4], sae).loss > 0
    mapped = sae.changed({}, facts=replace(sae.facts, lens="a" * 64))
    with pytest.raises(ConfigError, match="in the space of the tuned lens aaaaaaaaaaaa"):
        subject.run([2, 3, 4], mapped)
