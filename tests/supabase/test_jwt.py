"""Access tokens: what GoTrue would mint is minted, and nothing else is believed."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import jwt
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from handstamp.errors import ConfigError
from handstamp.supabase.cookies import LONGEST_ACCESS_TOKEN
from handstamp.supabase.jwt import AccessToken, AccessTokens, Keys, assurance_level
from handstamp.supabase.rules import AmrEntry, AuthSession, AuthUser
from tests.support.supabase_keys import ALGORITHMS, private_key, public_key

SECRET = "super-secret-jwt-token-with-at-least-32-characters-long"
USER = "123e4567-e89b-42d3-a456-426614174000"
SESSION = "f47ac10b-58cc-4372-a567-0e02b2c3d479"
NOW = datetime(2026, 8, 20, 12, 0, 0, 750_000, tzinfo=UTC)
SECONDS = 1_787_227_200
HOUR = timedelta(hours=1)
TOKENS = AccessTokens(Keys(secret=SECRET))

ROW = AuthSession(id=SESSION, user_id=USER, created_at=NOW, read_at=NOW)
PERSON = AuthUser(
    id=USER,
    aud="authenticated",
    role="authenticated",
    email="alice@example.com",
    phone="",
    app_metadata={"provider": "email"},
    user_metadata={"name": "Žofie 🎉"},
)
PASSWORD = (AmrEntry(method="password", at=NOW),)


def mint(tokens: AccessTokens = TOKENS, **changes: Any) -> str:
    """A token of an ordinary session, valid for an hour."""
    times = {"issued_at": NOW, "expires_at": NOW + HOUR}
    return tokens.mint(
        changes.pop("session", ROW),
        changes.pop("user", PERSON),
        changes.pop("amr", PASSWORD),
        **{**times, **changes},
    )


def claims_of(token: str) -> dict[str, Any]:
    """The claims as they stand in the text."""
    segment = token.split(".")[1]
    return json.loads(urlsafe_b64decode(segment + "=="))


def signed(
    claims: object, headers: Mapping[str, Any] | None = None, algorithm: str = "HS256"
) -> str:
    """Any claims at all, signed with the project's own secret."""
    jws = jwt.PyJWS()
    payload = json.dumps(claims).encode()
    return jws.encode(payload, SECRET.encode(), algorithm, dict(headers or {}))


def by_hand(header: object, claims: object, signature: bytes = b"") -> str:
    """A token put together by someone who does not ask a library."""
    parts = [json.dumps(header).encode(), json.dumps(claims).encode(), signature]
    return ".".join(urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)


def valid(**changes: object) -> dict[str, object]:
    """Claims that are believed."""
    return {"sub": USER, "session_id": SESSION, "exp": SECONDS + 3600, **changes}


def without(name: str) -> dict[str, object]:
    """Claims that lack one."""
    return {key: value for key, value in valid().items() if key != name}


def live(tokens: AccessTokens, text: str, now: datetime) -> AccessToken | None:
    """What the token says if it is genuine and live at ``now``; otherwise None."""
    token = tokens.read(text)
    return token if token is not None and token.is_live(now) else None


def test_the_claims_are_those_of_gotrue() -> None:
    """Names, values and types; what is empty is left out, email and phone never are."""
    assert claims_of(mint()) == {
        "sub": USER,
        "aud": "authenticated",
        "iat": SECONDS,
        "exp": SECONDS + 3600,
        "email": "alice@example.com",
        "phone": "",
        "app_metadata": {"provider": "email"},
        "user_metadata": {"name": "Žofie 🎉"},
        "role": "authenticated",
        "aal": "aal1",
        "amr": [{"method": "password", "timestamp": SECONDS}],
        "session_id": SESSION,
        "is_anonymous": False,
    }


