"""The playground as a person uses it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

BOX = "Please provide the bounding box coordinate of the region this sentence describes: <ref>{}</ref>"


class Playground:
    """One browser with one tab."""

    def __init__(self, tab: Any, url: str) -> None:
        self.context, self.tab, self.url = tab.context, tab, url
        self.context.set_default_timeout(20_000)
        self.faults: list[str] = []
        self.requests: list[Any] = []
        self._watched = {
            "pageerror": lambda error: self.faults.append(f"error: {error}"),
            "console": self._watch_console,
            "dialog": lambda dialog: (self.faults.append(f"dialog: {dialog.message}"), dialog.dismiss()),
            "request": self._watch_request,
        }
        for event, handle in self._watched.items():
            self.tab.on(event, handle)
        self.tab.goto(url + "/")
        self.message = self.tab.get_by_label("Message", exact=True)
        self.message.wait_for()

    def _watch_console(self, entry: Any) -> None:
        if entry.type == "error" and "Failed to load resource" not in entry.text:
            self.faults.append(f"console: {entry.text}")

    def _watch_request(self, request: Any) -> None:
        self.requests.append(request)
        if not request.url.startswith((self.url + "/", "blob:" + self.url, "data:")):
            self.faults.append(f"request: {request.url}")

    def leave(self) -> None:
        """End what the page does, and forget what it has kept."""
        self.tab.unroute_all()
        for event, handle in self._watched.items():
            self.tab.remove_listener(event, handle)
        self.tab.goto("about:blank")
        devtools = self.context.new_cdp_session(self.tab)
        devtools.send("Storage.clearDataForOrigin", {"origin": self.url, "storageTypes": "all"})
        devtools.detach()
        self.context.clear_permissions()

    # --- what a person sees and does ---

    @property
    def log(self) -> Any:
        """The conversation."""
        return self.tab.get_by_role("log")

    def button(self, name: str, within: Any = None) -> Any:
        return (within or self.tab).get_by_role("button", name=name, exact=True)

    def ask(self, text: str) -> Any:
        """Send a message and wait for the end of its answer, which is returned."""
        self.send(text)
        return self.answered()

    def send(self, text: str) -> None:
        self.message.fill(text)
        self.message.press("Enter")

    def answered(self) -> Any:
        """The last answer, as soon as it has ended."""
        self.button("Send").wait_for()
        return self.last

    @property
    def last(self) -> Any:
        return self.tab.get_by_role("article", name="Answer").last

    def said(self) -> str:
        """The text of the last answer."""
        return str(self.last.locator(".markdown").inner_text())

    def settings(self, *sections: str) -> Any:
        """The settings, with these sections open."""
        panel = self.tab.get_by_label("Settings of answers")
        if not panel.is_visible():
            self.button("Settings").click()
        for name in sections:
            section = panel.locator("details", has=self.tab.locator("summary", has_text=name))
            if section.get_attribute("open") is None:
                section.locator("summary").click()
        return panel

    def attach(self, *files: dict[str, Any]) -> None:
        """Choose files as the pictures of the message."""
        before = self.thumbnails.count()
        self.tab.get_by_label("Pictures", exact=True).set_input_files(list(files))
        self.thumbnails.nth(before + len(files) - 1).wait_for()

    @property
    def thumbnails(self) -> Any:
        return self.tab.get_by_label("Pictures of this message").locator(".thumbnail")

    # --- what only a test sees or does ---

    def body(self) -> dict[str, Any]:
        """The body of the last request for an answer."""
        sent = [each for each in self.requests if each.url.endswith("/chat/completions")]
        found: dict[str, Any] = json.loads(sent[-1].post_data)
        return found

    def feign(self, *deltas: dict[str, Any] | str, finish: str = "stop", **choice: Any) -> None:
        """Let the next answers have these deltas, whatever is asked; a text is a delta of content."""
        chunks = [{"content": each} if isinstance(each, str) else each for each in deltas]
        events: list[dict[str, Any]] = [
            {"choices": [{"index": 0, "delta": delta, "finish_reason": None, **choice}]} for delta in chunks
        ]
        events.append({"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]})
        usage = {"prompt_tokens": 5, "completion_tokens": len(deltas), "total_tokens": 5 + len(deltas)}
        events.append({"choices": [], "usage": usage})
        self.respond(stream(events) + "data: [DONE]\n\n", headers={"Content-Type": "text/event-stream"})

    def respond(self, body: str, *, status: int = 200, headers: dict[str, str] | None = None) -> None:
        """Let the next requests for an answer be answered so."""
        self.honest()
        self.tab.route(
            "**/v1/chat/completions",
            lambda route: route.fulfill(status=status, headers=headers or {}, body=body),
        )

    def honest(self) -> None:
        """Let the server answer again."""
        self.tab.unroute("**/v1/chat/completions")


def stream(events: Sequence[dict[str, Any]]) -> str:
    return "".join(f"data: {json.dumps(each)}\n\n" for each in events)
