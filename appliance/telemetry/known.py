"""Which secrets the settings lead to, so that they can be kept out of logs."""

from __future__ import annotations

from collections.abc import Mapping

from appliance.redact import Secrets
from appliance.settings.references import references
from appliance.settings.schema import Settings
from appliance.settings.secrets import SecretMissing, resolve


def learn(secrets: Secrets, settings: Settings, env: Mapping[str, str]) -> None:
    """Keep every secret of the settings out from now on; earlier ones stay out. What is missing, others tell."""
    for _, reference in references(settings):
        try:
            secrets.add(resolve(reference, env))
        except SecretMissing:
            continue
