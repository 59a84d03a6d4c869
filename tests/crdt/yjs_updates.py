"""Yjs updates by pycrdt, of every kind of content that it writes."""

from __future__ import annotations

import pycrdt


def whole_update(client_id: int = 77) -> bytes:
    """One update with text, formats, embeds, arrays, maps, XML, nested types and deletions."""
    yjs: pycrdt.Doc[pycrdt.Text] = pycrdt.Doc(client_id=client_id)
    text = yjs.get("t", type=pycrdt.Text)
    text += "some text"
    text.format(0, 4, {"bold": True})
    text.insert_embed(2, {"image": [1, "x"]})
    del text[1]
    items = yjs.get("a", type=pycrdt.Array)
    items += [1, 2.5, None, True, "x", b"bytes", {"k": [1, {"l": False}]}]
    fields = yjs.get("m", type=pycrdt.Map)
    fields["f"] = "first"
    fields["f"] = pycrdt.Map({"inner": pycrdt.Array([pycrdt.Text("deep"), -70_000])})
    fields["d"] = pycrdt.Doc({})
    root = yjs.get("x", type=pycrdt.XmlFragment)
    paragraph = root.children.append(pycrdt.XmlElement("p", {"class": "c"}))
    paragraph.children.append(pycrdt.XmlText("in a paragraph"))
    return yjs.get_update()


def updates_of(yjs: pycrdt.Doc[pycrdt.Text]) -> list[bytes]:
    """A list that grows by each update that a document makes."""
    made: list[bytes] = []
    yjs.observe(lambda event: made.append(event.update))
    return made


def text_of(*updates: bytes) -> str:
    """The text "t" of what a client shows that applies these."""
    yjs: pycrdt.Doc[pycrdt.Text] = pycrdt.Doc()
    for update in updates:
        yjs.apply_update(update)
    return str(yjs.get("t", type=pycrdt.Text))
