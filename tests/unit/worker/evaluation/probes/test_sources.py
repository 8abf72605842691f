"""Labelled texts in all their forms, and files that are wrong."""

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

from orchestrator.config.evaluation.evaluation import EvaluationPlan
from orchestrator.config.evaluation.probe_files import with_checked_tasks
from orchestrator.config.evaluation.probes import SHIPPED_TASKS, ProbesOptions, ProbeTask
from orchestrator.errors import ConfigError, SubjectError
from worker.evaluation.probes.examples import LabelledText, Stretch, binary_tasks, collect, why_unusable
from worker.evaluation.probes.sources import open_sources, read_dataset

WORDS = '''split,sentence,token_index,token,upos,space_after
train,0,0,From,ADP,1
train,0,1,"AP ""x""",PROPN,0
train,0,2,.,PUNCT,1
test,0,0,Yes,INTJ,1
'''


def parts(*stretches: tuple[int, int, str]) -> tuple[Stretch, ...]:
    return tuple(Stretch(*one) for one in stretches)


def rows(path: Path | str, **task: Any) -> list[LabelledText]:
    """Return what the only file of a source holds."""
    [source] = open_sources(ProbeTask(source=str(path), **task), ProbesOptions(), 0, lambda: None)
    return list(source.read())


def written(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_a_table_of_texts(tmp_path: Path) -> None:
    path = written(tmp_path / "mood.csv", 'split,label,text\ntrain,pos,"a ""b"",\nc"\ntest,neg,ü\n')
    assert [(row.text, row.stretches[0].label, row.is_test) for row in rows(path)] == [
        ('a "b",\nc', "pos", False),
        ("ü", "neg", True),
    ]
    assert rows(path)[0].stretches[0][:2] == (0, 8)
    other = written(tmp_path / "other.csv", "body,kind\nx,1\n")
    assert rows(other, text_column="body")[0] == LabelledText("x", parts((0, 1, "1")), None)  # the one other column


def test_a_table_of_words(tmp_path: Path) -> None:
    path = written(tmp_path / "words.csv", WORDS)
    first, second = rows(path)
    assert first.text == 'From AP "x".'
    assert [(first.text[a:b], label) for a, b, label in first.stretches] == [
        ("From", "ADP"),
        ('AP "x"', "PROPN"),
        (".", "PUNCT"),
    ]
    assert (second.text, second.is_test) == ("Yes", True)  # sentence 0 of the other part


def test_json_lines_of_texts_and_of_spans(tmp_path: Path) -> None:
    lines = [{"text": "so it is", "label": 1, "split": "test"}, {"text": "x", "label": 0, "split": "train"}]
    path = written(tmp_path / "a.jsonl", "\n".join(map(json.dumps, lines)) + "\n\n")
    assert [row.stretches[0].label for row in rows(path)] == ["1", "0"]
    spans = written(tmp_path / "b.jsonl", json.dumps({"text": "so it is", "spans": [[3, 5, "PRON"], [0, 2, "ADV"]]}))
    assert rows(spans)[0] == LabelledText("so it is", parts((3, 5, "PRON"), (0, 2, "ADV")), None)


def test_a_folder_is_all_its_files(tmp_path: Path) -> None:
    for name in ("b.csv", "inner/a.csv", ".hidden/c.csv", "inner/.d.csv", "readme.txt"):
        written(tmp_path / name, "label,text\n1,x\n")
    found = list(open_sources(ProbeTask(source=str(tmp_path)), ProbesOptions(), 0, lambda: None))
    assert [source.name for source in found] == ["b", "inner/a"]


def test_splits_of_a_data_set_by_the_names_of_its_classes() -> None:
    label = datasets.ClassLabel(names=["ham", "spam"])
    features = datasets.Features({"text": datasets.Value("string"), "label": label})
    part = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features)
    found = list(read_dataset({False: part, True: part.select([0])}, ProbeTask(source="x")))
    assert [(row.text, row.stretches[0].label, row.is_test) for row in found] == [
        ("a", "spam", False), ("b", "ham", False), ("a", "spam", True),
    ]  # fmt: skip
    tags = datasets.Dataset.from_dict({"tokens": [["So", "it"]], "tags": [[3, 4]]})
    [row] = read_dataset({True: tags}, ProbeTask(source="x", text_column="tokens"))
    assert row == LabelledText("So it", parts((0, 2, "3"), (3, 5, "4")), True)


