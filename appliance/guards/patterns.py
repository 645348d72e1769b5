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

import phonenumbers

from appliance.guards.verdicts import Entity

Check = Callable[[str], bool]


@dataclass(frozen=True, slots=True)
class Recogniser:
    """One kind of data: what it looks like, whether a find is one, and the words that have to stand near."""

    type: str
    pattern: re.Pattern[str]
    check: Check | None = None
    context: re.Pattern[str] | None = None
    """Must be found within `NEAR` characters before the find, or on the rest of its line after it."""
    group: int = 0
    score: float = 1.0


NEAR = 60
AFTER = 25


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

RECOGNISERS: tuple[Recogniser, ...] = (
    Recogniser("EMAIL", re.compile(r"(?<![\w.+-])[A-Za-z0-9][\w.+'-]{0,63}@(?:[\w-]{1,63}\.){1,6}[A-Za-z]{2,24}(?![\w-])")),
    Recogniser("URL", re.compile(r"(?<![\w@])(?:https?://|www\.)[^\s<>\"'`)\]}|\\^]{3,2000}", _FLAGS)),
    Recogniser("IBAN", re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}\d{2}(?:[ -]?[A-Z0-9]{2,4}){3,8}(?:[ -]?[A-Z0-9]{1,3})?(?![A-Za-z0-9])"), _stdnum("iban")),
    Recogniser("CARD", re.compile(r"(?<![\d.-])\d(?:[ -]?\d){12,18}(?![\d-])"), _is_card),
    Recogniser("IP", re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w.]*\d)"), _is_ip),
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
    Recogniser("PASSPORT", re.compile(r"(?<![A-Za-z0-9])(?=[A-Z0-9]{7,9}(?![A-Za-z0-9]))[A-Z]{0,3}\d[A-Z0-9]{5,8}"), None,
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
_REGIONS = (
    "US",
    "GB",
    "DE",
    "FR",
    "ES",
    "IT",
    "NL",
    "PL",
    "SE",
    "PT",
    "BR",
    "IN",
    "AU",
    "CH",
    "AT",
    "BE",
    "TR",
    "MX",
    "DK",
    "NO",
    "FI",
    "CZ",
    "IE",
    "ZA",
    "NG",
    "JP",
    "KR",
    "CN",
)


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
    if found.startswith("+") or (found.startswith("00") and digits >= 10):
        # Nothing else is written so, whether or not its country has given the number out.
        return 1.0 if _is_phone("+" + found.lstrip("+0"), None) else 0.9 if digits >= 8 else 0.0
    if _AMERICAN.fullmatch(found):
        return 0.9
    said = _said(text, start, end, _PHONE_WORDS)
    # Without a word for it, a national number is one only if it is grouped as people group them.
    grouped = found[0] in "0(" and re.search(r"\d[ ./()-]+\d", found) is not None
    if (said or grouped) and any(_is_phone(found, region) for region in _REGIONS):
        return 0.95 if said else 0.8
    return 0.7 if digits >= 8 and _said(text, start, end, _SURELY_PHONE) else 0.0


def _is_phone(text: str, region: str | None) -> bool:
    try:
        return phonenumbers.is_valid_number(phonenumbers.parse(text, region))
    except phonenumbers.NumberParseException:
        return False


def _said(text: str, start: int, end: int, words: re.Pattern[str]) -> bool:
    """Whether one of `words` stands shortly before the find, or after it on the same line."""
    if words.search(text, max(0, start - NEAR), start):
        return True
    line = text.find("\n", end)
    return words.search(text, end, min(end + AFTER, len(text) if line < 0 else line)) is not None


def find(text: str) -> list[Entity]:
    """What the patterns find in `text`; overlapping finds are settled in the order of `RECOGNISERS`."""
    kept: list[Entity] = []
    taken = bytearray(len(text))
    candidates: list[Entity] = []
    for one in RECOGNISERS:
        for match in one.pattern.finditer(text):
            start, end = match.span(one.group)
            if one.type == "URL":
                end = start + len(match[one.group].rstrip(".,;:!?"))
            if one.check is not None and not one.check(match[one.group]):
                continue
            if one.context is not None and not _said(text, start, end, one.context):
                continue
            candidates.append(Entity(start, end, one.type, one.score, "pattern"))
    for entity in (*candidates, *_phones(text)):
        if not any(taken[entity.start : entity.end]):
            taken[entity.start : entity.end] = b"\1" * (entity.end - entity.start)
            kept.append(entity)
    return sorted(kept, key=lambda entity: entity.start)
