"""Personal data that the word before it announces: numbers, plates and dates of birth whose form alone says nothing.

Forms, tables, logs and letters write "customer no. K-09-07917" or "geb. 08.01.33"; the word makes the number personal.
A word that stands for a person or a thing as well ("customer", "account") has to be followed by a word for a number or
by a sign, or the number has to be long. Every pattern takes time linear in the text.
"""

from __future__ import annotations

import re
from collections.abc import Callable

# Words that are followed by a number of somebody only if they say so, and words that say so themselves.
_MEDICAL = r"medical record|patient(?:en)?|hospital|nhs|health insurance|paciente|paziente|pacjenta|utente|patiënt|dossier médical|historia clínica|cartella clinica"
_MEDICAL_NUMBER = r"mrn|vers(?:ichert?en|icherungs|\.)(?:-?nr|-?nummer)|kvnr|krankenversicherungs(?:-?nr|nummer)|patienten(?:-?nr|nummer)"
_ACCOUNT = r"account|acct|a/c|customer|member(?:ship)?|policy|loyalty card|konto|compte|contrat|cuenta|cliente|póliza|conto|polizza|rekening|konta|klienta|müşteri"
_ACCOUNT_NUMBER = (
    r"(?:konto|kunden|vertrags|mitglieds|policen)(?:-?nr|nummer)|kd\.?-?nr|kundenkarte|n(?:umer|[uú]mero|º|uméro) (?:konta|klienta|de cuenta|de cliente|da conta|di conto|conto|cliente|de compte|de client|de contrat)|(?:klant|rekening|polis|lidmaatschaps)(?:nummer|nr)|kundnummer|medlemsnummer|asiakasnumero"
)  # fmt: skip
_IDENTITY = r"staff|employee|badge|student|passport|licen[cs]e|id(?:entity)? card|pasaporte|passeport|passaporto|permis|cédula|tessera|empleado|pracownika|funcionário|dipendente|salarié|legitymacj[ai]"
_IDENTITY_NUMBER = (
    r"n(?:umer|[uú]mero|º|uméro) (?:pracownika|de empleado|de funcionário|dipendente|de salarié|de passeport|de pasaporte|di passaporto)|(?:personal|mitarbeiter|dienst|ausweis|führerschein|matrikel|reisepass)(?:-?nr|nummer)|pers\.?-?nr|matricol[ae]|matricule|(?:personeels|medewerkers?|paspoort|rijbewijs)(?:nummer|nr)"
    r"|personeelspas|anställningsnummer"
)  # fmt: skip
_PLATES = r"plates?|registration|reg|plaque|placa|plaka"
_PLATE_NUMBER = r"(?:licen[cs]e|number|registration) plate|kennzeichen|kfz-kennzeichen|immatricul(?:ation|ée?)|matrícula|targa(?:ta)?|kenteken|nr rej|rejestracyjn[yae]"

_NO = r"(?:no|nr|num|numbers?|nummer|numero|número|numéro|numer|id|code|n[°ºr])\b\.?|n\."
_IS = r"(?:is|ist|est|es|è|was)\b:?"
_STRONG = (
    rf"\.?[\"']?(?:[ _-]?(?:{_NO})[\"']?(?:\s{{0,3}}[:=#>|]|\s-\s|\s{_IS}|\.{{2,12}})?|(?:\s{{0,3}}[:=#]|>|\.{{2,12}}))\s{{0,3}}[\"'#]?"
)  # fmt: skip
_ANY = rf"(?:{_STRONG}|\.?\s{{1,2}}(?:{_IS}\s)?)"
# What is counted or paid is no number of anybody.
_UNIT = r"(?!\s?(?i:[€$£%]|euros?\b|eur\b|zł|pln\b|chf\b|usd\b|gbp\b|mg\b|ml\b|kg\b))"
# Parts of letters and digits, joined by marks; or groups of digits with spaces between them.
_NUMBER = rf"(?:\d{{1,10}}(?: \d{{2,10}}){{1,6}}|[A-Z0-9]{{1,14}}(?:[-/.][A-Z0-9]{{1,14}}){{0,4}})(?![\w-]| \d){_UNIT}"
_ONE_WORD = rf"[A-Z0-9]{{1,14}}(?:[-/][A-Z0-9]{{1,14}}){{0,4}}(?![\w:.-]| \d){_UNIT}"
_PLATE = r"(?:[A-Z]{1,3}[- ])?[A-Z0-9]{2,7}(?:[- ][A-Z0-9]{1,4}){0,2}(?![\w-])"

_DATE = (
    r"(?:\d{1,2}[./-]\d{1,2}[./-](?:\d{4}|\d{2})|\d{4}[./-]\d{1,2}[./-]\d{1,2}|\d{1,2}-[^\W\d_]{3,9}-\d{2,4}"
    r"|\d{1,2}(?:\.|st|nd|rd|th|er|º)? (?:of |de )?[^\W\d_]{3,12}\.?,? (?:de )?\d{4}|[^\W\d_]{3,12}\.? \d{1,2}(?:st|nd|rd|th)?,? \d{4})(?!\d)"
)  # fmt: skip
_BIRTH = (
    r"born|dob|d\.o\.b\.?|date[ _]?of[ _]?birth|birth[ _-]?date|birthday|geb\.?|geboren|geb(?:urts)?\.?-?(?:datum|tag)|née?(?: [^\W\d_]{2,20})?|né\(e\)|date[ _]de[ _]naissance|ddn|nacid[oa]"
    r"|fecha[ _]de[ _]nacimiento|f\. ?nac\.?|data[ _]?(?:di[ _]?)?nascita|nascid[oa]|data[ _]de[ _]nascimento|geboortedatum|ur\.|urodzon[yae]|data[ _]urodzenia|född|födelsedatum|født|fødselsdato"
    r"|doğum tarihi|narozen[áý]?|datum narození|(?-i:[Nn]at[oa])(?= il\b| l['’]| a [^\W\d_])"
)  # fmt: skip
_PLACE = r"(?:\s(?:in|a|à|en|em|te|w)\s[^\W\d_]{2,20})?"

