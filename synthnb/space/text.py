"""A space as YAML text: what a file, a dataset or a checkpoint holds of it, one line a parameter."""

from __future__ import annotations

import yaml

from synthnb.space.faults import is_number, shown
from synthnb.space.parameter import NOTE_FIELDS, Parameter, SpaceError

LONGEST = 2_000_000  # letters; YAML takes up to 200 bytes of memory for each
DEEPEST = 20  # levels; the parser crashes at some thousand
KEYS = ("name", "synth", "plugin", "seconds", "note", "base", "parameters", "interchangeable")
OPTIONAL = ("plugin", "base", "interchangeable")
ROW = ("key", "kind", "low", "high", "choices", "default", "module", "prior")
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def from_yaml(text: str) -> dict:
    """What a YAML text holds: its keys are those of a space, its rows those of parameters. Raises `SpaceError`."""
    try:
        if not isinstance(text, str) or len(text) > LONGEST:
            raise SpaceError(f"a text of up to {LONGEST:,} letters is needed, not {shown(text)}")
        depth = 0
        for event in yaml.parse(text, LOADER):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > DEEPEST or isinstance(event, yaml.AliasEvent):
                raise SpaceError(f"line {event.start_mark.line + 1} is nested too deep, or an alias")
        data = yaml.load(text, LOADER)
    except SpaceError:
        raise
    except Exception as error:  # PyYAML lets through what its conversions raise
        raise SpaceError(" ".join(str(error).split())[:200]) from None
    _need(data, "the file", [key for key in KEYS if key not in OPTIONAL], KEYS)
    _need(data["parameters"], "parameters")
    _need(data["note"], "note", note := (*NOTE_FIELDS, "velocity"), note)
    return data


def to_yaml(data: dict) -> str:
    """The text of such data; `from_yaml` gives it back."""
    lines = []
    for key, value in data.items():
        if isinstance(value, dict):
            lines += [f"{key}:", *(f"  {_flow(name)}: {_flow(row)}" for name, row in value.items())]
        else:
            lines.append(f"{key}: {_flow(value)}")
    return "\n".join(lines) + "\n"


def from_row(name: object, row: object, module: str = "") -> Parameter:
    """A parameter of what its line holds, which may leave out the `module`. Raises `SpaceError`."""
    _need(row, where := f"parameter {shown(name)}", ("kind",), ROW)
    row, choices = {"module": module, **row}, row.get("choices")
    if isinstance(choices, list | dict) and choices:
        row["codes"] = tuple(choices.values()) if isinstance(choices, dict) else ()
        row["choices"] = tuple(_text(choice, where) for choice in choices)
        row["default"] = _text(row.get("default", row["choices"][0]), where)
    row.setdefault("default", row.get("low", 0.0))
    return Parameter(name=name, **row)


def to_row(p: Parameter) -> dict:
    """What a parameter's line holds."""
    span = {"low": p.low, "high": p.high}
    if p.kind == "categorical":
        span = {"choices": dict(zip(p.choices, p.codes)) or list(p.choices)}
    row = {"key": p.key, "kind": p.kind, **span, "default": p.default, "module": p.module, "prior": p.prior}
    return {name: value for name, value in row.items() if value not in ("", None)}


def _need(data: object, what: str, needed: tuple = (), known: tuple = ()) -> None:
    """Raise `SpaceError` unless `data` is a mapping that has the `needed` keys, and no others than the `known` ones."""
    if not isinstance(data, dict):
        raise SpaceError(f"{what} is {shown(data)}; names with values are needed")
    if missing := [name for name in needed if name not in data]:
        raise SpaceError(f"{what} lacks {', '.join(missing)}")
    if unknown := [name for name in data if known and name not in known]:
        raise SpaceError(f"{what} has an unknown {shown(unknown[0])}; known: {', '.join(known)}")


def _text(value: object, where: str) -> str:
    """YAML reads 1 as a number, which is as good, and on or off as a truth value, which is not."""
    if not isinstance(value, str) and not is_number(value):
        raise SpaceError(f"{where}: choice {shown(value)} is no text; write it in quotes")
    return str(value)


def _flow(value: object) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=1 << 30, sort_keys=False, allow_unicode=True)
    return text.removesuffix("...\n").strip()
