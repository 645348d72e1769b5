"""Who can honour a request, and who is asked first. Pure decisions; `plan` has what they are asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import msgspec

from appliance.dialects.asked import Asked
from appliance.dialects.kinds import Kind
from appliance.errors import OutpostError, PermissionDenied
from appliance.routing import conditions, residency
from appliance.routing.board import Board
from appliance.routing.breaker import Standing, usable
from appliance.routing.candidate import Candidate
from appliance.routing.complexity import assess
from appliance.routing.fit import fit, override
from appliance.routing.hashing import prefix_key
from appliance.routing.health import resting
from appliance.routing.left_out import Cut
from appliance.routing.routes import Nested, Route, Target
from appliance.routing.situation import Allowed, Situation, forbidden
from appliance.routing.strategies import Asking, Choice, rank

EXPECTED_OUTPUT = 256
"""Tokens of an answer of which nobody says how long it may be, for comparing targets."""


class _Place(NamedTuple):
    """What stands in one place of a route, with whom it would have asked: the best first, never empty."""

    each: Target | Nested
    candidates: list[Candidate]


class Planner:
    """One plan in the making."""

    def __init__(
        self, route: Route, kind: Kind, asked: Asked, allowed: Allowed | None, situation: Situation | None
    ) -> None:
        self._route = route
        self._kind = kind
        self._asked = asked
        self._allowed = allowed
        self._situation = situation
        self._facts: conditions.Facts | None = None
        self.cuts: list[Cut] = []
        """Who was left out so far."""
        self.scores: dict[str, tuple[float | None, str]] = {}
        """What a strategy says of a target."""
        self._on_trial: list[tuple[Candidate, Cut]] = []
        self._demands = [*situation.demands] if situation is not None else []
        """Where the data must stay."""
        self._demand(route)
        self.residency = residency.strictest(self._demands) if self._demands else residency.UNBOUND
        """What the request and the route demand together."""
        self._within = self.residency
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
                self.cuts += [Cut(target, reason) for target in each.route.all_targets()]
            else:
                self.cuts.append(Cut(each, reason))
        return holds

    def _fitted(self, target: Target, overrides: dict[str, object]) -> Candidate | None:
        if why := forbidden(target, self._allowed):
            error = PermissionDenied(f"This key may not use the model {self._route.model}: {why}.")
            self.cuts.append(Cut(target, why, error))
            return None
        verdict = residency.allowed(target.zone, self._within)
        if not verdict.allowed:
            error = PermissionDenied(
                f"The model {self._route.model} has no target where this data may go: {verdict.why}.", code="residency"
            )
            self.cuts.append(Cut(target, verdict.why, error))
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
            self.cuts.append(Cut(target, error.message, error))
            return None
        readiness = target.upstream.readiness()
        if not readiness.ready:
            self.cuts.append(Cut(target, readiness.reason, readiness=readiness))
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
        self.cuts.append(Cut(target, "what is sensitive would have to be masked for it"))
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
                    self.scores[each.name] = (None, f"in the order of the file, but after others: {standing.reason}")
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
            self.scores[fitting[at].each.name] = (score, reason)
            yield at
        for at, _, _ in ranking.out:
            each, inside = fitting[at]
            if isinstance(each, Target):
                self._rests(inside[0], board.standing(each.name, now))

    def _rests(self, candidate: Candidate, standing: Standing) -> None:
        target = candidate.target
        cut = Cut(target, standing.reason, resting(target.name, standing))
        self.cuts.append(cut)
        if standing.alone:
            self._on_trial.append((candidate, cut))

    def on_trial(self) -> list[Candidate]:
        """Where there is nobody else: those that are only left out because they are tried with others already."""
        taken, self._on_trial = self._on_trial, []
        self.cuts = [cut for cut in self.cuts if all(cut is not each for _, each in taken)]
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
                zone=self.residency.zone,
                at=situation.wall,
                complexity=self._complexity(),
            )
        return self._facts

    def _complexity(self) -> int | None:
        if not self._route.uses_complexity or self._kind.operation != "chat.completions":
            return None
        return assess(self._asked.request).score


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
