"""Personal data that has a form of its own: found by patterns, believed by check digits or by the words around it.

Check digits are those of python-stdnum, telephone numbers those of phonenumbers. Every pattern takes time linear in the
text. A number whose check is weak (a bare run of digits that one in ten would pass) counts only beside a word that says
what it is.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib import import_module

from appliance.guards import labelled
from appliance.guards.phones import AFTER, BEFORE, NEAR, is_compact_date, near, phones
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
    """Must be found within `NEAR` characters before the find, or in the `AFTER` characters of its line after it."""
    unless: re.Pattern[str] | None = None
    """Must not be found in the `BEFORE` characters that end where the find begins."""
    group: int = 0
    """The part of the pattern that is the find."""
    score: float = 1.0


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


def _national_id(*names: str) -> Check:
    valid = _stdnum(*names)

    def check(text: str) -> bool:
        # A date and what follows it is no number of anything.
        return not _DATE_FIRST.match(text) and valid(text)

    return check


_DATE_FIRST = re.compile(r"(?:\d{1,2}[. -]\d{1,2}[. -](?:19|20)\d\d|(?:19|20)\d\d[. -]\d{1,2}[. -]\d{1,2})(?!\d)")


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


_ID_WORDS = near(
    r"ssn|social[ _-]?sec|national[ _-]?(?:id|ins|no|num)|tax|ident|dni|nie|nif|cpf|pesel|bsn|personn|cpr|fødsels|hetu|tckn|t\.?c\.? ?kimlik|kimlik|aadha?ar|pan\b|sin\b|tfn|nhs|steuer"
    r"|sozialvers|sécu|nir\b|codice ?fiscale|rodné|rijksregister|ahv|avs|rrn|curp|rfc\b|id[ _-]?(?:no|num|card|kart)|personal[ _-]?(?:no|num|id|code)|citizen|medicare|oib|egn|cnp\b|insurance|nino|ni number"
)  # fmt: skip

_VERSION = re.compile(
    r"(?<![^\W\d_])(?:v|vers(?:ion|ie|ione|ão|ión)|wersj[aieęą]|release|build|firmware|change ?log|upgraded?|updated?|revision|rev|section|chapter|clause|§)s?"
    r"(?:\W{0,3}|[ :]{1,2}(?:from|of|to|auf|von|de|à|a|naar|van|do|z|til)\W{1,2}(?:\d[\d.]{2,14}\W{1,3}(?:to|auf|à|a|naar|do|til|and|und|et|en|i)\W)?)$",
    _FLAGS,
)
# What is said near an address of the internet, where the number could as well be that of a version.
_IP_WORDS = near(
    r"ip\b|ipv4|addr|adres|address|adresse|host|server|from|src|dst|source|dest|gateway|dns|ping|port|http|client_ip|remote|login|logged|connect|request|network|subnet|proxy|vpn|lan\b|wan\b|nat\b|firewall|router|peer"
)
_SMALL_QUAD = re.compile(r"(?!10\.)(?:1?\d|20)\.\d{1,2}\.\d{1,2}\.\d{1,2}")


def _is_card_like(text: str) -> bool:
    return len(set(re.sub(r"\D", "", text))) > 2


# A value that somebody has chosen to be hard to guess, and not a word of a program or a sentence.
_PLACEHOLDER = re.compile(r"[*x•.]{3,}|your|example|changeme|placeholder|redacted|required|optional|hidden", _FLAGS)


def _is_password(text: str) -> bool:
    letters, digits = re.search(r"[^\W\d_]", text), re.search(r"\d", text)
    signs = re.search(r"[^\w.-]", text)
    return bool((letters and digits) or (signs and (letters or digits))) and not _PLACEHOLDER.match(text)


def _is_mixed_password(text: str) -> bool:
    """For a value that nothing joins to the word before it: letters, a digit and a sign."""
    return _is_password(text) and all(re.search(part, text) for part in (r"[^\W\d_]", r"\d", r"[^\w.]"))


def _is_literal(text: str) -> bool:
    """For a value between quotes, where programs also write what stands for one: `${DB_PASSWORD}`, `<yours>`, `read()`."""
    return (
        not text.startswith(("$", "<", "{", "(", "[", "%", ".", "!")) and not text.endswith("()") and _is_password(text)
    )


# Accounts that every machine has, and what programs write where an account would stand.
_NOBODY = frozenset((
    "root", "admin", "administrator", "ubuntu", "debian", "user", "username", "users", "runner", "public", "default", "shared", "app", "guest", "nobody", "none", "null", "true", "false", "self", "test", "name", "id", "system", "daemon", "www", "data", "all", "me", "you", "the", "str", "int", "string", "bot", "visitor", "caller", "agent", "assistant", "customer", "operator", "tool", "support", "moderator", "host", "client", "server", "postgres", "mysql", "nginx", "apache", "redis", "www-data", "unknown",
))  # fmt: skip


def _is_account_name(text: str) -> bool:
    return (
        text.casefold() not in _NOBODY
        and not text.startswith(("request.", "self.", "this.", "settings."))
        and re.search(r"[^\W\d_]{2}", text) is not None
    )


_SECRET_WORDS = (
    r"(?:[A-Za-z0-9]{1,20}[_-])?(?:pass(?:word|wd|code|phrase|wort|e)?|pwd|pw|kennwort|[a-z]{0,12}passwort|contraseña|clave|mot de passe|mdp|senha|palavra-passe|hasło|hasła|wachtwoord"
    r"|lösenord|heslo|parola|şifre|salasana|adgangskode|passord|secret|api[_-]?key|access[_-]?key|private[_-]?key|token)"
    r"|(?-i:[a-z]{1,20}(?:Password|Secret|Token|ApiKey|Pwd|AccessKey))"
)  # fmt: skip
_USER_WORDS = r"(?:user(?:[_-]?name|[_-]?id)?|login|usr|uid|benutzer(?:name)?|gebruiker(?:snaam)?|utente|usuario|usuário|utilisateur|identifiant|użytkownik|användare|kullanıcı|(?:login|user|account)[ _-]name|inlognaam|anmeldename|nome utente|nom d'utilisateur)"


_DOMAINS = "com|org|net|edu|gov|io|dev|app|co|info|biz|eu|uk|de|fr|es|it|nl|be|ch|at|pl|se|no|dk|fi|pt|br|mx|ar|cl|au|nz|ca|us|in|jp|cn|kr|za|ng|ke|ie|cz|sk|hu|ro|gr|tr|il|ae|me|tv|ly|gl|ai|xyz|online|site|shop|club|tech|cloud|page"

RECOGNISERS: tuple[Recogniser, ...] = (
    Recogniser("EMAIL", re.compile(r"(?<![\w.+-])[A-Za-z0-9][\w.+'-]{0,63}@(?:[\w-]{1,63}\.){1,6}[A-Za-z]{2,24}(?![\w-])")),
    Recogniser("URL", re.compile(r"(?<![\w@])(?:https?://|www\.)[^\s<>\"'`)\]}|\\^]{3,2000}", _FLAGS)),
    Recogniser("IBAN", re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}\d{2}(?:[ -]?[A-Z0-9]{2,4}){3,8}(?:[ -]?[A-Z0-9]{1,3})?(?![A-Za-z0-9])"), _stdnum("iban")),
    Recogniser("IMEI", re.compile(r"(?<![\d-])\d{2}[ -]?\d{6}[ -]?\d{6}[ -]?\d(?![\d-])"), _stdnum("imei"), near(r"imei")),
    Recogniser("CARD", re.compile(r"(?<![\d.-])\d(?:[ -]?\d){12,18}(?![\d-])"), _is_card),
    Recogniser("URL", re.compile(rf"(?<![\w@./-])(?:[A-Za-z][A-Za-z0-9-]{{0,40}}\.){{1,4}}(?:{_DOMAINS})/(?=[A-Za-z0-9])[^\s<>\"'`)\]}}|\\^]{{1,300}}")),
    Recogniser("CARD", re.compile(r"(?<![\d.-])\d{4}(?:[ -]?\d{4}){2}[ -]?\d{3,4}(?![\d-])"), _is_card_like, near(r"(?:credit|debit|bank|kredit|payment)[ -]?(?:card|karte)|card (?:number|no)|visa\b|mastercard|amex|kreditkarte|carte (?:bancaire|bleue)|tarjeta|carta di credito|cartão|cc\b"), score=0.8),
    Recogniser("IP", re.compile(rf"(?<![\w.])(?!{_SMALL_QUAD.pattern}(?!\d))(?:\d{{1,3}}\.){{3}}\d{{1,3}}(?![\w.]{{0,20}}\d)"), _is_ip, unless=_VERSION),
    Recogniser("IP", re.compile(rf"(?<![\w.]){_SMALL_QUAD.pattern}(?![\w.]{{0,20}}\d)"), _is_ip, _IP_WORDS, unless=_VERSION),
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
               _national_id("pl.pesel", "nl.bsn", "de.idnr", "tr.tckimlik", "in_.aadhaar", "ca.sin", "au.tfn", "gb.nhs", "ro.cnp", "bg.egn", "hr.oib", "ee.ik", "lt.asmens",
                       "no.fodselsnummer", "za.idnr", "pt.nif", "br.cpf", "us.ssn", "cn.ric", "kr.rrn", "fr.nir", "se.personnummer", "be.nn"), _ID_WORDS),
    Recogniser("PASSPORT", re.compile(r"(?<![A-Za-z0-9])(?=[A-Z0-9]{7,9}(?![A-Za-z0-9]))[A-Z]{0,3}\d[A-Z0-9]{5,8}"), lambda text: not is_compact_date(text),
               near(r"passport|reisepass|passeport|pasaporte|passaporto|paspoort|paszport|pasaport")),
    Recogniser("SECRET", re.compile(r"(?<![A-Za-z0-9])(?:sk-[A-Za-z0-9_-]{16,200}|gh[pousr]_[A-Za-z0-9]{20,80}|AKIA[0-9A-Z]{16}|xox[abpors]-[A-Za-z0-9-]{10,120}|glpat-[A-Za-z0-9_-]{20,40}|AIza[\w-]{35}|eyJ[\w-]{10,2000}\.[\w-]{10,4000}\.[\w-]{10,2000})(?![A-Za-z0-9])")),
    Recogniser("SECRET", re.compile(r"-----BEGIN (?:[A-Z]{2,12} ){0,3}PRIVATE KEY-----[A-Za-z0-9+/=\s:,-]{0,4000}?-----END (?:[A-Z]{2,12} ){0,3}PRIVATE KEY-----")),
    Recogniser("CRYPTO", re.compile(r"(?<![A-Za-z0-9])(?:bc1[a-z0-9]{25,62}|ltc1[a-z0-9]{25,62}|0x[0-9a-fA-F]{40})(?![A-Za-z0-9])")),
    Recogniser("CRYPTO", re.compile(r"(?<![A-Za-z0-9])[13][a-km-zA-HJ-NP-Z1-9]{25,34}(?![A-Za-z0-9])"), _stdnum("bitcoin")),
    Recogniser("VIN", re.compile(r"(?<![A-Za-z0-9])(?=[A-Z]*\d)[A-HJ-NPR-Z0-9]{17}(?![A-Za-z0-9])"), lambda text: sum(map(str.isdigit, text)) > 3,
               near(r"vin\b|fahrgestell|chassis|fin\b|vehicle ident|bastidor|telaio|châssis")),
    Recogniser("PIN", re.compile(r"(?<![A-Za-z])(?i:pin(?:[ -]?code)?|cvv2?|cvc2?|cv2|security code)(?:\W{1,3}|\W{1,3}(?:is|ist|est|es|è|code)\W{1,2})(\d{3,8})(?![\d.,-]?\d)"), group=1, score=0.9),
    Recogniser("PASSWORD", re.compile(rf"(?<![^\W\d_])(?i:{_SECRET_WORDS})[\"']?(?:\s{{0,3}}[:=]\s{{0,3}}|\s(?:is|ist|est|es|è|é|jest|är|lautet|:=|=>)[:\s]\s{{0,2}})[\"'`«“]?([^\s\"'`<>,;(){{}}\[\]$«»“”]{{4,80}}[^\s\"'`<>,;(){{}}\[\]$«»“”.!?:])"), _is_password, group=1, score=0.9),
    Recogniser("PASSWORD", re.compile(rf"(?<![^\W\d_])(?i:{_SECRET_WORDS})\s[\"'`«“]?([^\s\"'`<>,;(){{}}\[\]$«»“”]{{7,80}}[^\s\"'`<>,;(){{}}\[\]$«»“”.!?:])"), _is_mixed_password, group=1, score=0.8),
    Recogniser("DATE_OF_BIRTH", labelled.DATE_OF_BIRTH, group=1, score=0.9),
    Recogniser("PASSWORD", re.compile(rf"(?<![^\W\d_])(?i:{_SECRET_WORDS})>([^<>\s]{{1,40}} ?[^<>\s]{{3,40}})<"), _is_password, group=1, score=0.8),
    Recogniser("PASSWORD", re.compile(rf"(?<![^\W\d_])(?i:{_SECRET_WORDS})[\"']?\s{{0,3}}[:=]\s{{0,3}}([\"'])((?:(?!\1)\S){{4,80}})\1"), _is_literal, group=2, score=0.8),
    Recogniser("PASSWORD", re.compile(rf"(?<![^\W\d_])(?i:{_SECRET_WORDS})\s([\"'])((?:(?!\1)\S){{6,80}})\1"), lambda text: _is_literal(text) and _is_mixed_password(text), group=2, score=0.8),
    Recogniser("USERNAME", labelled.SPEAKER, _is_account_name, group=1, score=0.7),
    Recogniser("USERNAME", labelled.QUOTED_USER, _is_account_name, group=1, score=0.8),
    Recogniser("USERNAME", re.compile(rf"(?<![^\W\d_])(?i:{_USER_WORDS})(?:=|[\"']?:\s?)[\"']?([a-z][\w.-]{{1,30}}[\w])(?![\w.@(\[])"), _is_account_name, group=1, score=0.8),
    Recogniser("USERNAME", re.compile(r"(?<![\w.-])(?:/home/|/Users/|[Cc]:\\Users\\)([A-Za-z][\w.-]{1,30})(?=[/\\\s\"':])"), _is_account_name, group=1, score=0.8),
)  # fmt: skip

ANNOUNCED = tuple(Recogniser(kind, pattern, check, group=1, score=0.8) for kind, pattern, check in labelled.ANNOUNCED)
"""What a word announces gives way to what has a form of its own, telephone numbers among it."""


def _said(text: str, start: int, end: int, words: re.Pattern[str]) -> bool:
    """Whether one of `words` stands shortly before the find, or after it on the same line."""
    if words.search(text, max(0, start - NEAR), start):
        return True
    stop = min(end + AFTER, len(text))
    line = text.find("\n", end, stop)
    return words.search(text, end, stop if line < 0 else line) is not None


def find(text: str) -> list[Entity]:
    """What the patterns find in `text`, whose places are those of the entities; overlapping finds are settled in the
    order of `RECOGNISERS`, telephone numbers, `ANNOUNCED`."""
    return found_in(level(text))


def found_in(text: Level) -> list[Entity]:
    """`find` in a text that is level; the places are those of the raw text."""
    finds = (*_forms(text.text, RECOGNISERS), *phones(text.text), *_forms(text.text, ANNOUNCED))
    if text.origins is not None:
        finds = tuple(placed(one, text) for one in finds)
    return apart(finds)


def _forms(text: str, recognisers: Iterable[Recogniser]) -> Iterator[Entity]:
    for one in recognisers:
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