def test_times_are_whole_seconds_rounded_down() -> None:
    """Integers, as GoTrue truncates them; before 1970 too."""
    claims = claims_of(mint(expires_at=NOW + timedelta(seconds=1.5)))
    assert (type(claims["iat"]), type(claims["exp"])) == (int, int)
    assert claims["exp"] == SECONDS + 2
    old = (AmrEntry(method="otp", at=datetime(1969, 12, 31, 23, 59, 58, 1, UTC)),)
    assert claims_of(mint(amr=old))["amr"][0]["timestamp"] == -2


def test_a_session_without_amr_rows_has_no_amr_claim() -> None:
    """It still works, at the first level."""
    claims = claims_of(mint(amr=()))
    assert "amr" not in claims
    assert claims["aal"] == "aal1"


@pytest.mark.parametrize(
    ("methods", "level"),
    [
        ((), "aal1"),
        (("password",), "aal1"),
        (("password", "totp"), "aal2"),
        (("mfa/phone", "otp"), "aal2"),
        (("mfa/webauthn",), "aal2"),
        (("TOTP", "passkey"), "aal1"),
    ],
)
def test_the_level_comes_from_the_ways_of_signing_in(
    methods: tuple[str, ...], level: str
) -> None:
    """A second factor among them is the second level, whatever the row says."""
    assert assurance_level(methods) == level
    amr = [AmrEntry(method=method, at=NOW) for method in methods]
    token = live(TOKENS, mint(amr=amr), NOW)
    assert token is not None
    assert token.aal == level


def test_the_newest_way_of_signing_in_comes_first() -> None:
    """As GoTrue sorts them."""
    amr = [
        AmrEntry(method="sso/saml", at=NOW - HOUR),
        AmrEntry(method="totp", at=NOW),
    ]
    assert claims_of(mint(amr=amr))["amr"] == [
        {"method": "totp", "timestamp": SECONDS},
        {"method": "sso/saml", "timestamp": SECONDS - 3600},
    ]


def test_the_reader_tells_the_oauth_client() -> None:
    """The client of a token that GoTrue issued to it."""
    client = "11111111-1111-4111-8111-111111111111"
    token = live(TOKENS, signed(valid(client_id=client)), NOW)
    assert token is not None
    assert token.client_id == client


def test_a_row_with_nulls_makes_a_token_all_the_same() -> None:
    """What GoTrue reads as "" is "" here."""
    bare = AuthUser(
        id=USER, aud=None, role=None, email="", phone="", app_metadata={}, user_metadata={}
    )
    claims = claims_of(mint(user=bare))
    assert (claims["aud"], claims["role"], claims["email"]) == ("", "", "")
    assert (claims["app_metadata"], claims["user_metadata"]) == ({}, {})


def test_the_issuer_is_there_only_if_it_is_set() -> None:
    """An empty one is left out."""
    tokens = AccessTokens(Keys(secret=SECRET), issuer="https://a.example/auth/v1")
    assert claims_of(mint(tokens))["iss"] == "https://a.example/auth/v1"
    assert "iss" not in claims_of(mint())


def test_what_is_minted_is_believed() -> None:
    """The reader finds who, which session and until when."""
    token = live(TOKENS, mint(), NOW)
    assert token is not None
    assert (token.user_id, token.session_id) == (USER, SESSION)
    assert token.expires_at == NOW.replace(microsecond=0) + HOUR
    assert token.client_id is None
    assert "alice" not in repr(token)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm_of_gotrue_works(algorithm: str) -> None:
    """Signed with the private key, believed by the key set, public or private."""
    private, public = private_key(algorithm), public_key(algorithm)
    signer = AccessTokens(Keys(key_set=[private]))
    reader = AccessTokens(Keys(key_set={"keys": [public]}))
    token = mint(signer)
    assert jwt.get_unverified_header(token) == {
        "alg": algorithm,
        "kid": algorithm,
        "typ": "JWT",
    }
    assert live(signer, token, NOW) is not None
    assert live(reader, token, NOW) is not None
    assert live(AccessTokens(Keys(key_set=json.dumps([public]))), token, NOW) is not None
    assert signer.can_mint
    assert not reader.can_mint
    with pytest.raises(ConfigError, match="no key signs"):
        mint(reader)


