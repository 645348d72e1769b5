"""Kinds of personal data, as detectors name them, and which of them are the same thing to a judge."""

from __future__ import annotations

from collections.abc import Mapping

_NUMBERS = (
    "ID_NUMBER", "NATIONAL_ID", "PASSPORT", "US_SSN", "UK_NINO", "ES_ID", "IT_FISCAL_CODE", "FR_NIR", "BR_CPF", "MX_CURP", "IN_PAN", "CH_AHV", "FI_HETU",
    "SE_PERSONNUMMER", "BE_NN", "DK_CPR", "CZ_SK_RC", "MEDICAL_ID", "ACCOUNT", "PLATE", "IBAN", "CARD", "IMEI", "VIN",
)  # fmt: skip
GROUPS: Mapping[str, str] = {
    **dict.fromkeys(_NUMBERS, "NUMBER"), "ADDRESS": "PLACE", "LOCATION": "PLACE", "PASSWORD": "SECRET", "PIN": "SECRET", "ID": "NUMBER",
}  # fmt: skip
"""What counts as the same kind: that a customer number is personal matters more than whose number it is."""
