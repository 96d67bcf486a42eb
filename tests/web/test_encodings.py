"""Bodies in other encodings: gzip is taken within the limits, all others are told what they are."""

from __future__ import annotations

import codecs
import gzip
import io
import json
import zlib
from collections.abc import AsyncIterator

import numpy as np
import pytest
from starlette.testclient import TestClient

from tests.support.web import (
    KEY,
    OBSERVATION,
    assert_error,
    assert_invalid,
    serve_shared,
    shared_app,
)

ROWS = [OBSERVATION, {"cat": 1, "mouse": 2.5}]
BODIES = {
    "/predict": OBSERVATION,
    "/predict_raw": {"obs": [0, 1.5]},
    "/predict?seed=7": OBSERVATION,
    "/predict_deterministic/batch": ROWS,
    "/distribution/batch": {"cat": [0, 1], "mouse": [1.5, 2.5]},
    "/predict_raw/batch": [{"obs": [0, 1.5]}] * 2000,
}
GZIP = {"content-encoding": "gzip"}
every_route = pytest.mark.parametrize(("path", "body"), BODIES.items(), ids=BODIES)
each_way = pytest.mark.parametrize("has_fast_path", [True, False], ids=["fast", "FastAPI"])


def text_of(body: object) -> bytes:
    """Return a body as JSON."""
    return json.dumps(body).encode()


async def pieces(data: bytes, size: int) -> AsyncIterator[bytes]:
    """Give a body bit by bit, without its length."""
    for start in range(0, len(data), size):
        yield data[start : start + size]


@each_way
@every_route
async def test_packed_body_is_answered_as_it_would_be_without(
    path: str, body: object, *, has_fast_path: bool
) -> None:
    plain = text_of(body)
    path = path.replace("/predict_raw/batch", "/predict_raw/batch?seed=7")
    packed = gzip.compress(plain)
    half = len(plain) // 2
    bodies = [packed, gzip.compress(plain[:half]) + gzip.compress(plain[half:])]
    async with serve_shared(has_fast_path=has_fast_path) as client:
        known = await client.post(path, content=plain)
        answers = [await client.post(path, content=item, headers=GZIP) for item in bodies]
        answers += [
            await client.post(path, content=pieces(packed, size), headers=GZIP)
            for size in (1, 7, 10_000)
        ]
        answers.append(
            await client.post(path, content=packed, headers={"content-encoding": "X-GZip"})
        )

    assert known.status_code == 200
    assert {answer.status_code for answer in answers} == {200}
    if "seed" in path or "deterministic" in path or "distribution" in path:
        assert {answer.content for answer in answers} == {known.content}


async def test_packed_array_is_answered() -> None:
    file = io.BytesIO()
    np.save(file, np.array([[0, 1.5], [1, 2.5]], np.float32))
    headers = {**GZIP, "content-type": "application/x-npy"}
    async with serve_shared() as client:
        answer = await client.post(
            "/predict/batch", content=gzip.compress(file.getvalue()), headers=headers
        )

    assert (answer.status_code, len(answer.json()["actions"])) == (200, 2)


@pytest.mark.parametrize("coding", ["identity", "", "IDENTITY"])
async def test_body_that_is_not_packed_may_say_so(coding: str) -> None:
    headers = {"content-encoding": coding}
    async with serve_shared() as client:
        answer = await client.post("/predict", json=OBSERVATION, headers=headers)

    assert answer.status_code == 200


@every_route
@pytest.mark.parametrize(
    "coding", ["deflate", "br", "zstd", "compress", "gzip, gzip", "gzip, br", "x"]
)
async def test_other_packing_is_415_with_what_is_taken(
    coding: str, path: str, body: object
) -> None:
    headers = {"content-encoding": coding}
    async with serve_shared() as client:
        answer = await client.post(path, content=text_of(body), headers=headers)

    assert_error(
        answer, 415, f"content-encoding '{coding}' is not taken; send the body packed with"
    )
    assert answer.headers["accept-encoding"] == "gzip, identity"


