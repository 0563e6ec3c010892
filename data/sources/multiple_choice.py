"""Evaluation tasks for language models: multiple-choice questions, and LAMBADA, the last word of a text.

A question is a context and the texts of its choices. The model's answer is the choice with the greatest likelihood.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import renamed
from data.fields import Identity, checksum
from data.files import expand_home
from data.sources import splits, tfds
from data.text.packing import Documents
from documents import Json, read_lines, read_rows
from errors import UsageError, unknown

EXTENSION = ".jsonl"
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class Question:
    """A context, the choices that may follow it after a space, and the index of the right one."""

    context: str
    choices: tuple[str, ...]
    answer: int


@dataclass(frozen=True)
class Questions:
    """A set of questions and its identity."""

    items: tuple[Question, ...]
    identity: Identity

    def __len__(self) -> int:
        return len(self.items)

    def first(self, count: int) -> "Questions":
        """The first `count` questions."""
        return Questions(self.items[:count], self.identity)


def with_text_choices(question: str, choices: tuple[str, ...], answer: int, subject: str) -> Question:
    """The texts of the choices follow `Answer:`, as lm-evaluation-harness formats ARC."""
    return Question(f"Question: {question}\nAnswer:", choices, answer)


def with_letter_choices(question: str, choices: tuple[str, ...], answer: int, subject: str) -> Question:
    """The prompt lists the choices, and their letters follow `Answer:`, as lm-evaluation-harness formats MMLU.

    Source: Hendrycks et al. 2021, arXiv:2009.03300, figure 1.
    """
    about = subject.replace("_", " ")
    listed = "\n".join(f"{letter}. {text}" for letter, text in zip(LETTERS, choices, strict=False))
    heading = f"The following are multiple choice questions (with answers) about {about}.\n\n" if subject else ""
    return Question(f"{heading}{question.strip()}\n{listed}\nAnswer:", tuple(LETTERS[: len(choices)]), answer)


# The format of a data set's questions, by the beginning of its name; otherwise with_text_choices.
PROMPTS: dict[str, Callable[[str, tuple[str, ...], int, str], Question]] = {"mmlu": with_letter_choices}


def has_questions(name: str, data_dir: str | None) -> bool:
    """Whether a data set has multiple-choice questions."""
    if name.lower().endswith(EXTENSION):
        return is_question_file(name)
    if not _is_prepared(name, data_dir):
        return False
    return {"question", "choices"} <= set(tfds.open_builder(name, data_dir).info.features)


def is_question_file(name: str) -> bool:
    """Whether a name is that of a .jsonl file of questions: its first line has `choices`."""
    if not name.lower().endswith(EXTENSION):
        return False
    _, first = next(read_rows(expand_home(name)), ("", None))
    return isinstance(first, dict) and "choices" in first


def _is_prepared(name: str, data_dir: str | None) -> bool:
    return any(name in (known, known.split("/")[0]) for known in tfds.list_prepared(data_dir))


def load(name: str, split: str, data_dir: str | None) -> Questions:
    """Questions of a prepared data set, or of a .jsonl file with `context`, `choices` and `answer` in each line.

    Every split of a file has all of its questions; `test[:50]` has the first 50.

    Raises UsageError for an unknown split, and for a line or row that is not a question.
    """
    if name.lower().endswith(EXTENSION):
        return _from_lines(Path(expand_home(name)), split)
    rows, identity = tfds.read_rows(name, split, data_dir)
    form = next((form for start, form in PROMPTS.items() if name.startswith(start)), with_text_choices)
    return Questions(tuple(_from_row(row, form, name) for row in rows), identity)


def _from_row(row: Json, form: Callable[..., Question], name: str) -> Question:
    texts, labels = row["choices"], None
    if isinstance(texts, dict):
        texts, labels = texts["text"], [tfds.to_str(label) for label in texts["label"]]
    right_answer = row["answer"] if "answer" in row else tfds.to_str(row["answer_key"])
    answer = labels.index(right_answer) if labels and right_answer in labels else right_answer
    choices = tuple(map(tfds.to_str, texts))
    if not str(answer).isdigit() or not 0 <= int(answer) < len(choices):
        raise UsageError(f"data set {name!r} has a question whose answer {right_answer!r} is not one of its choices")
    subject = tfds.to_str(row["subject"]) if "subject" in row else ""
    return form(tfds.to_str(row["question"]), choices, int(answer), subject)


def _from_lines(path: Path, split: str) -> Questions:
    items = []
    for where, row in read_rows(path):
        item = _from_line(row)
        if item is None:
            raise UsageError(
                f"{where} is not a question: a JSON object with a text `context`, a list of texts `choices`, and the "
                f"index of the right one, from 0, as `answer`"
            )
        items.append(item)
    if not items:
        raise UsageError(f"{path} has no questions")
    digest = checksum(*(line.encode() for line in read_lines(path) if line.strip()))
    which = "all"
    if not splits.is_plain(split):
        which, chosen = splits.resolve(split, lambda _: len(items))
        items = [items[i] for _, rows in chosen for i in rows]
    return Questions(tuple(items), {"name": path.name, "split": which, "count": len(items), "checksum": digest})


def _from_line(row: object) -> Question | None:
    if not isinstance(row, dict) or not isinstance(row.get("choices"), list):
        return None
    context, choices, answer = row.get("context"), row["choices"], row.get("answer")
    if not isinstance(context, str) or not all(isinstance(choice, str) for choice in choices):
        return None
    if not isinstance(answer, int) or isinstance(answer, bool) or not 0 <= answer < len(choices):
        return None
    return Question(context, tuple(choices), answer)


def last_words(texts: Documents) -> Questions:
    """LAMBADA: each document without its last word, and that word (Paperno et al. 2016, arXiv:1606.06031).

    Raises UsageError for a document of a single word.
    """
    items = []
    for i, document in enumerate(texts.documents):
        context, space, word = document.strip().rpartition(" ")
        if not space:
            raise UsageError(f"document {i} of {texts.identity['name']!r} has only one word: {document!r}")
        items.append(Question(context, (word,), 0))
    return Questions(tuple(items), texts.identity)


EVAL_KINDS = ("perplexity", "multiple_choice", "lambada")


def eval_kind(task: str | None, name: str, data_dir: str | None) -> str:
    """The evaluation task for a data set: `task` if given, otherwise inferred from the data. Raises UsageError."""
    if task is None:
        return "multiple_choice" if has_questions(name, data_dir) else "perplexity"
    if task not in EVAL_KINDS:
        raise unknown("task", task, EVAL_KINDS, renamed.TASKS)
    if task == "multiple_choice" and not has_questions(name, data_dir):
        raise UsageError(f"data set {name!r} has no questions with choices; legal tasks: perplexity, lambada")
    return task


def context_choice_pairs(questions: Iterable[Question]) -> list[tuple[str, str]]:
    """Each context with each of its choices, preceded by a space."""
    return [(q.context, f" {choice}") for q in questions for choice in q.choices]
