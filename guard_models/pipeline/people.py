"""Invented people and what belongs to them: names of many origins, addresses, numbers, dates as each country writes them.

Common locales come from Faker; names of over a hundred origins, organisations and places come from our own lists, since
the names that detectors miss are those that no locale has.
"""

from __future__ import annotations

import datetime
import string
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import time_machine
import yaml
from faker import Faker

LOCALES = (
    "en_US", "en_GB", "en_AU", "en_CA", "en_IN", "en_IE", "en_NZ", "de_DE", "de_AT", "de_CH", "fr_FR", "fr_CA", "fr_BE", "es_ES", "es_MX", "es_AR", "it_IT", "nl_NL",
    "nl_BE", "pt_BR", "pt_PT", "pl_PL", "sv_SE", "no_NO", "da_DK", "fi_FI", "cs_CZ", "sk_SK", "hu_HU", "ro_RO", "hr_HR", "sl_SI", "tr_TR", "vi_VN", "id_ID", "fil_PH",
    "et_EE", "lt_LT", "lv_LV", "az_AZ", "en_PH", "en_TH", "es_CO", "es_CL",
)  # fmt: skip
BY_LANGUAGE = {
    "en": ("en_US", "en_US", "en_GB", "en_GB", "en_AU", "en_CA", "en_IN", "en_IE", "en_NZ"),
    "de": ("de_DE", "de_DE", "de_AT", "de_CH"), "fr": ("fr_FR", "fr_FR", "fr_CA", "fr_BE"), "es": ("es_ES", "es_MX", "es_AR", "es_CO", "es_CL"),
    "it": ("it_IT",), "nl": ("nl_NL", "nl_BE"), "pt": ("pt_BR", "pt_PT"), "pl": ("pl_PL",), "sv": ("sv_SE",), "tr": ("tr_TR",), "da": ("da_DK",), "cs": ("cs_CZ",),
}  # fmt: skip
_MONTHS = {
    "en": "January February March April May June July August September October November December",
    "de": "Januar Februar März April Mai Juni Juli August September Oktober November Dezember",
    "fr": "janvier février mars avril mai juin juillet août septembre octobre novembre décembre",
    "es": "enero febrero marzo abril mayo junio julio agosto septiembre octubre noviembre diciembre",
    "it": "gennaio febbraio marzo aprile maggio giugno luglio agosto settembre ottobre novembre dicembre",
    "nl": "januari februari maart april mei juni juli augustus september oktober november december",
    "pt": "janeiro fevereiro março abril maio junho julho agosto setembro outubro novembro dezembro",
    "pl": "stycznia lutego marca kwietnia maja czerwca lipca sierpnia września października listopada grudnia",
    "sv": "januari februari mars april maj juni juli augusti september oktober november december",
    "tr": "Ocak Şubat Mart Nisan Mayıs Haziran Temmuz Ağustos Eylül Ekim Kasım Aralık",
}  # fmt: skip


@dataclass(slots=True)
class Lists:
    """Our own names; see `names.yaml`, `organisations.yaml` (by language) and `places.yaml` (by country) of
    `data/written/`."""

    origins: list[dict[str, Any]]
    org_stems: list[str]
    org_kinds: list[str]
    places: list[str]
    streets: list[str]
    word_names: list[str]
    handles: list[str]
    jobs: list[str]
    products: list[str]
    organisations: dict[str, list[str]]
    places_of: dict[str, list[str]]


@cache
def load_lists(folder: Path) -> Lists:
    read = yaml.safe_load((folder / "names.yaml").read_text(encoding="utf-8"))
    origins = [value for value in read.pop("origins").values() if value["first"] and value["last"]]
    known = {name: [str(item) for item in items] for name, items in read.items()}
    organisations = yaml.safe_load((folder / "organisations.yaml").read_text(encoding="utf-8"))
    places = yaml.safe_load((folder / "places.yaml").read_text(encoding="utf-8"))
    return Lists(origins, organisations=organisations, places_of=places, **known)