DATE_OF_BIRTH = re.compile(
    rf"(?<![^\W_])(?i:(?:{_BIRTH}){_PLACE}[\"']?(?: ?\([^()\n]{{2,12}}\))?(?:\s{{0,3}}[:=>|]|\s(?:is|ist|est|es|è|é)\b)?\s{{0,3}}(?:(?:on|am|der|le|el|il|em|a|den|op|the|dnia)\s|l['’])?[\"']?)({_DATE})"
)  # fmt: skip

# In a conversation that is stamped with hours and minutes. Lines of logs have seconds, and an agenda has words there.
SPEAKER = re.compile(
    r"(?m)^(?:\[\d{1,2}:\d\d\]|\d{1,2}:\d\d)\s(?![a-z]{0,10}bot\b)(?:<|(?=[a-z-]{0,24}[\d._]))([a-z][\w.-]{2,24})>?:?\s"
)
# A database's own words, or a name that no word is.
QUOTED_USER = re.compile(
    r"(?<![^\W_])(?:(?:ALTER|CREATE|DROP)\s(?:ROLE|USER)|(?i:user|owner|login)(?=\s[\"'`][A-Za-z-]{0,30}[\d._]))\s[\"'`]([A-Za-z][\w.-]{2,30})[\"'`]"
)  # fmt: skip

_NOBODYS = re.compile(
    r"\d{1,6}[.,]\d\d|(?:19|20)\d\d(?:[-/]\d{2,4})?|\d{1,2}/(?:19|20)\d\d|\d{1,3}(?:\.\d{1,4}){2,4}|\d{1,3}(?:\.\d{3})+|\d{4}[-./]\d{1,2}[-./]\d{1,2}(?:T\d{0,6})?"
    r"|\d{1,2}[-./]\d{1,2}[-./]\d{2,4}|(?:SHA|MD|RFC|ISO|IEC|DIN|EN|HTTP|UTF|IPV|AES|RSA|X|GTX|RTX|AISI|PVC|CVE|PCI)-?\d[\d-]*|\d{1,3}-?(?:DAYS?|V|W|MG|GB|MB|X\w*)|\d{4}-Q\d"
)  # fmt: skip


def is_number(text: str) -> bool:
    """Four digits, or three with a letter: what is shorter counts things. No amount, date, version, standard."""
    digits = sum(letter.isdigit() for letter in text)
    return not _NOBODYS.fullmatch(text) and (digits > 3 or (digits == 3 and any(letter.isalpha() for letter in text)))


def is_long_number(text: str) -> bool:
    """Six digits, which are no range."""
    return is_number(text) and sum(map(str.isdigit, text)) > 5 and not re.fullmatch(r"\d{3,4}-\d{3,4}", text)


def is_plate(text: str) -> bool:
    letters, digits = sum(letter.isalpha() for letter in text), sum(letter.isdigit() for letter in text)
    return 0 < letters < 7 and 1 < digits < 7 and 4 < letters + digits < 10 and not _NOBODYS.fullmatch(text)


def _after(words: str, joint: str, value: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![^\W_])(?i:(?:{words}){joint})({value})")


ANNOUNCED: tuple[tuple[str, re.Pattern[str], Callable[[str], bool]], ...] = (
    ("MEDICAL_ID", _after(_MEDICAL, _STRONG, _NUMBER), is_number),
    ("MEDICAL_ID", _after(_MEDICAL_NUMBER, _ANY, _NUMBER), is_number),
    ("ACCOUNT", _after(f"{_ACCOUNT}|client(?=[ _-]?(?:{_NO}))", _STRONG, _NUMBER), is_number),
    ("ACCOUNT", _after(_ACCOUNT_NUMBER, _ANY, _NUMBER), is_number),
    ("ID_NUMBER", _after(_IDENTITY, _STRONG, _NUMBER), is_number),
    ("ID_NUMBER", _after(_IDENTITY_NUMBER, _ANY, _NUMBER), is_number),
    ("PLATE", _after(_PLATES, _STRONG, _PLATE), is_plate),
    ("PLATE", _after(_PLATE_NUMBER, _ANY, _PLATE), is_plate),
    ("ACCOUNT", _after(_ACCOUNT, r"\s", _ONE_WORD), is_long_number),
    ("ID_NUMBER", _after(_IDENTITY, r"\s", _ONE_WORD), is_long_number),
    ("MEDICAL_ID", _after(_MEDICAL, r"\s", _ONE_WORD), is_long_number),
)
"""(type, pattern whose first group is the number, whether that is one) of numbers, the surest first."""
