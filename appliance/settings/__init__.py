"""The one settings file: schema, loading with file and line, secrets, reload.

`load(choose_file(given, env, folder), env).settings.server.listen.port` is all that most callers need.
"""

from appliance.settings.changes import Changes, NameChanges, diff, keep_fixed
from appliance.settings.checks import ModelFacts, check_against_catalogue
from appliance.settings.document import Finding
from appliance.settings.loader import Loaded, choose_file, from_mapping, load
from appliance.settings.problems import Problem, SettingsError
from appliance.settings.providers import Provider, ProviderKey
from appliance.settings.routing import Deadlines, DeploymentTarget, ProviderTarget, Route, RouteTarget, Zone
from appliance.settings.schema import (
    CatalogueSettings,
    Console,
    Database,
    FixedKey,
    Identity,
    Log,
    Server,
    Settings,
    Tls,
)
from appliance.settings.secrets import SecretMissing, SecretRef, resolve
from appliance.settings.serving import Deployment, LlamaCppArgs, Replicas
from appliance.settings.values import Address

__all__ = [
    "Address",
    "CatalogueSettings",
    "Changes",
    "Console",
    "Database",
    "Deadlines",
    "Deployment",
    "DeploymentTarget",
    "Finding",
    "FixedKey",
    "Identity",
    "LlamaCppArgs",
    "Loaded",
    "Log",
    "ModelFacts",
    "NameChanges",
    "Problem",
    "Provider",
    "ProviderKey",
    "ProviderTarget",
    "Replicas",
    "Route",
    "RouteTarget",
    "SecretMissing",
    "SecretRef",
    "Server",
    "Settings",
    "SettingsError",
    "Tls",
    "Zone",
    "check_against_catalogue",
    "choose_file",
    "diff",
    "from_mapping",
    "keep_fixed",
    "load",
    "resolve",
]