def test_the_secret_needs_no_kid() -> None:
    """Tokens minted here name none; GoTrue's own have one after `GOTRUE_JWT_KEY_ID`."""
    assert jwt.get_unverified_header(mint()) == {"alg": "HS256", "typ": "JWT"}
    assert live(TOKENS, signed(valid(), {"kid": "one"}), NOW) is not None


def test_a_key_set_signs_before_the_secret_and_both_are_believed() -> None:
    """So tokens of before a change of keys stay good."""
    both = AccessTokens(Keys(secret=SECRET, key_set=[private_key("ES256")]))
    assert jwt.get_unverified_header(mint(both))["kid"] == "ES256"
    assert live(both, mint(), NOW) is not None
    assert live(both, mint(both), NOW) is not None
    only_public = AccessTokens(Keys(secret=SECRET, key_set=[public_key("ES256")]))
    assert jwt.get_unverified_header(mint(only_public))["alg"] == "HS256"


def test_the_kid_picks_the_key() -> None:
    """The right signature under the name of another key is none."""
    pair = [private_key("ES256", "one"), public_key("ES512", "two")]
    tokens = AccessTokens(Keys(key_set=pair))
    token = mint(tokens)
    assert live(tokens, token, NOW) is not None
    renamed = AccessTokens(
        Keys(key_set=[public_key("ES512", "one"), public_key("ES256", "two")])
    )
    assert live(renamed, token, NOW) is None
    unknown = AccessTokens(Keys(key_set=[public_key("ES256", "three")]))
    assert live(unknown, token, NOW) is None


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA"])
@pytest.mark.parametrize("kid", [None, "RS256", "ES256", "EdDSA", "other"])
def test_a_public_key_is_never_an_hmac_secret(algorithm: str, kid: str | None) -> None:
    """Its text, in any form, signs nothing."""
    public = public_key(algorithm)
    forms = [json.dumps(public).encode(), json.dumps(public, sort_keys=True).encode()]
    key = jwt.PyJWK(public).key
    forms.append(urlsafe_b64decode(public.get("n", public.get("x", "")) + "=="))
    forms += [bytes(str(key), "ascii"), b""]
    algorithms = {name: public_key(name) for name in ("RS256", "ES256", "EdDSA")}
    reader = AccessTokens(Keys(secret=SECRET, key_set=list(algorithms.values())))
    header = {"alg": "HS256", "typ": "JWT", **({"kid": kid} if kid else {})}
    for form in forms:
        unsigned = by_hand(header, valid()).rpartition(".")[0]
        mac = jwt.get_algorithm_by_name("HS256").sign(unsigned.encode(), form)
        token = unsigned + "." + urlsafe_b64encode(mac).rstrip(b"=").decode()
        assert live(reader, token, NOW) is None


@pytest.mark.parametrize(
    "algorithm", ["none", "None", "NONE", "", None, 5, "HS384", "PS256"]
)
@pytest.mark.parametrize("signature", [b"", b"x" * 32])
def test_no_other_algorithm_is_one(algorithm: object, signature: bytes) -> None:
    """Least of all none."""
    header = {"alg": algorithm, "typ": "JWT"}
    assert live(TOKENS, by_hand(header, valid(), signature), NOW) is None
    assert live(TOKENS, by_hand(header, valid(), signature).rstrip("."), NOW) is None


def test_a_key_has_one_algorithm() -> None:
    """RS512 under a key for RS256 is refused, though the key would do."""
    token = jwt.encode(valid(), jwt.PyJWK(private_key("RS256")).key, "RS512", {"kid": "k"})
    assert live(AccessTokens(Keys(key_set=[public_key("RS512", "k")])), token, NOW) is None
    narrow = AccessTokens(Keys(key_set=[public_key("RS256", "k")]))
    assert live(narrow, token, NOW) is None
    wide = AccessTokens(Keys(key_set=[{**public_key("RS256", "k"), "alg": "RS512"}]))
    assert live(wide, token, NOW) is not None


