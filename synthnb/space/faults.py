"""What makes no sense in a space: every check of a parameter and of a whole space, as one sentence each.

A space comes from files, datasets and checkpoints of others, so it may hold anything. Of the sentences only the first
counts: a check may rely on those before it.
"""

from __future__ import annotations

import itertools
import reprlib
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from synthnb.space.parameter import Parameter
    from synthnb.space.space import ParameterSpace

LARGEST = 1e9  # number
STATES, ALL_STATES = 1 << 16, 1_000_000  # of a parameter, of a space: what memory allows
BETA = (0.01, 1000.0)  # a and b of a prior; beyond them it is one value
SHORTEST, LONGEST = 0.1, 60.0  # seconds of a clip
SETS = "given: a parameter or several; always: sets of modules; swaps: {value: sets of modules}"


def is_number(value: object) -> bool:
    """Whether it is a plain number within ±`LARGEST`: no NaN, no truth value."""
    return type(value) in (int, float) and -LARGEST <= value <= LARGEST


def is_name(value: object) -> bool:
    """Whether it is a text that fits on a line."""
    return isinstance(value, str) and value.isprintable() and 0 < len(value) <= 100


def shown(value: object) -> str:
    """A value as a message shows it: short, whatever it is."""
    try:
        return reprlib.repr(value)[:80]
    except ValueError:  # a number of thousands of digits
        return "a huge number"


def parameter_faults(p: Parameter) -> Iterator[str]:
    """What is wrong with a parameter, but for a default that is out of its range."""
    if p.kind not in ("continuous", "integer", "categorical"):
        yield f"kind {shown(p.kind)} is not continuous, integer or categorical"
    if not is_name(p.name) or not is_name(p.module) or not isinstance(p.key, str):
        yield f"its name, module {shown(p.module)} and key {shown(p.key)} must be texts, of up to 100 letters"
    if not isinstance(p.choices, tuple):
        yield f"choices is {shown(p.choices)}; a list, or a mapping to numbers, is needed"
    numbers = {f"the code of {choice}": code for choice, code in zip(p.choices, p.codes)}
    if p.kind != "categorical":
        numbers |= {"low": p.low, "high": p.high, "default": p.default}
    for what, value in numbers.items():
        if not is_number(value):
            yield f"{what} is {shown(value)}; a number within ±{LARGEST:g} is needed"
    if p.kind == "categorical":
        if len(set(p.choices)) < 2 or len(set(p.choices)) != len(p.choices):
            yield f"needs at least two different choices, has {shown(list(p.choices))}"
        if p.codes and len(set(p.codes)) != len(p.choices):
            yield f"{len(set(p.codes))} different codes for {len(p.choices)} choices"
    elif p.choices:
        yield f"has choices, but is {p.kind}"
    elif not p.low < p.high:
        yield f"low {p.low} is not below high {p.high}"
    elif p.kind == "integer" and (p.low % 1 or p.high % 1):
        yield f"low {p.low} and high {p.high} must be whole numbers"
    if p.states > STATES:
        yield f"has {p.states:,} values; at most {STATES:,} are possible: make it continuous"
    yield from _prior_faults(p, {} if p.prior is None else p.prior)


def _prior_faults(p: Parameter, prior: dict) -> Iterator[str]:
    if not isinstance(prior, dict) or not set(prior) <= {"histogram", "beta", "default_share"}:
        yield f"unknown prior {shown(prior)}; use histogram, beta, default_share"
    if "histogram" in prior and "beta" in prior:
        yield "has a histogram and a beta prior; use one"
    weights, beta, share = (
        prior.get(*pair) for pair in (("histogram", [1]), ("beta", [1, 1]), ("default_share", 0))
    )
    for what, values in (("histogram", weights), ("beta", beta)):
        if not isinstance(values, list) or not all(map(is_number, values)):
            yield f"{what} is {shown(values)}; a list of numbers is needed"
    if "histogram" in prior and p.states and len(weights) != p.states:
        yield f"{len(weights)} histogram weights for {p.states} values"
    if len(weights) > STATES or min(weights, default=-1) < 0 or sum(weights) <= 0:
        yield f"histogram weights must be non-negative and not all zero, and at most {STATES:,}"
    if len(beta) != 2 or not BETA[0] <= min(beta) <= max(beta) <= BETA[1]:
        yield f"beta is {shown(beta)}; two numbers from {BETA[0]:g} to {BETA[1]:g} are needed"
    if not is_number(share) or not 0 <= share <= 1:
        yield f"default_share is {shown(share)}; a probability from 0 to 1 is needed"


