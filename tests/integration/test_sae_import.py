"""SAEs brought in, verified and exported: real ones, on the activations of the subject they were trained on."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from orchestrator import queue, results, saes
from orchestrator.cli.main import run
from orchestrator.config.validation import parse
from orchestrator.errors import ConfigError, NotFound, StateError, StorageError
from orchestrator.evaluation.scores import scores, wide
from orchestrator.saes import SaeEntry
from tests.full_disk import files_of_at_most
from tests.hub_double import hub_double
from tests.small_world import ROOT, World, make_subject, small_config, small_world
from worker.formats import portable
from worker.saes import verifying
from worker.saes.exporting import export_sae
from worker.saes.importing import import_sae
from worker.saes.verifying import verify_sae

TOKENS = {"tokens": 4096}
KINDS = {1: ("topk", "unit"), 2: ("topk", "none"), 3: ("jumprelu", "none"), 4: ("relu", "layer_norm")}


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_subject(tmp_path_factory.mktemp("a subject"))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, subject: Path) -> Iterator[World]:
    with small_world(tmp_path_factory.mktemp("saes") / "home") as world:
        base = small_config(subject).model_dump(mode="json")
        world.enqueue(
            *(
                parse(base | {"sae": base["sae"] | {"activation": activation, "normalize": normalize}})
                for activation, normalize in KINDS.values()
            )
        )
        assert world.work("--until-empty").wait(timeout=240) == 0
        yield world


@pytest.fixture
def exported(world: World, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """Return a folder of SAELens with the SAE of a job: by default job 2, topk of vectors as they are."""
    number = getattr(request, "param", 2)
    export(world, str(number), tmp_path / "sae", "saelens")
    return tmp_path / "sae"


def export(world: World, selector: str, folder: Path, format_: str) -> dict[str, Any]:
    return export_sae(world.engine, world.settings, selector, {"folder": str(folder), "format": format_})


def bring_in(world: World, source: Path, name: str, **asked: object) -> dict[str, Any]:
    return import_sae(world.engine, world.settings, str(source), {"name": name, **TOKENS, **asked})


def entry(world: World, selector: str) -> SaeEntry:
    (found,) = results.find_saes(world.engine, [selector])
    return found


def edited(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps(config | changes))


@pytest.mark.parametrize("number", KINDS)
def test_what_goes_out_comes_in_verified_with_the_same_loss(
    world: World, subject: Path, number: int, tmp_path: Path
) -> None:
    export(world, str(number), tmp_path / "sae", "saelens")
    asked = {**TOKENS, "data": str(subject / "text.txt")}
    said = bring_in(world, tmp_path / "sae", f"back-{number}", **asked)
    assert said["state"] == "verified", said
    new = entry(world, f"sae:back-{number}")
    verify_sae(world.engine, world.settings, str(number), asked)
    mine = entry(world, str(number))
    assert new.measured_tokens == mine.measured_tokens
    # SAELens adds 1e-5 to the standard deviation; of this subject's vectors that is one part in some thousands.
    assert (new.fvu_raw, new.l0) == pytest.approx((mine.fvu_raw, mine.l0), rel=1e-3, abs=1e-5)
    assert (new.facts.subject, new.facts.layers, new.facts.site) == (str(subject), (1,), "resid_post")
    verify_sae(world.engine, world.settings, str(number), {})


def test_a_job_is_verified_on_its_own_held_out_text_and_refused_when_its_files_are_others(world: World) -> None:
    before = entry(world, "2")
    assert verify_sae(world.engine, world.settings, "2", {})["state"] == "verified"
    after = entry(world, "2")
    assert (after.fvu, after.fvu_raw, after.l0) == pytest.approx((before.fvu, before.fvu_raw, before.l0), rel=1e-5)
    other = entry(world, "1").uri
    kept = Path(before.uri).with_name("kept")
    Path(before.uri).rename(kept)
    try:
        with pytest.raises(ConfigError, match="is not as it was written"):
            verify_sae(world.engine, world.settings, "2", {})
        shutil.copytree(other, before.uri)
        said = verify_sae(world.engine, world.settings, "2", {})
        assert said["state"] == "refused"
        assert "when it was trained" in said["note"]
    finally:
        shutil.rmtree(before.uri, ignore_errors=True)
        kept.rename(before.uri)
    assert verify_sae(world.engine, world.settings, "2", {})["state"] == "verified"


def test_a_job_is_verified_on_another_number_of_tokens_by_the_wider_check(
    world: World, subject: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other tokens have another fvu; only the held-out ones of the training must come to the fvu of the training."""
    (job,) = results.jobs(world.engine, ids=[2])
    heldout = small_config(subject).training.heldout_tokens
    assert job.fvu is not None
    monkeypatch.setattr(verifying, "_SAME", 1e-9)
    other = verify_sae(world.engine, world.settings, "2", {"tokens": heldout // 2})
    assert (other["state"], other["tokens"]) == ("verified", heldout // 2)
    assert abs(other["fvu"] - job.fvu) > 1e-9 * job.fvu
    monkeypatch.undo()
    same = verify_sae(world.engine, world.settings, "2", {"tokens": heldout})
    assert (same["state"], same["tokens"]) == ("verified", heldout)
    assert same["fvu"] == pytest.approx(job.fvu, rel=1e-2)


def test_a_refused_verification_has_exit_code_4(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    states = iter(["refused", "verified", "refused"])

    def said(_verb: str, what: str, _options: object) -> dict[str, object]:
        return {"selector": what, "state": (state := next(states)), "lines": [f"{what} is {state}"]}

    monkeypatch.setattr("orchestrator.cli.commands.sae.run_sae_worker", said)
    folders = ["./a", "./b", "./c"]
    assert run(["sae", "verify", *folders]) == 4
    told = capsys.readouterr()
    assert told.out.splitlines() == ["./a is refused", "./b is verified", "./c is refused"]
    assert "./a, ./c are refused" in told.err
    states = iter(["verified"])
    assert run(["sae", "verify", "./a"]) == 0


def test_a_bias_that_its_files_deny_is_found_and_asked_for(world: World, subject: Path, exported: Path) -> None:
    edited(exported, apply_b_dec_to_input=False)
    data = str(subject / "text.txt")
    said = bring_in(world, exported, "biased", data=data)
    assert "bias=subtracted reconstructs clearly better" in said["refused"]
    assert "--convention bias=subtracted" in said["hint"]
    table = {row["name"]: row["fvu"] for row in said["conventions"]}
    assert table["bias=subtracted"] < 0.9 * table["as-read"]
    assert all(row.name != "biased" for row in saes.entries(world.engine)), "nothing is entered"
    assert not list((world.settings.artifacts_folder / "saes").glob("biased*"))
    said = bring_in(world, exported, "biased", data=data, convention="bias=subtracted")
    assert (said["state"], entry(world, "sae:biased").facts.subtracts_bias) == ("verified", True)
    said = bring_in(world, exported, "as-it-says", data=data, convention="as-read")
    assert said["state"] in {"unverified", "refused"}
    with pytest.raises(ConfigError, match="no convention of these files"):
        bring_in(world, exported, "c", data=data, convention="other")


@pytest.mark.parametrize("exported", [3], indirect=True)
def test_a_threshold_in_other_units_is_refused_by_its_l0(world: World, subject: Path, exported: Path) -> None:
    weights = load_file(exported / "sae_weights.safetensors")
    save_file(weights | {"threshold": weights["threshold"] * 0}, exported / "sae_weights.safetensors")
    wanted = entry(world, "3").l0
    meta = json.loads((exported / "cfg.json").read_text())["metadata"]
    edited(exported, metadata=meta | {"l0": wanted})
    said = bring_in(world, exported, "opened", data=str(subject / "text.txt"))
    assert "its files state" in said["refused"]
    assert "L0" in said["refused"]


def test_weights_of_noise_are_not_those_of_a_trained_sae(world: World, subject: Path, exported: Path) -> None:
    weights = load_file(exported / "sae_weights.safetensors")
    noise = {name: torch.randn_like(value) for name, value in weights.items()}
    save_file(noise, exported / "sae_weights.safetensors")
    said = bring_in(world, exported, "noise", data=str(subject / "text.txt"))
    assert "an untrained SAE of these sizes has" in said["refused"]
    said = bring_in(world, exported, "noise", data=str(subject / "text.txt"), convention="as-read")
    assert (said["state"], entry(world, "sae:noise").state) == ("refused", "refused")


def test_without_its_subject_it_is_entered_unverified_and_verified_later(
    world: World, subject: Path, exported: Path
) -> None:
    meta = json.loads((exported / "cfg.json").read_text())["metadata"]
    edited(exported, metadata=meta | {"model_name": "nobody/nothing"})
    said = bring_in(world, exported, "away")
    assert (said["state"], "nobody/nothing" in said["note"]) == ("unverified", True)
    assert entry(world, "sae:away").fvu is None
    place = {"subject": str(subject), "layer": 1, "site": "resid_post"}
    said = verify_sae(world.engine, world.settings, "sae:away", {**TOKENS, **place, "data": str(subject / "text.txt")})
    assert said["state"] == "verified"
    edited(exported, metadata={})
    said = bring_in(world, exported, "nameless")
    assert (said["state"], "do not say of which model" in said["note"]) == ("unverified", True)


def test_an_sae_of_another_width_than_its_place_is_refused(
    world: World, subject: Path, exported: Path, tmp_path: Path
) -> None:
    config = json.loads((exported / "cfg.json").read_text())
    weights = load_file(exported / "sae_weights.safetensors")
    cut = {
        "W_enc": weights["W_enc"][:16].clone(),
        "W_dec": weights["W_dec"][:, :16].clone(),
        "b_dec": weights["b_dec"][:16],
    }
    save_file({name: (weights | cut)[name].contiguous() for name in weights}, exported / "sae_weights.safetensors")
    edited(exported, d_in=16)
    with pytest.raises(ConfigError, match=r"reads 16 dimensions, and this place .* has 32"):
        bring_in(world, exported, "narrow", data=str(subject / "text.txt"))
    assert config["d_in"] == 32


def test_names_are_checked_before_anything_is_read(
    world: World, exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("1", "-x", "a b", "ä", ""):
        with pytest.raises(ConfigError, match="is no name of an SAE"):
            bring_in(world, exported, name or "-")
    bring_in(world, exported, "taken", subject="nobody/nothing")
    with pytest.raises(StateError, match="is named 'taken' already"):
        bring_in(world, exported, "taken")
    kept = sorted((world.settings.artifacts_folder / "saes").glob("taken*"))
    monkeypatch.setattr(saes, "check_name", lambda *_: None)  # as if another import had come first meanwhile
    with pytest.raises(StateError, match="is named 'taken' already"):
        bring_in(world, exported, "taken", subject="nobody/nothing")
    assert sorted((world.settings.artifacts_folder / "saes").glob("taken*")) == kept


def test_an_export_has_a_card_and_is_never_written_over(world: World, tmp_path: Path) -> None:
    said = export(world, "1", tmp_path / "out", "orch")
    assert {"README.md", "cfg.json", "curve.png", "sae.safetensors"} <= set(said["files"])
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"{entry(world, '1').fvu_raw:.4g}" in card
    assert "job 1" in card
    assert portable.read(tmp_path / "out").facts == entry(world, "1").facts
    before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    with pytest.raises(StateError, match="exists"):
        export(world, "2", tmp_path / "out", "orch")
    assert {path: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_what_a_format_cannot_hold_is_refused_and_nothing_stays(world: World, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="normalises"):
        export(world, "1", tmp_path / "out", "sparsify")
    with pytest.raises(ConfigError, match="no format that is written"):
        export(world, "1", tmp_path / "out", "gemma_scope")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_leaves_no_half_of_an_export_or_an_import(
    world: World, subject: Path, exported: Path, tmp_path: Path
) -> None:
    before = sorted(tmp_path.iterdir())
    with files_of_at_most(4096), pytest.raises(StorageError, match="cannot write"):
        export(world, "2", tmp_path / "out", "saelens")
    assert sorted(tmp_path.iterdir()) == before
    bring_in(world, exported, "first", data=str(subject / "text.txt"))  # packs the text, and makes the database larger
    queue.remove_sae(world.engine, entry(world, "sae:first").id)
    kept = set((world.settings.artifacts_folder / "saes").rglob("*.*"))
    with files_of_at_most(4096), pytest.raises(StorageError):
        bring_in(world, exported, "second", data=str(subject / "text.txt"))
    assert set((world.settings.artifacts_folder / "saes").rglob("*.*")) == kept
    assert all(row.name != "second" for row in saes.entries(world.engine))


def test_a_folder_is_checked_and_translated_without_being_entered(
    world: World, subject: Path, exported: Path, tmp_path: Path
) -> None:
    before = saes.entries(world.engine)
    asked = {**TOKENS, "data": str(subject / "text.txt")}
    said = verify_sae(world.engine, world.settings, str(exported), asked)
    verify_sae(world.engine, world.settings, "2", asked)
    assert (said["state"], said["id"]) == ("verified", None)
    assert said["fvu_raw"] == pytest.approx(entry(world, "2").fvu_raw, rel=1e-3, abs=1e-5)
    verify_sae(world.engine, world.settings, "2", {})
    said = export(world, str(exported), tmp_path / "translated", "sparsify")
    assert {"README.md", "cfg.json", "sae.safetensors"} <= set(said["files"])
    assert "Not measured" in (tmp_path / "translated" / "README.md").read_text()
    assert [row.id for row in saes.entries(world.engine)] == [row.id for row in before]
    with pytest.raises(NotFound, match="no file or folder"):
        verify_sae(world.engine, world.settings, str(tmp_path / "nonesuch"), {})


def test_an_import_keeps_a_copy_of_its_own(world: World, subject: Path, exported: Path, tmp_path: Path) -> None:
    bring_in(world, exported, "copied", data=str(subject / "text.txt"))
    shutil.rmtree(exported)
    assert (
        verify_sae(world.engine, world.settings, "sae:copied", {**TOKENS, "data": str(subject / "text.txt")})["state"]
        == "verified"
    )
    export(world, "sae:copied", tmp_path / "again", "sparsify")
    assert (tmp_path / "again" / "cfg.json").is_file()


def test_a_hub_takes_an_sae_and_gives_it_back(world: World, subject: Path, tmp_path: Path) -> None:
    with hub_double() as hub:
        there = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "cache"), "HF_TOKEN": f"hf_{'x' * 30}"}
        environ = {**os.environ, **world.environ, **there, "HF_HUB_OFFLINE": "0"}

        def orch(*arguments: str) -> tuple[int, str]:
            command = [sys.executable, "-m", "orchestrator", "sae", *arguments]
            done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False, cwd=ROOT)
            assert "Traceback" not in done.stderr
            return done.returncode, done.stdout + done.stderr

        code, said = orch("export", "2", str(tmp_path / "out"), "--format", "saelens", "--push", "org/one")
        assert (code, f"{hub.url}/org/one" in said) == (0, True)
        written = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
        assert hub.repositories["org/one"] == written
        data = ("--data", str(subject / "text.txt"), "--tokens", "4096")
        code, said = orch("import", "org/one", "--name", "of-hub", *data, "-o", "name")
        assert (code, said.splitlines()[0]) == (0, "sae:of-hub")
        hub.repositories["org/two"] = {f"l{i}/{name}": text for i in (0, 1) for name, text in written.items()}
        code, said = orch("import", "org/two", *data)
        assert (code, "org/two holds 2 SAEs: l0, l1" in said) == (2, True)
        code, said = orch("import", "org/none", *data)
        assert (code, "the hub has no repository 'org/none'" in said) == (2, True)
    environ["HF_ENDPOINT"] = "http://127.0.0.1:9"
    code, said = orch("export", "2", str(tmp_path / "later"), "--push", "org/one")
    assert (code, "cannot be reached" in said, (tmp_path / "later" / "cfg.json").exists()) == (5, True, True)


def test_a_relative_folder_of_a_subject_is_kept_as_an_absolute_one(
    world: World, subject: Path, exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker elsewhere reads it there; one that is gone is then no model of the hub."""
    for name, value in world.environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(subject.parent)
    assert run([
        "sae", "import", str(exported), "--name", "from-here", "--subject", subject.name, "--data",
        f"{subject.name}/text.txt", "--tokens", "4096",
    ]) == 0  # fmt: skip
    assert entry(world, "sae:from-here").facts.subject == str(subject.resolve())


def test_an_sae_that_was_brought_in_is_scored_by_the_same_commands(
    world: World, subject: Path, exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy in another library's files has the scores of the one it is a copy of: same text, same draws."""
    for name, value in world.environ.items():
        monkeypatch.setenv(name, value)
    bring_in(world, exported, "copy", subject=str(subject), data=str(subject / "text.txt"))
    data = ["--data", str(subject / "text.txt"), "--tokens", "512"]
    assert run(["evaluate", "2", "sae:copy", "--metrics", "reconstruction,downstream,structure", *data]) == 0
    assert world.work("--until-empty").wait(timeout=240) == 0, world.said()
    own, copy = wide(scores(world.engine, ["2", "sae:copy"]), variants=True)
    assert own.keys() == copy.keys()
    told = {"sae", "sweep", "place", "l0"}
    for name in own.keys() - told:
        expected = own[name]
        assert copy[name] == (pytest.approx(expected, rel=1e-3, abs=1e-5) if isinstance(expected, float) else expected)
    assert own["delta_ce"] is not None
    assert own["silent_share"] is not None