def test_a_kid_that_is_known_leaves_no_other_choice() -> None:
    """The secret counts for tokens without a kid of ours, and for HS256 alone."""
    keys = Keys(secret=SECRET, key_set=[public_key("RS256")])
    assert keys.pick("RS256", "RS256") is not None
    assert keys.pick("RS256", "HS256") is None
    assert keys.pick(None, "RS256") is None
    assert keys.pick(None, "HS256") is keys.pick("other", "HS256") is not None
    tokens = AccessTokens(keys)
    assert tokens.read(signed(valid(), {"kid": "other"})) is not None
    assert tokens.read(signed(valid(), {"kid": "RS256"})) is None


def test_a_key_in_the_header_is_not_looked_at() -> None:
    """A stranger's key signs for a stranger."""
    strange = private_key("ES512", "mine")
    key = jwt.PyJWK(strange).key
    for extra in ({"jwk": public_key("ES512", "mine")}, {"jku": "http://a/"}, {"x5u": "x"}):
        token = jwt.encode(valid(), key, "ES512", {"kid": "mine", **extra})
        reader = AccessTokens(Keys(secret=SECRET, key_set=[public_key("ES256", "mine")]))
        assert live(reader, token, NOW) is None


@pytest.mark.parametrize(
    "header",
    [
        {"crit": ["exp"]},
        {"crit": []},
        {"crit": None},
        {"b64": True},
        {"kid": 5},
        {"kid": ["a"]},
        {"kid": {"a": 1}},
    ],
)
def test_a_header_with_more_to_say_is_refused(header: dict[str, Any]) -> None:
    """What must be understood is not, and a kid is a text."""
    unsigned = by_hand({"alg": "HS256", **header}, valid()).rpartition(".")[0]
    mac = jwt.get_algorithm_by_name("HS256").sign(unsigned.encode(), SECRET.encode())
    token = unsigned + "." + urlsafe_b64encode(mac).rstrip(b"=").decode()
    assert TOKENS.read(token) is None


def test_what_signed_by_hand_means_is_believed_without_such_a_header() -> None:
    """The check above refuses the header, not the way the token was made."""
    unsigned = by_hand({"alg": "HS256", "kid": "unknown"}, valid()).rpartition(".")[0]
    mac = jwt.get_algorithm_by_name("HS256").sign(unsigned.encode(), SECRET.encode())
    token = unsigned + "." + urlsafe_b64encode(mac).rstrip(b"=").decode()
    assert TOKENS.read(token) is not None


@pytest.mark.parametrize(
    "claims",
    [
        without("exp"),
        without("sub"),
        without("session_id"),
        valid(exp="1787230800"),
        valid(exp=True),
        valid(exp=None),
        valid(exp=-1),
        valid(exp=1e300),
        valid(exp=10**400),
        valid(sub=""),
        valid(sub="alice"),
        valid(sub=5),
        valid(sub=USER + " "),
        valid(sub="00000000-0000-0000-0000-000000000000"),
        valid(session_id=""),
        valid(session_id="00000000-0000-0000-0000-000000000000"),
        valid(session_id=SESSION.replace("-", "")),
        valid(session_id=[SESSION]),
        valid(nbf="soon"),
        valid(nbf=1e300),
        [],
        "x",
        None,
        5,
    ],
    ids=lambda claims: json.dumps(claims)[:60],
)
def test_a_signature_alone_is_no_login(claims: object) -> None:
    """A user, a session and an end are needed, in the form that they have."""
    assert TOKENS.read(signed(claims)) is None


def test_the_project_s_api_keys_are_no_login() -> None:
    """They are signed by the same secret and name neither user nor session."""
    for role in ("anon", "service_role"):
        key = {"iss": "supabase-demo", "role": role, "exp": SECONDS + 10**6}
        assert live(TOKENS, signed(key), NOW) is None


def test_ids_are_returned_in_lower_case() -> None:
    """One session has one id, however a token spells it."""
    token = live(TOKENS, signed(valid(sub=USER.upper(), session_id=SESSION.upper())), NOW)
    assert token is not None
    assert (token.user_id, token.session_id) == (USER, SESSION)


