"""Ids: what a column can hold, and its one spelling."""

from __future__ import annotations

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handstamp.core.tokens import (
    LONGEST_ENCODED,
    decode_id,
    encode_id,
    normalize,
    normalize_text,
)

UUID = "6f50943b-461f-4c2e-8a57-f606eedfa45d"


@pytest.mark.parametrize(
    ("type", "text", "spelled"),
    [
        ("int4", "2147483647", "2147483647"),
        ("int4", "2147483648", None),
        ("int4", "-2147483648", "-2147483648"),
        ("int2", "32768", None),
        ("int8", "9" * 19, None),
        ("int8", "9" * 20, None),
        ("int8", "0" * 18 + "7", "7"),
        ("int8", "-0", "0"),
        ("int8", "+7", None),
        ("int8", " 7", None),
        ("int8", "7\n", None),
        ("int8", "٧", None),
        ("int8", "", None),
        ("uuid", UUID, UUID),
        ("uuid", UUID.upper(), UUID),
        ("uuid", UUID.replace("-", ""), UUID),
        ("uuid", UUID.replace("-", "").upper(), UUID),
        ("uuid", UUID + "\n", None),
        ("uuid", "{" + UUID + "}", None),
        ("uuid", UUID[:9] + UUID[10:], None),
        ("uuid", UUID.replace("a", "K"), None),
        ("uuid", "", None),
        ("text", "", ""),
        ("text", "x" * 255, "x" * 255),
        ("text", "x" * 256, None),
        ("text", "a\x00b", None),
        ("text", "abc ", "abc "),
        ("text", UUID.upper(), UUID.upper()),
        ("bpchar", "abc  ", "abc"),
        ("bpchar", "abc\n", "abc\n"),
        ("bpchar", "\ud800", None),
    ],
    ids=ascii,
)
def test_what_a_column_could_hold(type: str, text: str, spelled: str | None) -> None:
    """Only that is ever asked for, as the database would spell it."""
    assert normalize(type, text) == spelled


@given(id=st.uuids())
def test_every_uuid_is_spelled_as_python_and_postgresql_do(id: uuid.UUID) -> None:
    """Whichever of its spellings was given."""
    for text in (str(id), id.hex, str(id).upper()):
        assert normalize("uuid", text) == str(id)


@given(one=st.text(max_size=255), other=st.text(max_size=255))
def test_no_two_ids_have_one_encoding(one: str, other: str) -> None:
    """Neither two plain ones, nor a plain and an encoded one."""
    if normalize_text(one) is None or normalize_text(other) is None:
        return
    assert (encode_id(one) == encode_id(other)) == (one == other)
    assert decode_id(encode_id(one)) == one
    assert len(encode_id(one)) <= LONGEST_ENCODED


@given(text=st.text(alphabet="~abcXYZ019-_=.+/", max_size=40))
def test_what_is_decoded_is_encoded_to_the_same_text(text: str) -> None:
    """So there is one text for each id."""
    session_id = decode_id(text)
    assert session_id is None or encode_id(session_id) == text


def test_the_longest_encoding_is_reached() -> None:
    """Of the widest characters; no bound is larger than it has to be."""
    assert len(encode_id("\U0001f98a" * 255)) == LONGEST_ENCODED
