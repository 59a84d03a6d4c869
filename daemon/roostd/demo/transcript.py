"""A conversation in OpenAI chat format, split into turns."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from roost_crdt.errors import BadRequest

TRANSCRIPT_BYTES_MAX = 64 * 1024 * 1024
TURNS_MIN = 3
ROLES = ("system", "developer", "user", "assistant", "tool", "function")


@dataclass(frozen=True)
class Turn:
    """One exchange: from a user's message to the last answer before the next user's message."""

    messages: list[dict[str, Any]]

    def tool_calls(self) -> list[tuple[str, str, dict[str, Any], Any]]:
        """(call id, tool, arguments, result) of each tool call in the turn."""
        results = {
            m.get("tool_call_id"): m.get("content") for m in self.messages if m["role"] == "tool"
        }
        calls = []
        for message in self.messages:
            for call in message.get("tool_calls") or ():
                function = call.get("function") or {}
                try:
                    arguments = json.loads(function.get("arguments") or "{}")
                except ValueError:
                    arguments = {"raw": function.get("arguments")}
                name = str(function.get("name", "tool"))
                calls.append((str(call.get("id")), name, arguments, results.get(call.get("id"))))
        return calls


def load(path: Path | None) -> list[Turn]:
    """The turns of a transcript: the shipped one, or a file of JSON lines.

    A line is one message, or an object with `messages`. Raises BadRequest with the line.
    """
    if path is None:
        name = "the shipped transcript"
        text = resources.files("roostd.demo").joinpath("transcript.jsonl").read_text("utf-8")
    else:
        name = str(path)
        try:
            if path.stat().st_size > TRANSCRIPT_BYTES_MAX:
                raise BadRequest(f"{name} is over {TRANSCRIPT_BYTES_MAX} bytes")
            text = path.read_text("utf-8")
        except OSError as error:
            raise BadRequest(f"{name} cannot be read: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise BadRequest(f"{name} is not UTF-8: {error}") from error
    turns = split(_messages(name, text))
    if len(turns) < TURNS_MIN:
        raise BadRequest(
            f"{name} has {len(turns)} turns; the demo loses a region in the middle of a "
            f"conversation and needs at least {TURNS_MIN} (each begins with a user message)"
        )
    return turns


def _messages(name: str, text: str) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            parsed = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise BadRequest(f"{name}:{number}: not a line of JSON: {error}") from error
        several = parsed.get("messages") if isinstance(parsed, dict) else parsed
        found = several if isinstance(several, list) else [parsed]
        for message in found:
            if not isinstance(message, dict) or message.get("role") not in ROLES:
                raise BadRequest(
                    f"{name}:{number}: not a chat message: an object with a role of "
                    f"{', '.join(ROLES)}"
                )
            messages.append(message)
    return messages


def split(messages: list[dict[str, Any]]) -> list[Turn]:
    """Turns in order; what comes before the first user message belongs to the first turn."""
    turns: list[list[dict[str, Any]]] = []
    lead: list[dict[str, Any]] = []
    for message in messages:
        if message["role"] == "user":
            turns.append([*lead, message])
            lead = []
        elif turns:
            turns[-1].append(message)
        else:
            lead.append(message)
    return [Turn(turn) for turn in turns]
