"""Data with a form of its own: found, and nothing else taken for it."""

from __future__ import annotations

import time
from itertools import pairwise

import pytest
from faker import Faker
from hypothesis import example, given
from hypothesis import strategies as st

from appliance.guards.patterns import find
from appliance.guards.phones import _REGIONS, _is_national, _is_valid
from appliance.guards.verdicts import merged


def found(text: str) -> list[tuple[str, str]]:
    return [(text[one.start : one.end], one.type) for one in find(text)]


@pytest.mark.parametrize(
    ("text", "what", "kind"),
    [
        ("Write to anna.keller+x@mail.example.co.uk, please.", "anna.keller+x@mail.example.co.uk", "EMAIL"),
        ("card 4111 1111 1111 1111 exp 10/29", "4111 1111 1111 1111", "CARD"),
        ("Amex 378282246310005.", "378282246310005", "CARD"),
        ("IBAN: DE89 3704 0044 0532 0130 00", "DE89 3704 0044 0532 0130 00", "IBAN"),
        ("GB29NWBK60161331926819 is the account", "GB29NWBK60161331926819", "IBAN"),
        ("from 192.168.4.17 at noon", "192.168.4.17", "IP"),
        ("host 2001:db8:85a3::8a2e:370:7334 answered", "2001:db8:85a3::8a2e:370:7334", "IP"),
        ("mac 00:1B:44:11:3A:B7", "00:1B:44:11:3A:B7", "MAC"),
        ("SSN 123-45-6789", "123-45-6789", "US_SSN"),
        ("NI number AB 12 34 56 C", "AB 12 34 56 C", "UK_NINO"),
        ("DNI 12345678Z", "12345678Z", "ES_ID"),
        ("CF: RSSMRA85T10A562S", "RSSMRA85T10A562S", "IT_FISCAL_CODE"),
        ("PESEL 44051401359", "44051401359", "NATIONAL_ID"),
        ("my passport no. is C01X00T47", "C01X00T47", "PASSPORT"),
        ("call +49 30 901820 now", "+49 30 901820", "PHONE"),
        ("Phone: (212) 736-5000", "(212) 736-5000", "PHONE"),
        ("Tél. 01 42 68 53 00", "01 42 68 53 00", "PHONE"),
        ("ring 0049 30 901820", "0049 30 901820", "PHONE"),
        ("order 12 arrived, my mobile is 07911123456", "07911123456", "PHONE"),
        ("total +49 30 901820", "+49 30 901820", "PHONE"),
        ("passport 20249930", "20249930", "PASSPORT"),
        ("the new version runs on 10.1.2.3", "10.1.2.3", "IP"),
        ("key sk-proj-abcdefghij0123456789ABCD", "sk-proj-abcdefghij0123456789ABCD", "SECRET"),
        ("see https://intranet.example.org/a?b=c.", "https://intranet.example.org/a?b=c", "URL"),
        ("profile: linkedin.com/in/a-mbanefo, see there", "linkedin.com/in/a-mbanefo", "URL"),
        ("DB_PASS=T4marind-Loop", "T4marind-Loop", "PASSWORD"),
        ("the guest network, clave jacaranda#77Sol", "jacaranda#77Sol", "PASSWORD"),
        ('clientSecret: "a8f5f167f44f4964"', "a8f5f167f44f4964", "PASSWORD"),
        ("mot de passe : Soleil*2024", "Soleil*2024", "PASSWORD"),
        ("login ok user=fvandersloot src=198.51.100.23", "fvandersloot", "USERNAME"),
        ('File "/home/tbarros/srv/worker.py"', "tbarros", "USERNAME"),
        ("Ihre Kundennummer: 0301234567", "0301234567", "ACCOUNT"),
        ("Klantnummer KD-20927.", "KD-20927", "ACCOUNT"),
        ("Your policy MV-771-2040 expires", "MV-771-2040", "ACCOUNT"),
        ('{"customer_id": "C-88120", "total": 12}', "C-88120", "ACCOUNT"),
        ("podaj numer konta 00 0000 0000.", "00 0000 0000", "ACCOUNT"),
        ("Hospital No. 96803079", "96803079", "MEDICAL_ID"),
        ("Vers.-Nr.: A123456780", "A123456780", "MEDICAL_ID"),
        ("employee no. 20871, kindly", "20871", "ID_NUMBER"),
        ("matricola PB5200, sarà in congedo", "PB5200", "ID_NUMBER"),
        ("Personalnummer 33081", "33081", "ID_NUMBER"),
        ('"kenteken":"JI43 SOX","status":"actief"', "JI43 SOX", "PLATE"),
        ("targa OUQ-0372.", "OUQ-0372", "PLATE"),
        ("Kennzeichen: B-XY 123", "B-XY 123", "PLATE"),
        ("Pillai, Pugazhendi, geb. 08.01.33, Kombi", "08.01.33", "DATE_OF_BIRTH"),
        ("geboren am 29.10.70 in Wien", "29.10.70", "DATE_OF_BIRTH"),
        ("<DataNascita>2009-07-30</DataNascita>", "2009-07-30", "DATE_OF_BIRTH"),
        ("née le 3 mars 1981 à Lille", "3 mars 1981", "DATE_OF_BIRTH"),
        ("a man born March 12, 1954 in Leeds", "March 12, 1954", "DATE_OF_BIRTH"),
        ("DOB 02/06/27 verified", "02/06/27", "DATE_OF_BIRTH"),
        ("23:42 diocel_7: me, car 12", "diocel_7", "USERNAME"),
        ("Customer 0171 2345678", "0171 2345678", "PHONE"),
        ("phone of customer: 0171 2345678", "0171 2345678", "PHONE"),
        ("patient 212 555 0187", "212 555 0187", "PHONE"),
        ("customer no. 1234 567890", "1234 567890", "ACCOUNT"),
        ("account no. 1234567 89", "1234567 89", "ACCOUNT"),
        ("Versicherungsnummer: 12 345678", "12 345678", "MEDICAL_ID"),
        ("| Customer no | 884512 |", "884512", "ACCOUNT"),
        ("Customer number is: 884512", "884512", "ACCOUNT"),
        ("Paziente n. 123456", "123456", "MEDICAL_ID"),
        ("numer pacjenta: 123456", "123456", "MEDICAL_ID"),
        ("Mitarbeiternummer: 4711", "4711", "ID_NUMBER"),
        ("targata AB 123 CD", "AB 123 CD", "PLATE"),
        ("license plate 3KWL165", "3KWL165", "PLATE"),
        ('"dateOfBirth": "1987-03-12"', "1987-03-12", "DATE_OF_BIRTH"),
        ("DOB (dd/mm/yyyy): 12/03/1987", "12/03/1987", "DATE_OF_BIRTH"),
        ("born 12th of March 1987", "12th of March 1987", "DATE_OF_BIRTH"),
        ("Geb.-Datum: 12.03.1987", "12.03.1987", "DATE_OF_BIRTH"),
        ("née Martin le 12 mars 1987", "12 mars 1987", "DATE_OF_BIRTH"),
        ("nacida en Madrid el 12/03/1987", "12/03/1987", "DATE_OF_BIRTH"),
        ("nato l'8 marzo 1970", "8 marzo 1970", "DATE_OF_BIRTH"),
        ("[08:05] <m.martin>: macht er nicht", "m.martin", "USERNAME"),
        ('ALTER ROLE "zalsaadi" NOLOGIN', "zalsaadi", "USERNAME"),
        ("Inlognaam: tandas", "tandas", "USERNAME"),
        ("<password>Finbar Ayesha8291</password>", "Finbar Ayesha8291", "PASSWORD"),
        ("WITH PASSWORD 'L&6R*Ih$yu' VALID", "L&6R*Ih$yu", "PASSWORD"),
        ("CVV 123", "123", "PIN"),
        ("the pin code is 0042", "0042", "PIN"),
        ("IMEI 490154203237518", "490154203237518", "IMEI"),
        ("VIN: 1HGCM82633A004352", "1HGCM82633A004352", "VIN"),
        ("card number 1234-5678-9012-3456", "1234-5678-9012-3456", "CARD"),
        ("send it to 1BvBMSEYstWetqTFn5Au4m4GFg7xJaNVN2", "1BvBMSEYstWetqTFn5Au4m4GFg7xJaNVN2", "CRYPTO"),
        ("dns 1.1.1.1", "1.1.1.1", "IP"),
        ("my number is 0171 2345678", "0171 2345678", "PHONE"),
        ("call customer service 0800 123 4567", "0800 123 4567", "PHONE"),
    ],
)  # fmt: skip
def test_what_has_a_form_is_found(text: str, what: str, kind: str) -> None:
    assert (what, kind) in found(text)


