"""Settings come from the environment, then the nearest orch.toml, then defaults; secrets stay secret."""

from pathlib import Path

import pytest

from orchestrator.errors import ConfigError
from orchestrator.masking import mask
from orchestrator.settings import VARIABLES, Settings, load, place_of, resolve, sqlite_file, sqlite_url


def write(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "orch.toml").write_text(text, encoding="utf-8")
    return folder


def test_defaults_are_the_embedded_mode(tmp_path: Path) -> None:
    settings = load(start=tmp_path, environ={})
    assert settings.embedded
    assert settings.home == (tmp_path / ".orch").resolve()
    assert settings.database == f"sqlite:///{settings.home / 'orch.db'}"
    assert settings.tracking == f"sqlite:///{settings.home / 'mlflow.db'}"


def test_the_order_of_sources(tmp_path: Path) -> None:
    write(tmp_path, 'device = "cpu"\nlease_seconds = 60\n')
    found = resolve(start=tmp_path, environ={"ORCH_LEASE_SECONDS": "120"})
    assert found["device"] == ("cpu", "file")
    assert found["lease_seconds"] == (120.0, "environment")
    assert found["heartbeat_seconds"] == (15.0, "default")


def test_the_nearest_file_above_counts(tmp_path: Path) -> None:
    write(tmp_path, 'device = "cpu"')
    inner = write(tmp_path / "a", 'device = "cuda:1"')
    deep = inner / "b" / "c"
    deep.mkdir(parents=True)
    assert load(start=deep, environ={}).device == "cuda:1"
    assert load(start=tmp_path, environ={}).device == "cpu"


@pytest.mark.parametrize(
    ("text", "environ", "home"),
    [
        ("", {}, ".orch"),
        ('home = "data"', {}, "data"),
        ('home = "data"', {"ORCH_HOME": "mine"}, "inner/mine"),
        ("", {"ORCH_HOME": "../mine"}, "mine"),
    ],
)
def test_a_relative_home_belongs_to_who_wrote_it(tmp_path: Path, text: str, environ: dict[str, str], home: str) -> None:
    inner = write(tmp_path, text) / "inner"
    inner.mkdir()
    assert load(start=inner, environ=environ).home == (tmp_path / home).resolve()


def test_home_with_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load(start=tmp_path, environ={"ORCH_HOME": "~/x"}).home == (tmp_path / "x").resolve()


@pytest.mark.parametrize(
    ("text", "environ", "artifacts"),
    [
        ("", {}, ".orch/artifacts"),
        ('home = "data"', {}, "data/artifacts"),
        ('artifacts = "shared"', {"ORCH_HOME": "mine"}, "shared"),
        ('artifacts = "shared"', {"ORCH_ARTIFACTS": "others"}, "inner/others"),
        ("", {"ORCH_ARTIFACTS": "/a/shared/disk"}, "/a/shared/disk"),
        ("", {"ORCH_ARTIFACTS": "~/disk"}, "disk"),
    ],
)
def test_where_artifacts_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, environ: dict[str, str], artifacts: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    inner = write(tmp_path, text) / "inner"
    inner.mkdir()
    assert load(start=inner, environ=environ).artifacts_folder == (tmp_path / artifacts).resolve()


def test_mlflow_speaks_its_own_name(tmp_path: Path) -> None:
    theirs = {"MLFLOW_TRACKING_URI": "http://flow:5000"}
    assert load(start=tmp_path, environ=theirs).tracking == "http://flow:5000"
    assert load(start=tmp_path, environ=theirs | {"ORCH_TRACKING_URL": "http://ours"}).tracking == "http://ours"
    assert load(start=tmp_path, environ={"ORCH_TRACKING_URL": ""}).tracking.startswith("sqlite:")


def test_a_quota_is_said_as_people_say_it(tmp_path: Path) -> None:
    assert Settings().cache_limit == 20 * 10**9
    assert load(start=tmp_path, environ={"ORCH_CACHE_BYTES": "1.5 GiB"}).cache_limit == 3 * 2**29
    assert load(start=tmp_path, environ={"ORCH_CACHE_BYTES": "5000"}).cache_limit == 5000


def test_poll_is_slower_with_a_broker() -> None:
    assert Settings().poll == 1.0
    assert Settings(broker_url="redis://x").poll == 30.0
    assert Settings(poll_seconds=5).poll == 5.0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("databse_url = 'x'", "did you mean 'database_url'"),
        ("heartbeat_seconds = 'soon'", "heartbeat_seconds"),
        ("heartbeat_seconds = 0", "greater than 0"),
        ("stall_seconds = nan", "finite"),
        ("lease_seconds = 5", "is not above heartbeat_seconds"),
        ("device = 'gpu'", "device"),
        ("home = 3", "home"),
        ("cache_bytes = 'lots'", "cache_bytes takes a size"),
        ("cache_bytes = ''", "cache_bytes takes a size"),
        ("home =", "orch.toml"),
        ("[database]\nurl = 'x'", "database"),
    ],
)
def test_a_wrong_setting_is_named(tmp_path: Path, text: str, said: str) -> None:
    write(tmp_path, text)
    with pytest.raises(ConfigError, match=said) as caught:
        load(start=tmp_path, environ={})
    assert caught.value.hint


