"""Which targets an exchange may use, in which order, and with which request. Pure decisions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import msgspec

from appliance.dialects.asked import Asked
from appliance.dialects.kinds import Kind, Request
from appliance.errors import ModelLoading, OutpostError, PermissionDenied, TargetLimited, TargetResting, Unavailable
from appliance.providers.upstream import Readiness, Upstream
from appliance.routing import conditions, residency
from appliance.routing.board import Board
from appliance.routing.breaker import FINE, Standing, usable
from appliance.routing.complexity import assess
from appliance.routing.explain import Considered, Explanation
from appliance.routing.fit import fit, override
from appliance.routing.hashing import prefix_key
from appliance.routing.health import resting
from appliance.routing.routes import Nested, Route, Target
from appliance.routing.strategies import Asking, Choice, Zone, rank

EXPECTED_OUTPUT = 256
"""Tokens of an answer of which nobody says how long it may be, for comparing targets."""


_NO_OVERRIDES: Mapping[str, object] = {}


class Candidate(msgspec.Struct, frozen=True):
    """A target that can honour the request, and the request as this target gets it."""

    target: Target
    request: Request
    native: object = None
    """The same in the client's own dialect; see appliance.dialects.asked."""
    pseudonymise: bool = False
    """What is sensitive must not leave the premises as it is."""
    within: residency.Residency = residency.UNBOUND
    """Where the data must stay that goes to this target."""


class Plan(msgspec.Struct, frozen=True):
    """What may be tried, the best first, never empty."""

    route: Route
    candidates: tuple[Candidate, ...]
    why: tuple[str, ...] = ()
    """Why the other targets were left out."""
    larger: Readiness | None = None
    """Of a target that cannot answer now but could take more text than all candidates; None = there is none."""


class Allowed(Protocol):
    """What the asker is limited to; None = not limited. `models` are names of targets."""

    @property
    def models(self) -> tuple[str, ...] | None: ...
    @property
    def zones(self) -> tuple[Zone, ...] | None: ...


def _zero() -> int:
    return 0


class Situation(msgspec.Struct):
    """What a plan goes by, beside the request itself."""

    board: Board
    now: float
    """Monotonic seconds."""
    wall: float
    """Unix seconds."""
    random: Callable[[], float]
    """Numbers in [0, 1)."""
    count: Callable[[], int] = _zero
    """Tokens of the prompt, about; asked for where it matters."""
    session: str = ""
    """Whose requests should stay where they are; "" = nobody's."""
    partition: str = ""
    tags: tuple[str, ...] = ()
    teams: frozenset[str] = frozenset()
    organizations: frozenset[str] = frozenset()
    keys: frozenset[str] = frozenset()
    demands: tuple[residency.Demand, ...] = ()
    """Where the data must stay, beside what the route says."""


class _Place(NamedTuple):
    """What stands in one place of a route, with whom it would have asked: the best first, never empty."""

    each: Target | Nested
    candidates: list[Candidate]


class _Cut(msgspec.Struct, frozen=True):
    """A target that is left out."""

    target: Target
    why: str
    error: OutpostError | None = None
    readiness: Readiness | None = None
    """Of one that could, but is not up."""


def make_plan(
    route: Route, kind: Kind, asked: Asked, allowed: Allowed | None = None, situation: Situation | None = None
) -> Plan:
    """Raises UnsupportedParameter or BadRequest if no target can honour the request, PermissionDenied if none is
    allowed to the asker, Unavailable if none is up or meant for it; why each is left out is in the notes of the last,
    for operators only."""
    planner = _Planner(route, kind, asked, allowed, situation)
    candidates = planner.candidates(route, {}) or planner.on_trial()
    if candidates:
        return Plan(route, tuple(candidates), planner.why(), planner.larger(candidates))
    raise planner.refusal()


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
        if allowed is not None and _forbidden(target, allowed):
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
    planner = _Planner(routes[0], kind, asked, allowed, situation)
    candidate = planner.shadow(target, routes[1:], dict(overrides))
    return candidate, "; ".join(planner.why())


