"""What Grafana asks of a dashboard that it provisions, as JSON Schema: the parts that ours uses.

After Grafana's documentation of the dashboard JSON model, in our own words: what is missing or of
another kind there makes a panel empty or keeps a dashboard from loading.
"""

from __future__ import annotations

from typing import Any, Final

_DATA_SOURCE: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["type", "uid"],
    "properties": {"type": {"const": "prometheus"}, "uid": {"type": "string", "minLength": 1}},
}
_TARGET: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["refId", "expr"],
    "properties": {
        "refId": {"type": "string", "pattern": "^[A-Z]$"},
        "expr": {"type": "string", "minLength": 1},
        "legendFormat": {"type": "string"},
    },
}
_PLACE: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["x", "y", "w", "h"],
    "properties": {
        "x": {"type": "integer", "minimum": 0, "maximum": 23},
        "y": {"type": "integer", "minimum": 0},
        "w": {"type": "integer", "minimum": 1, "maximum": 24},
        "h": {"type": "integer", "minimum": 1},
    },
}
_UNITS: Final = ["short", "percentunit", "s", "bytes", "Bps", "reqps", "ops"]
_FIELDS: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["defaults", "overrides"],
    "properties": {
        "defaults": {
            "type": "object",
            "required": ["unit"],
            "properties": {"unit": {"enum": _UNITS}, "min": {"type": "number"}},
        },
        "overrides": {"type": "array"},
    },
}
_STAT: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["reduceOptions"],
    "properties": {
        "reduceOptions": {
            "type": "object",
            "required": ["calcs"],
            "properties": {"calcs": {"type": "array", "items": {"type": "string"}, "minItems": 1}},
        }
    },
}
_TIME_SERIES: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["legend", "tooltip"],
    "properties": {
        "legend": {
            "type": "object",
            "required": ["displayMode", "placement", "showLegend", "calcs"],
            "properties": {
                "displayMode": {"enum": ["list", "table"]},
                "placement": {"enum": ["bottom", "right"]},
                "showLegend": {"const": True},
                "calcs": {"type": "array"},
            },
        },
        "tooltip": {
            "type": "object",
            "properties": {"mode": {"enum": ["single", "multi", "none"]}},
        },
    },
}


def _options_of(panel: str, options: dict[str, Any]) -> dict[str, Any]:
    return {
        "if": {"properties": {"type": {"const": panel}}},
        "then": {"properties": {"options": options}},
    }


_PANEL: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["id", "type", "title", "datasource", "gridPos", "targets", "fieldConfig"],
    "properties": {
        "id": {"type": "integer", "minimum": 1},
        "type": {"enum": ["stat", "timeseries"]},
        "title": {"type": "string", "minLength": 1},
        "datasource": _DATA_SOURCE,
        "gridPos": _PLACE,
        "targets": {"type": "array", "minItems": 1, "items": _TARGET},
        "fieldConfig": _FIELDS,
        "transparent": {"type": "boolean"},
    },
    "allOf": [_options_of("stat", _STAT), _options_of("timeseries", _TIME_SERIES)],
}

DASHBOARD: Final[dict[str, Any]] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "required": ["uid", "title", "schemaVersion", "time", "panels"],
    "properties": {
        "id": {"type": ["integer", "null"]},
        "uid": {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,40}$"},
        "title": {"type": "string", "minLength": 1},
        "tags": {"type": "array", "items": {"type": "string"}},
        "timezone": {"enum": ["", "browser", "utc"]},
        "editable": {"type": "boolean"},
        "graphTooltip": {"enum": [0, 1, 2]},
        "refresh": {"type": "string", "pattern": "^[0-9]+(s|m|h|d)$"},
        "schemaVersion": {"type": "integer", "minimum": 30},
        "time": {
            "type": "object",
            "required": ["from", "to"],
            "properties": {"from": {"pattern": "^now"}, "to": {"pattern": "^now"}},
        },
        "templating": {"type": "object"},
        "annotations": {"type": "object"},
        "panels": {"type": "array", "minItems": 1, "items": _PANEL},
    },
}