def test_a_wrong_environment_variable_is_named_as_such(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'poll_seconds' \(environment\)"):
        load(start=tmp_path, environ={"ORCH_POLL_SECONDS": "often"})


def test_a_file_that_is_not_text(tmp_path: Path) -> None:
    (tmp_path / "orch.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"orch\.toml") as told:
        load(start=tmp_path, environ={})
    assert "move or delete it first" in told.value.hint


def test_what_a_trainer_may_take(tmp_path: Path) -> None:
    settings = load(start=tmp_path, environ={})
    assert (settings.jobs_per_trainer, settings.memory_bytes, settings.compile) == (8, None, "auto")
    environ = {"ORCH_JOBS_PER_TRAINER": "3", "ORCH_MEMORY": "1.5 GiB", "ORCH_COMPILE": "off"}
    settings = load(start=tmp_path, environ=environ)
    assert (settings.jobs_per_trainer, settings.memory_bytes, settings.compile) == (3, 3 << 29, "off")
    assert Settings(memory="800MB").memory_bytes == 800_000_000


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("jobs_per_trainer", "0"),
        ("jobs_per_trainer", "two"),
        ("memory", "lots"),
        ("compile", "always"),
        ("log_format", "xml"),
    ],
)
def test_a_wrong_limit_is_named(tmp_path: Path, name: str, value: str) -> None:
    with pytest.raises(ConfigError, match=name):
        load(start=tmp_path, environ={f"ORCH_{name.upper()}": value})


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://ada:pw@db/orch", "postgresql://ada:***@db/orch"),
        ("postgresql+psycopg://ada:p@s/w@db:5432/orch", "postgresql+psycopg://ada:***@db:5432/orch"),
        ("redis://:pw@host:6379/0", "redis://:***@host:6379/0"),
        ("postgresql://ada@db/orch", "postgresql://ada@db/orch"),
        ("postgresql://db/orch?user=a&password=pw&x=1", "postgresql://db/orch?user=a&password=***&x=1"),
        ("rediss://host/0?ssl_keyfile_password=pw", "rediss://host/0?ssl_keyfile_password=***"),
        ("sqlite:////tmp/a@b:c@d/orch.db", "sqlite:////tmp/a@b:c@d/orch.db"),
        ("http://localhost:5000", "http://localhost:5000"),
        ("ada:pw@db/orch", "ada:***@db/orch"),
        ("refused: http://ada:pw@h:5000/\nthen redis://:pw@h", "refused: http://ada:***@h:5000/\nthen redis://:***@h"),
        ("https://h/x?access_token=pw", "https://h/x?access_token=***"),
        ("plain text", "plain text"),
        ("asked ada@db: no", "asked ada@db: no"),
        ("", ""),
    ],
)
def test_mask(url: str, shown: str) -> None:
    assert mask(url) == shown


def test_a_printed_settings_hides_passwords() -> None:
    settings = Settings(database_url="postgresql://ada:hush@db/orch", broker_url="redis://:hush@h")
    assert "hush" not in repr(settings) + str(settings)
    assert settings.database == "postgresql://ada:hush@db/orch"


@pytest.mark.parametrize("name", ["plain", "a?1", "%41", "ü #", "a%3F?b"])
def test_a_sqlite_url_names_its_file(name: str, tmp_path: Path) -> None:
    from sqlalchemy import make_url

    file = tmp_path / name / "orch.db"
    assert make_url(sqlite_url(file)).database == str(file)
    assert sqlite_file(sqlite_url(file)) == file
    assert sqlite_file(f"sqlite:///{tmp_path}/x.db?timeout=3") == tmp_path / "x.db"
    assert sqlite_file("postgresql+psycopg://host/orch") is None
    assert place_of(sqlite_url(file)) == str(file)
    assert place_of("postgresql://me:word@host/orch") == "postgresql://me:***@host/orch"


def test_an_artifact_is_where_the_folder_is_now(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "new")
    (tmp_path / "new" / "artifacts" / "1" / "1" / "final").mkdir(parents=True)
    assert settings.artifact("/old/artifacts/1/1/final") == str(tmp_path / "new/artifacts/1/1/final")
    assert settings.artifact("/old/artifacts/1/1/2048") == "/old/artifacts/1/1/2048", "it is in neither"
    assert settings.artifact("/old/../../new") == "/old/../../new"


def test_no_explainer_is_allowed_by_default(tmp_path: Path) -> None:
    settings = load(start=tmp_path, environ={})
    assert (settings.explainers, settings.explainer_key) == ("", "EXPLAINER_API_KEY")
    assert "EXPLAINER_API_KEY" not in VARIABLES  # the key is no setting: settings are shown
