"""How facts of a biography are stated and asked for.

Questions come in three splits. No run of three words, one of which at least has a meaning of its own, stands both in a
question of ``train`` and in one of ``validation`` or ``unseen`` (``content_trigrams``). Statements, which a language
model learns the facts from, share words with all of them.
"""

import re
from collections.abc import Iterable

RELATIONS = ("birth_date", "birth_city", "university", "major", "employer", "work_city")
SPLITS = ("train", "validation", "unseen")

QUESTIONS: dict[str, dict[str, tuple[str, ...]]] = {
    "train": {
        "birth_date": (
            "When was {name} born?",
            "What is the birth date of {name}?",
            "Tell me on which day {name} was born.",
            "What is {name}'s birthday?",
            "Name the date when {name} came into the world.",
            "{name} was born on which date?",
        ),
        "birth_city": (
            "Where was {name} born?",
            "What is the city of birth of {name}?",
            "Tell me in which city {name} was born.",
            "What is {name}'s place of birth?",
            "Name the place where {name} came into the world.",
            "{name} was born in which city?",
        ),
        "university": (
            "Where did {name} study?",
            "What is the university of {name}?",
            "Tell me at which school {name} was a student.",
            "What is {name}'s alma mater?",
            "Name the university that {name} went to.",
            "{name} got a degree from which school?",
        ),
        "major": (
            "What did {name} study?",
            "What is the major of {name}?",
            "Tell me which subject {name} learned.",
            "What is {name}'s field of study?",
            "Name the subject that {name} has a degree in.",
            "{name} was a student of which field?",
        ),
        "employer": (
            "Who employs {name}?",
            "What is the employer of {name}?",
            "Tell me for which company {name} works.",
            "What is {name}'s company?",
            "Name the firm that {name} works for.",
            "{name} has a job with which firm?",
        ),
        "work_city": (
            "Where does {name} work?",
            "What is the city of work of {name}?",
            "Tell me in which city {name} works.",
            "What is {name}'s place of work?",
            "Name the city where {name} has a job.",
            "{name} goes to the office in which city?",
        ),
    },
    "validation": {
        "birth_date": ("Which day is the birthday of {name}?", "{name}'s birth date is what?"),
        "birth_city": ("Which place is the birthplace of {name}?", "{name}'s birth city is what?"),
        "university": ("Which school is the alma mater of {name}?", "{name}'s university is what?"),
        "major": ("Which field is the study subject of {name}?", "{name}'s major is what?"),
        "employer": ("Which firm is the company of {name}?", "{name}'s employer is what?"),
        "work_city": ("Which place is the office city of {name}?", "{name}'s work city is what?"),
    },
    "unseen": {
        "birth_date": (
            "Name the birthday of {name}.",
            "Which date is {name}'s date of birth?",
            "Tell me the birth day of {name}.",
        ),
        "birth_city": (
            "Name the birthplace of {name}.",
            "Which city is {name}'s birthplace?",
            "Tell me the birth city of {name}.",
        ),
        "university": (
            "Name the alma mater of {name}.",
            "Which school is {name}'s university?",
            "Tell me the school of {name}.",
        ),
        "major": (
            "Name the study subject of {name}.",
            "Which field is {name}'s major?",
            "Tell me the degree subject of {name}.",
        ),
        "employer": (
            "Name the company of {name}.",
            "Which firm is {name}'s employer?",
            "Tell me the firm of {name}.",
        ),
        "work_city": (
            "Name the work city of {name}.",
            "Which city is {name}'s work city?",
            "Tell me the office city of {name}.",
        ),
    },
}

STATEMENTS: dict[str, tuple[str, ...]] = {
    "birth_date": (
        "{name} was born on {answer}.",
        "The birthday of {name} is {answer}.",
        "{name} came into the world on {answer}.",
        "{answer} is the day of birth of {name}.",
    ),
    "birth_city": (
        "{name} was born in {answer}.",
        "The birthplace of {name} is {answer}.",
        "{name} came into the world in {answer}.",
        "{answer} is the city of birth of {name}.",
    ),
    "university": (
        "{name} was a student at {answer}.",
        "The alma mater of {name} is {answer}.",
        "{name} has a degree from {answer}.",
        "{answer} is the school that {name} went to.",
    ),
    "major": (
        "{name} was a student of {answer}.",
        "The major of {name} is {answer}.",
        "{name} has a degree in {answer}.",
        "{answer} is the subject that {name} learned.",
    ),
    "employer": (
        "{name} works for {answer}.",
        "The employer of {name} is {answer}.",
        "{name} has a job with {answer}.",
        "{answer} is the company that employs {name}.",
    ),
    "work_city": (
        "{name} works in {answer}.",
        "The work city of {name} is {answer}.",
        "{name} goes to the office in {answer}.",
        "{answer} is the place of work of {name}.",
    ),
}

_EMPTY = frozenset(
    "a an and at by did do does for from get go has have i in is it me me of on s that the to was what when where "
    "which who with name tell {name} {answer}".split()
)
_WORD = re.compile(r"\{\w+\}|\w+")


def content_trigrams(templates: Iterable[str]) -> set[tuple[str, ...]]:
    """Runs of three words, places of names counted as words, one of which at least has a meaning of its own."""
    found: set[tuple[str, ...]] = set()
    for template in templates:
        words = _WORD.findall(template.lower())
        runs = zip(words, words[1:], words[2:], strict=False)
        found |= {run for run in runs if any(word not in _EMPTY for word in run)}
    return found
