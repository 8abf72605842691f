"""`import orch`: what it reads, loads and queues, on real jobs of a small language model."""

import csv
import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

import orch
from orch.study import Study
from orchestrator import queue, results
from orchestrator.cli.main import cli
from orchestrator.errors import (
    ConfigError,
    JobCancelled,
    JobFailed,
    NotFound,
    StorageError,
    SubjectError,
    WaitTimedOut,
)
from orchestrator.fits import store
from orchestrator.results.stored_configs import configs
from tests.made_fits import power_law
from tests.small_world import CONTEXT, TEXT, WIDTH, World, make_subject, small_config, small_world
from worker.activations.model_source import ModelActivations
from worker.data.token_file import pack
from worker.formats import registry
from worker.sae.inference import InferenceSae
from worker.sae.normalize import normalize
from worker.subject.model import load

SIZES = (64, 96, 128)


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_subject(tmp_path_factory.mktemp("subject"))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, subject: Path) -> Iterator[World]:
    """Three trained jobs of a sweep, and one of another that waits."""
    with small_world(tmp_path_factory.mktemp("world") / "home") as made:
        ids = made.enqueue(*(small_config(subject, n_latents=n) for n in SIZES))
        assert made.work("--until-empty").wait(timeout=200) == 0
        assert {made.job(job_id).state for job_id in ids} == {"succeeded"}
        made.enqueue(small_config(subject, seed=1), name="later")
        yield made


@pytest.fixture
def study(world: World) -> Iterator[Study]:
    with orch.open(home=world.settings.home) as opened:
        yield opened