@pytest.mark.parametrize(
    "text",
    [
        "order 4111 1111 1111 1112", "IBAN DE89 3704 0044 0532 0130 01", "version 1.2.3 of 12.03.2024", "area 000-12-3456", "DNI 12345678A",
        "The meeting is on 2024-11-30 at 14:00:00", "ISBN 978-3-16-148410-0", "invoice 2024-000123 total 1,234.56", "10:20:30", "tracking 44051401359",
        "ID 0012345678", "x = y +1000000000", "x = y +10000000000", "return +4930901820", "+00000000", "+1234567", "call me tomorrow, order 20123456",
        "my passport expires on 20241130", "passport issued 01022019", "version 1.2.3.4", "firmware 10.4.0.12", "tel. of the shop, order no. 0301234567",
        "upgrade from 5.14.0.3 to 5.15.1.0 the badge", "Client 8.1.3.22 fails", "Changelog 10.4.2.1", "waybill 4410 7729 16, I am on my cell",
        "What's your account number? Caller: It's 8830 2217 04.", "your passport number. I have 533 104 472", "Reference is 7718-0204. Shall we ring?",
        "la pratica è la 2026/118", "Tijd: 14-02-2026 03:12", "password: str = Field(default=None)", "token = get_token()",
        "Password: required, at least 8 characters", "his password is still not set", "user: the person who asked", "username: string", "user=request.user",
        "pass rate: 98.5%", "the pin 7 of the connector", "spin 1234", "tokenizer: bert-base-uncased", "/home/runner/work", "see node.js/npm or and/or",
        "a@b", "1234567890123456", "part no. 556-2233-1", "log shows client 172.17.0 twice", "swim badge 10.00", "we have 240 members", "customer 12", "account since 2019", "policy 2024",
            "born in 1984 in Rome", "the room was born of 3 ideas", "12:30:05 nginx: reload", "[08:05] error: no route", "14:03 helpbot: how can I help", 'a message of role "tool"',
            "tagged 1.2.3",
            'api_key = "$API_KEY"', 'password: "${DB_PASSWORD}"', 'token: "<your-password>"', "pw = '%(password)s'", 'Password "(optional)"', "const token = 'useAuth()'",
            "Unexpected token '1234+' in JSON", "compte 1000 euros de plus", "conto: 12.345,67", "account: 1200 EUR", "patient 1500 mg daily", "staff 1200 people", "student 1000-1500 words",
            "Hospital 3.500 Betten", "account-2024-01-01.log", "account: 2024-12-01T10:00:00Z", "Patient 12.03.2024", "policy 12/2024", "student 2023/24", "client 48213 disconnected",
            "[client:8080]", "docker-client 20.10.1234", "patient0001", "account1234.png", "client SHA256 mismatch", "policy RFC-2119", "Policy: ISO-27001", "NATO 9 July 2024 summit",
            "nata 5 maggio 2024 la nuova app", "12:30 lunch: pizza", "[12:30] joined: hello", 'user "story"', 'owner "unknown"', 'GRANT ALL TO ROLE "reporting_ro"', "CREATE USER 'www-data'",
            "the plate AISI 304", "placa NVIDIA A100", "Registration: RFC7591", "kfz 2024-Q1", "placa 12V 100W", "kennzeichen DIN4853", "plate of 12 oysters", 'password: "must contain 8 letters"', "patient for 20 minutes", "the accountant 4711", "between 1914-1918", "1,000,000 people", "x = 0x1F; y = 1e10", "3.14159265358979",
    ],
)  # fmt: skip
def test_what_only_looks_like_it_is_not(text: str) -> None:
    assert found(text) == []


