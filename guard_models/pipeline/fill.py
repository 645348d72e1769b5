"""Templates to documents: each slot gets an invented value, and where it ended up is known."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from guard_models.pipeline.people import BY_LANGUAGE, World
from guard_models.pipeline.rows import Row, Span

SLOT = re.compile(r"\{\{([a-z_]+(?:, first)?)(?::(\d+))?\}\}")

_TYPES = {
    "person": "PERSON", "first": "PERSON", "last": "PERSON", "last, first": "PERSON", "initials_last": "PERSON",
    "lower_person": "PERSON", "upper_person": "PERSON", "address": "ADDRESS", "street": "ADDRESS", "postcode": "ADDRESS", "city": "LOCATION",
    "country": "LOCATION", "location": "LOCATION", "org": "ORGANISATION", "dob": "DATE_OF_BIRTH", "phone": "PHONE", "ssn": "ID_NUMBER", "passport": "ID_NUMBER",
    "licence": "ID_NUMBER", "employee_id": "ID_NUMBER", "mrn": "MEDICAL_ID", "account": "ACCOUNT", "iban": "ACCOUNT", "card": "ACCOUNT",
    "username": "USERNAME", "password": "PASSWORD", "key": "PASSWORD", "plate": "PLATE",
}  # fmt: skip
TITLES = {
    "en": ("Mr", "Mrs", "Ms", "Dr", "Mr.", "Mrs.", "Ms.", "Dr.", "Prof.", "Sir", "Judge", "Officer", "Sergeant"),
    "de": ("Herr", "Frau", "Dr.", "Herr Dr.", "Frau Prof."), "fr": ("M.", "Mme", "Monsieur", "Madame", "Dr", "Maître"),
    "es": ("Sr.", "Sra.", "Don", "Doña", "Dr."), "it": ("Sig.", "Sig.ra", "Dott.", "Dott.ssa", "Avv."), "nl": ("dhr.", "mevr.", "dr."),
    "pt": ("Sr.", "Sra.", "Dr.", "Dona"), "pl": ("Pan", "Pani", "dr"), "sv": ("Herr", "Fru", "Dr."), "tr": ("Sayın", "Dr."),
}  # fmt: skip
_NATIONALITIES = (
    "German",
    "Nigerian",
    "Turkish",
    "Brazilian",
    "Irish",
    "Indian",
    "Polish",
    "French",
    "Kenyan",
    "Chilean",
    "Dutch",
    "Thai",
)


@dataclass(frozen=True, slots=True)
class Template:
    text: str
    kind: str
    locale: str
    lang: str


@dataclass(slots=True)
class _Filling:
    """The values of one document: the same slot with the same number is the same value."""

    world: World
    locale: str
    lang: str
    people: dict[str, tuple[str, str, bool]]
    values: dict[tuple[str, str], str]

    def person(self, number: str) -> tuple[str, str, bool]:
        if number not in self.people:
            # In one text, people of one country and of others.
            here = self.locale if self.world.random.random() < 0.6 else self.world.random.choice(BY_LANGUAGE["en"])
            self.people[number] = self.world.name(here)
        return self.people[number]

    def value(self, slot: str, number: str) -> str:
        if (slot, number) not in self.values:
            self.values[slot, number] = _VALUES[slot](self, number)
        return self.values[slot, number]


def _full(filling: _Filling, number: str) -> str:
    first, last, family_first = filling.person(number)
    return f"{last} {first}" if family_first else f"{first} {last}"


def _ascii(text: str) -> str:
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z]", "", plain) or "user"


def _username(filling: _Filling, number: str) -> str:
    world, (first, last, _) = filling.world, filling.person(number)
    a, b = _ascii(first), _ascii(last)
    n = str(world.random.randrange(1, 2000))
    return world.random.choice((f"{a}.{b}", f"{a[0]}{b}", f"{a}{n}", f"{b}_{a[0]}", f"{a}_{b}{n}", f"{a[:3]}{b[:3]}", world.random.choice(world.lists.handles).lstrip("@")))  # fmt: skip


def _email(filling: _Filling, number: str) -> str:
    world = filling.world
    domain = world.random.choice(("gmail.com", "outlook.com", "example.org", "web.de", f"{_ascii(world.random.choice(world.lists.org_stems))}.{world.random.choice(('com', 'de', 'fr', 'org', 'co.uk', 'nl'))}"))  # fmt: skip
    return f"{_username(filling, number)}@{domain}"


def _national(filling: _Filling, number: str) -> str:
    world = filling.world
    if world.random.random() < 0.6:
        return world.ask(filling.locale, "ssn")
    return world.pick(
        "###-##-####",
        "@@ ## ## ## @",
        "## ### ### ###",
        "########@",
        "@@@@@@##@##@###@",
        "#############",
        "###.###.###-##",
    )


_VALUES: dict[str, Callable[[_Filling, str], str]] = {
    "person": _full,
    "first": lambda f, n: f.person(n)[0].split(" ")[0],
    "last": lambda f, n: f.person(n)[1],
    "last, first": lambda f, n: f"{f.person(n)[1]}, {f.person(n)[0]}",
    "initials_last": lambda f, n: f"{f.person(n)[0][0]}. {f.person(n)[1]}",
    "lower_person": lambda f, n: _full(f, n).lower(),
    "upper_person": lambda f, n: _full(f, n).upper(),
    "username": _username,
    "address": lambda f, n: f.world.address(f.locale),
    "street": lambda f, n: f.world.street(f.locale),
    "city": lambda f, n: f.world.place(f.locale),
    "postcode": lambda f, n: f.world.ask(f.locale, "postcode"),
    "country": lambda f, n: f.world.ask(f.locale, "country"),
    "location": lambda f, n: f.world.somewhere(),
    "org": lambda f, n: f.world.organisation(f.locale),
    "dob": lambda f, n: f.world.written(f.world.birth(), f.lang),
    "date": lambda f, n: f.world.written(f.world.day(), f.lang),
    "age": lambda f, n: str(f.world.random.randrange(1, 99)),
    "email": _email,
    "phone": lambda f, n: f.world.ask(f.locale, "phone_number")
    if f.world.random.random() < 0.6
    else f.world.pick("+## ### #######", "0### ######", "(###) ###-####", "###-###-####", "+##-##-########", "0## #### ####", "07### ######", "+1 ### ### ####", "## ## ## ## ##", "0###/#######"),
    "card": lambda f, n: str(f.world.faker("en_US").credit_card_number()),
    "iban": lambda f, n: f.world.ask(f.locale, "iban"),
    "ssn": _national,
    "ip": lambda f, n: str(f.world.faker("en_US").ipv4() if f.world.random.random() < 0.85 else f.world.faker("en_US").ipv6()),
    "mac": lambda f, n: str(f.world.faker("en_US").mac_address()),
    "url": lambda f, n: str(f.world.faker("en_US").url()),
    "mrn": lambda f, n: f.world.pick("MRN ######", "########", "MRN-#######", "P-#####", "@########", "H######", "##-####-##", "@@@###@######", "KV @#########", "NHS ### ### ####", "#### #### ####", "PT######", "MR#######"),
    "account": lambda f, n: f.world.pick("########", "##########", "AC-######", "###-#######", "#### ####", "C#####", "KD-#####", "CUST-######", "########-##", "@@#######", "############", "K-##-#####"),
    "passport": lambda f, n: f.world.pick("@########", "#########", "@@#######", "C@@######", "##@@#####", "@@@######"),
    "licence": lambda f, n: f.world.pick("@#######", "@@@@@######@@#@@", "##########@", "@###-####-####", "########", "@@##########"),
    "plate": lambda f, n: f.world.pick("@@## @@@", "@-@@ ####", "@@ ### @@", "@@-###-@@", "###-@@@", "#@@@###", "@@@ ####", "#### @@@", "@@@-####"),
    "employee_id": lambda f, n: f.world.pick("E#####", "EMP-####", "#####", "P-######", "MA####", "@@####", "00####"),
    "order_id": lambda f, n: f.world.pick("#######", "ORD-######", "SO-#####", "PO ######", "##-#####", "INV-####-###", "#-####", "R#######"),
    "amount": lambda f, n: f.world.pick("$##.##", "€ ###", "£#,###", "### EUR", "#.###,## €", "$#,###.00", "## 000 zł", "###,##"),
    "time": lambda f, n: f"{f.world.random.randrange(24):02}:{f.world.random.randrange(60):02}",
    "number": lambda f, n: f.world.pick("#", "##", "###", "####"),
    "product": lambda f, n: f.world.random.choice(f.world.lists.products),
    "key": lambda f, n: f.world.random.choice(("sk-", "ghp_", "AKIA", "xoxb-", "")) + "".join(f.world.random.choice("abcdefghijkmnpqrstuvwxyzABCDEFGHJKLMNPQRSTUVWXYZ23456789") for _ in range(f.world.random.choice((16, 24, 32, 40)))),
    "password": lambda f, n: f.world.random.choice((f.world.pick("@###") + f.world.random.choice(f.world.lists.products).replace(" ", "") + "!", str(f.world.faker("en_US").password()), f.person("9")[0] + f.world.pick("####"))),
    "bic": lambda f, n: f.world.pick("@@@@DE@@", "@@@@FRPP", "@@@@GB##@@@"),
    "title": lambda f, n: f.world.random.choice(TITLES.get(f.lang, TITLES["en"])),
    "job": lambda f, n: f.world.random.choice(f.world.lists.jobs),
    "nationality": lambda f, n: f.world.random.choice(_NATIONALITIES),
}  # fmt: skip


def filled(template: Template, world: World) -> Row:
    """One document of `template`."""
    filling = _Filling(world, world.locale(template.locale, template.lang), template.lang, {}, {})
    text: list[str] = []
    spans: list[Span] = []
    at = last = 0
    for match in SLOT.finditer(template.text):
        text.append(template.text[last : match.start()])
        at += match.start() - last
        slot, number = match[1], match[2] or "0"
        if slot == "title_last":
            before = world.random.choice(TITLES.get(template.lang, TITLES["en"])) + " "
            text.append(before)
            at += len(before)
            slot = "last"
        value = filling.value(slot, number)
        if kind := _TYPES.get(slot):
            spans.append((at, at + len(value), kind))
        text.append(value)
        at += len(value)
        last = match.end()
    text.append(template.text[last:])
    return Row("".join(text), "made_pii", template.kind, template.lang, injection=0.0, planted=[], entities=spans)


def known_slots(text: str) -> list[str]:
    """Slots of a template that nothing fills; for the check of what was written."""
    return [match[1] for match in SLOT.finditer(text) if match[1] not in _VALUES and match[1] != "title_last"]


def documents(templates: Sequence[Template], count: int, world: World) -> list[Row]:
    """`count` documents; every template is used about equally often."""
    rows: list[Row] = []
    order: list[Template] = []
    random: Random = world.random
    for _ in range(count):
        if not order:
            order = list(templates)
            random.shuffle(order)
        rows.append(filled(order.pop(), world))
    return rows
