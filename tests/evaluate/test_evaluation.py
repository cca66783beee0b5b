"""`sb-edge eval`: multiple choice, and the command line, on real models."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from support import sb_edge

from sb_edge.evaluate.perplexity import token_losses
from sb_edge.evaluate.questions import Question, answer_questions, read_questions
from sb_edge.models.default_model import default_base
from sb_edge.runtime.session import Model
from sb_edge.util.errors import InferenceError

QUESTION = (
    '{"kind": "facts", "question": "What is ice?", "choices": ["frozen water", "a dog"], "answer": 0}\n'
)


def ignore(_units: float) -> None:
    pass


def test_the_questions_of_this_project() -> None:
    questions = read_questions(None)
    assert len(questions) >= 200
    assert len({question.question for question in questions}) == len(questions)
    assert set(Counter(question.kind for question in questions)) == {"facts", "arithmetic", "commonsense"}
    for question in questions:
        assert len(set(question.choices)) == len(question.choices) == 4
    places = Counter(question.answer for question in questions)
    assert min(places.values()) > 0.8 * max(
        places.values()
    )  # a model that always takes one place only guesses


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "Invalid JSON"),
        (QUESTION.replace('"answer": 0', '"answer": 2'), "answer 2 is not an index of 2 choices"),
        (QUESTION.replace('"answer": 0', '"answer": true'), "answer: Input should be a valid integer"),
        (QUESTION.replace(', "a dog"', ""), "choices: List should have at least 2 items"),
        (QUESTION.replace("What is ice?", ""), "question: String should have at least 1 character"),
        (QUESTION.replace('"kind"', '"sort"'), "kind: Field required"),
    ],
)
def test_what_is_no_question_is_named(tmp_path: Path, line: str, problem: str) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text(QUESTION + line)
    with pytest.raises(InferenceError) as error:
        read_questions(file)
    assert problem in str(error.value)
    assert "mine.jsonl" in str(error.value) and "line 2" in str(error.value)


def test_no_questions(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(InferenceError, match="has no questions"):
        read_questions(tmp_path / "empty.jsonl")


@pytest.mark.engine
def test_the_likeliest_choice_counts() -> None:
    choices = ["frozen water", "a kind of dog", "a tall building in the north"]
    asked = [
        Question(kind=kind, question="What is ice?", choices=choices, answer=answer)
        for kind, answer in (("right", 0), ("wrong", 1))
    ]
    with Model(default_base()) as model:
        given = len(model.tokenize(asked[0].prompt))
        sums = []
        for choice in choices:
            tokens = model.tokenize(f"{asked[0].prompt} {choice}")
            sums.append(-token_losses(model, tokens)[given - 1 :].sum())
        assert max(sums) == sums[0]
        scores = answer_questions(model, asked, advance=ignore)
    assert [(score.kind, score.n, score.acc) for score in scores] == [
        ("all", 2, 0.5),
        ("right", 1, 1.0),
        ("wrong", 1, 0.0),
    ]
    assert scores[0].chance == pytest.approx(1 / 3)


@pytest.mark.engine
def test_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("The lighthouse stood at the end of the land. " * 6)
    (tmp_path / "mine.jsonl").write_text(QUESTION)
    done = sb_edge(
        "eval", "default", "--base", "default-base", "--text", tmp_path / "text.txt", "--tokens", 40,
        "--questions", tmp_path / "mine.jsonl", "--passkey", "32,8,16", "--trials", "2,1",
        "--spike-k", "0,3,file",
        "--markdown", tmp_path / "table.md", "--json", tmp_path / "found.json",
        "--parts", tmp_path / "parts.json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    kept = json.loads((tmp_path / "parts.json").read_text()).values()
    assert Counter(part["what"]["measure"] for part in kept) == {"text": 3, "questions": 4, "recall": 4 * 3}
    document = json.loads((tmp_path / "found.json").read_text())
    assert [run["spikes"] for run in document["runs"]] == [0, 3, None]
    assert document["perplexity"] == document["runs"][0]["perplexity"] != document["runs"][1]["perplexity"]
    assert [score["kind"] for score in document["base_tasks"]["questions"]] == ["all", "facts"]
    recall = document["base_tasks"]["recall"]
    assert [(score["distance"], score["trials"]) for score in recall] == [(32, 2), (8, 1), (16, 1)]
    table = (tmp_path / "table.md").read_text()
    measures, _, passkeys, _ = (part.splitlines() for part in table.split("\n\n"))
    assert len(passkeys) == 2 + 3 * 3
    heading, _, *rows = measures
    assert heading == "|  | base | no spikes | k = 3 | as stored |"
    assert max(map(len, done.stdout.splitlines()[4:])) <= 80
    assert [row.split(" | ")[0] for row in rows] == [
        "| perplexity",
        "| over the base's",
        "| over no spikes",
        "| KL",
        "| all (1)",
        "| - to the base",
        "| - p",
        "| facts (1)",
    ]
    many = sb_edge("eval", "default", "--base", "default-base", "--passkey", "8", "--trials", "2,1")
    assert (many.returncode, "2 numbers, but fewer distances" in many.stderr) == (2, True)
    bad = sb_edge("eval", "default", "--base", "default-base", "--questions", tmp_path / "none.jsonl")
    assert (bad.returncode, bad.stderr.count("\n")) == (1, 1)
    assert "none.jsonl" in bad.stderr