def space_faults(space: ParameterSpace) -> Iterator[str]:
    """What is wrong with a space whose parameters are right, each for itself."""
    for what in ("name", "synth", "plugin"):
        if not is_name(text := getattr(space, what)) and (what, text) != ("plugin", ""):
            yield f"{what} is {shown(text)}; a text of up to 100 letters is needed"
    if not is_number(space.seconds) or not SHORTEST <= space.seconds <= LONGEST:
        yield f"seconds is {shown(space.seconds)}; allowed: {SHORTEST:g} to {LONGEST:g}"
    if type(space.velocity) is not int or not 1 <= space.velocity <= 127:
        yield f"velocity is {shown(space.velocity)}; allowed: 1 to 127"
    if not space.parameters:
        yield "it has no parameters"
    for name, count in Counter([*(p.name for p in space), "velocity"]).items():
        if count > 1:
            yield f"parameter '{name}' comes twice (pitch, start, end and velocity are the note's)"
    if taken := [p.name for p in space.parameters if p.module == "note"]:
        yield f"parameter '{taken[0]}': module note is the note's; choose another"
    pitch, start, end = space.note_fields
    if pitch.kind != "integer" or pitch.low < 0 or pitch.high > 127:
        yield f"the note's pitch is {pitch.kind}, {pitch.low:g} to {pitch.high:g}; an integer from 0 to 127 is needed"
    if {start.kind, end.kind} != {"continuous"} or start.low < 0 or end.high > LONGEST:
        yield f"the note's start and end must be continuous, from 0 to {LONGEST:g} seconds"
    if start.low > end.low or start.high > end.high:
        yield "the note's start must not begin after its end does, nor reach beyond it"
    if (states := sum(p.states for p in space)) > ALL_STATES:
        yield f"its parameters have {states:,} values; at most {ALL_STATES:,} are possible"
    if not _is_base(space.base, depth=3):
        yield f"base is {shown(space.base)}; names with numbers, or with mappings of numbers, are needed"
    try:
        yield from _interchange_faults(space)
    except (AttributeError, TypeError):
        yield f"interchangeable is {shown(space.interchangeable)}; it holds {SETS}"


def _is_base(value: object, depth: int) -> bool:
    if depth == 0 or not isinstance(value, dict):
        return False
    named = all(is_name(key) or (type(key) is int and is_number(key) and depth < 3) for key in value)
    return named and all(is_number(held) or _is_base(held, depth - 1) for held in value.values())


def _interchange_faults(space: ParameterSpace) -> Iterator[str]:
    rules, named = space.interchangeable, {p.name: p for p in space}
    members = {module: [p for p in space.parameters if p.module == module] for module in space.modules}
    sets = [*rules.get("always", []), *itertools.chain(*rules.get("swaps", {}).values())]
    unknown = [name for name in rules if name not in ("given", "always", "swaps")]
    unknown += [name for name in space.given if name not in named]
    unknown += [value for value in rules.get("swaps", {}) if not isinstance(value, str)]
    unknown += [module for blocks in sets for block in blocks for module in block if module not in members]
    if unknown:
        yield f"interchangeable: {shown(unknown[0])} is unknown, or no text; it holds {SETS}"
    for first, second in (pair for blocks in sets for pair in itertools.combinations(blocks, 2)):
        if len(first) != len(second) or len({*first, *second}) != len(first) + len(second):
            yield f"interchangeable: {shown(first)} and {shown(second)} are not equally many different modules"
        for one, other in [*zip(first, second), *zip(second, first)]:
            for p in members[one]:
                twin = named.get(p.name_in(other))
                if twin not in members[other] or twin.span != p.span:
                    yield f"interchangeable: '{p.name}' has no counterpart in {other}"