def test_a_token_ends_at_its_second() -> None:
    """No leeway: the end is excluded, and a fraction counts."""
    end = datetime.fromtimestamp(SECONDS + 3600, UTC)
    token = signed(valid())
    assert live(TOKENS, token, end - timedelta(microseconds=1)) is not None
    assert live(TOKENS, token, end) is None
    read = TOKENS.read(token)
    assert read is not None
    assert not read.is_live(end)
    broken = TOKENS.read(signed(valid(exp=SECONDS + 0.5)))
    assert broken is not None
    assert broken.is_live(datetime.fromtimestamp(SECONDS + 0.4, UTC))
    assert not broken.is_live(datetime.fromtimestamp(SECONDS + 0.5, UTC))


def test_a_token_begins_at_its_time() -> None:
    """GoTrue sets no `nbf`; where one stands it counts."""
    start = datetime.fromtimestamp(SECONDS, UTC)
    token = signed(valid(nbf=SECONDS))
    assert live(TOKENS, token, start) is not None
    assert live(TOKENS, token, start - timedelta(microseconds=1)) is None


def test_too_long_a_token_is_refused() -> None:
    """The longest is believed, and the next longer one is not looked at."""
    sizes = range(LONGEST_ACCESS_TOKEN * 3 // 4 - 300, LONGEST_ACCESS_TOKEN)
    made = (signed(valid(x="x" * size)) for size in sizes)
    longest, longer = next(
        pair for pair in itertools.pairwise(made) if len(pair[1]) > LONGEST_ACCESS_TOKEN
    )
    assert LONGEST_ACCESS_TOKEN - 2 < len(longest) <= LONGEST_ACCESS_TOKEN
    assert live(TOKENS, longest, NOW) is not None
    assert live(TOKENS, longer, NOW) is None


def test_no_token_is_minted_that_would_not_be_read() -> None:
    """Metadata without bounds is an error that says what to do."""
    large = AuthUser(
        id=USER, aud="a", role="a", email="", phone="", app_metadata={},
        user_metadata={"x": "x" * LONGEST_ACCESS_TOKEN},
    )  # fmt: skip
    with pytest.raises(ConfigError, match="claims hook"):
        mint(user=large)


@pytest.mark.parametrize(
    "change",
    [
        lambda t: "",
        lambda t: ".",
        lambda t: "..",
        lambda t: t + ".",
        lambda t: "." + t,
        lambda t: t + "=",
        lambda t: " " + t,
        lambda t: t + "\n",
        lambda t: t.replace(".", "..", 1),
        lambda t: t.rpartition(".")[0],
        lambda t: t.rpartition(".")[0] + ".",
        lambda t: t.replace("e", "é", 1),
        lambda t: t.replace(".", ".+", 1),
        lambda t: "é.é.é",
        lambda t: "\ud800.a.b",
        lambda t: "A." + t.partition(".")[2],
        lambda t: "W10." + t.partition(".")[2],
        lambda t: "bnVsbA." + t.partition(".")[2],
        lambda t: urlsafe_b64encode(b"[" * 9000).decode() + "." + t.partition(".")[2],
        lambda t: urlsafe_b64encode(b'{"alg":' * 900).decode() + ".a.b",
        lambda t: urlsafe_b64encode(b"9" * 9000).decode() + ".a.b",
    ],
    ids=range(21),
)
def test_garbage_is_none(change: Any) -> None:
    """Whatever arrives in place of a token, the answer is None."""
    assert live(TOKENS, mint(), NOW) is not None
    assert live(TOKENS, change(mint()), NOW) is None


@given(text=st.text(max_size=200) | st.text("abc.-_{}019", max_size=200))
@example(text="a.b.c")
@example(text="e30.e30.e30")
def test_no_text_makes_the_reader_raise(text: str) -> None:
    """None, and no exception."""
    assert live(TOKENS, text, NOW) is None


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)
    ),
    max_leaves=5,
)


