"""Switches of a policy as people write them: `NAME=on`, `NAME=off`, `NAME=NUMBER`.

Which names there are is the policy's business (`schedulers/dispatch/knobs.py`).
"""

from __future__ import annotations

import math

from schedulers.policies import SwitchValue

SEPARATOR = ";"  # of several in one variable: values may hold commas


def parse_switch(text: str) -> tuple[str, SwitchValue]:
    """Return name and value of one switch.

    Raises:
        ValueError: it is not written that way.
    """
    name, _, value = (part.strip() for part in text.partition("="))
    try:
        return name, _value(value)
    except ValueError:
        message = f"{text!r} is not NAME=on, NAME=off, NAME=NUMBER or weights=TENANT:WEIGHT,..."
        raise ValueError(message) from None


def parse_switches(text: str) -> dict[str, SwitchValue]:
    """Return what a variable says; of a name that is there twice the last counts.

    Raises:
        ValueError: one of them is not written that way.
    """
    parts = (part.strip() for part in text.split(SEPARATOR))
    return dict(parse_switch(part) for part in parts if part)


def _value(text: str) -> SwitchValue:
    if text in {"on", "off"}:
        return text == "on"
    if ":" in text:
        pairs = (pair.rsplit(":", 1) for pair in text.split(","))
        return {tenant: _number(weight) for tenant, weight in pairs}
    return int(text) if text.isdecimal() else _number(text)


def _number(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return number