def test_a_data_set_without_network_is_said() -> None:
    with pytest.raises(SubjectError, match="'owner/set' is neither a file nor a cached data set"):
        rows("owner/set")


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.csv", "", "has no column 'text'"),
        ("a.csv", "label,body\n1,x\n", "has no column 'text'"),
        ("a.csv", "text,a,b\nx,1,2\n", "has no column 'label'"),
        ("a.csv", 'label,text\n1,"x\n', "cannot be read"),
        ("a.csv", "split,label,text\ndev,1,x\n", "row 1: split is 'dev'"),
        ("a.csv", "label,text\n1\n", "row 1 has nothing that can be read under 'text'"),
        ("a.csv", "label,text\n1,\udce4\n", "cannot be read"),
        ("a.jsonl", '{"text": "x", "label": 1}\n{"text"\n', "line 2: not JSON"),
        ("a.jsonl", '{"text": "x", "label": 1}\n[1]\n', "line 2: not a JSON object"),
        ("a.jsonl", '{"text": "x", "label": 1}\n{"text": "x"}\n', "row 2 has nothing that can be read under 'label'"),
        ("a.jsonl", '{"text": "so", "spans": [[0, 3, "x"]]}\n', "is no part of its text"),
    ],
)
def test_wrong_files_are_said(tmp_path: Path, name: str, content: str, says: str) -> None:
    path = tmp_path / name
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(ConfigError, match=says):
        rows(path)


def checked(source: Any, folder: Path | None = None, **more: Any) -> list[str]:
    plan = EvaluationPlan(**{"metrics": ("probes",), "probes": ProbesOptions(tasks=source), **more})
    return [task.source for task in with_checked_tasks(plan, folder).probes.tasks]


def test_what_is_asked_for_is_checked_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = written(tmp_path / "good" / "a.csv", "label,text\n1,x\n")
    written(tmp_path / "words.csv", WORDS)
    every = [f"python:stdlib/{name}" for name in SHIPPED_TASKS]
    asked = [*every, "python:stdlib", str(good), str(good.parent), "owner/set"]
    assert checked(asked) == asked
    assert checked("good/a.csv", tmp_path) == [str(good)]  # beside the sweep file
    monkeypatch.chdir(tmp_path)
    assert checked(["words.csv", "good"]) == [str(tmp_path / "words.csv"), str(good.parent)]
    assert checked("gone.csv", metrics=("downstream",)) == ["gone.csv"]  # nothing is asked of it
    written(tmp_path / "bad.csv", "label,body\n1,x\n")
    for source, says in {
        "python:stdlib/in_sting": "there is no 'python:stdlib/in_sting'",
        "python:std": "there is no 'python:std'",
        str(tmp_path / "gone.csv"): "there is no file or folder",
        str(tmp_path / "bad.csv"): "has no column 'text'",
        str(tmp_path): "has no column 'text'",
        str(written(tmp_path / "a.txt", "x")): "neither .csv nor .jsonl",
    }.items():
        with pytest.raises(ConfigError, match=says):
            checked(source)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"no \.csv or .jsonl file"):
        checked(str(tmp_path / "empty"))


def test_examples_are_drawn_and_divided_by_text() -> None:
    def text(i: int, is_test: bool | None) -> LabelledText:
        return LabelledText(f"text {i}", parts((0, 4, str(i % 2)), (5, 6, "1")), is_test)

    options = ProbesOptions(train_examples=50, test_examples=20, test_share=0.3)
    for given in (None, False):
        found = collect([text(i, given or (i < 30 if given is False else None)) for i in range(100)], options, 0)
        assert found.n_train == 50
        assert len(found.labels) == 70
        assert not set(found.text_of[:50].tolist()) & set(found.text_of[50:].tolist())
    both = [LabelledText("same", parts((0, 4, "1")), is_test) for is_test in (False, True)]
    assert collect(both, options, 0).n_train == 0  # what is tested with is not fitted on
    assert collect([LabelledText(" \n", parts((0, 1, "1")), False)], options, 0).texts == []


def test_more_than_two_labels_are_each_against_all_others() -> None:
    labels = ["a", "b", "b", "c", "c", "c"]
    assert {name: one.tolist() for name, one in binary_tasks("x", labels[1:], 20).items()} == {
        "x": [False, False, True, True, True]
    }
    assert list(binary_tasks("x", labels, 20)) == ["x:a", "x:b", "x:c"]
    assert list(binary_tasks("x", labels, 2)) == ["x:b", "x:c"]
    is_one = np.arange(20) < 10
    assert why_unusable(np.tile([True, False], 20), 20) is None
    assert why_unusable(is_one, 20) == "there are no examples to test with"
    assert why_unusable(is_one, 10) == "all 10 examples to fit on have one label"
    assert why_unusable(is_one, 13) == "of one label there are 3 examples to fit on, fewer than 5"
    assert why_unusable(np.zeros(0, dtype=np.bool_), 0) == "there are no examples to fit on"
