"""Small files that take very much memory or time to decode, or claim to."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterable
from io import BytesIO

from PIL import Image, features


def chunk(kind: bytes, body: bytes = b"") -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def zeros(size: int) -> bytes:
    """So many zeros, compressed."""
    packer, block = zlib.compressobj(1), bytes(1 << 20)
    return (
        b"".join(packer.compress(block[: min(1 << 20, size - at)]) for at in range(0, size, 1 << 20)) + packer.flush()
    )


def png(width: int, height: int, *chunks: bytes, bits: int = 8, colour: int = 2, data: bytes | None = None) -> bytes:
    """A PNG with chunks before its pixels, which are black by default."""
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    pixels = zeros(height * (1 + (width * bits * channels + 7) // 8)) if data is None else data
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IDAT", pixels) + chunk(b"IEND")


def jpeg(width: int = 64, height: int = 48, *segments: bytes, **options: object) -> bytes:
    """A JPEG with segments after its first marker."""
    data = BytesIO()
    Image.linear_gradient("L").resize((width, height)).convert("RGB").save(data, "JPEG", **options)
    return data.getvalue()[:2] + b"".join(segments) + data.getvalue()[2:]


def segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def jpeg_of_size(width: int, height: int) -> bytes:
    """A JPEG whose header claims another size."""
    data = bytearray(jpeg())
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(data)


def jpeg_of_scans(side: int, scans: int) -> bytes:
    """A progressive JPEG in which one scan of all coefficients is repeated."""
    data = jpeg(side, side, progressive=True, quality=30)
    starts = [at for at in range(len(data)) if data[at : at + 2] == b"\xff\xda"]
    last = data[starts[-1] : -2]
    return data[:-2] + scans * last + data[-2:]


Tag = tuple[int, int, int, int]


def tiff(*tags: Tag, after: bytes = b"", then: int = 0) -> bytes:
    """A TIFF of one directory of tags (number, type, count, value), with `after` at the offset that follows it."""
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + struct.pack("<I", then) + after


def tiff_image(width: int, height: int, *more: Tag, after: bytes = bytes(64), then: int = 0) -> bytes:
    basic = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (277, 3, 1, 1)]
    tags = {tag[0]: tag for tag in (*basic, *more)}
    return tiff(*sorted(tags.values()), after=after, then=then)


def tiff_tiles(side: int, side_of_tile: int) -> bytes:
    """A TIFF of tiles that are not there."""
    tags = [(322, 4, 1, side_of_tile), (323, 4, 1, side_of_tile), (324, 4, 1, 200), (325, 4, 1, 9)]
    return tiff_image(side, side, *tags)


def tiff_strip(width: int, height: int) -> bytes:
    """A TIFF of one strip of black pixels, compressed."""
    data = zeros(width * height)
    tags = [(259, 3, 1, 8), (273, 4, 1, 8 + 2 + 9 * 12 + 4), (278, 4, 1, height), (279, 4, 1, len(data))]
    return tiff_image(width, height, *tags, after=data)


def tiff_directories(count: int) -> bytes:
    """A TIFF of many directories, each the image of the first."""
    size = 2 + 9 * 12 + 4
    tags = [(273, 4, 1, 8 + count * size), (278, 4, 1, 4), (279, 4, 1, 16)]
    one = [tiff_image(4, 4, *tags, then=8 + (index + 1) * size)[8 : 8 + size] for index in range(count)]
    return struct.pack("<2sHI", b"II", 42, 8) + b"".join(one) + bytes(16)


def frames(image_format: str, count: int) -> bytes:
    """An animation."""
    first, *rest = [Image.new("L", (8, 8), 90 * (number % 3)) for number in range(count)]
    data = BytesIO()
    first.save(data, image_format, save_all=True, append_images=rest, duration=10)
    return data.getvalue()


def bmp(width: int, height: int, body: bytes, *, bits: int = 8, compression: int = 1, colours: int = 256) -> bytes:
    """A BMP, by default of run lengths."""
    offset = 54 + 4 * min(colours, 256)
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, compression, len(body), 0, 0, colours, 0)
    return struct.pack("<2sIHHI", b"BM", offset + len(body), 0, 0, offset) + info + bytes(offset - 54) + body


def flat(image_format: str, side: int, mode: str = "RGB", **options: object) -> bytes:
    """A large image of one colour."""
    data = BytesIO()
    Image.new(mode, (side, side)).save(data, image_format, **options)
    return data.getvalue()


def boxes(data: bytes) -> Iterable[tuple[bytes, bytes]]:
    """The boxes of an ISO file: type and body."""
    at = 0
    while at + 8 <= len(data):
        size = struct.unpack(">I", data[at : at + 4])[0]
        yield data[at + 4 : at + 8], data[at + 8 : at + size]
        at += size


def box(kind: bytes, *bodies: bytes) -> bytes:
    body = b"".join(bodies)
    return struct.pack(">I", 8 + len(body)) + kind + body


def full(kind: bytes, *bodies: bytes, version: int = 0, flags: int = 0) -> bytes:
    return box(kind, struct.pack(">I", version << 24 | flags), *bodies)


def avif_grid(rows: int, cols: int, side: int = 64) -> bytes:
    """An AVIF that is a grid of `rows` x `cols` pictures, all of which have the same data."""
    data = BytesIO()
    Image.new("RGB", (side, side), "teal").save(data, "AVIF", speed=10, quality=40)
    top = dict(boxes(data.getvalue()))
    props = dict(boxes(dict(boxes(dict(boxes(top[b"meta"][4:]))[b"iprp"]))[b"ipco"]))
    count, picture = rows * cols, top[b"mdat"]
    grid = struct.pack(">BBBBII", 0, 1, rows - 1, cols - 1, cols * side, rows * side)
    items = [full(b"infe", struct.pack(">HH", 1, 0), b"grid\0", version=2)]
    items += [full(b"infe", struct.pack(">HH", 2 + index, 0), b"av01\0", version=2, flags=1) for index in range(count)]
    ipco = box(b"ipco", full(b"ispe", struct.pack(">II", side, side)), full(b"ispe", grid[4:]),
               box(b"pixi", props[b"pixi"]), box(b"av1C", props[b"av1C"]))  # fmt: skip
    uses = [
        struct.pack(">HBBB", 1, 2, 2, 3),
        *(struct.pack(">HBBBB", 2 + each, 3, 1, 3, 0x84) for each in range(count)),
    ]
    ipma = full(b"ipma", struct.pack(">I", count + 1), *uses)
    iref = full(
        b"iref", box(b"dimg", struct.pack(">HH", 1, count), *(struct.pack(">H", 2 + each) for each in range(count)))
    )

    def meta(offset: int) -> bytes:
        places = [struct.pack(">HHHII", 1, 0, 1, offset, len(grid))]
        at = struct.pack(">HII", 1, offset + len(grid), len(picture))
        places += [struct.pack(">HH", 2 + each, 0) + at for each in range(count)]
        iloc = full(b"iloc", struct.pack(">BBH", 0x44, 0, count + 1), *places)
        hdlr = full(b"hdlr", struct.pack(">I4s", 0, b"pict"), bytes(13))
        iinf = full(b"iinf", struct.pack(">H", count + 1), *items)
        return full(b"meta", hdlr, full(b"pitm", struct.pack(">H", 1)), iloc, iinf, box(b"iprp", ipco, ipma), iref)

    head = box(b"ftyp", top[b"ftyp"])
    return head + meta(len(head) + len(meta(0)) + 8) + box(b"mdat", grid, picture)


LOOP = b"II*\0\x08\0\0\0" + struct.pack("<HHHIII", 1, 0x8769, 4, 1, 8, 8)
"""EXIF whose directory is its own subdirectory, and the one that follows."""

BOMBS: dict[str, Callable[[], bytes]] = {
    "PNG, 50,000 x 50,000 of 1 bit": lambda: png(50_000, 50_000, bits=1, colour=0),
    "PNG, 2^31 - 1 x 2^31 - 1": lambda: png(2**31 - 1, 2**31 - 1, data=zeros(9)),
    "PNG, 100,000,000 x 1": lambda: png(100_000_000, 1, bits=1, colour=0),
    "PNG, 1 x 100,000,000": lambda: png(1, 100_000_000, bits=1, colour=0),
    "PNG, 10,000 x 10,000 of 64 bits": lambda: png(10_000, 10_000, bits=16, colour=6),
    "PNG, 10,000 x 10,000 with alpha": lambda: png(10_000, 10_000, colour=6),
    "PNG, one million chunks": lambda: png(9, 9, chunk(b"aaAa") * 1_000_000),
    "PNG, one million palettes": lambda: png(9, 9, chunk(b"PLTE", bytes(3)) * 1_000_000, colour=3),
    "PNG, a text of 64 MiB": lambda: png(9, 9, chunk(b"zTXt", b"a\0\0" + zeros(64 * 1024**2))),
    "PNG, texts of 512 KiB, 1,000 times": lambda: png(9, 9, chunk(b"zTXt", b"a\0\0" + zeros(512 * 1024)) * 1_000),
    "PNG, a text of 19 MB": lambda: png(9, 9, chunk(b"tEXt", b"a\0" + bytes(19_000_000))),
    "PNG, an ICC profile of 1 GB": lambda: png(9, 9, chunk(b"iCCP", b"a\0\0" + zeros(10**9))),
    "PNG, EXIF of 15 MB": lambda: png(9, 9, chunk(b"eXIf", b"II*\0\x08\0\0\0\xff\xff" + b"\x12\x01\x03\0" * 3_750_000)),
    "PNG, EXIF in a loop": lambda: png(9, 9, chunk(b"eXIf", LOOP)),
    "PNG, pixels of 1 GB in an image of 9 x 9": lambda: png(9, 9, data=zeros(10**9)),
    "JPEG, 65,535 x 65,535": lambda: jpeg_of_size(65_535, 65_535),
    "JPEG, 10,000 x 10,000 without data": lambda: jpeg_of_size(10_000, 10_000),
    "JPEG, 400 scans": lambda: jpeg_of_scans(3_000, 400),
    "JPEG, 255 ICC segments": lambda: jpeg(
        64, 48, *(segment(0xE2, b"ICC_PROFILE\0" + bytes((each, 255)) + bytes(65_000)) for each in range(1, 256))
    ),
    "JPEG, 300,000 comments": lambda: jpeg(64, 48, segment(0xFE, b"") * 300_000),
    "JPEG, EXIF in a loop": lambda: jpeg(64, 48, segment(0xE1, b"Exif\0\0" + LOOP)),
    "JPEG, EXIF of 16 segments": lambda: jpeg(
        64, 48, *[segment(0xE1, b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\x12" * 65_000)] * 16
    ),
    "TIFF, 65,535 tags": lambda: tiff_image(9, 9, *((500 + n, 4, 1, n) for n in range(65_000))),
    "TIFF, a tag of 2^32 - 1 values": lambda: tiff_image(9, 9, (273, 4, 2**32 - 1, 8), (279, 4, 2**32 - 1, 8)),
    "TIFF, tiles of 65,535 x 65,535": lambda: tiff_tiles(9, 65_535),
    "TIFF, tiles of 1 x 1 in 10,000 x 10,000": lambda: tiff_tiles(10_000, 1),
    "TIFF, a strip of 10,000 x 10,000": lambda: tiff_strip(10_000, 10_000),
    "TIFF, 10,000 directories": lambda: tiff_directories(10_000),
    "TIFF, a directory that follows itself": lambda: tiff_image(9, 9, (273, 4, 1, 8), (279, 4, 1, 81), then=8),
    "TIFF, 16 bits in 10,000 x 10,000": lambda: flat("TIFF", 10_000, "I;16", compression="tiff_adobe_deflate"),
    "TIFF, 32 bits in 10,000 x 10,000": lambda: flat("TIFF", 10_000, "F", compression="tiff_adobe_deflate"),
    "GIF, 10,000 frames": lambda: frames("GIF", 10_000),
    "GIF, 65,535 x 1,500": lambda: struct.pack("<6sHHBBB", b"GIF89a", 65_535, 1_500, 0x80, 0, 0) + bytes(6) + b",",
    "WebP, 10,000 frames": lambda: frames("WEBP", 10_000),
    "WebP, 10,000 x 10,000": lambda: flat("WEBP", 10_000, lossless=True, quality=0, method=0),
    "BMP, run lengths in 10,000 x 10,000": lambda: bmp(10_000, 10_000, b"\xff\0" * 400_000 + b"\0\1"),
    "BMP, jumps beyond the image": lambda: bmp(10_000, 10_000, b"\0\2\xff\xff" * 1_000_000),
    "BMP, ends of lines": lambda: bmp(10_000, 10_000, b"\0\0" * 5_000_000),
    "BMP, 2^31 - 1 x 1": lambda: bmp(2**31 - 1, 1, bytes(99), bits=24, compression=0, colours=0),
    "BMP, 2^32 - 1 colours": lambda: bmp(9, 9, bytes(9_999), colours=2**32 - 1, compression=0),
}  # fmt: skip
if features.check("avif"):
    BOMBS |= {
        "AVIF, a grid of 150 x 150": lambda: avif_grid(150, 150),
        "AVIF, a grid of 255 x 255": lambda: avif_grid(255, 255),
        "AVIF, 10,000 x 10,000": lambda: flat("AVIF", 10_000, speed=10, quality=1),
    }
