"""Which targets an exchange may use, in which order, and with which request. Pure decisions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from appliance.dialects.asked import Asked
from appliance.dialects.kinds import Kind
from appliance.errors import OutpostError
from appliance.routing.board import Board
from appliance.routing.breaker import FINE, usable
from appliance.routing.candidate import Candidate, Plan
from appliance.routing.complexity import assess
from appliance.routing.explain import Considered, Explanation
from appliance.routing.fit import fit, override
from appliance.routing.left_out import larger, reasons, refusal
from appliance.routing.planner import Planner
from appliance.routing.routes import Route, Target
from appliance.routing.situation import Allowed, Situation, forbidden

_NO_OVERRIDES: Mapping[str, object] = {}


def make_plan(
    route: Route, kind: Kind, asked: Asked, allowed: Allowed | None = None, situation: Situation | None = None
) -> Plan:
    """Raises UnsupportedParameter or BadRequest if no target can honour the request, PermissionDenied if none is
    allowed to the asker, Unavailable if none is up or meant for it; why each is left out is in the notes of the last,
    for operators only."""
    planner = Planner(route, kind, asked, allowed, situation)
    candidates = planner.candidates(route, {}) or planner.on_trial()
    if candidates:
        return Plan(route, tuple(candidates), reasons(planner.cuts), larger(planner.cuts, candidates))
    raise refusal(route.model, planner.cuts)


def plain_plan(
    route: Route, kind: Kind, asked: Asked, allowed: Allowed | None, board: Board, now: float
) -> Plan | None:
    """What `make_plan` gives in the usual case: every target of a route without conditions or scores can have the
    request now, and nobody demands anything of it. None: it is another case."""
    if not route.plain:
        return None
    request, candidates = asked.request, []
    for target in route.targets:
        assert isinstance(target, Target)  # the route is plain
        upstream = target.upstream
        if allowed is not None and forbidden(target, allowed):
            return None
        standing = board.standing(target.name, now)
        if standing is not FINE and (standing.last or not usable(standing)):
            return None
        try:
            fitted = fit(asked, kind, upstream.capabilities, drop=route.drop_unsupported, model=route.model)
        except OutpostError:
            return None
        if not upstream.readiness().ready:
            return None
        wanted, native = override(fitted, target.overrides), asked.native
        if native is not None and wanted is not request:
            native = kind.carry(native, request, wanted)
        candidates.append(Candidate(target, wanted, native))
    return Plan(route, tuple(candidates))


def fit_shadow(
    routes: Sequence[Route],
    kind: Kind,
    asked: Asked,
    allowed: Allowed | None,
    situation: Situation,
    target: Target,
    overrides: Mapping[str, object] = _NO_OVERRIDES,
) -> tuple[Candidate | None, str]:
    """The request as a shadow gets it, where the same rules let it have the request as hold for targets; else None, and
    why. routes: that which was asked for, and the way from there to the one whose shadow it is; overrides: of the way.
    """
    planner = Planner(routes[0], kind, asked, allowed, situation)
    candidate = planner.shadow(target, routes[1:], dict(overrides))
    return candidate, "; ".join(reasons(planner.cuts))


def explain_plan(route: Route, kind: Kind, asked: Asked, allowed: Allowed | None, situation: Situation) -> Explanation:
    """What `make_plan` would decide, and why. Asks nobody, and raises nothing for what it decides."""
    planner = Planner(route, kind, asked, allowed, situation)
    candidates = planner.candidates(route, {}) or planner.on_trial()
    remarks = [] if candidates else [refusal(route.model, planner.cuts).message]
    return Explanation(
        route=route.model,
        strategy=route.strategy,
        request=_facts(planner, kind, asked, situation),
        considered=tuple(_considered(planner, kind, asked, candidates)),
        remarks=tuple(remarks),
    )


def _facts(planner: Planner, kind: Kind, asked: Asked, situation: Situation) -> dict[str, Any]:
    """What the decisions were made from, as Explanation.request has it."""
    facts = planner.facts()
    told: dict[str, Any] = {"operation": kind.operation, "prompt_tokens": facts.prompt_tokens}
    if kind.operation == "chat.completions":
        # Also where no condition asks for it: so that somebody can see what one would do.
        found = assess(asked.request)
        told["complexity"] = found.score
        told["complexity from"] = dict(found.parts)
    if facts.features:
        told["features"] = ", ".join(sorted(facts.features))
    if situation.tags:
        told["tags"] = ", ".join(situation.tags)
    if situation.session:
        told["session"] = situation.session
    if planner.residency.zone != "cloud":
        told["data stays"] = f"{planner.residency.zone}, for {planner.residency.by}"
    return told


def _considered(planner: Planner, kind: Kind, asked: Asked, candidates: Sequence[Candidate]) -> Iterator[Considered]:
    for place, candidate in enumerate(candidates, 1):
        target = candidate.target
        score, reason = planner.scores.get(target.name, (None, "in the order of the file"))
        yield Considered(
            target=target.name,
            zone=target.zone,
            place=place,
            score=score,
            why=reason,
            pseudonymise=candidate.pseudonymise,
            without=tuple(_without(candidate, kind, asked)),
        )
    for cut in planner.cuts:
        yield Considered(target=cut.target.name, zone=cut.target.zone, place=None, why=cut.why)


def _without(candidate: Candidate, kind: Kind, asked: Asked) -> Iterator[str]:
    """What of the request a target does not get."""
    wanted, gets = asked.request, candidate.request
    lost = [
        name for name in wanted.__struct_fields__ if getattr(wanted, name) is not None and getattr(gets, name) is None
    ]
    yield from (told := dict.fromkeys(map(kind.field_name, lost)))
    has = candidate.target.upstream.capabilities.features
    for feature, field, droppable in kind.needs(asked):  # what only the client's own body asks for
        if droppable and feature not in has and field not in told:
            yield field
    betas = getattr(asked.native, "betas", None)
    for beta in candidate.target.upstream.capabilities.betas.without(betas):
        yield f"{kind.header} {beta}"