@pytest.mark.parametrize("locale", ["de_DE", "fr_FR", "en_GB", "nl_NL", "es_ES", "it_IT", "pl_PL", "pt_PT", "sv_SE"])
def test_ibans_of_many_countries_are_found_with_and_without_spaces(locale: str) -> None:
    fake = Faker(locale)
    fake.seed_instance(1)
    for _ in range(20):
        iban = fake.iban()
        apart = " ".join(iban[i : i + 4] for i in range(0, len(iban), 4))
        assert found(f"account {iban}, thanks") == [(iban, "IBAN")]
        assert found(f"account {apart}, thanks") == [(apart, "IBAN")]


def test_cards_of_all_issuers_are_found() -> None:
    fake = Faker("en_US")
    fake.seed_instance(1)
    for kind in ("visa", "visa16", "mastercard", "amex", "discover", "jcb16", "diners"):
        for _ in range(10):
            number = fake.credit_card_number(card_type=kind)
            assert found(f"pay with {number} today") == [(number, "CARD")], kind


@given(st.text(st.characters(), max_size=300))
def test_any_text_has_finds_within_it_that_do_not_overlap(text: str) -> None:
    spans = [(one.start, one.end) for one in find(text)]
    assert all(0 <= a < b <= len(text) for a, b in spans)
    assert all(before[1] <= after[0] for before, after in pairwise(spans))


@pytest.mark.parametrize(
    "piece",
    [
        "1",
        "1 ",
        "a@",
        "a.",
        ":",
        "AB12",
        "(",
        "1-",
        "00",
        "+1 ",
        "www.",
        "https://",
        "ey",
        "f:",
        "12.",
        "x@y.",
        "A1 ",
        "12/",
        "DE89 ",
        "sk-",
        "-eyJ",
        "pass=",
        "password is ",
        "user: ",
        "a.com/",
        "-----BEGIN PRIVATE KEY-----",
        "upgrade from 1.2.3.4 to ",
        "AB12" * 9 + " ",
        "a@b.co ",
        "call 0301234567 ",
        "account no. ",
        "customer id: A1-",
        "born ",
        "geb. 1.",
        "kenteken: A1 ",
        "\n12:30 a.",
        "password 'a",
        "\u200b",
        "１",
    ],
)
def test_finding_takes_linear_time(piece: str) -> None:
    def cost(length: int) -> float:
        text = piece * (length // len(piece))
        began = time.process_time()
        merged(find(text), find(text))
        return time.process_time() - began

    small = max(cost(10_000), 0.02)
    assert cost(80_000) < 8 * small * 4


@given(st.from_regex(r"(?:0|1|011|8|49|44)?[0-9]{6,14}", fullmatch=True))
@example("2125551234")
@example("07911123456")
@example("01149309018200")
def test_a_number_is_parsed_only_where_it_may_be_valid_and_none_is_missed(digits: str) -> None:
    assert _is_national(digits) == any(_is_valid(digits, region) for region in _REGIONS)