@given(
    header=st.dictionaries(
        st.sampled_from(["alg", "kid", "crit", "typ", "b64"]), json_values
    )
)
def test_no_header_makes_the_reader_raise(header: dict[str, Any]) -> None:
    """Whatever JSON stands in it, without a signature it is nobody's token."""
    assert TOKENS.read(by_hand(header, valid(), b"x" * 32)) is None


@given(
    claims=st.dictionaries(
        st.sampled_from(["exp", "nbf", "sub", "session_id", "aal", "client_id", "iat"]),
        json_values,
    )
)
def test_no_signed_claims_make_the_reader_raise(claims: dict[str, Any]) -> None:
    """Even a key's owner may be wrong about what he signs."""
    for some in (claims, {**valid(), **claims}):
        token = TOKENS.read(signed(some))
        assert token is None or isinstance(token.is_live(NOW), bool)


def test_no_depth_of_a_header_makes_the_reader_raise() -> None:
    """Not even the one that we can just read, and whoever reads it again no more."""
    for depth in range(800, 1000):
        deep = f'{{"alg":"HS256","x":{"[" * depth}{"]" * depth}}}'.encode()
        head = urlsafe_b64encode(deep).rstrip(b"=").decode()
        assert TOKENS.read(f"{head}.e30.AAAA") is None


