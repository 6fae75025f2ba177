"""Image URLs: `data:` URIs, checks of http: URLs, allowed domains, and local files."""

from __future__ import annotations

import base64
import os
import re
import textwrap
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ternvl.errors import ImageError
from ternvl.limits import ImageLimits
from ternvl.prompt.fetch import fetch
from tests.prompt.web import BODY, NAME, OPEN, Server, names, redirect, refused, send

# data:


@pytest.mark.parametrize(
    "payload",
    [
        base64.b64encode(BODY).decode(),
        base64.b64encode(BODY + b"x").decode().rstrip("="),
        base64.urlsafe_b64encode(BODY).decode(),
        base64.encodebytes(BODY).decode(),
        base64.encodebytes(BODY).decode().replace("\n", "\r\n"),
        "\n".join(textwrap.wrap(base64.b64encode(BODY).decode(), 64)),
        " " + base64.b64encode(BODY).decode() + " \r\n",
        "%20" + base64.b64encode(BODY).decode() + "%0D%0A",
        base64.b64encode(BODY).decode().replace("+", "%2B").replace("/", "%2F").replace("=", "%3D"),
    ],
)
def test_data_uris(payload: str) -> None:
    for head in (
        "data:image/png;base64,",
        "DATA:;BASE64,",
        "\n data:image/png; base64 ,",
        "data:image/svg+xml;charset=utf-8;base64,",
    ):
        assert fetch(head + payload, OPEN, NAME).removesuffix(b"x") == BODY


@given(st.binary(), st.booleans(), st.booleans())
def test_any_bytes_come_back_from_a_data_uri(data: bytes, url_safe: bool, padded: bool) -> None:
    text = (base64.urlsafe_b64encode if url_safe else base64.b64encode)(data).decode()
    assert fetch("data:image/png;base64," + (text if padded else text.rstrip("=")), OPEN, NAME) == data


@pytest.mark.parametrize("url", ["data:", "data:image/png", "data:,abc", "data:image/png,abc", "data:;base64,a",
                                 "data:;base64,ab!d", "data:;base64,äöü", "data:;base64,ab=cd"])  # fmt: skip
def test_bad_data_uris(url: str) -> None:
    assert refused(url).code == "invalid_image_url"


def test_data_uris_over_the_limit() -> None:
    limits = ImageLimits(max_image_bytes=300)
    assert len(fetch("data:;base64," + base64.b64encode(bytes(300)).decode(), limits, NAME)) == 300
    assert refused("data:;base64," + base64.b64encode(bytes(301)).decode(), limits).too_large
    assert refused("data:;base64," + "A" * 10**6, limits).too_large


# http:


