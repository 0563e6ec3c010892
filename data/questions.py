"""Questions with choices, one of which is right, and texts whose last word is asked: exams of language models.

A question is put as a context and its choices' texts; which is likelier to follow tells what the model takes for right.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import renamed
from data import prepared, splits
from data.files import expand_home
from data.kinds import Texts, checksum
from documents import read_lines, read_rows
from errors import UsageError, unknown

EXTENSION = ".jsonl"
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class Question:
    """A context, the texts that may follow it after a space, and which of them is right."""

    context: str
    choices: tuple[str, ...]
    answer: int


@dataclass(frozen=True)
class Questions:
    """A set of questions, sure of its identity."""

    items: tuple[Question, ...]
    identity: dict[str, Any]

    def __len__(self) -> int:
        return len(self.items)

    def first(self, count: int) -> "Questions":
        """The first so many."""
        return Questions(self.items[:count], self.identity)


def with_text_choices(question: str, choices: tuple[str, ...], answer: int, subject: str) -> Question:
    """The choices' own texts after `Answer:`, as lm-evaluation-harness puts ARC."""
    return Question(f"Question: {question}\nAnswer:", choices, answer)


def with_letter_choices(question: str, choices: tuple[str, ...], answer: int, subject: str) -> Question:
    """The choices listed and their letters asked for, as lm-evaluation-harness puts MMLU.

    Source: Hendrycks et al. 2021, arXiv:2009.03300, figure 1.
    """
    about = subject.replace("_", " ")
    listed = "\n".join(f"{letter}. {text}" for letter, text in zip(LETTERS, choices, strict=False))
    heading = f"The following are multiple choice questions (with answers) about {about}.\n\n" if subject else ""
    return Question(f"{heading}{question.strip()}\n{listed}\nAnswer:", tuple(LETTERS[: len(choices)]), answer)


# How the questions of a data set are put, by the beginning of its name.
PROMPTS: dict[str, Callable[[str, tuple[str, ...], int, str], Question]] = {"mmlu": with_letter_choices}


def has_questions(name: str, data_dir: str | None) -> bool:
    """Whether a data set is one of questions with choices."""
    if name.lower().endswith(EXTENSION):
        return is_question_file(name)
    if not _is_prepared(name, data_dir):
        return False
    return {"question", "choices"} <= set(prepared.open_builder(name, data_dir).info.features)


def is_question_file(name: str) -> bool:
    """Whether a name is of a .jsonl file of questions, by its first line: a question has `choices`."""
    if not name.lower().endswith(EXTENSION):
        return False
    _, first = next(read_rows(expand_home(name)), ("", None))
    return isinstance(first, dict) and "choices" in first


def _is_prepared(name: str, data_dir: str | None) -> bool:
    return any(name in (known, known.split("/")[0]) for known in prepared.list_prepared(data_dir))


def load(name: str, split: str, data_dir: str | None) -> Questions:
    """Questions of a prepared set, or of a .jsonl file with `context`, `choices` and `answer` in each line.

    A file has all of its questions in every split; `test[:50]` are its first 50.

    Raises UsageError for a split that is not there, and for a line or a row that is no question.
    """
    if name.lower().endswith(EXTENSION):
        return _from_lines(Path(expand_home(name)), split)
    rows, identity = prepared.read_rows(name, split, data_dir)
    form = next((form for start, form in PROMPTS.items() if name.startswith(start)), with_text_choices)
    return Questions(tuple(_from_row(row, form, name) for row in rows), identity)


def _from_row(row: dict[str, Any], form: Callable[..., Question], name: str) -> Question:
    texts, labels = row["choices"], None
    if isinstance(texts, dict):
        texts, labels = texts["text"], [prepared.to_str(label) for label in texts["label"]]
    given = row["answer"] if "answer" in row else prepared.to_str(row["answer_key"])
    answer = labels.index(given) if labels and given in labels else given
    choices = tuple(map(prepared.to_str, texts))
    if not str(answer).isdigit() or not 0 <= int(answer) < len(choices):
        raise UsageError(f"data set {name!r} has a question whose answer {given!r} is none of its choices")
    subject = prepared.to_str(row["subject"]) if "subject" in row else ""
    return form(prepared.to_str(row["question"]), choices, int(answer), subject)


def _from_lines(path: Path, split: str) -> Questions:
    items = []
    for where, row in read_rows(path):
        item = _from_line(row)
        if item is None:
            raise UsageError(
                f"{where} is no question: a JSON object has a `context`, a list of `choices`, all of them "
                f"texts, and the number of the right one, from 0, as `answer`"
            )
        items.append(item)
    if not items:
        raise UsageError(f"{path} holds no questions")
    digest = checksum(*(line.encode() for line in read_lines(path) if line.strip()))
    which = "all"
    if not splits.is_plain(split):
        which, chosen = splits.resolve(split, lambda _: len(items))
        items = [items[i] for _, rows in chosen for i in rows]
    return Questions(tuple(items), {"name": path.name, "split": which, "count": len(items), "checksum": digest})


def _from_line(row: Any) -> Question | None:
    if not isinstance(row, dict) or not isinstance(row.get("choices"), list):
        return None
    context, choices, answer = row.get("context"), row["choices"], row.get("answer")
    if not isinstance(context, str) or not all(isinstance(choice, str) for choice in choices):
        return None
    if not isinstance(answer, int) or isinstance(answer, bool) or not 0 <= answer < len(choices):
        return None
    return Question(context, tuple(choices), answer)


def last_words(texts: Texts) -> Questions:
    """Each document but its last word, and that word: what LAMBADA asks (Paperno et al. 2016, arXiv:1606.06031).

    Raises UsageError for a document of a single word.
    """
    items = []
    for i, document in enumerate(texts.documents):
        context, space, word = document.strip().rpartition(" ")
        if not space:
            raise UsageError(f"document {i} of {texts.identity['name']!r} has no last word after others: {document!r}")
        items.append(Question(context, (word,), 0))
    return Questions(tuple(items), texts.identity)


EVAL_KINDS = ("perplexity", "multiple_choice", "lambada")


def eval_kind(asked: str | None, name: str, data_dir: str | None) -> str:
    """How a data set examines a language model: as asked, or by what it holds. Raises UsageError."""
    if asked is None:
        return "multiple_choice" if has_questions(name, data_dir) else "perplexity"
    if asked not in EVAL_KINDS:
        raise unknown("task", asked, EVAL_KINDS, renamed.TASKS)
    if asked == "multiple_choice" and not has_questions(name, data_dir):
        raise UsageError(f"data set {name!r} holds no questions with choices; perplexity or lambada would do")
    return asked


def context_choice_pairs(questions: Iterable[Question]) -> list[tuple[str, str]]:
    """Each context with each of its choices, a space before it."""
    return [(q.context, f" {choice}") for q in questions for choice in q.choices]
