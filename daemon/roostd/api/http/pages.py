"""Two small pages without anything from elsewhere: the node at a glance, and the API."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from html import escape
from typing import Any

from starlette.responses import HTMLResponse, Response

from roostd.api.http import openapi

_STYLE = """
:root { color-scheme: light dark; font: 15px/1.5 system-ui, sans-serif; }
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
code, pre, td.n { font-family: ui-monospace, monospace; }
table { border-collapse: collapse; width: 100%; margin: 1rem 0; }
td, th { text-align: left; padding: .25rem .75rem .25rem 0; border-bottom: 1px solid #8884; }
.method { display: inline-block; min-width: 4.5rem; font-weight: 600; }
details { margin: .4rem 0; } summary { cursor: pointer; }
.muted { opacity: .7; }
"""

_SCRIPT = """
const row = (cells) => {
  const tr = document.createElement("tr");
  for (const cell of cells) {
    const td = document.createElement("td");
    td.textContent = cell === null || cell === undefined ? "" : String(cell);
    tr.append(td);
  }
  return tr;
};
const show = async () => {
  const state = document.getElementById("state");
  try {
    const answer = await fetch("/v1/cluster", {headers: {accept: "application/json"}});
    if (!answer.ok) { state.textContent = "needs a credential (" + answer.status + ")"; return; }
    const node = await answer.json();
    document.getElementById("name").textContent =
      node.node + " in " + node.region + " of " + node.cluster;
    state.textContent = node.converged ? "converged with its neighbours" : "catching up";
    document.getElementById("facts").replaceChildren(
      row(["log entries durable", node.store.durable_seq]),
      row(["bytes of " + node.store.size_max, node.store.bytes]),
      row(["sessions at home", node.sessions.home]),
      row(["sessions on standby", node.sessions.standby]),
      row(["consensus", node.consensus.backend + ": " + node.consensus.state]),
      row(["digest", node.digest]));
    document.getElementById("links").replaceChildren(...node.links.map((link) =>
      row([link.peer, link.region, link.state, link.mode, link.rtt_ms, link.lag_ms,
           link.last_error])));
  } catch (error) { state.textContent = "this node does not answer"; }
};
show(); setInterval(show, 2000);
"""


def _page(title: str, body: str, script: str = "") -> Response:
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = "default-src 'none'; style-src 'unsafe-inline'; connect-src 'self'; base-uri 'none'"
    policy += "; frame-ancestors 'none'; form-action 'none'"
    if script:
        policy += f"; script-src 'sha256-{digest}'"
        body += f"<script>{script}</script>"
    html = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width">'
        f"<style>{_STYLE}</style><body>{body}</body></html>"
    )
    headers = {
        "content-security-policy": policy,
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
    }
    return HTMLResponse(html, headers=headers)


def front() -> Response:
    """The node at a glance; it asks /v1/cluster every two seconds."""
    return _page(
        "roost",
        """<h1>roost</h1><p><b id="name">this node</b>: <span id="state">asking</span>.
<p><a href="/docs">API</a> · <a href="/openapi.json">OpenAPI</a> · <a href="/metrics">metrics</a>
<table><tbody id="facts"></tbody></table>
<h2>Links</h2><table><thead><tr><th>peer<th>region<th>state<th>mode<th>RTT ms<th>lag ms<th>last
error</thead><tbody id="links"></tbody></table>""",
        _SCRIPT,
    )


@cache
def _docs_html() -> str:
    document = openapi.document()
    parts = ["<h1>roost: HTTP API</h1>"]
    parts.append('<p>Machine-readable at <a href="/openapi.json">/openapi.json</a>.</p>')
    for tag in document["tags"]:
        parts.append(f"<h2>{escape(tag['name'])}</h2><p>{escape(tag['description'])}</p>")
        for path, methods in document["paths"].items():
            for method, operation in methods.items():
                if operation["tags"] == [tag["name"]]:
                    parts.append(_operation_html(path, method, operation))
    parts.append("<h2>Bodies</h2>")
    for name, schema in sorted(document["components"]["schemas"].items()):
        parts.append(_schema_html(name, schema))
    return "".join(parts)


def _operation_html(path: str, method: str, operation: dict[str, Any]) -> str:
    rows = "".join(
        f"<tr><td>{escape(parameter['name'])}<td>{escape(parameter['in'])}"
        f"<td>{escape(parameter.get('description', ''))}"
        for parameter in operation["parameters"]
    )
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
    if body:
        rows += f"<tr><td>body<td><td>{_reference(body['schema'])}"
    for status, response in operation["responses"].items():
        content = next(iter(response["content"].values()))
        rows += (
            f"<tr><td class=n>{escape(status)}<td>{_reference(content['schema'])}"
            f"<td>{escape(response['description'])}"
        )
    return (
        f"<details><summary><span class=method>{method.upper()}</span> <code>{escape(path)}</code>"
        f" <span class=muted>{escape(operation['summary'])}</span></summary>"
        f"<table>{rows}</table></details>"
    )


def _reference(schema: dict[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(map(_reference, schema["anyOf"]))
    name = str(schema.get("$ref", "")).rpartition("/")[2]
    return f'<a href="#{escape(name)}">{escape(name)}</a>' if name else ""


def _schema_html(name: str, schema: dict[str, Any]) -> str:
    required = set(schema.get("required", ()))
    rows = "".join(
        f"<tr><td><code>{escape(field)}</code><td>{_type(known)}"
        f"<td>{'required' if field in required else ''}<td>{escape(known.get('description', ''))}"
        for field, known in schema.get("properties", {}).items()
    )
    text = escape(schema.get("description", ""))
    return f'<h3 id="{escape(name)}">{escape(name)}</h3><p>{text}</p><table>{rows}</table>'


def _type(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        return _reference(schema)
    if "anyOf" in schema:
        return " or ".join(_type(part) for part in schema["anyOf"])
    if "enum" in schema:
        return escape(" | ".join(map(str, schema["enum"])))
    return escape(str(schema.get("type", "any")))


def docs() -> Response:
    """The API, to be read."""
    return _page("roost: HTTP API", _docs_html())
