"""Telephone numbers: found by how people group and name them, believed by the plans of their countries (phonenumbers).

A number with a country code is one wherever it stands. A national one needs a word that says so, or the grouping that
only telephone numbers have; a word for another sort of number (an account, an order, a passport) that stands closer
outweighs it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import phonenumbers

from appliance.guards.verdicts import Entity

NEAR = 60
"""A word for a telephone number counts within so many characters before it."""
AFTER = 25
"""A word that says what a number is counts within so many characters after it."""
BEFORE = 40
"""A word for another sort of number counts within so many characters before it."""
_FLAGS = re.IGNORECASE


def near(words: str) -> re.Pattern[str]:
    """One of `words` at the beginning of a word, in small or capital letters."""
    return re.compile(rf"(?<![^\W\d_])(?:{words})", _FLAGS)


_OWNERS = (
    r"my|his|her|their|your|our|new|old|best|direct|meine?|deine?|ihre?|seine?|neue|mon|son|votre|notre|mi|su|tu|nuevo|mio|suo|tuo|nuovo"
    r"|mijn|zijn|haar|nieuwe|mój|jego|jej|mitt|hans|hennes|meu|seu"
)  # fmt: skip
_SURELY = (
    r"tel\b|tel[.:]|telephone|phone|mobile|mob\b|cell\b|cell[ _-]?phone|fax|handy(?:nummer|nr|\b)|whatsapp|signal\b|telefon|téléphone|teléfono|telefone"
    r"|telefono|telefoon|puhelin|hotline|komórk|móvil|telem[oó]vel|portable|cellulare|celular|gsm|☎|📞"
)  # fmt: skip
_SURELY_PHONE = near(_SURELY)
_PHONE_WORDS = near(
    _SURELY
    + r"|(?:call|ring|dial|sms|contact|reach|ph|text (?:me|her|him|us|them)|anrufen|rufen|ruf|appelez|appeler|llam[ae]r?|chiama(?:re|te|mi)?|bel(?:len)?|zadzwo[nń]|dzwoni[cć]|ring(?:a|e)?|ligar?)\b"
    + rf"|(?:{_OWNERS}) (?:numbers?|nummer|numéro|número|numero|numer)\b"
)
# A word behind a number says what that was, unless it introduces the next one.
_AFTER = re.compile(rf"\W{{0,3}}(?:{_SURELY})(?!\W{{0,3}}[\d+(])", _FLAGS)

# What names a number that is no telephone number: the first ones whatever its groups, the others for a run of digits.
_STRONG_OTHER = (
    r"order|invoice|ticket|tracking|waybill|parcel|shipment|isbn|issn|ean|sku|serial|policy|claim|receipt|transaction|account|acct|iban|card|passport|licen[cs]e|permit|visa"
    r"|reference|ssn|social|tax|trn|nhs|chip|imei|meter|badge|vat|abn|registration|bestell(?:ung|nummer|nr)|auftrag(?:snummer)?|rechnung(?:snummer)?|kundennummer|kunden-?nr|konto(?:nummer|-?nr)?"
    r"|kreditkonto|vertrags\w{0,12}|steuer\w{0,16}|ausweis\w{0,8}|reisepass\w{0,8}|personalausweis|versicherten\w{0,8}|ahv|zähler\w{0,8}|aktenzeichen|vorgang\w{0,8}"
    r"|commande|facture|dossier|compte|passeport|sécu\w{0,8}|siret|siren|contribuinte|nif|nie|dni|cédula|cedula|cpf|cnpj|rut|pedido|factura|expediente|cuenta|pasaporte|póliza"
    r"|ordine|fattura|pratica|tessera|conto|passaporto|bestelling|factuur|rekening|kenmerk|bsn|paspoort|zamówieni[ea]|faktur\w{0,3}|pesel|nip|regon|dowod\w{0,3}|paszport\w{0,3}"
    r"|ordernummer|fakturanummer|personnummer|ärende\w{0,8}|kontonummer|bankgiro|plusgiro"
)  # fmt: skip
_WEAK_OTHER = r"ref|article|item|part|case|customer|client|ids?|model|version|batch|lot|zip|postcode|plz|number|no|nr|nummer|numbers?|n[°º]|#|code|employee|member|patient|mitglieds\w{0,8}"
_NUMBER_OF = (
    r"(?:\W{1,3}(?:no|nr|numbers?|num|nummer|id|code|n[°º]|n\.[°º]))?(?:\W{1,3}(?:is|was|of|for|ist|est|es|è))?\W{0,3}$"
)
_OTHER_NUMBER = near(rf"(?:{_STRONG_OTHER}|{_WEAK_OTHER}){_NUMBER_OF}")
_OTHER_THING = near(rf"(?:{_STRONG_OTHER})\b")
# What stands before a signed number in a formula or a program.
_OPERATOR = re.compile(r"(?:[=*/%^<>&|~+-]|\breturn)\s*(?:[^\W\d_]\w{0,15}\s*|\d[\d.]{0,15}\s*)?$")

_PHONE = re.compile(
    r"(?<![\w./+-])(?:\+|00)?(?:\(\+?\d{1,4}\)|\d)(?:[ ./()-]{0,2}\d){6,14}(?:\s?(?:x|ext\.?)\s?\d{1,6})?(?![\w-])(?!\.\d)"
)
_AMERICAN = re.compile(r"(?:1[-. ])?(?:\(\d{3}\) ?|\d{3}[-. ])\d{3}[-. ]\d{4}")
_DATE = re.compile(r"^(?:\d{1,2}[./-]\d{1,2}[./-](?:19|20)?\d{2}|(?:19|20)\d{2}[./-]\d{1,2}[./-]\d{1,2})(?:\D|$)")
# Files and cases are numbered by year.
_OF_A_YEAR = re.compile(r"(?:19|20)\d\d[/-]\d+|\d+/(?:19|20)\d\d")
_REGIONS = ("US", "GB", "DE", "FR", "ES", "IT", "NL", "PL", "SE", "PT", "BR", "IN", "AU", "CH",
            "AT", "BE", "TR", "MX", "DK", "NO", "FI", "CZ", "IE", "ZA", "NG", "JP", "KR", "CN")  # fmt: skip


def is_compact_date(digits: str) -> bool:
    """Whether eight digits are a day of this or the last century, written without marks."""
    if not re.fullmatch("[0-9]{8}", digits):
        return False
    for year, month, day in (
        (digits[:4], digits[4:6], digits[6:]),
        (digits[4:], digits[2:4], digits[:2]),
        (digits[4:], digits[:2], digits[2:4]),
    ):
        if year[:2] in ("19", "20") and "01" <= month <= "12" and "01" <= day <= "31":
            return True
    return False


def phones(text: str) -> Iterator[Entity]:
    """The telephone numbers of `text`, in order."""
    for match in _PHONE.finditer(text):
        found = re.split(r"\s?(?:x|ext)", match[0])[0]
        digits = sum(letter.isdigit() for letter in found)
        if not 7 <= digits <= 15 or _DATE.match(found) or _OF_A_YEAR.fullmatch(found):
            continue
        if score := _score(text, found, digits, match.start(), match.end()):
            yield Entity(match.start(), match.end(), "PHONE", score, "pattern")


def _score(text: str, found: str, digits: int, start: int, end: int) -> float:
    """How sure it is that `found` is a telephone number; 0 if it is taken for none."""
    before = text[max(0, start - BEFORE) : start]
    grouped = re.search(r"\d[ ./()-]+\d", found) is not None
    if found.startswith("+"):
        return 0.0 if digits < 8 or _OPERATOR.search(before) else _international_score(found)
    said = _called(text, start, end, _PHONE_WORDS)
    if not said and ((not grouped and _OTHER_NUMBER.search(before)) or _OTHER_THING.search(before)):
        return 0.0
    if found.startswith("00"):
        # Many other numbers are filled up with noughts, so one that only might be given out has to be grouped or named.
        score = _international_score("+" + found[2:]) if digits >= 10 else 0.0
        return score if score == 1.0 or grouped or said else 0.0
    if _AMERICAN.fullmatch(found):
        return 0.9
    if not grouped and is_compact_date(found):
        return 0.0
    # Without a word for it, a national number is one only if it is grouped as people group them.
    if (said or (grouped and found[0] in "0(")) and _is_national(found):
        return 0.95 if said else 0.8
    return 0.7 if said and digits >= 8 and _called(text, start, end, _SURELY_PHONE) else 0.0


def _called(text: str, start: int, end: int, words: re.Pattern[str]) -> bool:
    """Whether one of `words` stands shortly before the find and no word for another number closer, or right after."""
    if _AFTER.match(text, end, end + AFTER):
        return True
    found = list(words.finditer(text, max(0, start - NEAR), start))
    if not found:
        return False
    between = text[found[-1].end() : start]
    # "call customer service: 0800 …" speaks of a number to call, "call about order 4711…" of an order.
    return not (_OTHER_THING.search(between) or _OTHER_NUMBER.search(between))


def _international_score(found: str) -> float:
    """1 for a number that its country gives out, less for one that has as many digits as its numbers have, else 0."""
    try:
        number = phonenumbers.parse(found, None)
    except phonenumbers.NumberParseException:
        return 0.0
    if phonenumbers.is_valid_number(number):
        return 1.0
    possible = phonenumbers.is_possible_number_with_reason(number) == phonenumbers.ValidationResult.IS_POSSIBLE
    return 0.9 if possible else 0.0


@dataclass(frozen=True, slots=True)
class _Plan:
    """What the numbers of one region look like, as far as it can be told without parsing them."""

    region: str
    country: str
    abroad: re.Pattern[str]
    """What is dialled before the number of another country."""
    prefix: re.Pattern[str]
    """What is dialled before a number of the same country; it may be rewritten where it has groups."""
    numbers: re.Pattern[str]

    def may_have(self, digits: str) -> bool:
        """Whether these digits could be a number of the region; if not, it has no such number."""
        if self.numbers.fullmatch(digits) or self.abroad.match(digits):
            return True
        if digits.startswith(self.country) and self._within(digits[len(self.country) :]):
            return True
        return self._within(digits)

    def _within(self, digits: str) -> bool:
        prefix = self.prefix.match(digits)
        if prefix is not None and prefix.re.groups:
            return True
        return self.numbers.fullmatch(digits, prefix.end() if prefix else 0) is not None


_KINDS = (
    "fixed_line",
    "mobile",
    "toll_free",
    "premium_rate",
    "shared_cost",
    "personal_number",
    "voip",
    "pager",
    "uan",
    "voicemail",
)


@cache
def _plans() -> tuple[_Plan, ...]:
    return tuple(_plan(region) for region in _REGIONS)


def _plan(region: str) -> _Plan:
    data: Any = phonenumbers.PhoneMetadata.metadata_for_region(region)
    never = "(?!)"
    numbers = f"(?:{data.general_desc.national_number_pattern or never})"
    # Where several regions share a code, a number may be one of a neighbour's.
    if len(phonenumbers.COUNTRY_CODE_TO_REGION_CODE[data.country_code]) == 1:
        kinds = [getattr(data, kind) for kind in _KINDS]
        given = "|".join(kind.national_number_pattern for kind in kinds if kind and kind.national_number_pattern)
        numbers = f"(?={numbers}$)(?:{given})"
    return _Plan(
        region,
        str(data.country_code),
        re.compile(data.international_prefix or never),
        re.compile(data.national_prefix_for_parsing or never),
        re.compile(numbers),
    )


def _is_national(found: str) -> bool:
    """Whether a number without the code of its country is valid in one of `_REGIONS`."""
    digits = "".join(str(int(letter)) for letter in found if letter.isdecimal())
    return any(_is_valid(found, plan.region) for plan in _plans() if plan.may_have(digits))


def _is_valid(found: str, region: str) -> bool:
    try:
        return phonenumbers.is_valid_number(phonenumbers.parse(found, region))
    except phonenumbers.NumberParseException:
        return False