def explain_plan(route: Route, kind: Kind, asked: Asked, allowed: Allowed | None, situation: Situation) -> Explanation:
    """What `make_plan` would decide, and why. Asks nobody, and raises nothing for what it decides."""
    planner = _Planner(route, kind, asked, allowed, situation)
    candidates = planner.candidates(route, {}) or planner.on_trial()
    remarks = [] if candidates else [planner.refusal().message]
    return Explanation(
        route=route.model,
        strategy=route.strategy,
        request=planner.told_facts(),
        considered=tuple(planner.considered(candidates)),
        remarks=tuple(remarks),
    )


class _Planner:
    """One plan in the making."""

    def __init__(
        self, route: Route, kind: Kind, asked: Asked, allowed: Allowed | None, situation: Situation | None
    ) -> None:
        self._route = route
        self._kind = kind
        self._asked = asked
        self._allowed = allowed
        self._situation = situation
        self._cut: list[_Cut] = []
        self._facts: conditions.Facts | None = None
        self._scores: dict[str, tuple[float | None, str]] = {}
        """What a strategy says of a target."""
        self._on_trial: list[tuple[Candidate, _Cut]] = []
        self._demands = [*situation.demands] if situation is not None else []
        """Where the data must stay."""
        self._demand(route)
        self._residency = residency.strictest(self._demands) if self._demands else residency.UNBOUND
        self._within = self._residency
        """With what the routes inside the route demand, while their targets are looked at."""

    def _demand(self, route: Route) -> None:
        if route.keep != "any":
            self._demands.append(residency.Demand(route.keep, f"the route {route.model}", route.keep_action))

    def _go_inside(self, route: Route) -> None:
        """What a route inside the route demands holds also when it is reached through another."""
        known = len(self._demands)
        self._demand(route)
        if len(self._demands) > known:
            self._within = residency.strictest(self._demands)

    def _inside(self, nested: Nested, overrides: dict[str, object]) -> list[Candidate]:
        """The candidates of a route inside the route."""
        outer, known = self._within, len(self._demands)
        self._go_inside(nested.route)
        found = self.candidates(nested.route, {**overrides, **nested.overrides})
        self._within = outer
        del self._demands[known:]
        return found

    def candidates(self, route: Route, overrides: dict[str, object]) -> list[Candidate]:
        """Of a route, with those of the routes inside it in their place, the best first."""
        fitting: list[_Place] = []
        for each in route.targets:
            if not self._holds(each):
                continue
            if isinstance(each, Nested):
                if inside := self._inside(each, overrides):
                    fitting.append(_Place(each, inside))
            elif (candidate := self._fitted(each, overrides)) is not None:
                fitting.append(_Place(each, [candidate]))
        found: list[Candidate] = []
        for at in self._order(route, fitting):
            found += fitting[at].candidates
        return found

    # --- who can ------------------------------------------------------------------------------------

    def _holds(self, each: Target | Nested) -> bool:
        """Whether the condition of a target holds."""
        if each.when is None:
            return True
        holds, reason = conditions.matches(each.when, self.facts())
        if not holds:
            if isinstance(each, Nested):
                reason = f"the route {each.name} is left out: {reason}"
                self._cut += [_Cut(target, reason) for target in each.route.all_targets()]
            else:
                self._cut.append(_Cut(each, reason))
        return holds

    def _fitted(self, target: Target, overrides: dict[str, object]) -> Candidate | None:
        forbidden = _forbidden(target, self._allowed)
        if forbidden:
            error = PermissionDenied(f"This key may not use the model {self._route.model}: {forbidden}.")
            self._cut.append(_Cut(target, forbidden, error))
            return None
        verdict = residency.allowed(target.zone, self._within)
        if not verdict.allowed:
            error = PermissionDenied(
                f"The model {self._route.model} has no target where this data may go: {verdict.why}.", code="residency"
            )
            self._cut.append(_Cut(target, verdict.why, error))
            return None
        asked, request = self._asked, self._asked.request
        try:
            fitted = fit(
                asked,
                self._kind,
                target.upstream.capabilities,
                drop=self._route.drop_unsupported,
                model=self._route.model,
            )
        except OutpostError as error:
            self._cut.append(_Cut(target, error.message, error))
            return None
        readiness = target.upstream.readiness()
        if not readiness.ready:
            self._cut.append(_Cut(target, readiness.reason, readiness=readiness))
            return None
        wanted = override(override(fitted, overrides), target.overrides)
        native = asked.native
        if native is not None and wanted is not request:
            native = self._kind.carry(native, request, wanted)
        return Candidate(target, wanted, native, verdict.pseudonymise, self._within)

    def shadow(self, target: Target, way: Sequence[Route], overrides: dict[str, object]) -> Candidate | None:
        """A target that is asked beside the plan. Nothing is masked for it: what must be, it does not get."""
        for route in way:
            self._go_inside(route)
        candidate = self._fitted(target, overrides)
        if candidate is None or not candidate.pseudonymise:
            return candidate
        self._cut.append(_Cut(target, "what is sensitive would have to be masked for it"))
        return None

    # --- who first ----------------------------------------------------------------------------------

    def _order(self, route: Route, fitting: Sequence[_Place]) -> Iterator[int]:
        """Places in `fitting`, the best first; who is not to be asked now is left out."""
        situation = self._situation
        if situation is None:
            yield from range(len(fitting))
            return
        if route.strategy == "priority" and not route.scored:
            last = []
            for at, (each, inside) in enumerate(fitting):
                standing = situation.board.standing(inside[0].target.name, situation.now)
                if standing.last:
                    last.append(at)
                    self._scores[each.name] = (None, f"in the order of the file, but after others: {standing.reason}")
                elif isinstance(each, Nested) or usable(standing):
                    yield at
                else:
                    self._rests(inside[0], standing)
            yield from last
            return
        board, now = situation.board, situation.now
        choices = [_choice(each, board, now) for each in fitting]
        ranking = rank(route.strategy, choices, self._asking(route), situation.random)
        for at, score, reason in ranking.order:
            self._scores[fitting[at].each.name] = (score, reason)
            yield at
        for at, _, _ in ranking.out:
            each, inside = fitting[at]
            if isinstance(each, Target):
                self._rests(inside[0], board.standing(each.name, now))

    def _rests(self, candidate: Candidate, standing: Standing) -> None:
        target = candidate.target
        cut = _Cut(target, standing.reason, resting(target.name, standing))
        self._cut.append(cut)
        if standing.alone:
            self._on_trial.append((candidate, cut))

    def on_trial(self) -> list[Candidate]:
        """Where there is nobody else: those that are only left out because they are tried with others already."""
        taken, self._on_trial = self._on_trial, []
        self._cut = [cut for cut in self._cut if all(cut is not each for _, each in taken)]
        return [candidate for candidate, _ in taken]

    def _asking(self, route: Route) -> Asking:
        situation = self._situation
        assert situation is not None
        request = self._asked.request
        limit = getattr(request, "token_limit", None)
        prefix = prefix_key(request, situation.partition) if route.strategy == "prefix" else b""
        return Asking(
            prompt_tokens=self.facts().prompt_tokens,
            output_tokens=EXPECTED_OUTPUT if limit is None else limit,
            session=situation.session if route.sticky else "",
            prefix=prefix,
        )

    def facts(self) -> conditions.Facts:
        """What conditions go by."""
        if self._facts is None:
            situation = self._situation
            assert situation is not None
            self._facts = conditions.Facts(
                prompt_tokens=situation.count(),
                features=conditions.features_of(self._kind.needs(self._asked)),
                tags=frozenset(situation.tags),
                teams=situation.teams,
                organizations=situation.organizations,
                keys=situation.keys,
                zone=self._residency.zone,
                at=situation.wall,
                complexity=self._complexity(),
            )
        return self._facts

    def _complexity(self) -> int | None:
        if not self._route.uses_complexity or self._kind.operation != "chat.completions":
            return None
        return assess(self._asked.request).score

    # --- what comes of it -----------------------------------------------------------------------------

    def why(self) -> tuple[str, ...]:
        return tuple([f"{cut.target.name}: {cut.why}" for cut in self._cut]) if self._cut else ()

    def larger(self, candidates: Sequence[Candidate]) -> Readiness | None:
        if not self._cut:
            return None
        most = max(_length(candidate.target.upstream) for candidate in candidates)
        return next((cut.readiness for cut in self._cut if cut.readiness and _length(cut.target.upstream) > most), None)

    def refusal(self) -> OutpostError:
        """Why there is no candidate: the first that is not up, or rests, tells most; then the first refusal."""
        down = next((cut.readiness for cut in self._cut if cut.readiness is not None), None)
        if down is not None:
            return unavailable(self._route.model, down)
        rest = [cut.error for cut in self._cut if isinstance(cut.error, TargetResting | TargetLimited)]
        if rest:
            return min(rest, key=lambda error: error.retry_after_s or 0.0)
        refused = next((cut.error for cut in self._cut if cut.error is not None), None)
        if refused is not None:
            return refused
        nobody = Unavailable(
            f"The model {self._route.model} is not for requests like this one: the conditions of its targets do not "
            "hold. Ask for another model, or the operator, who can see why."
        )
        for why in self.why():
            nobody.add_note(why)  # names teams, keys and tags of the settings: for operators
        return nobody

    def told_facts(self) -> dict[str, Any]:
        situation = self._situation
        assert situation is not None
        facts = self.facts()
        told: dict[str, Any] = {"operation": self._kind.operation, "prompt_tokens": facts.prompt_tokens}
        if self._kind.operation == "chat.completions":
            # Also where no condition asks for it: so that somebody can see what one would do.
            found = assess(self._asked.request)
            told["complexity"] = found.score
            told["complexity from"] = dict(found.parts)
        if facts.features:
            told["features"] = ", ".join(sorted(facts.features))
        if situation.tags:
            told["tags"] = ", ".join(situation.tags)
        if situation.session:
            told["session"] = situation.session
        if self._residency.zone != "cloud":
            told["data stays"] = f"{self._residency.zone}, for {self._residency.by}"
        return told

    def considered(self, candidates: Sequence[Candidate]) -> Iterator[Considered]:
        for place, candidate in enumerate(candidates, 1):
            target = candidate.target
            score, reason = self._scores.get(target.name, (None, "in the order of the file"))
            yield Considered(
                target=target.name,
                zone=target.zone,
                place=place,
                score=score,
                why=reason,
                pseudonymise=candidate.pseudonymise,
                without=tuple(self._without(candidate)),
            )
        for cut in self._cut:
            yield Considered(target=cut.target.name, zone=cut.target.zone, place=None, why=cut.why)

    def _without(self, candidate: Candidate) -> Iterator[str]:
        """What of the request a target does not get."""
        asked, gets = self._asked.request, candidate.request
        lost = [
            name for name in asked.__struct_fields__ if getattr(asked, name) is not None and getattr(gets, name) is None
        ]
        yield from (told := dict.fromkeys(map(self._kind.field_name, lost)))
        has = candidate.target.upstream.capabilities.features
        for feature, field, droppable in self._kind.needs(self._asked):  # what only the client's own body asks for
            if droppable and feature not in has and field not in told:
                yield field
        wanted = getattr(self._asked.native, "betas", None)
        for beta in candidate.target.upstream.capabilities.betas.without(wanted):
            yield f"{self._kind.header} {beta}"