def test_jobs_have_the_columns_of_the_command_line(study: Study, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCH_HOME", str(world.settings.home))
    printed = CliRunner().invoke(cli, ["status", "-o", "csv"]).stdout
    rows = list(csv.DictReader(io.StringIO(printed)))
    jobs = study.jobs()
    assert list(jobs.columns) == list(rows[0])
    assert jobs["id"].tolist() == [int(row["id"]) for row in rows]
    assert jobs["fvu"].dropna().tolist() == [float(row["fvu"]) for row in rows if row["fvu"]]
    assert study.jobs("small", sort="fvu")["n_latents"].tolist() == sorted(SIZES, reverse=True)
    assert study.jobs(1, "later", states=["queued"])["sweep"].tolist() == ["later"]
    assert study.jobs(where={"sae.n_latents": [64, 96]}, best_by=["k"], sort="-fvu")["id"].is_unique
    assert str(jobs["created_at"].dtype) == "datetime64[us, UTC]"


def test_columns_and_types_do_not_depend_on_the_rows(study: Study, tmp_path: Path) -> None:
    with orch.open(home=tmp_path / "empty") as empty:
        for name in ("jobs", "curves", "fits", "saes"):
            nothing, some = getattr(empty, name)(), getattr(study, name)()
            assert len(nothing) == 0
            assert list(nothing.columns) == list(some.columns)[: len(nothing.columns)]
            numbers = [column for column in nothing if nothing[column].dtype.kind in "fiM"]
            assert numbers
            assert [nothing[column].dtype for column in numbers] == [some[column].dtype for column in numbers]


def test_curves_are_those_of_the_jobs(study: Study, world: World) -> None:
    curves = study.curves("sweep:small")
    assert curves.groupby("job_id")["fvu"].last().to_dict() == study.jobs("small").set_index("id")["fvu"].to_dict()
    points = results.curve(world.engine, 2)
    assert curves[curves["job_id"] == 2]["tokens_seen"].tolist() == [point.tokens_seen for point in points]


def test_fits_are_rows_with_a_column_for_each_coefficient(study: Study, world: World) -> None:
    fit = power_law(sweeps=("small",))
    (number,) = store.save(world.engine, [fit])
    (newer,) = store.save(world.engine, [fit])
    fits = study.fits("small")
    assert fits["id"].tolist() == [newer]
    assert fits.loc[0, ["b", "b_low", "b_high"]].tolist() == list(fit.coefficients["b"])
    assert fits.loc[0, ["law", "form", "n_jobs"]].tolist() == [fit.law, fit.form, len(fit.jobs)]
    assert study.fits(superseded=True)["id"].tolist() == [number, newer]
    assert len(study.fits(law="tn")) == 0
    store.remove(world.engine, [number, newer])


def is_fit_for_saebench(sae: nn.Module) -> None:
    """Assert what SAEBench 0.6.0 asks of a custom SAE (custom_saes/README.md and base_sae.py there)."""
    module: InferenceSae = sae  # type: ignore[assignment]
    cfg = module.cfg
    assert (module.W_enc.shape, module.W_dec.shape) == ((cfg.d_in, cfg.d_sae), (cfg.d_sae, cfg.d_in))
    assert isinstance(module.W_dec, nn.Parameter)
    assert (module.b_enc.shape, module.b_dec.shape) == ((cfg.d_sae,), (cfg.d_in,))
    tolerance = 1e-2 if module.dtype in (torch.bfloat16, torch.float16) else 1e-5
    norms = module.W_dec.float().norm(dim=1)
    assert torch.allclose(norms, torch.ones_like(norms), atol=tolerance)
    assert cfg.model_name
    assert cfg.hook_name == f"blocks.{cfg.hook_layer}.hook_resid_post"
    assert (cfg.dtype, cfg.device) == (str(module.dtype).removeprefix("torch."), str(module.device))
    x = torch.randn(2, 5, cfg.d_in, dtype=module.dtype)
    acts = module.encode(x)
    assert acts.shape == (2, 5, cfg.d_sae)
    assert torch.allclose(module.decode(acts), module(x), atol=10 * tolerance)
    assert module(x).shape == x.shape


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_sae_is_what_saebench_asks_for(study: Study, dtype: str) -> None:
    is_fit_for_saebench(study.sae(1, dtype=dtype))


def test_an_sae_is_found_by_number_name_and_folder(study: Study) -> None:
    first = study.sae(1)
    folder = study.saes(1).loc[0, "uri"]
    others = [study.sae("1"), study.sae("sae:1"), study.sae(folder), study.sae(Path(folder)), orch.load(folder)]
    assert all(torch.equal(first.W_dec, other.W_dec) for other in others)


def test_an_sae_in_the_format_of_another_library_is_loaded_with_its_subject(study: Study, tmp_path: Path) -> None:
    sae = study.sae(2)
    registry.write(sae, tmp_path / "portable", format="orch")
    read = orch.load(tmp_path / "portable")
    subject = study.subject(tmp_path / "portable")
    x = subject.activations(TEXT)
    assert torch.equal(x, study.subject(2).activations(TEXT))
    assert torch.equal(read(x), sae(x))
    without = sae.changed({}, facts=replace(sae.facts, normalize="none"))  # SAELens has no place for `unit`
    registry.write(without, tmp_path / "saelens", format="saelens")
    assert torch.allclose(orch.load(tmp_path / "saelens")(x), without(x), atol=1e-5)


def fvu(x: Tensor, x_hat: Tensor) -> float:
    return float((x - x_hat).double().square().sum() / (x - x.mean(0)).double().square().sum())


def test_text_becomes_the_activations_that_were_trained_on(study: Study, world: World) -> None:
    """The held-out contexts, read through `Subject`, are vector for vector what the trainer measured fvu on."""
    config = configs(world.engine, [1])[1]
    source = load(config.subject)
    tokens = pack(config.data, source.tokenizer, world.settings.home / "tokens")
    activations = ModelActivations(source, tokens, config)
    (wanted,) = activations.heldout(
        config.model_copy(update={"sae": config.sae.model_copy(update={"normalize": "none"})})
    )
    contexts = activations._contexts
    ids = torch.from_numpy(tokens.contexts(contexts.heldout))
    kept = torch.from_numpy(contexts.is_trained(ids.numpy()))
    subject = study.subject(1)
    found = torch.stack([subject.activations(one) for one in ids])
    assert torch.allclose(found[kept], wanted, atol=1e-5)
    text = subject.tokenizer.decode(ids[0])
    assert torch.equal(subject.token_ids(text), ids[0])
    sae, row = study.sae(1), study.saes(1).loc[0]
    vectors, mean, scale = normalize(found[kept], "unit")
    assert fvu(vectors, (sae(found[kept]) - mean) / scale) == pytest.approx(row["fvu"], rel=1e-4)
    assert float((sae.encode(wanted) > 0).sum(1).double().mean()) == pytest.approx(row["l0"])


def test_a_patch_changes_the_loss_and_the_identity_does_not(study: Study) -> None:
    sae, subject = study.sae(3), study.subject(3)
    clean, same = subject.run(TEXT), subject.run(TEXT, lambda x: x)
    assert torch.equal(clean.logits, same.logits)
    assert clean.logits.shape == (len(subject.tokens(TEXT)), subject.view.vocabulary)
    probabilities = clean.logits.log_softmax(-1)
    assert clean.losses[4] == pytest.approx(-float(probabilities[4, clean.token_ids[5]]), abs=1e-6)
    patched = subject.run(TEXT, sae)
    assert patched.loss != clean.loss
    # Block 1 is the last: what is put there meets the final norm and the unembedding alone.
    model = subject.view.model
    by_hand = model.lm_head(model.transformer.ln_f(sae(subject.activations(TEXT))))
    assert torch.allclose(patched.logits, by_hand, atol=1e-5)
    several = subject.run(["the quick brown fox", TEXT], sae)
    assert torch.allclose(several[1].logits, patched.logits)


def test_text_and_token_ids_are_one(study: Study) -> None:
    subject = study.subject("sae:2")
    ids = subject.token_ids("the quick brown fox")
    assert subject.tokens("the quick brown fox") == ["the", "quick", "brown", "fox"]
    assert torch.equal(subject.activations(ids), subject.activations("the quick brown fox"))
    assert torch.equal(subject.activations(ids.tolist()), subject.activations(ids))
    assert subject.activations(["the quick", "fox"])[1].shape == (1, WIDTH)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not empty"),
        ([], "not empty"),
        (["the", 3], "neither text nor token ids"),
        ([0.5], "whole numbers"),
        ([10_000], "token ids go from 0"),
        ([-1], "token ids go from 0"),
        (torch.zeros(2, 3, dtype=torch.int64), "shape (2, 3)"),
        ("fox " * (CONTEXT + 1), f"the model reads {CONTEXT} at once"),
    ],
)
def test_what_is_no_text_is_refused_in_words(study: Study, text: object, said: str) -> None:
    with pytest.raises(ConfigError) as found:
        study.subject(1).activations(text)  # type: ignore[call-overload]
    assert said in str(found.value)


