"""How much may be asked for, what it costs, and who waits for whom."""

from __future__ import annotations

from pydantic import Field

from appliance.settings.section import Section


class Limit(Section):
    """One limit over one scope."""

    scope: str = Field(description="What is counted apart.", examples=["team"])


class Price(Section):
    """What a target costs."""

    target: str = Field(description="Deployment, or provider/model.", examples=["lab/llama-3.3-70b"])


class Admission(Section):
    """Waiting for a target that is busy."""
