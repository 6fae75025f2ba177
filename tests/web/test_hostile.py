"""Nothing that a model, a file or a server says becomes more than text."""

from __future__ import annotations

import json
from typing import Any

from tests.web.drawn import as_file, picture
from tests.web.playground import Playground

EVIL = "https://evil.example"
MARKUP = '<img src=x onerror="window.pwned=1"><script>window.pwned=1</script>'

ANSWERS = [
    "<script>window.pwned = 1</script>",
    "<img src=x onerror='window.pwned = 1'>",
    f"<img src='{EVIL}/a.png'>",
    f"![picture]({EVIL}/a.png)",
    f"![picture][1]\n\n[1]: {EVIL}/a.png",
    f"<iframe src='{EVIL}'></iframe><object data='{EVIL}'></object><embed src='{EVIL}'>",
    f"<link rel=stylesheet href='{EVIL}/a.css'><style>@import url({EVIL}/b.css); body {{ display: none }}</style>",
    f"<meta http-equiv=refresh content='0; url={EVIL}'><base href='{EVIL}'>",
    f"<form action='{EVIL}'><input name=a autofocus onfocus='window.pwned=1'><button>Go</button></form>",
    "<svg onload='window.pwned=1'><script>window.pwned=1</script></svg><math><mtext><style><img src=x onerror=1>",
    "[click](javascript:window.pwned=1) [b](JaVaScRiPt:window.pwned=1) [c](java\nscript:alert(1))",
    "[a](data:text/html,<script>window.pwned=1</script>) [b](vbscript:x) [c](file:///etc/passwd) [d](blob:x)",
    "<a href='javascript:window.pwned=1' style='position:fixed;inset:0'>click</a>",
    '[x](https://a.example/"onmouseover="window.pwned=1)',
    "```html\n</code></pre><script>window.pwned=1</script>\n```",
    '```"><script>window.pwned=1</script>\nx\n```',
    "`<script>window.pwned=1</script>`",
    "| <script>window.pwned=1</script> | [x](javascript:alert(1)) |\n|---|---|\n| <img src=x onerror=alert(1)> | b |",
    "<div style='position:fixed;inset:0;background:red' class='scrim'>gone</div>",
    "<ref><img src=x onerror=window.pwned=1></ref><box>[[1,2,3,4]]</box>",
    '<ref>"><script>window.pwned=1</script></ref>[[1, 2, 3, 4]]',
    "[<box>[[1,2,3,4]]</box>](https://a.example/<box>[[1,2,3,4]]</box>)",
    "pyautogui.click(x=0.1, y=0.1, button='<script>window.pwned=1</script>')",
    "<details open ontoggle='window.pwned=1'>x</details><video autoplay src=x onerror='window.pwned=1'></video>",
    '<noscript><p title="</noscript><img src=x onerror=window.pwned=1>">',
    "</div></article></main><h1>The page is over</h1>",
    '{"a": "<script>window.pwned=1</script>"}',
    "- [x] <img src=x onerror=window.pwned=1>",
    "<https://a.example/<script>window.pwned=1</script>> <javascript:alert(1)>",
    "&lt;script&gt;window.pwned=1&lt;/script&gt; &#60;img src=x onerror=alert(1)&#62;",
]

_INSPECT = """() => {
    const found = [];
    const allowed = new Set(("ARTICLE DIV P BR HR EM STRONG DEL CODE PRE BLOCKQUOTE UL OL LI H1 H2 H3 H4 H5 H6 A SPAN "
        + "TABLE CAPTION THEAD TBODY TR TH TD BUTTON SVG PATH DETAILS SUMMARY FIGURE G RECT POLYGON POLYLINE IMG "
        + "SECTION").split(" "));
    for (const element of document.querySelector("[role=log]").querySelectorAll("*")) {
        if (!allowed.has(element.tagName.toUpperCase())) found.push(element.tagName);
        for (const {name, value} of element.attributes) {
            if (name.startsWith("on") || name === "srcdoc") found.push(`${element.tagName} ${name}`);
            if (name === "src" && !value.startsWith("blob:")) found.push(`src ${value}`);
            if (name === "style" && element.closest(".markdown")) found.push(`style ${value}`);
            if (name === "href" && !/^(https?|mailto):/.test(element.href)) found.push(`href ${value}`);
        }
        if (element.tagName === "A" && element.href) {
            if (element.target !== "_blank" || !element.relList.contains("noopener")) found.push(`rel ${element.rel}`);
        }
    }
    if (window.pwned) found.push("pwned");
    return found;
}"""


def check(page: Playground) -> None:
    """The page is still itself. Requests to elsewhere and errors are checked at the end of every test."""
    for element in page.log.locator(".markdown *").all()[:40]:
        element.dispatch_event("mouseover")
        element.dispatch_event("focus")
    assert page.tab.evaluate(_INSPECT) == []
    assert page.message.is_visible()
    assert page.tab.url == page.url + "/"


def test_hostile_answers_are_text(page: Playground) -> None:
    page.attach(as_file(picture()))
    for answer in ANSWERS:
        page.feign(answer)
        page.ask("Say")
        assert page.last.inner_text().strip()
    page.tab.wait_for_timeout(200)
    check(page)


def test_a_hostile_answer_is_harmless_while_it_is_written(page: Playground) -> None:
    page.feign(*"".join(ANSWERS[:8] + ANSWERS[10:14]))
    page.ask("Say")
    check(page)


def test_markup_is_shown_as_it_was_written(page: Playground) -> None:
    page.feign(MARKUP)
    page.ask("Say")
    assert page.said() == MARKUP