def test_an_sae_of_another_width_is_refused(study: Study) -> None:
    other = nn.Module()
    other.W_dec = nn.Parameter(torch.zeros(8, WIDTH + 1))
    with pytest.raises(ConfigError, match="dimensions"):
        study.subject(1).run(TEXT, other)


@pytest.mark.parametrize(
    ("selector", "error", "said"),
    [
        ("smal", NotFound, "did you mean 'small'"),
        (99, NotFound, "there is no job 99"),
        ("sae:other", NotFound, "there is no sae:other"),
        (f"sae:{'9' * 20}", NotFound, f"there is no sae:{'9' * 20}"),
        ("later", NotFound, "has no SAE"),
        ("small", ConfigError, "means 3 SAEs"),
        ("/nowhere/at/all", NotFound, "there is no folder or file /nowhere/at/all"),
    ],
)
def test_what_is_no_sae_is_refused_in_words(
    study: Study, selector: str | int, error: type[Exception], said: str
) -> None:
    for read in (study.sae, study.subject):
        with pytest.raises(error) as found:
            read(selector)
        assert said in str(found.value)


def test_a_device_or_type_that_there_is_not_is_refused(study: Study) -> None:
    for asked in ({"device": "gpu"}, {"device": "cuda:99"}, {"dtype": "int64"}, {"dtype": "float31"}):
        with pytest.raises(ConfigError):
            study.sae(1, **asked)
    with pytest.raises(ConfigError):
        study.subject(1, device="gpu")


def test_keys_and_states_that_there_are_not_are_refused(study: Study) -> None:
    with pytest.raises(ConfigError, match="did you mean"):
        study.jobs(where={"sae.kk": 4})
    with pytest.raises(ConfigError, match="not a key of a config"):
        study.jobs(where={"k": 4})
    with pytest.raises(ConfigError, match="not a state"):
        study.jobs(states=["runing"])
    for read in (study.jobs, study.curves, study.fits):
        with pytest.raises(NotFound, match="did you mean 'small'"):
            read("smal")


def test_an_sae_or_a_subject_that_is_gone_is_told_of(tmp_path: Path) -> None:
    subject = make_subject(tmp_path / "model")
    with small_world(tmp_path / "home") as world, orch.open(home=world.settings.home) as study:
        (job_id,) = world.enqueue(small_config(subject, max_tokens=2048))
        world.work("--until-empty")
        assert study.wait(job_id, timeout=90)["state"].tolist() == ["succeeded"]
        folder = Path(study.saes().loc[0, "uri"])
        (folder / "sae.safetensors").write_bytes(b"other")
        with pytest.raises(ConfigError, match=r"sae\.safetensors changed"):
            study.sae(job_id)
        folder.rename(tmp_path / "moved")
        with pytest.raises(NotFound, match=r"SAE 1: its folder .* is gone"):
            study.sae(job_id)
        subject.rename(tmp_path / "elsewhere")
        with pytest.raises(SubjectError):
            study.subject(job_id)


