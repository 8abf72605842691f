"""What is drawn: by the seed of the evaluation and by what it is for, whatever that is called."""

from pathlib import Path

import pytest
import torch

from tests.unit.worker.evaluation.tiny_contexts import tiny_context


@pytest.mark.parametrize("length", range(1, 33))
def test_another_seed_draws_anew_whatever_the_name(tmp_path: Path, length: int) -> None:
    """torch reads 32 bits of a seed on a CPU: those must differ, too."""
    name = "n2g.latents and so on and further"[:length]
    drawn = [
        torch.rand(4, generator=tiny_context(tmp_path, options={"seed": seed}).generator(name)) for seed in (0, 0, 1)
    ]
    assert drawn[0].equal(drawn[1])
    assert (drawn[0] != drawn[2]).all()