def test_a_picture_elsewhere_is_named_and_not_loaded(page: Playground) -> None:
    page.feign(f"![a cat]({EVIL}/cat.png)")
    page.ask("Say")
    assert page.said() == f"a cat (not loaded: {EVIL}/cat.png)"


def test_text_cannot_be_turned_around(page: Playground) -> None:
    page.feign("Pay to \u202eelpmaxe.live\u202c now", "\n\n`a\u2066b\u2069`")
    page.ask("Say")
    assert page.said().split("\n\n") == ["Pay to [U+202E]elpmaxe.live[U+202C] now", "a[U+2066]b[U+2069]"]


def test_hostile_names_of_files_are_text(page: Playground) -> None:
    name = "<img src=x onerror=window.pwned=1>\u202egnp.exe.png"
    page.attach(as_file(picture(), name))
    page.thumbnails.first.click()
    shown = name.replace("\u202e", "[U+202E]")
    assert page.tab.get_by_role("dialog").locator("h2").inner_text() == shown
    page.tab.keyboard.press("Escape")
    page.feign("<box>[[1, 2, 3, 4]]</box>")
    answer = page.ask("Where?")
    assert answer.locator(".grounding img").get_attribute("alt") == f"{shown}, with 1 marked"
    page.button("Code").click()
    page.tab.get_by_role("dialog").locator("pre").wait_for()
    assert "image-1.png" in page.tab.get_by_role("dialog").locator("pre").inner_text()
    page.tab.keyboard.press("Escape")
    check(page)


def test_hostile_calls_tokens_and_reasoning_are_text(page: Playground) -> None:
    page.settings("Log probabilities").get_by_label("Ask for them").check()
    token = {"token": MARKUP, "logprob": -0.5, "top_logprobs": [{"token": "\u202e" + MARKUP, "logprob": -0.7}]}
    call = {"index": 0, "id": MARKUP, "function": {"name": MARKUP, "arguments": json.dumps({MARKUP: MARKUP})}}
    page.feign(
        {"reasoning_content": MARKUP},
        MARKUP,
        {"tool_calls": [call]},
        finish="tool_calls",
        logprobs={"content": [token]},
    )
    answer = page.ask(MARKUP)
    answer.locator("summary").click()
    answer.locator("textarea").fill(MARKUP)
    page.button("Tokens", answer).click()
    answer.get_by_role("option").first.hover()
    assert MARKUP in answer.locator(".alternatives").inner_text()
    page.feign("ok")
    page.button("Send the result").click()
    page.answered()
    check(page)


def test_hostile_errors_and_models_are_text(page: Playground) -> None:
    page.respond(json.dumps({"error": {"message": MARKUP}}), status=400)
    page.ask("Hello")
    assert MARKUP in page.last.locator(".problem").inner_text()
    card = {"id": MARKUP, "parent": MARKUP, "image_tiling": None}
    page.tab.route("**/v1/models", lambda route: route.fulfill(json={"object": "list", "data": [{"id": MARKUP}, card]}))
    page.tab.reload()
    page.tab.get_by_text("Show it a picture.").wait_for()
    page.tab.locator(".lead", has_text=MARKUP).wait_for()
    check(page)


def test_hostile_conversations_of_a_file_are_text(page: Playground) -> None:
    base: dict[str, Any] = {"parent": None, "text": MARKUP}
    answer = {
        **base, "id": "b", "parent": "a", "role": "assistant", "model": MARKUP, "reasoning": MARKUP, "state": "done",
        "calls": [{"id": "1", "name": MARKUP, "arguments": MARKUP}], "tokens": [], "finish": MARKUP,
    }  # fmt: skip
    turns = [{**base, "id": "a", "role": "user", "pictures": [{"url": f"{EVIL}/a.png"}]}, answer]
    settings = {
        "model": MARKUP,
        "system": MARKUP,
        "toolChoice": MARKUP,
        "schema": MARKUP,
        "topLogprobs": 1,
        "tools": [],
    }
    file = {"title": MARKUP, "updated": 1, "chosen": {"__proto__": "a"}, "settings": settings, "turns": turns}
    content = json.dumps({"format": "ternvl-playground", "version": 1, "conversations": [file]})
    page.tab.get_by_label("A file of conversations").set_input_files(
        [{"name": "a.json", "mimeType": "application/json", "buffer": content.encode()}]
    )
    refused = page.tab.get_by_role("alert")
    page.tab.locator(".head").or_(refused).first.wait_for()
    if refused.count():
        content = content.replace('"__proto__": "a"', "")
        page.tab.get_by_label("A file of conversations").set_input_files(
            [{"name": "a.json", "mimeType": "application/json", "buffer": content.encode()}]
        )
    page.tab.locator(".head").wait_for()
    assert page.tab.locator(".head-title").inner_text() == MARKUP
    page.settings()
    check(page)


def test_the_policy_stops_what_the_page_would_never_do(page: Playground) -> None:
    """Should a mistake of ours or of a library ever turn text into code, the browser refuses it."""
    outcomes = page.tab.evaluate(
        """() => {
            const attempts = [
                () => { document.body.innerHTML = "<b>x</b>"; },
                () => document.write("x"),
                () => { document.createElement("script").text = "1"; },
                () => { document.createElement("iframe").srcdoc = "x"; },
                () => trustedTypes.createPolicy("mine", {}),
                () => eval("1"),
                () => new Function("1")(),
                () => setTimeout("1"),
            ];
            const tried = (attempt) => { try { attempt(); return "allowed"; } catch (error) { return error.name; } };
            // What a test evaluates is exempt from the policy, and what it calls later is not.
            return new Promise((resolve) => setTimeout(() => resolve(attempts.map(tried))));
        }"""
    )
    assert "allowed" not in outcomes, outcomes
    page.faults.clear()