@each_way
@every_route
async def test_packed_body_is_held_to_the_limit_of_what_it_holds(
    path: str, body: object, *, has_fast_path: bool
) -> None:
    plain = text_of(body)
    limit = len(plain)
    async with serve_shared(
        has_fast_path=has_fast_path, max_body_bytes=limit, max_batch_body_bytes=limit
    ) as client:
        fits = await client.post(path, content=gzip.compress(plain), headers=GZIP)
        over = await client.post(path, content=gzip.compress(plain + b" "), headers=GZIP)

    assert fits.status_code == 200 or len(gzip.compress(plain)) > len(plain)
    assert_error(over, 413, "body is larger than")


@pytest.fixture(scope="module")
def bomb() -> bytes:
    """Pack 200 MB of spaces."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    return b"".join(packer.compress(b" " * 1_000_000) for _ in range(200)) + packer.flush()


@pytest.mark.parametrize("path", BODIES)
async def test_bomb_is_refused_before_it_is_unpacked(path: str, bomb: bytes) -> None:
    read = 0

    async def counted() -> AsyncIterator[bytes]:
        nonlocal read
        async for piece in pieces(bomb, 1000):
            read += len(piece)
            yield piece

    async with serve_shared(max_body_bytes=200_000, max_batch_body_bytes=5_000_000) as client:
        answer = await client.post(path, content=counted(), headers=GZIP)

    assert_error(answer, 413, "the unpacked body is larger than")
    assert read < len(bomb) / 20


DAMAGED = {
    "not packed": lambda _: b'{"cat": 0, "mouse": 1.5}',
    "nothing": lambda _: b"",
    "cut": lambda packed: packed[:-9],
    "cut in its header": lambda packed: packed[:5],
    "without its checksum": lambda packed: packed[:-8],
    "wrong checksum": lambda packed: packed[:-8] + bytes(8),
    "changed": lambda packed: packed[:12] + bytes([packed[12] ^ 255]) + packed[13:],
    "followed by something": lambda packed: packed + b"more",
    "zlib": lambda packed: zlib.compress(gzip.decompress(packed)),
}


@each_way
@pytest.mark.parametrize("path", ["/predict", "/predict/batch"])
@pytest.mark.parametrize("damage", DAMAGED.values(), ids=DAMAGED)
async def test_damaged_gzip_is_422_in_words(
    damage: object, path: str, *, has_fast_path: bool
) -> None:
    assert callable(damage)
    content = damage(gzip.compress(text_of(BODIES["/predict"] if path == "/predict" else ROWS)))
    async with serve_shared(has_fast_path=has_fast_path) as client:
        answer = await client.post(path, content=content, headers=GZIP)

    assert_invalid(answer, "body")
    ((problem),) = answer.json()["detail"]
    assert problem["type"] == "gzip_invalid"
    assert problem["msg"].startswith("gzip decode error: the body ")


@pytest.mark.parametrize("size", [0, 1, 65535, 65536, 65537, 131072, 200_000])
async def test_packed_body_of_any_size_arrives_whole(size: int) -> None:
    plain = b" " * size + text_of(OBSERVATION)
    async with serve_shared() as client:
        answer = await client.post("/predict", content=gzip.compress(plain), headers=GZIP)

    assert answer.status_code == 200


@each_way
@every_route
async def test_byte_order_mark_is_passed_over(
    path: str, body: object, *, has_fast_path: bool
) -> None:
    content = codecs.BOM_UTF8 + text_of(body)

    async def split() -> AsyncIterator[bytes]:
        async for piece in pieces(content[:8], 1):
            yield piece
        yield content[8:]

    async with serve_shared(has_fast_path=has_fast_path) as client:
        answers = [
            await client.post(path, content=content),
            await client.post(path, content=split()),
            await client.post(path, content=gzip.compress(content), headers=GZIP),
        ]

    assert [answer.status_code for answer in answers] == [200] * 3


async def test_byte_order_mark_changes_no_mistake() -> None:
    async with serve_shared() as client:
        wrong = await client.post("/predict", content=codecs.BOM_UTF8 + b'{"cat": 0}')
        broken = await client.post("/predict", content=codecs.BOM_UTF8 + b'{"cat": ')
        alone = await client.post("/predict", content=codecs.BOM_UTF8)
        batch = await client.post("/predict/batch", content=codecs.BOM_UTF8 + b'{"cat": [0]}')
        empty = await client.post("/predict/batch", content=b"{}")

    assert_invalid(wrong, "body.mouse")
    assert_invalid(broken, "body")
    assert_invalid(alone, "body")
    assert_invalid(batch, "body.mouse")
    assert_invalid(empty, "body.cat", "body.mouse")


OTHERS = {
    "UTF-16": "UTF-16",
    "UTF-16-LE": "UTF-16",
    "UTF-16-BE": "UTF-16",
    "UTF-32": "UTF-32",
    "UTF-32-LE": "UTF-32",
    "UTF-32-BE": "UTF-32",
}


@each_way
@every_route
@pytest.mark.parametrize(("codec", "name"), OTHERS.items(), ids=OTHERS)
async def test_other_encoding_of_text_is_415_that_names_it(
    codec: str, name: str, path: str, body: object, *, has_fast_path: bool
) -> None:
    content = json.dumps(body).encode(codec)
    async with serve_shared(has_fast_path=has_fast_path) as client:
        answer = await client.post(path, content=content)

    assert_error(answer, 415, f"the body is {name}; send JSON in UTF-8")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (gzip.compress(b"{}"), "packed with gzip, which its headers don't say; add 'content-enc"),
        (b"\x93NUMPY\x01\x00", "a NumPy array, which its headers don't say; add 'content-type"),
        (b"\x28\xb5\x2f\xfd\x00", "packed with zstd; send it packed with gzip"),
        (b"PK\x03\x04\x00", "a zip archive; send JSON in UTF-8"),
        (b"\x82\xa3cat\x00\xa5mouse\x01", "no text in UTF-8; send JSON in UTF-8"),
    ],
    ids=["gzip", "npy", "zstd", "zip", "MessagePack"],
)
@pytest.mark.parametrize("path", ["/predict", "/predict/batch"])
async def test_body_that_is_no_text_is_415_that_names_it(
    content: bytes, says: str, path: str
) -> None:
    async with serve_shared() as client:
        assert_error(await client.post(path, content=content), 415, f"the body is {says}")


@pytest.mark.parametrize("path", ["/predict", "/predict/batch"])
async def test_character_of_another_encoding_is_named_with_its_place(path: str) -> None:
    async with serve_shared() as client:
        answer = await client.post(path, content='{"größe": 1}'.encode("latin-1"))

    assert_invalid(answer, "body")
    assert "no character of UTF-8 at line 1 column " in answer.text


@pytest.mark.parametrize("charset", ["utf-8", "UTF8", "us-ascii", "iso-8859-1", "x"])
async def test_charset_of_the_content_type_changes_nothing(charset: str) -> None:
    headers = {"content-type": f"application/json; charset={charset}"}
    async with serve_shared() as client:
        assert (await client.post("/predict", json=OBSERVATION, headers=headers)).is_success


def test_frame_with_a_byte_order_mark_is_answered() -> None:
    with (
        TestClient(shared_app(), headers={"access-token": KEY}) as client,
        client.websocket_connect("/predict/stream") as stream,
    ):
        stream.send_text("\ufeff" + json.dumps(OBSERVATION))
        assert "actions" in stream.receive_json()


async def test_question_without_a_body_may_name_any_packing() -> None:
    async with serve_shared() as client:
        answer = await client.get("/schema", headers={"content-encoding": "br"})

    assert answer.status_code == 200


async def test_document_says_which_encodings_are_taken() -> None:
    async with serve_shared() as client:
        document = (await client.get("/openapi.json")).json()

    assert "`content-encoding: gzip`" in document["info"]["description"]
    posts = [item["post"] for item in document["paths"].values() if "post" in item]
    assert len(posts) == 20
    assert all("415" in operation["responses"] for operation in posts)
