"""From a body or a query to a wire struct, with errors in OpenAI's vocabulary.

msgspec reports the first violation as a sentence with a JSON path; this module turns that into
`param` and `code`. It knows no particular body.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final, TypeVar

import msgspec

from gateway.errors import RequestError

T = TypeVar("T", bound=msgspec.Struct)

_PATH: Final = re.compile(r" - at `\$\.?(?P<param>[^`]*)`$")
_MISSING: Final = re.compile(r"Object missing required field `(?P<name>[^`]+)`")
_BOUND: Final = re.compile(r"Expected (?P<kind>[a-z ]+?) (?P<of>of length )?(?P<op>[<>]=?) ")
_QUOTED: Final = re.compile(r"`(?P<types>[a-z| ]+)`")
_JSON_TYPES: Final = {
    "int": "an integer",
    "float": "a number",
    "str": "a string",
    "bool": "a boolean",
    "array": "an array",
    "object": "an object",
    "null": "null",
}
_CODES: Final = {
    ("an integer", False): "integer_{}_value",
    ("a number", False): "decimal_{}_value",
    ("a string", True): "string_{}_length",
    ("an array", True): "array_{}_length",
}


def decode(body: bytes, into: type[T]) -> T:
    """Read a JSON object strictly: no coercion, no text after it, fields we do not know ignored.

    Raises:
        RequestError: 400, as OpenAI would put it.
    """
    try:
        return msgspec.json.decode(body, type=into)
    except msgspec.ValidationError as error:
        raise _validation_error(str(error), into) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        message = (
            "We could not parse the JSON body of your request. The API expects a JSON object in "
            "UTF-8; check quotes, commas and escapes."
        )
        raise RequestError(message) from error


def decode_texts(fields: Mapping[str, object], into: type[T]) -> T:
    """Read the fields of a form or a query, where numbers are written as text.

    Raises:
        RequestError: 400, as OpenAI would put it.
    """
    try:
        return msgspec.convert(fields, into, strict=False)
    except msgspec.ValidationError as error:
        raise _validation_error(str(error), into) from error


def _validation_error(message: str, into: type[msgspec.Struct]) -> RequestError:
    path = _PATH.search(message)
    param = path["param"] if path else None
    reason = _in_words_of_json(_PATH.sub("", message))
    if missing := _MISSING.match(reason):
        return missing_parameter(missing["name"])
    if param is None:
        return RequestError(f"The request body must be a JSON object. {reason}.")
    if reason.startswith("Invalid enum value"):
        return _invalid_choice(param, reason.removeprefix("Invalid enum value "), into)
    if bound := _BOUND.match(reason):
        side = "above_max" if bound["op"].startswith("<") else "below_min"
        code = _CODES[bound["kind"], bound["of"] is not None].format(side)
        return RequestError(f"Invalid '{param}': {_lower(reason)}.", code=code, param=param)
    return RequestError(
        f"Invalid type for '{param}': {_lower(reason)}.", code="invalid_type", param=param
    )


def _in_words_of_json(message: str) -> str:
    """Say types as JSON has them; whether null would do as well matters to nobody."""

    def worded(match: re.Match[str]) -> str:
        names = [name for name in match["types"].split(" | ") if name != "null"] or ["null"]
        return " or ".join(_JSON_TYPES.get(name, name) for name in names)

    return _QUOTED.sub(worded, message)


def missing_parameter(param: str) -> RequestError:
    """Return the error for a parameter that is absent or null."""
    message = f"Missing required parameter: '{param}'."
    return RequestError(message, code="missing_required_parameter", param=param)


def _invalid_choice(param: str, got: str, into: type[msgspec.Struct]) -> RequestError:
    """A value outside an enumeration: the message lists what is supported."""
    choices = ", ".join(f"'{choice}'" for choice in _choices(into, param))
    message = f"Invalid value: {got}. Supported values for '{param}' are: {choices}."
    return RequestError(message, code="invalid_value", param=param)


def _lower(sentence: str) -> str:
    return sentence[:1].lower() + sentence[1:]


def _choices(into: type[msgspec.Struct], param: str) -> Sequence[object]:
    """Return the literals that a field's type allows, so that they are written down once."""
    fields = {field.encode_name: field.type for field in msgspec.inspect.type_info(into).fields}  # type: ignore[attr-defined]
    found = fields.get(param)
    members = found.types if isinstance(found, msgspec.inspect.UnionType) else (found,)
    for member in members:
        if isinstance(member, msgspec.inspect.LiteralType):
            return member.values
    return ()
