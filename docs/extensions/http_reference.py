"""The routes of the HTTP reference in Markdown, written from the server's own OpenAPI document.

The text has one section for each group of routes, the statuses of errors, and the schemas of request bodies. No server
is started.
"""

import json
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from ontogeny.server.api.unsupported import NOT_SUPPORTED

GROUPS = {  # title -> beginnings of paths, the first that fits counts
    "Sessions with a text": ("/v1/models/{model}/sessions",),
    "Online learning": ("/v1/models/{model}/",),
    "OpenAI API": ("/v1/models", "/v1/completions", "/v1/chat"),
    "Agents": ("/v1/agents",),
    "Tokens": ("/tokenize", "/detokenize", "/tokenizer_info"),
    "Operation": ("/health", "/ready", "/metrics"),
}
COLUMNS = ["field", "type", "default", "description"]
SIGNS = {"minimum": "≥", "exclusiveMinimum": "&gt;", "maximum": "≤", "exclusiveMaximum": "&lt;"}
ORDER = ("OpenAI API", "Online learning", "Sessions with a text", "Agents", "Tokens", "Operation")


def openapi_document() -> dict[str, Any]:
    """The OpenAPI document of a server without models."""
    from ontogeny.server.app import build_api
    from ontogeny.server.config import ServerConfig

    deployments: Any = SimpleNamespace(config=ServerConfig(), store=None, membership=None, transfers=None, by_name={})
    return build_api(deployments).openapi()


def render_routes(document: Mapping[str, Any]) -> str:
    """Markdown for all routes, statuses and request bodies of an OpenAPI document."""
    operations = [
        (group_of(path), method.upper(), path, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    parts: list[str] = []
    for title in ORDER:
        parts += [f"## {title}", "", "| route | request body | effect |", "|---|---|---|"]
        for group, method, path, operation in operations:
            if group == title:
                description = " ".join(operation.get("description", operation["summary"]).split())
                parts.append(f"| `{method} {path}` | {body_of(operation)} | {escape(description)} |")
        parts.append("")
    return "\n".join([*parts, *render_statuses(document), *render_schemas(document["components"]["schemas"])])


def group_of(path: str) -> str:
    """The title of the group to which a path belongs."""
    for title, beginnings in GROUPS.items():
        if path.startswith(beginnings):
            return title
    raise ValueError(f"the HTTP reference has no group for the route {path}")


def body_of(operation: Mapping[str, Any]) -> str:
    """The request body of an operation, as a cell of a table."""
    content = operation.get("requestBody", {}).get("content", {})
    if not content:
        return ""
    media_type, body = next(iter(content.items()))
    return describe_type(body.get("schema", {})) if media_type == "application/json" else f"`{media_type}`"


def render_statuses(document: Mapping[str, Any]) -> list[str]:
    """A section with the statuses of error responses."""
    statuses: dict[str, str] = {}
    for methods in document["paths"].values():
        for operation in methods.values():
            for status, response in operation["responses"].items():
                if status >= "400":
                    statuses.setdefault(status, response["description"])
    cells = [f"| {status} | {escape(text)} |" for status, text in sorted(statuses.items())]
    return ["## Error statuses", "", "| status | meaning |", "|---|---|", *cells, ""]


def render_schemas(schemas: Mapping[str, Any]) -> list[str]:
    """A section with the fields of every schema; columns without entries are left out."""
    parts = ["## Schemas", ""]
    for name, schema in schemas.items():
        fields = [
            field
            for field, details in schema.get("properties", {}).items()
            if details.get("description") != NOT_SUPPORTED  # the page `openai-api` lists them
        ]
        rows = [describe_field(schema, field) for field in fields]
        columns = [column for column in range(len(COLUMNS)) if any(row[column] for row in rows)]
        parts += [f"### {name}", "", " ".join(schema.get("description", "").split()), ""]
        for row in [COLUMNS, ["---"] * len(COLUMNS), *rows]:
            parts.append("| " + " | ".join(row[column] for column in columns) + " |")
        parts.append("")
    return parts


def describe_field(schema: Mapping[str, Any], field: str) -> list[str]:
    """Name, type, default value and description of a field, as cells of a table."""
    properties = schema["properties"][field]
    default = "required" if field in schema.get("required", ()) else ""
    if properties.get("default") is not None:
        default = f"`{json.dumps(properties['default'])}`"
    description = escape(" ".join(properties.get("description", "").split()))
    return [f"`{field}`", describe_type(properties), default, description]


def describe_type(schema: Mapping[str, Any]) -> str:
    """A JSON schema in words, as a cell of a table."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in schema:
        return " or ".join(describe_type(option) for option in schema["anyOf"] if option.get("type") != "null")
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if schema.get("type") == "array":
        limit = f" (at most {schema['maxItems']})" if "maxItems" in schema else ""
        return f"list of {describe_type(schema.get('items', {}))}{limit}"
    return schema.get("type", "any JSON value") + range_of(schema)


def range_of(schema: Mapping[str, Any]) -> str:
    """The allowed range of a number or a text, in parentheses; empty where there is none."""
    bounds = [f"{sign} {format_bound(schema[key])}" for key, sign in SIGNS.items() if key in schema]
    if "maxLength" in schema:
        bounds.append(f"at most {schema['maxLength']} characters")
    return f" ({', '.join(bounds)})" if bounds else ""


def format_bound(bound: float) -> str:
    """A bound of a number; bounds from 2^31 on as powers of two."""
    exponent = int(abs(bound)).bit_length() - 1
    if exponent >= 31 and abs(bound) == 2**exponent:
        return f"{'-' * (bound < 0)}2^{exponent}"
    return f"{bound:g}"


def escape(text: str) -> str:
    """Text for a cell of a Markdown table."""
    return text.replace("|", "\\|").replace("<", "&lt;")