@given(position=st.integers(0, 10_000), bit=st.integers(0, 5))
def test_no_changed_character_goes_unnoticed(position: int, bit: int) -> None:
    """A token that says something else is not believed."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    token = mint()
    at = position % (len(token) - 1)  # the last character has bits that mean nothing
    if token[at] != ".":
        other = alphabet[alphabet.index(token[at]) ^ (1 << bit)]
        assert TOKENS.read(token[:at] + other + token[at + 1 :]) is None


def test_another_secret_is_believed_by_nobody() -> None:
    """Nor is its token read."""
    assert AccessTokens(Keys(secret="x" * 32)).read(mint()) is None


def test_the_hook_adds_claims() -> None:
    """It gets them all and returns those to sign."""

    def add(claims: dict[str, Any]) -> dict[str, Any]:
        assert claims["email"] == "alice@example.com"
        return {**claims, "role": "manager", "plan": "gold"}

    token = mint(AccessTokens(Keys(secret=SECRET), claims=add))
    assert claims_of(token) == {**claims_of(mint()), "role": "manager", "plan": "gold"}


def test_the_hook_may_drop_what_gotrue_does_not_insist_on() -> None:
    """Metadata makes a token long."""

    def drop(claims: dict[str, Any]) -> dict[str, Any]:
        return {k: v for k, v in claims.items() if k not in ("user_metadata", "amr")}

    tokens = AccessTokens(Keys(secret=SECRET), claims=drop)
    assert live(tokens, mint(tokens), NOW) is not None


@pytest.mark.parametrize(
    "hook",
    [
        lambda claims: None,
        lambda claims: [],
        lambda claims: {},
        lambda claims: {**claims, "sub": SESSION},
        lambda claims: {**claims, "session_id": USER},
        lambda claims: {**claims, "exp": claims["exp"] + 1},
        lambda claims: {**claims, "iat": 0},
        lambda claims: claims.clear() or claims,
        lambda claims: {k: v for k, v in claims.items() if k != "exp"},
        *(
            lambda claims, gone=gone: {k: v for k, v in claims.items() if k != gone}
            for gone in ("aud", "email", "phone", "role", "aal", "is_anonymous")
        ),
        lambda claims: {**claims, "role": None},
        lambda claims: {**claims, "aud": 5},
        lambda claims: {**claims, "x": object()},
        lambda claims: {**claims, "x": float("nan")},
    ],
)
def test_a_hook_that_spoils_a_token_is_refused(hook: Any) -> None:
    """Required claims must stay, and whose token it is and until when is not for it."""
    with pytest.raises(ConfigError):
        mint(AccessTokens(Keys(secret=SECRET), claims=hook))


def test_an_error_in_the_hook_is_the_application_s_own() -> None:
    """It is not swallowed."""

    def fail(claims: dict[str, Any]) -> dict[str, Any]:
        raise LookupError("no such plan")

    with pytest.raises(LookupError):
        mint(AccessTokens(Keys(secret=SECRET), claims=fail))


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"key_set": []},
        {"key_set": {"keys": []}},
        {"secret": ""},
        {"secret": "x" * 31},
        {"secret": f"-----BEGIN PUBLIC KEY-----\n{'x' * 40}\n-----END PUBLIC KEY-----"},
        {"key_set": "no json"},
        {"key_set": "[" * 100_000},
        {"key_set": "5"},
        {"key_set": '"text"'},
        {"key_set": {"keys": "text"}},
        {"key_set": {}},
        {"key_set": ["text"]},
        {"key_set": [{}]},
        {"key_set": [{"kty": "oct"}]},
        {"key_set": [{"kty": "oct", "kid": "a"}]},
        {"key_set": [{"kty": "oct", "kid": "a", "k": 5}]},
        {"key_set": [{"kty": "oct", "kid": "a", "k": "c2hvcnQ"}]},
        {"key_set": [{"kty": ["oct"], "kid": "a", "k": "c2hvcnQ"}]},
        {"key_set": [{"kty": "EC", "crv": "P-384", "kid": "a"}]},
        {"key_set": [{"kty": "EC", "crv": ["P-256"], "kid": "a"}]},
        {"key_set": [{"kty": "EC", "crv": "P-256", "kid": "a", "x": "AA", "y": "AA"}]},
        {"key_set": [{"kty": "RSA", "kid": "a", "n": "!!", "e": "AQAB"}]},
        {"key_set": [{"kty": "RSA", "kid": "a", "n": "u" * 171, "e": "AQAB"}]},
        {"key_set": [{**public_key("RS256"), "alg": "HS256"}]},
        {"key_set": [{**public_key("RS256"), "alg": "PS256"}]},
        {"key_set": [{**public_key("ES256"), "alg": "ES512"}]},
        {"key_set": [{**public_key("HS256"), "alg": "RS256"}]},
        {"key_set": [{**public_key("HS256"), "alg": "none"}]},
        {"key_set": [{**public_key("ES256"), "kid": ""}]},
        {"key_set": [{**public_key("ES256"), "kid": 5}]},
        {"key_set": [public_key("ES256"), public_key("ES256")]},
        {"key_set": [{**public_key("ES256"), "key_ops": ["sign"]}]},
        {"key_set": [private_key("ES256"), private_key("EdDSA")]},
    ],
    ids=range(34),
)
def test_keys_that_cannot_work_are_refused(arguments: dict[str, Any]) -> None:
    """At the start, with no key in the message or behind it."""
    with pytest.raises(ConfigError) as caught:
        Keys(**arguments)
    assert caught.value.__cause__ is None
    assert "xxxx" not in str(caught.value)
    assert "c2hvcnQ" not in str(caught.value)


def test_keys_show_no_key() -> None:
    """Their repr names the kids."""
    keys = Keys(secret=SECRET, key_set=[private_key("HS256")])
    assert repr(keys) == "Keys(['HS256'], secret=True)"
    assert "c2VjcmV0" not in repr(keys.signing)


WITHOUT_PYJWT = """
import sys
sys.modules["jwt"] = None
import handstamp.testing
from handstamp.cli import load
load()
from handstamp.errors import ConfigError
from handstamp.supabase.jwt import Keys
try:
    Keys(secret="a secret of the project, long enough")
except ConfigError as refused:
    print(refused)
"""


def test_the_command_line_and_testing_need_no_pyjwt() -> None:
    """They are imported without the extra; what needs it names it."""
    ran = subprocess.run(
        [sys.executable, "-c", WITHOUT_PYJWT], capture_output=True, text=True
    )
    assert ran.stderr == ""
    assert "handstamp[supabase]" in ran.stdout