@pytest.mark.parametrize(
    "url",
    ["http://2130706433/", "http://0x7f000001/", "http://0x7f.1/", "http://0177.0.0.1/", "http://127.1/", "http://1/",
     "http://user@127.0.0.1/", "http://user:pw@127.0.0.1/", "http://@127.0.0.1/", "http://127.0.0.1\\@example.com/",
     "http:\\\\127.0.0.1/", "http://exa mple.com/", "http://example.com/\x00", "http://",
     "http:///a.png", "http:a.png", "http://%31%32%37.0.0.1/", "http://exa%6dple.com/", "http://[::1",
     "http://[fe80::1%25eth0]/",
     "http://example.com:99999/", "http://example.com:0/", "http://example.com:x/", "http://..",
     "http://-a.com/", "http://a..b/", "http://①②⑦.0.0.1/",
     "ftp://example.com/a", "javascript:alert(1)", "gopher://127.0.0.1/", "about:blank", "", "a.png", "//127.0.0.1/a"],
)  # fmt: skip
def test_ambiguous_urls_are_refused_before_a_name_is_resolved(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = names(monkeypatch, {"example.com": ["127.0.0.1"]})
    assert refused(url).code == "invalid_image_url"
    assert asked == []


URL_PARTS = [
    "http://", "https://", "file://", "data:", ";base64,", "//", "[", "]", "::1", "%", "%00", "@", ":", "80", "9" * 20,
    "é", "。", "..", "a", "example.com", "/", "?", "#", "\\", " ", "xn--", "xn--a", "\u2100", "\uff0e", "0x", "1", "-",
    "_", "~", "İ", "☃", "a" * 300, "\ud800",
]  # fmt: skip


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
@given(
    st.sampled_from(["http://", "https://", "file:///", "data:", ""]), st.lists(st.sampled_from(URL_PARTS), max_size=6)
)
def test_any_url_is_refused_with_an_error_that_names_the_image(
    monkeypatch: pytest.MonkeyPatch, head: str, parts: list[str]
) -> None:
    with monkeypatch.context() as patch:
        names(patch, {})
        patch.setattr("ternvl.prompt.download.may_connect", lambda *_, **__: False)
        with pytest.raises(ImageError, match=f"^{re.escape(NAME)} "):
            fetch(head + "".join([*parts, "|"]), ImageLimits(allow_local_media=Path(__file__).parent), NAME)


PASTED = [
    ("/a b.png", "/a%20b.png"),
    ("  /a.png\n", "/a.png"),
    ("/a\r\n.png\t", "/a.png"),
    ("/größe.png?q=ü#é", "/gr%C3%B6%C3%9Fe.png?q=%C3%BC"),
    ("/a[1]|{2}.png", "/a[1]|%7B2%7D.png"),
    ('/"<a>"^`.png', "/%22%3Ca%3E%22^%60.png"),
    ("/a%20b%zz.png", "/a%20b%zz.png"),
]


@pytest.mark.parametrize(("pasted", "sent"), PASTED)
def test_pasted_urls_are_normalised(server: Server, pasted: str, sent: str) -> None:
    server.answers = {sent: send}
    before = pasted[: len(pasted) - len(pasted.lstrip())]
    assert fetch(before + server.url(pasted.lstrip()), OPEN, NAME) == BODY
    assert [path for path, _ in server.requests] == [sent]


@pytest.mark.parametrize(
    ("host", "ascii_host"),
    [("bücher.example", "xn--bcher-kva.example"), ("BÜCHER.example", "xn--bcher-kva.example"),
     ("日本語。jp", "xn--wgv71a119e.jp"), ("☃.example", "xn--n3h.example"), ("ｅxample.com", "example.com")],
)  # fmt: skip
def test_international_host_names(server: Server, monkeypatch: pytest.MonkeyPatch, host: str, ascii_host: str) -> None:
    asked = names(monkeypatch, {ascii_host: ["127.0.0.1"]})
    assert fetch(server.url("/a.png", host), OPEN, NAME) == BODY
    assert asked[0] == ascii_host
    assert server.requests[0][1]["Host"] == f"{ascii_host}:{server.port}"
    only = ImageLimits(allowed_media_domains=("example.org",))
    assert refused(server.url("/a.png", host), only).code == "image_not_allowed"


@pytest.mark.parametrize(
    ("raw", "asked"),
    [("/größe.png".encode(), "/gr%C3%B6%C3%9Fe.png"), ("/gr\xf6\xdfe.png".encode("latin-1"), "/gr%F6%DFe.png"),
     (b"/a b.png", "/a%20b.png"), (b"../b.png?a=|", "/b.png?a=|")],
)  # fmt: skip
def test_redirects_to_raw_characters(server: Server, raw: bytes, asked: str) -> None:
    server.answers = {"/go": redirect(raw.decode("latin-1")), asked: send}
    assert fetch(server.url("/go"), OPEN, NAME) == BODY
    assert [path for path, _ in server.requests] == ["/go", asked]


def test_allowed_domains(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    hosts = ["example.com", "a.b.example.com", "EXAMPLE.com", "badexample.com", "example.com.evil.org", "127.0.0.1"]
    names(monkeypatch, {host.lower(): ["127.0.0.1"] for host in hosts})
    limits = ImageLimits(allow_private_addresses=True, allowed_media_domains=("Example.com",))
    for host in hosts[:3]:
        assert fetch(server.url("/a.png", host), limits, NAME) == BODY
    for host in hosts[3:]:
        assert refused(server.url("/a.png", host), limits).code == "image_not_allowed"
    server.answers["/go"] = redirect(server.url("/a.png", "badexample.com"))
    assert refused(server.url("/go", "example.com"), limits).code == "image_not_allowed"


# file:


@pytest.fixture
def media(tmp_path: Path) -> Path:
    (tmp_path / "secret.png").write_bytes(b"secret")
    folder = tmp_path / "media"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "ä b.png").write_bytes(BODY)
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    (folder / "good.png").symlink_to(folder / "sub" / "ä b.png")
    (tmp_path / "media-evil").mkdir()
    (tmp_path / "media-evil" / "a.png").write_bytes(b"secret")
    os.mkfifo(folder / "pipe")
    return folder


def test_local_files_below_the_folder(media: Path) -> None:
    limits = ImageLimits(allow_local_media=media)
    for path in ("sub/%C3%A4%20b.png", "good.png", "sub/../good.png"):
        assert fetch(f"file://{media}/{path}", limits, NAME) == BODY
    assert fetch(f"file://localhost{media}/good.png", limits, NAME) == BODY
    assert fetch(f"FILE:{media}/good.png", limits, NAME) == BODY


@pytest.mark.parametrize(
    "path",
    ["../secret.png", "%2e%2e/secret.png", "..%2fsecret.png", "link.png", "sub", "", "none.png", "../media-evil/a.png",
     "pipe", "a%00b", "../../../../../../etc/passwd"],
)  # fmt: skip
def test_no_other_file_is_opened(media: Path, path: str) -> None:
    error = refused(f"file://{media}/{path}", ImageLimits(allow_local_media=media))
    assert "not a file below the folder" in str(error)
    assert str(media) not in str(error)


def test_local_files_are_not_allowed_by_default_and_limited_in_size(media: Path) -> None:
    assert "local files are not allowed" in str(refused(f"file://{media}/good.png"))
    assert refused(f"file://{media}/good.png", ImageLimits(allow_local_media=media, max_image_bytes=99)).too_large
    refused(f"file://elsewhere{media}/good.png", ImageLimits(allow_local_media=media))
    refused("file:good.png", ImageLimits(allow_local_media=media))