def test_a_database_out_of_reach_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        orch.open(home=tmp_path / "file")
    monkeypatch.setenv("ORCH_DATABASE_URL", "postgresql://127.0.0.1:1/orch")
    with pytest.raises(StorageError):
        orch.open()


def test_sweeps_are_enqueued_from_a_file_text_or_dict(tmp_path: Path, subject: Path) -> None:
    text = f"""
name: mine
overrides: {{subject.model: {subject}, data.source: {subject}/text.txt, sae.k: 4, data.context_length: 32}}
sweep: [grid: {{sae.n_latents: [32, 64]}}]
"""
    (tmp_path / "mine.yaml").write_text(text)
    values = {
        "name": "mine",
        "overrides": {
            "subject.model": subject,
            "data.source": f"{subject}/text.txt",
            "sae.k": 4,
            "data.context_length": 32,
        },
        "sweep": [{"grid": {"sae.n_latents": [32, 64]}}],
    }
    with orch.open(home=tmp_path / "home") as study:
        ids = study.enqueue(text)
        assert study.jobs(*ids)["n_latents"].tolist() == [32, 64]
        assert study.enqueue(tmp_path / "mine.yaml") == study.enqueue(str(tmp_path / "mine.yaml")) == ids
        assert study.enqueue(values) == ids
        assert study.enqueue(values, "sae.k=8", name="other", priority=3) == [3, 4]
        assert study.jobs("other")[["k", "priority"]].to_numpy().tolist() == [[8, 3], [8, 3]]
        for wrong, said in (
            ({"overrides": {"sae.k": 4}}, "the sweep has no name"),
            ({**values, "sae.kk": 4}, "did you mean 'sae.k'"),
            ({"name": "x", "sae.k": "4"}, "sae.k"),
            ({"name": "x", "sae.k": {1, 2}}, "neither text, a number, a list nor a dict"),
            (tmp_path / "nothing.yaml", "no such file"),
            ("name: [x", "not YAML"),
            ({"name": "x", "data.source": "/nowhere.txt"}, "there is no /nowhere.txt"),
        ):
            with pytest.raises(ConfigError) as found:
                study.enqueue(wrong)
            assert said in str(found.value)


def test_a_broker_that_is_away_is_a_warning(tmp_path: Path, subject: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCH_BROKER_URL", "redis://127.0.0.1:1/0")
    values = {
        "name": "one",
        "subject.model": str(subject),
        "data.source": f"{subject}/text.txt",
        "sae.k": 4,
        "data.context_length": 32,
    }
    with orch.open(home=tmp_path / "home") as study, pytest.warns(UserWarning, match="the broker does not answer"):
        assert study.enqueue(values) == [1]


def test_waiting_ends_as_the_command_does(tmp_path: Path, subject: Path) -> None:
    with small_world(tmp_path / "home") as world, orch.open(home=world.settings.home) as study:
        ids = world.enqueue(small_config(subject), small_config(subject, seed=1))
        with pytest.raises(WaitTimedOut, match="2 of 2 jobs had not ended in time") as late:
            study.wait("small", timeout=0.1)
        assert late.value.exit_code == 6
        queue.cancel(world.engine, ids[:1])
        with pytest.raises(JobCancelled, match=r"1 of 1 job was cancelled \(job 1\)") as cancelled:
            study.wait(1)
        assert cancelled.value.exit_code == 8
    bad = small_config(subject)
    bad = bad.model_copy(update={"data": bad.data.model_copy(update={"source": str(tmp_path / "gone.txt")})})
    with small_world(tmp_path / "other") as world, orch.open(home=world.settings.home) as study:
        (job_id,) = world.enqueue(bad, max_failures=1)
        world.work("--until-empty")
        with pytest.raises(JobFailed, match=r"1 of 1 job failed \(job 1\); job 1: ") as failed:
            study.wait(job_id, timeout=90)
        assert failed.value.exit_code == 7


def test_it_reads_while_workers_write(tmp_path: Path, subject: Path) -> None:
    with small_world(tmp_path / "home") as world, orch.open(home=world.settings.home) as study:
        (job_id,) = world.enqueue(small_config(subject, max_tokens=200_000))
        world.work()
        seen: set[int] = set()
        world.wait(lambda: len(seen.union(study.curves(job_id)["tokens_seen"])) > 8)
        assert study.jobs(job_id).loc[0, "state"] == "running"
        assert study.jobs(job_id).loc[0, "tokens_seen"] > 0
        queue.cancel(world.engine, [job_id])
