"""Personal data that has a form of its own: found by patterns, believed by check digits or by the words around it.

Check digits are those of python-stdnum, telephone numbers those of phonenumbers. Every pattern takes time linear in the
text. A number whose check is weak (a bare run of digits that one in ten would pass) counts only beside a word that says
what it is.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

import phonenumbers

from appliance.guards.verdicts import Entity, apart, placed
from appliance.guards.views import Level, level

Check = Callable[[str], bool]


@dataclass(frozen=True, slots=True)
class Recogniser:
    """One kind of data: what it looks like, whether a find is one, and the words that have to stand near."""

    type: str
    pattern: re.Pattern[str]
    check: Check | None = None
    context: re.Pattern[str] | None = None
    """Must be found within `NEAR` characters before the find, or on the rest of its line after it."""
    unless: re.Pattern[str] | None = None
    """Must not be found in the `BEFORE` characters that end where the find begins."""
    group: int = 0
    score: float = 1.0


NEAR = 60
AFTER = 25
BEFORE = 40


@cache
def _module_check(name: str) -> Check:
    module = import_module(f"stdnum.{name}")

    def check(text: str) -> bool:
        return bool(module.is_valid(text))

    return check


def _stdnum(*names: str) -> Check:
    """Whether any of these checks of python-stdnum takes the number; each is imported when it is first asked."""

    def check(text: str) -> bool:
        return any(_module_check(name)(text) for name in names)

    return check


def _is_card(text: str) -> bool:
    digits = re.sub(r"\D", "", text)
    # Thirteen to nineteen digits, a first digit that issuers have, and not one digit over and over.
    return digits[0] in "23456" and len(set(digits)) > 1 and _module_check("luhn")(digits)


def _is_ip(text: str) -> bool:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    return not address.is_unspecified


def _is_us_ssn(text: str) -> bool:
    area, group, serial = re.split(r"[- ]", text)
    return area not in ("000", "666") and area < "900" and group != "00" and serial != "0000"


def _is_nino(text: str) -> bool:
    letters = re.sub(r"\s", "", text).upper()
    return (
        letters[0] not in "DFIQUV"
        and letters[1] not in "DFIQUVO"
        and letters[:2] not in ("BG", "GB", "NK", "KN", "TN", "NT", "ZZ")
    )


_FLAGS = re.IGNORECASE


def _near(words: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![^\W\d_])(?:{words})", _FLAGS)


_ID_WORDS = _near(
    r"ssn|social[ _-]?sec|national[ _-]?(?:id|ins|no|num)|tax|ident|dni|nie|nif|cpf|pesel|bsn|personn|cpr|fødsels|hetu|tckn|t\.?c\.? ?kimlik|kimlik|aadha?ar|pan\b|sin\b|tfn|nhs|steuer"
    r"|sozialvers|sécu|nir\b|codice ?fiscale|rodné|rijksregister|ahv|avs|rrn|curp|rfc\b|id[ _-]?(?:no|num|card|kart)|personal[ _-]?(?:no|num|id|code)|citizen|medicare|oib|egn|cnp\b|insurance|nino|ni number"
)  # fmt: skip

_PHONE_WORDS = _near(
    r"tel|phone|mobile?|cell|call|ring|fax|handy|mob\b|whatsapp|sms|text (?:me|her|him|us|them)|contact|hotline|dial|reach|nummer|number|numéro|número|numero|telefon|téléphone|teléfono|puhelin|anrufen|rufen|portable|celular|cellulare|gsm|komórka|ph\b|☎|📞"
)

# What names a number that is no telephone number, right before it.
_OTHER_NUMBER = re.compile(
    r"(?<![^\W\d_])(?:order|invoice|ticket|ref(?:erence)?|tracking|article|item|part|case|customer|account|acct|ids?|isbn|issn|ean|sku|serial|model|version|batch|lot|policy|claim|receipt|transaction|zip|postcode|bestell(?:ung|nummer|nr)|auftrag(?:snummer)?|rechnung(?:snummer)?|kundennummer|commande|facture|pedido|factura|ordine|fattura|bestelling|factuur|zamówieni[ea])"
    r"(?:\W{1,3}(?:no|nr|number|num|nummer|id|code|n°|nº))?(?:\W{1,3}(?:is|was|of|for))?\W{0,3}$",
    _FLAGS,
)
# What stands before a signed number in a formula or a program.
_OPERATOR = re.compile(r"(?:[=*/%^<>&|~+-]|\breturn)\s*(?:[^\W\d_]\w{0,15}\s*|\d[\d.]{0,15}\s*)?$")
_VERSION = re.compile(
    r"(?<![^\W\d_])(?:v|ver|version|release|build|firmware|revision|rev|section|chapter|clause|§)\W{0,3}$", _FLAGS
)


def _is_compact_date(digits: str) -> bool:
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


RECOGNISERS: tuple[Recogniser, ...] = (
    Recogniser("EMAIL", re.compile(r"(?<![\w.+-])[A-Za-z0-9][\w.+'-]{0,63}@(?:[\w-]{1,63}\.){1,6}[A-Za-z]{2,24}(?![\w-])")),
    Recogniser("URL", re.compile(r"(?<![\w@])(?:https?://|www\.)[^\s<>\"'`)\]}|\\^]{3,2000}", _FLAGS)),
    Recogniser("IBAN", re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}\d{2}(?:[ -]?[A-Z0-9]{2,4}){3,8}(?:[ -]?[A-Z0-9]{1,3})?(?![A-Za-z0-9])"), _stdnum("iban")),
    Recogniser("CARD", re.compile(r"(?<![\d.-])\d(?:[ -]?\d){12,18}(?![\d-])"), _is_card),
    Recogniser("IP", re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w.]{0,20}\d)"), _is_ip, unless=_VERSION),
    Recogniser("IP", re.compile(r"(?<![\w:.])(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4}(?![\w:.])"), lambda text: text.count(":") > 2 and _is_ip(text)),
    Recogniser("MAC", re.compile(r"(?<![\w:-])(?:[0-9A-Fa-f]{2}[:-]){5}[0-9A-Fa-f]{2}(?![\w:-])")),
    Recogniser("US_SSN", re.compile(r"(?<![\d-])\d{3}[- ]\d{2}[- ]\d{4}(?![\d-])"), _is_us_ssn),
    Recogniser("UK_NINO", re.compile(r"(?<![A-Za-z0-9])[A-Z]{2} ?\d{2} ?\d{2} ?\d{2} ?[A-D](?![A-Za-z0-9])", _FLAGS), _is_nino),
    Recogniser("ES_ID", re.compile(r"(?<![A-Za-z0-9])(?:\d{8}|[XYZ][- ]?\d{7})[- ]?[A-Z](?![A-Za-z0-9])", _FLAGS), _stdnum("es.dni", "es.nie")),
    Recogniser("IT_FISCAL_CODE", re.compile(r"(?<![A-Za-z0-9])[A-Z]{6}\d{2}[A-Z]\d{2}[A-Z]\d{3}[A-Z](?![A-Za-z0-9])", _FLAGS), _stdnum("it.codicefiscale")),
    Recogniser("FR_NIR", re.compile(r"(?<!\d)[12] ?\d{2} ?\d{2} ?\d[\dAB] ?\d{3} ?\d{3} ?\d{2}(?!\d)"), _stdnum("fr.nir")),
    Recogniser("BR_CPF", re.compile(r"(?<![\d.])\d{3}\.\d{3}\.\d{3}-\d{2}(?!\d)"), _stdnum("br.cpf")),
    Recogniser("MX_CURP", re.compile(r"(?<![A-Za-z0-9])[A-Z]{4}\d{6}[HM][A-Z]{5}[A-Z0-9]\d(?![A-Za-z0-9])", _FLAGS), _stdnum("mx.curp")),
    Recogniser("IN_PAN", re.compile(r"(?<![A-Za-z0-9])[A-Z]{3}[PCHFATBLJG][A-Z]\d{4}[A-Z](?![A-Za-z0-9])"), _stdnum("in_.pan")),
    Recogniser("CH_AHV", re.compile(r"(?<!\d)756\.\d{4}\.\d{4}\.\d{2}(?!\d)"), _stdnum("ch.ssn")),
    Recogniser("FI_HETU", re.compile(r"(?<![A-Za-z0-9])\d{6}[-+A-F]\d{3}[0-9A-Y](?![A-Za-z0-9])"), _stdnum("fi.hetu")),
    Recogniser("SE_PERSONNUMMER", re.compile(r"(?<!\d)(?:\d{2})?\d{6}[-+]\d{4}(?!\d)"), _stdnum("se.personnummer")),
    Recogniser("BE_NN", re.compile(r"(?<!\d)\d{2}\.\d{2}\.\d{2}-\d{3}\.\d{2}(?!\d)"), _stdnum("be.nn")),
    Recogniser("DK_CPR", re.compile(r"(?<!\d)\d{6}-\d{4}(?!\d)"), _stdnum("dk.cpr"), _ID_WORDS),
    Recogniser("CZ_SK_RC", re.compile(r"(?<!\d)\d{6}/\d{3,4}(?!\d)"), _stdnum("cz.rc")),
    Recogniser("NATIONAL_ID", re.compile(r"(?<![\w.-])\d(?:[ .-]?\d){7,13}(?![\w-])"),
               _stdnum("pl.pesel", "nl.bsn", "de.idnr", "tr.tckimlik", "in_.aadhaar", "ca.sin", "au.tfn", "gb.nhs", "ro.cnp", "bg.egn", "hr.oib", "ee.ik", "lt.asmens",
                       "no.fodselsnummer", "za.idnr", "pt.nif", "br.cpf", "us.ssn", "cn.ric", "kr.rrn", "fr.nir", "se.personnummer", "be.nn"), _ID_WORDS),
    Recogniser("PASSPORT", re.compile(r"(?<![A-Za-z0-9])(?=[A-Z0-9]{7,9}(?![A-Za-z0-9]))[A-Z]{0,3}\d[A-Z0-9]{5,8}"), lambda text: not _is_compact_date(text),
               _near(r"passport|reisepass|passeport|pasaporte|passaporto|paspoort|paszport|pasaport")),
    Recogniser("SECRET", re.compile(r"(?<![A-Za-z0-9])(?:sk-[A-Za-z0-9_-]{16,200}|gh[pousr]_[A-Za-z0-9]{20,80}|AKIA[0-9A-Z]{16}|xox[abpors]-[A-Za-z0-9-]{10,120}|glpat-[A-Za-z0-9_-]{20,40}|AIza[\w-]{35}|eyJ[\w-]{10,2000}\.[\w-]{10,4000}\.[\w-]{10,2000})(?![A-Za-z0-9])")),
    Recogniser("CRYPTO", re.compile(r"(?<![A-Za-z0-9])(?:bc1[a-z0-9]{25,62}|0x[0-9a-fA-F]{40})(?![A-Za-z0-9])")),
)  # fmt: skip

_SURELY_PHONE = _near(
    r"tel\b|tel[.:]|telephone|phone|mobile|cell\b|cell[ _-]?phone|fax|handy|whatsapp|telefon|téléphone|teléfono|telefone|telefono|puhelin|hotline|komórka|☎|📞"
)
_PHONE = re.compile(
    r"(?<![\w./+-])(?:\+|00)?(?:\(\+?\d{1,4}\)|\d)(?:[ ./()-]{0,2}\d){6,14}(?:\s?(?:x|ext\.?)\s?\d{1,6})?(?![\w-])(?!\.\d)"
)
_AMERICAN = re.compile(r"(?:1[-. ])?(?:\(\d{3}\) ?|\d{3}[-. ])\d{3}[-. ]\d{4}")
_DATE = re.compile(r"^(?:\d{1,2}[./-]\d{1,2}[./-](?:19|20)?\d{2}|(?:19|20)\d{2}[./-]\d{1,2}[./-]\d{1,2})(?:\D|$)")
_REGIONS = ("US", "GB", "DE", "FR", "ES", "IT", "NL", "PL", "SE", "PT", "BR", "IN", "AU", "CH",
            "AT", "BE", "TR", "MX", "DK", "NO", "FI", "CZ", "IE", "ZA", "NG", "JP", "KR", "CN")  # fmt: skip


def _phones(text: str) -> Iterator[Entity]:
    for match in _PHONE.finditer(text):
        found = re.split(r"\s?(?:x|ext)", match[0])[0]
        digits = sum(letter.isdigit() for letter in found)
        if not 7 <= digits <= 15 or _DATE.match(found):
            continue
        if score := _phone_score(text, found, digits, match.start(), match.end()):
            yield Entity(match.start(), match.end(), "PHONE", score, "pattern")


def _phone_score(text: str, found: str, digits: int, start: int, end: int) -> float:
    """How sure it is that `found` is a telephone number; 0 if it is taken for none."""
    before = text[max(0, start - BEFORE) : start]
    grouped = re.search(r"\d[ ./()-]+\d", found) is not None
    if not grouped and _OTHER_NUMBER.search(before):
        return 0.0
    if found.startswith("+"):
        return 0.0 if digits < 8 or _OPERATOR.search(before) else _international_score(found)
    if found.startswith("00"):
        # Many other numbers are filled up with noughts, so one that only might be given out has to be grouped or named.
        score = _international_score("+" + found[2:]) if digits >= 10 else 0.0
        return score if score == 1.0 or grouped or _said(text, start, end, _PHONE_WORDS) else 0.0
    if _AMERICAN.fullmatch(found):
        return 0.9
    if not grouped and _is_compact_date(found):
        return 0.0
    said = _said(text, start, end, _PHONE_WORDS)
    # Without a word for it, a national number is one only if it is grouped as people group them.
    if (said or (grouped and found[0] in "0(")) and _is_national(found):
        return 0.95 if said else 0.8
    return 0.7 if digits >= 8 and _said(text, start, end, _SURELY_PHONE) else 0.0


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


def _said(text: str, start: int, end: int, words: re.Pattern[str]) -> bool:
    """Whether one of `words` stands shortly before the find, or after it on the same line."""
    if words.search(text, max(0, start - NEAR), start):
        return True
    stop = min(end + AFTER, len(text))
    line = text.find("\n", end, stop)
    return words.search(text, end, stop if line < 0 else line) is not None


def find(text: str) -> list[Entity]:
    """What the patterns find in `text`, whose places are those of the entities; overlapping finds are settled in the
    order of `RECOGNISERS`."""
    return found_in(level(text))


def found_in(text: Level) -> list[Entity]:
    """`find` in a text that is level; the places are those of the raw text."""
    finds = (*_forms(text.text), *_phones(text.text))
    if text.origins is not None:
        finds = tuple(placed(one, text) for one in finds)
    return apart(finds)


def _forms(text: str) -> Iterator[Entity]:
    for one in RECOGNISERS:
        for match in one.pattern.finditer(text):
            start, end = match.span(one.group)
            if one.type == "URL":
                end = start + len(match[one.group].rstrip(".,;:!?"))
            if one.context is not None and not _said(text, start, end, one.context):
                continue
            if one.unless is not None and one.unless.search(text[max(0, start - BEFORE) : start]):
                continue
            if one.check is None or one.check(match[one.group]):
                yield Entity(start, end, one.type, one.score, "pattern")
