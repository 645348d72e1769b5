"""Personal data that the word before it announces: numbers, plates and dates of birth whose form alone says nothing.

Forms, tables, logs and letters write "customer no. K-09-07917" or "geb. 08.01.33"; the word makes the number personal.
Every pattern takes time linear in the text.
"""

from __future__ import annotations

import re

_NO = r"(?:no|nr|num|numbers?|nummer|numero|número|numéro|numer|id|code|n[°ºr])\b\.?"
_JOIN = rf"\.?[\"']?[ _-]?(?:{_NO})?[\"']?(?:\s{{0,3}}[:=#>]|\s(?:is|ist|est|es|è|was)\b|\.{{2,12}})?\s{{0,3}}[\"'#]?"
# Parts of letters and digits, joined by marks; or groups of digits with spaces between them.
_NUMBER = r"(?:\d{2,5}(?: \d{2,5}){1,4}|[A-Z0-9]{1,12}(?:[-/.][A-Z0-9]{1,12}){0,4})(?![\w-])"
_PLATE = r"(?:[A-Z]{1,3}[- ])?[A-Z0-9]{2,7}(?:[- ][A-Z0-9]{1,4}){0,2}(?![\w-])"
_DATE = (
    r"(?:\d{1,2}[./-]\d{1,2}[./-](?:\d{4}|\d{2})|\d{4}[./-]\d{1,2}[./-]\d{1,2}|\d{1,2}(?:\.|st|nd|rd|th)? (?:de )?[^\W\d_]{3,12}\.?,? (?:de )?\d{4}"
    r"|[^\W\d_]{3,12}\.? \d{1,2}(?:st|nd|rd|th)?,? \d{4})(?!\d)"
)  # fmt: skip

_MEDICAL = (
    r"mrn|medical record|patient(?:en)?|hospital|nhs|health insurance|vers(?:ichert?en|icherungs|\.)(?:-?nr|-?nummer)|kvnr|krankenversicherungs(?:-?nr|nummer)|dossier médical"
    r"|historia clínica|cartella clinica|patiënt"
)  # fmt: skip
_ACCOUNT = (
    r"account|acct|a/c|customer|client|member(?:ship)?|policy|loyalty card|konto(?:-?nr|nummer)?|kunden(?:-?nr|nummer|karte)|vertrags(?:-?nr|nummer)|mitglieds(?:-?nr|nummer)|compte|contrat"
    r"|cuenta|cliente|póliza|conto|polizza|rekening(?:nummer)?|klant(?:nummer|nr)|polis(?:nummer|nr)|lidmaatschaps(?:nummer|nr)|konta|klienta|kundnummer|medlemsnummer|asiakasnumero|müşteri"
)  # fmt: skip
_IDENTITY = (
    r"staff|employee|badge|student|passport|licen[cs]e|driver'?s? licen[cs]e|id(?:entity)? card|personal(?:-?nr|nummer)|dienst(?:nummer|ausweis)|ausweis(?:-?nr|nummer)?|führerschein(?:-?nr|nummer)?"
    r"|matricol[ae]|matricule|pasaporte|passeport|passaporto|permis|cédula|tessera|personeels(?:nummer|nr|pas)|medewerkers?nummer|paspoort(?:nummer)?|rijbewijs(?:nummer)?|legitymacj[ai]|anställningsnummer"
)  # fmt: skip
_PLATE_WORDS = (
    r"(?:licen[cs]e |number |registration )plates?|plates?|registration|kennzeichen|kfz(?:-kennzeichen)?|immatricul(?:ation|ée?)|plaque|matrícula|targa|placa|kenteken|rejestracyjn[yae]|plaka"
)  # fmt: skip
_BIRTH = (
    r"born|dob|d\.o\.b\.?|date of birth|birth[ _-]?date|date[ _]of[ _]birth|geb\.|geboren|geburts(?:datum|tag)|née?|né\(e\)|date[ _]de[ _]naissance|nacid[oa]|fecha[ _]de[ _]nacimiento|nat[oa]|data[ _]?(?:di[ _]?)?nascita"
    r"|nascid[oa]|data[ _]de[ _]nascimento|geboortedatum|ur\.|urodzon[yae]|data[ _]urodzenia|född|födelsedatum|født|fødselsdato|doğum tarihi|narozen[áý]?|datum narození"
)  # fmt: skip


def _after(words: str, value: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![^\W_])(?i:(?:{words}){_JOIN})({value})")


MEDICAL_ID = _after(_MEDICAL, _NUMBER)
ACCOUNT = _after(_ACCOUNT, _NUMBER)
ID_NUMBER = _after(_IDENTITY, _NUMBER)
PLATE = _after(_PLATE_WORDS, _PLATE)
DATE_OF_BIRTH = re.compile(
    rf"(?<![^\W_])(?i:(?:{_BIRTH})[\"']?(?:\s{{0,3}}[:=>])?\s{{0,3}}(?:(?:on|am|le|el|il|em|den|op|the|dnia)\s)?[\"']?)({_DATE})"
)


# In a conversation that is stamped with hours and minutes; lines of logs have seconds, and programs where the name is.
SPEAKER = re.compile(
    r"(?m)^(?:\[\d{1,2}:\d\d\]|\d{1,2}:\d\d)\s(?!(?:error|warn|warning|info|debug|notice|note|todo|fatal|trace|critical|system|me|you|[a-z]{0,10}bot)\b)<?([a-z][\w.-]{2,24})>?:\s"
)  # fmt: skip
QUOTED_USER = re.compile(r"(?<![^\W_])(?:ROLE|(?i:user|owner|login))\s{1,3}[\"'`]([A-Za-z][\w.-]{2,30})[\"'`]")

_AMOUNT_OR_YEAR = re.compile(r"\d{1,6}[.]\d\d|(?:19|20)\d\d|\d{1,3}(?:\.\d{1,3}){2,3}")


def is_number(text: str) -> bool:
    """Four digits, or three with a letter: what is shorter counts things. No amount, year or address of the internet."""
    if _AMOUNT_OR_YEAR.fullmatch(text):
        return False
    digits = sum(letter.isdigit() for letter in text)
    return digits > 3 or (digits == 3 and any(letter.isalpha() for letter in text))


def is_plate(text: str) -> bool:
    letters, digits = sum(letter.isalpha() for letter in text), sum(letter.isdigit() for letter in text)
    return letters > 0 and digits > 1 and letters + digits > 4