def _choice(place: _Place, board: Board, now: float) -> Choice:
    """A route inside a route is to a strategy what its first target is, by its own name and weight."""
    each, first = place.each, place.candidates[0].target
    state = board.snapshot(first.name, now)
    return Choice(
        state if each is first else msgspec.structs.replace(state, name=each.name),
        weight=each.weight,
        share=each.share,
        zone=first.zone,
        price=first.price,
        context_length=first.upstream.capabilities.context_length,
    )


def _forbidden(target: Target, allowed: Allowed | None) -> str:
    """Why the asker may not use a target; empty when it may."""
    if allowed is None:
        return ""
    if allowed.models is not None and target.name not in allowed.models:
        return "it is limited to other targets"
    if allowed.zones is not None and target.zone not in allowed.zones:
        return f"it is limited to targets that are {' or '.join(allowed.zones)}"
    return ""


def _length(upstream: Upstream) -> float:
    """Most tokens that it takes; without end where that is not known."""
    return upstream.capabilities.context_length or math.inf


def unavailable(model: str, readiness: Readiness) -> OutpostError:
    """The error for a model of which nothing is up."""
    after = readiness.retry_after_s if readiness.retry_after_s is not None else 2.0
    if readiness.loading:
        return ModelLoading(f"The model {model} is still being loaded ({readiness.reason}).", retry_after_s=after)
    return Unavailable(f"The model {model} is not available now: {readiness.reason}", retry_after_s=after)