# What Faker takes for today.
TODAY = datetime.datetime(2026, 11, 30, 12, tzinfo=datetime.UTC)


@cache
def _faker(locale: str) -> Faker:
    fake = Faker(locale)
    for provider in fake.get_providers():
        # Those of Italy come out of a set, in another order with every start of Python.
        if isinstance(towns := getattr(provider, "cities", None), list):
            provider.cities = sorted(towns)
    return fake


@dataclass(slots=True)
class World:
    """Draws values, which depend on `random` alone as long as one world is drawn from at a time: worlds share Fakers."""

    lists: Lists
    random: Random
    _seeded: dict[str, Faker] = field(default_factory=dict)

    def faker(self, locale: str) -> Faker:
        if locale not in self._seeded:
            fake = _faker(locale)
            fake.seed_instance(self.random.randrange(1 << 30))
            self._seeded[locale] = fake
        return self._seeded[locale]

    def ask(self, locale: str, what: str) -> str:
        """Faker's `what` of the locale, or that of the United States where the locale has none."""
        fake = self.faker(locale)
        made = getattr(fake, what, None) or getattr(self.faker("en_US"), what)
        # Faker draws dates of birth inside national numbers back from now: another day would be other data.
        with time_machine.travel(TODAY, tick=False):
            return str(made())

    def locale(self, wanted: str, lang: str) -> str:
        if wanted in LOCALES and self.random.random() < 0.8:
            return wanted
        if self.random.random() < 0.7:
            return self.random.choice(BY_LANGUAGE.get(lang, LOCALES))
        return self.random.choice(LOCALES)

    def name(self, locale: str) -> tuple[str, str, bool]:
        """(given names, family name, whether the family name comes first)."""
        roll = self.random.random()
        if roll < 0.5:
            first, last = self.ask(locale, "first_name"), self.ask(locale, "last_name")
        else:
            origin = self.random.choice(self.lists.origins)
            first, last = str(self.random.choice(origin["first"])), str(self.random.choice(origin["last"]))
            if self.random.random() < 0.12:
                # People have parents from two places.
                last = str(self.random.choice(self.random.choice(self.lists.origins)["last"]))
            if origin.get("order") == "lf" and self.random.random() < 0.7:
                return first, last, True
        if self.random.random() < 0.05:
            first = self.random.choice(self.lists.word_names)
        if self.random.random() < 0.06:
            first = f"{first} {self.random.choice(string.ascii_uppercase)}."
        elif self.random.random() < 0.06:
            first = f"{first} {self.ask(locale, 'first_name')}"
        elif self.random.random() < 0.03:
            first = f"{first}-{self.ask(locale, 'first_name')}"
        if self.random.random() < 0.04:
            last = f"{last}-{self.ask(locale, 'last_name')}"
        return first, last, False

    def birth(self) -> datetime.date:
        return datetime.date(1925, 1, 1) + datetime.timedelta(days=self.random.randrange(36_500 * 86 // 100))

    def day(self) -> datetime.date:
        return datetime.date(2005, 1, 1) + datetime.timedelta(days=self.random.randrange(8_400))

    def written(self, day: datetime.date, lang: str) -> str:
        """A date as somebody writes it."""
        month = _MONTHS.get(lang, _MONTHS["en"]).split()[day.month - 1]
        english = _MONTHS["en"].split()[day.month - 1]
        forms = [
            f"{day.day:02}.{day.month:02}.{day.year}", f"{day.day}.{day.month}.{day.year}", f"{day.day:02}/{day.month:02}/{day.year}", f"{day.month}/{day.day}/{day.year}",
            day.isoformat(), f"{day.day} {month} {day.year}", f"{day.day:02}-{day.month:02}-{day.year}", f"{day.day:02}/{day.month:02}/{day.year % 100:02}",
        ]  # fmt: skip
        if lang == "en":
            ending = {1: "st", 2: "nd", 3: "rd"}.get(day.day % 10 if day.day not in (11, 12, 13) else 0, "th")
            forms += [f"{month} {day.day}, {day.year}", f"{day.day}{ending} {month} {day.year}", f"{month[:3]} {day.day}, {day.year}", f"{day.day}-{month[:3]}-{day.year}", f"{month} {day.day}{ending}, {day.year}", day.strftime("%Y%m%d"), f"{day.month:02}/{day.day:02}/{day.year}"]  # fmt: skip
        elif lang == "de":
            forms += [f"{day.day}. {month} {day.year}", f"{day.day:02}.{day.month:02}.{day.year % 100:02}"]
        elif lang in ("es", "pt"):
            forms += [f"{day.day} de {month} de {day.year}"]
        elif self.random.random() < 0.1:
            forms += [f"{english} {day.day}, {day.year}"]
        return self.random.choice(forms)

    def place(self, locale: str) -> str:
        roll = self.random.random()
        if roll < 0.5:
            return self.random.choice(self.lists.places_of.get(locale[3:]) or self.lists.places_of["ZZ"])
        if roll < 0.65:
            return self.random.choice(self.random.choice(list(self.lists.places_of.values())))
        return self.random.choice(self.lists.places) if roll < 0.75 else self.ask(locale, "city")

    def somewhere(self) -> str:
        """Any place that has a name: a town, a district, a lake."""
        roll = self.random.random()
        if roll < 0.5:
            return self.random.choice(self.lists.places_of["other"])
        return self.random.choice(self.lists.places) if roll < 0.6 else self.place(self.random.choice(LOCALES))

    def organisation(self, locale: str) -> str:
        roll = self.random.random()
        if roll < 0.5:
            here = self.lists.organisations.get(locale[:2])
            return self.random.choice(here or self.random.choice(list(self.lists.organisations.values())))
        roll = (roll - 0.5) * 2
        if roll < 0.3:
            return self.ask(locale, "company")
        last = self.name(locale)[1]
        kind = self.random.choice(self.lists.org_kinds)
        filled = kind.replace("{city}", self.place(locale)).replace("{last}", last)
        if "{" in kind and self.random.random() < 0.8:
            return filled
        stem = self.random.choice(self.lists.org_stems) if self.random.random() < 0.75 else last
        return stem if roll > 0.85 else f"{stem} {filled}"

    def address(self, locale: str) -> str:
        if self.random.random() < 0.6:
            parts = [part.strip() for part in self.ask(locale, "address").split("\n")]
            street, rest = parts[0], ", ".join(parts[1:])
        else:
            street, rest = self.street(locale), f"{self.ask(locale, 'postcode')} {self.place(locale)}"
        roll = self.random.random()
        if roll < 0.3 or not rest:
            return street
        if roll < 0.9:
            return f"{street}, {rest}"
        return f"{street}\n{rest}"

    def street(self, locale: str) -> str:
        roll = self.random.random()
        if roll < 0.4:
            return self.ask(locale, "street_address").replace("\n", ", ")
        name = self.random.choice(self.lists.streets)
        number = f"{self.random.randrange(1, 260)}{self.random.choice(('', '', '', '', 'a', 'B', '/2'))}"
        before = locale[:2] == "en" and not name[0].islower() if roll < 0.9 else self.random.random() < 0.5
        return (
            f"{number} {name}"
            if before or name.lower().startswith(("rue", "av", "boul", "allée", "chemin"))
            else f"{name} {number}"
        )

    def digits(self, pattern: str) -> str:
        """`#` becomes a digit, `@` a capital letter."""
        return "".join(
            self.random.choice(string.digits)
            if c == "#"
            else self.random.choice(string.ascii_uppercase)
            if c == "@"
            else c
            for c in pattern
        )

    def pick(self, *patterns: str) -> str:
        return self.digits(self.random.choice(patterns))
