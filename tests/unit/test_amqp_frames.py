"""The bytes of a publish, against the client library's own decoder and encoder."""

from __future__ import annotations

import random
import string
from typing import Any

import pamqp.frame
import pytest
from pamqp.body import ContentBody
from pamqp.commands import Basic
from pamqp.header import ContentHeader

from bus.amqp_frames import publish_frames, short, table


def read(data: bytes) -> list[tuple[int, Any]]:
    """(channel, frame) of each frame; all bytes are used up."""
    found = []
    while data:
        size, channel, frame = pamqp.frame.unmarshal(data)
        found.append((channel, frame))
        data = data[size:]
    return found


def words(dice: random.Random, most: int) -> str:
    return "".join(dice.choice(string.printable + "äß€𝄞") for _ in range(dice.randint(1, most)))


def test_what_is_written_reads_back_equal(seed: int) -> None:
    dice = random.Random(seed)
    for _ in range(500):
        headers = {words(dice, 40): words(dice, 3000) for _ in range(dice.randint(0, 30))}
        body = dice.randbytes(dice.choice((0, 1, 300, 4088, 4089, 20_000)))
        reply_to, correlation_id = dice.choice(("", words(dice, 60))), dice.choice(("", words(dice, 60)))
        expiration, mandatory, durable = dice.choice((None, 0, 15_000)), dice.random() < 0.5, dice.random() < 0.5
        exchange, key, channel = dice.choice(("", "storebus.events")), words(dice, 60), dice.randint(1, 2047)
        frames = read(publish_frames(
            channel, exchange, key, mandatory=mandatory, headers=headers, body=body, durable=durable, message_id="m-1", user_id="guest",
            reply_to=reply_to, correlation_id=correlation_id, expiration_ms=expiration, frame_max=4096))
        assert {number for number, _ in frames} == {channel}
        method, header, *bodies = (frame for _, frame in frames)
        assert isinstance(method, Basic.Publish) and isinstance(header, ContentHeader)
        assert (method.exchange, method.routing_key, method.mandatory, method.immediate) == (exchange, key, mandatory, False)
        properties = header.properties
        assert properties.headers == headers
        assert (properties.content_type, properties.delivery_mode, properties.message_id, properties.user_id) == (
            "application/json", 2 if durable else 1, "m-1", "guest")
        assert (properties.reply_to or "", properties.correlation_id or "") == (reply_to, correlation_id)
        assert properties.expiration == (None if expiration is None else str(expiration))
        assert header.body_size == len(body)
        assert all(isinstance(frame, ContentBody) and len(frame.value) + 8 <= 4096 for frame in bodies)
        assert b"".join(frame.value for frame in bodies) == body


def test_the_same_bytes_as_the_library() -> None:
    properties = Basic.Properties(content_type="application/json", headers={"a": "1", "bé": "2"}, delivery_mode=2, message_id="m", user_id="u",
                                  reply_to="r", correlation_id="c", expiration="7")
    theirs = b"".join(pamqp.frame.marshal(frame, 3) for frame in (
        Basic.Publish(exchange="x", routing_key="k", mandatory=True), ContentHeader(body_size=4, properties=properties), ContentBody(b"body")))
    assert publish_frames(3, "x", "k", mandatory=True, headers={"a": "1", "bé": "2"}, body=b"body", durable=True, message_id="m", user_id="u",
                          reply_to="r", correlation_id="c", expiration_ms=7) == theirs


@pytest.mark.parametrize("where", ["key", "header"])
def test_a_name_that_is_too_long(where: str) -> None:
    with pytest.raises(ValueError, match="300 bytes do not fit"):
        short("x" * 300) if where == "key" else table({"x" * 300: "v"})
