"""How the playground's files are served: to everyone, with a strict policy, and only if they have changed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import httpx
import pytest

from ternvl.server.operations import OPERATIONS, PAGES
from tests.server.calling import error_of
from tests.server.fakes import scripted_llm, serving

ASSETS = {
    "app.js": "text/javascript; charset=utf-8",
    "style.css": "text/css; charset=utf-8",
    "icon.svg": "image/svg+xml",
    "licenses.txt": "text/plain; charset=utf-8",
}
BUILT = Path(str(files("ternvl.server.playground")))


@pytest.fixture(scope="module")
def guarded() -> Iterator[httpx.Client]:
    with serving(scripted_llm("ok"), api_key="key-of-the-test") as url, httpx.Client(base_url=url) as client:
        yield client


@pytest.mark.parametrize(("path", "media_type"), [("/", "text/html; charset=utf-8"), *ASSETS.items()])
def test_a_file_is_public_typed_and_the_one_in_the_package(guarded: httpx.Client, path: str, media_type: str) -> None:
    name = "index.html" if path == "/" else path
    answer = guarded.get("/" if path == "/" else f"/playground/{path}")
    assert (answer.status_code, answer.headers["content-type"]) == (200, media_type)
    assert answer.content == (BUILT / name).read_bytes()
    assert b"key-of-the-test" not in answer.content


def test_the_package_has_no_other_files_of_the_page() -> None:
    built = {path.name for path in BUILT.iterdir() if path.suffix != ".py" and path.is_file()}
    assert built == {"index.html", *ASSETS}


@pytest.mark.parametrize("path", ["/", "/playground/app.js"])
def test_the_policy_allows_nothing_but_the_pages_own_files(guarded: httpx.Client, path: str) -> None:
    headers = guarded.get(path).headers
    rules = dict(rule.split(" ", 1) for rule in headers["content-security-policy"].split("; "))
    assert rules["default-src"] == rules["frame-ancestors"] == rules["base-uri"] == rules["form-action"] == "'none'"
    assert rules["script-src"] == rules["style-src"] == rules["connect-src"] == "'self'"
    assert rules["img-src"] == "'self' data: blob:"
    assert rules["require-trusted-types-for"] == "'script'"
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["referrer-policy"] == "no-referrer"


@pytest.mark.parametrize("path", ["/", "/playground/style.css"])
def test_a_file_that_has_not_changed_is_not_sent_again(guarded: httpx.Client, path: str) -> None:
    first = guarded.get(path)
    assert first.headers["cache-control"] == "no-cache"
    tag = first.headers["etag"]
    for known in (tag, f'W/{tag}, "other"', f'"other",{tag}', "*"):
        again = guarded.get(path, headers={"If-None-Match": known})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
        assert again.headers["content-security-policy"] == first.headers["content-security-policy"]
    assert guarded.get(path, headers={"If-None-Match": '"other"'}).content == first.content


def test_head_is_answered_like_get_without_a_body(guarded: httpx.Client) -> None:
    for path in ("/", "/playground/app.js"):
        head, get = guarded.head(path), guarded.get(path)
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-length"] == get.headers["content-length"] == str(len(get.content))


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_other_methods_are_refused(guarded: httpx.Client, method: str) -> None:
    for path in ("/", "/playground/app.js"):
        assert guarded.request(method, path).status_code == 405


@pytest.mark.parametrize(
    "name", ["nope.js", "index.html", "__init__.py", "pages.py", "%2e%2e/app.py", "..%2fapp.py", "app.js/", "/app.js"]
)
def test_nothing_else_of_the_package_is_served(guarded: httpx.Client, name: str) -> None:
    answer = guarded.get(f"/playground/{name}")
    assert answer.status_code == 404
    assert "playground has no file" in error_of(answer)["message"]


def test_it_can_be_turned_off() -> None:
    with serving(scripted_llm("ok"), playground=False) as url, httpx.Client(base_url=url) as client:
        for path in ("/", "/playground/app.js"):
            assert client.get(path).status_code == 404
        assert client.get("/docs").status_code == 200


def test_the_description_of_the_api_does_not_list_it(http: httpx.Client) -> None:
    paths = http.get("/openapi.json").json()["paths"]
    assert set(paths) == {each.path for each in OPERATIONS}
    assert not {each.path for each in PAGES} & set(paths)
    assert {each.access for each in PAGES} == {"open"}


def test_its_requests_are_counted_under_two_names(http: httpx.Client) -> None:
    http.get("/")
    http.get("/playground/app.js")
    counted = set(re.findall(r'ternvl_requests_total{endpoint="([^"]*)",status="200"}', http.get("/metrics").text))
    assert {"/", "/playground/{id}"} <= counted


def test_the_page_names_its_files_relative_to_itself() -> None:
    page = (BUILT / "index.html").read_text()
    addresses = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert sorted(addresses) == ["playground/app.js", "playground/icon.svg", "playground/style.css"]
