"""A fit says which of its jobs read their text more than once."""

from orchestrator.scaling.fit.fitting import fit
from orchestrator.scaling.fit.repeated_text import note_on_passes
from tests.job_measurements import line, measured


def test_a_fit_says_how_often_its_jobs_read_their_text() -> None:
    rows = line([64, 128, 256, 512], noise=0.001, trainable_tokens=30)
    (found,) = fit("ln", rows, n_bootstrap=20)
    (note,) = [one for one in found.notes if "passes" in one]
    assert note.startswith("4 of 4 jobs read their text more than once: up to 30 passes over 30 trainable tokens (")
    (other,) = fit("ln", line([64, 128, 256, 512], noise=0.001, trainable_tokens=900), n_bootstrap=20)
    assert not [one for one in other.notes if "passes" in one], "one pass is no repetition"


def test_only_jobs_of_the_fit_count() -> None:
    mine, other = measured(job_id=1, trainable_tokens=900), measured(job_id=2, trainable_tokens=21)
    assert note_on_passes([mine, other], [1]) == []
    (note,) = note_on_passes([mine, other], [1, 2])
    assert note.startswith("1 of 2 jobs read their text more than once: 42.9 passes over 21 trainable tokens (job 2)")
