"""From a catalog to a proposed shape, and the findings about the guesses."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest

from handstamp.doctor import Level
from handstamp.doctor.infer import Proposal, Users, differences, nearest, propose
from handstamp.doctor.report import as_python
from handstamp.errors import ConfigError
from handstamp.stores.plaintext import Rows
from handstamp.stores.resolve import Column, Table
from handstamp.stores.shapes import ULID_HASHED, UUID_PLAIN, AtRest, TableShape, UsersTable


def a_table(columns: str, *, name: str = "t") -> Table:
    """A table from `name type` pairs; a type may have `!` for NOT NULL, `=` for a default
    and a length."""
    made = {}
    for pair in columns.split(","):
        column, type = pair.split()
        required, default = "!" in type, "x" if "=" in type else None
        type, _, length = type.strip("!=").partition(":")
        made[column] = Column(
            name=column,
            type=type,
            required=required,
            default=default,
            length=int(length) if length else None,
        )
    return Table(name=name, columns=made, unique=frozenset({("token",)}))


LUCIA = "id text!,user_id text!,expires_at timestamptz!"
BETTER_AUTH = (
    "id text!,expiresAt timestamp!,token text!,createdAt timestamp!,updatedAt timestamp!,"
    "ipAddress text,userAgent text,userId text!"
)
AUTHIE = (
    "id int8!=,token_hash varchar:255!,browser_id varchar:255,user_type varchar:255,"
    "user_id int8!,active bool=,data text,expires_at timestamp!,login_at timestamp,"
    "login_ip varchar:255,last_activity_at timestamp,user_agent varchar:255,"
    "created_at timestamp!,updated_at timestamp!"
)
PLAIN = (
    "id uuid!=,user_id uuid!,session_token varchar:255!,expires_at timestamptz!,"
    "is_active bool=,device_id varchar:100,ip_address varchar:45,user_agent varchar:500,"
    "location varchar:100,trust_level int4=,created_at timestamptz=,updated_at"
    " timestamptz=,deleted_at timestamptz"
)


def proposed(columns: str, **given: object) -> Proposal:
    return propose("t", a_table(columns), **{"rows": Rows(), **given})


def rows(about: bool = False, **forms: int) -> Rows:
    """Rows by their forms, with an underscore for a hyphen."""
    named = {name.replace("_", "-"): number for name, number in forms.items()}
    return Rows(forms=named, about=about)


def run(python: str) -> TableShape:
    """The shape that the Python makes."""
    names: dict[str, object] = {}
    exec(python, names)
    return names["shape"]


def test_a_table_like_better_auth_s() -> None:
    """Capitals in names, timestamps without a zone, and no row that could be a token."""
    shape = proposed(BETTER_AUTH).shape
    assert (shape.id, shape.user_id, shape.token) == ("id", "userId", "token")
    assert (shape.expires_at, shape.created_at) == ("expiresAt", "createdAt")
    assert (shape.last_activity_at, shape.address) == ("updatedAt", "ipAddress")
    assert (shape.user_agent, shape.is_active, shape.revoked_at) == (
        "userAgent",
        None,
        None,
    )
    assert (shape.at_rest, shape.users, shape.rotates) == ("prefixed", None, False)


def test_a_table_like_authie_s() -> None:
    """Integer ids of the database, a digest, a flag, and a better last activity than
    updated_at."""
    shape = proposed(AUTHIE).shape
    assert (shape.token, shape.at_rest, shape.new_id) == (
        "token_hash",
        "digest",
        "database",
    )
    assert (shape.is_active, shape.last_activity_at) == ("active", "last_activity_at")
    assert (shape.address, shape.fingerprint) == ("login_ip", "browser_id")
    assert shape.created_at == "created_at"


def test_a_table_whose_id_is_the_token() -> None:
    """As Lucia's table: one column is both, and it is taken to hold digests."""
    proposal = propose("t", a_table(LUCIA), rows=rows(hex_64=7))
    assert (proposal.shape.id, proposal.shape.token) == ("id", "id")
    assert proposal.shape.at_rest == "digest"
    assert any("at_rest" in doubt.text for doubt in proposal.doubts)


def test_a_table_whose_id_is_a_token_in_plaintext() -> None:
    """No shape is proposed that would show tokens as ids."""
    with pytest.raises(ConfigError, match="could sign in with it"):
        proposed(LUCIA, rows=rows(other=1))
    assert proposed(LUCIA).shape.at_rest == "prefixed"


@pytest.mark.parametrize(
    ("found", "at_rest"),
    [
        (rows(), "prefixed"),
        (rows(other=1), "plain"),
        (rows(prefixed=4, other=1), "plain"),
        (rows(prefixed=5), "prefixed"),
        (rows(prefixed=5, about=True), "plain"),
    ],
    ids=str,
)
def test_what_the_rows_look_like_decides(found: Rows, at_rest: str) -> None:
    """Where none of them could be a digest; a sample is no proof that no token is in
    clear."""
    proposal = proposed(BETTER_AUTH, rows=found)
    assert (proposal.shape.at_rest, proposal.decided) == (at_rest, True)
    assert proposal.doubts == ()


AMBIGUOUS = [
    rows(hex_64=9),
    rows(hex_64=9, other=1),
    rows(hex_64=1, prefixed=100),
    rows(hex_64_capitals=9),
    rows(hex_32=9),
    rows(hex_128=9, other=100_000),
    rows(base64_43=9),
    rows(base32_52=1, prefixed=9),
    rows(marked=1, other=100),
    rows(base64_86=7, about=True),
    None,
]


@pytest.mark.parametrize("found", AMBIGUOUS, ids=str)
@pytest.mark.parametrize("columns", [BETTER_AUTH, PLAIN])
def test_rows_that_could_be_digests_leave_it_undecided(
    found: Rows | None, columns: str
) -> None:
    """If digests were taken for tokens, anyone who can read the table could sign in. One
    such row among many is enough, and so is a table whose rows were not counted. The Python
    raises until at_rest is filled in, also for the documented table."""
    proposal = propose("user_sessions", a_table(columns), rows=found)
    assert not proposal.decided
    assert proposal.shape.at_rest != "plain"
    (doubt,) = proposal.doubts
    assert (doubt.level, doubt.about) == (Level.WARNING, "tokens")
    python = as_python(proposal.shape, decided=False)
    assert "at_rest=...," in python or "at_rest=...)" in python
    with pytest.raises(ConfigError, match="at_rest must be"):
        run(python)
    findings = differences(proposal.shape, proposal.preset, decided=False)
    assert "at_rest" not in {finding.about for finding in findings}


@pytest.mark.parametrize("at_rest", ["digest", "prefixed", "plain"])
@pytest.mark.parametrize("found", AMBIGUOUS, ids=str)
def test_a_given_at_rest_is_used(at_rest: AtRest, found: Rows | None) -> None:
    """Whatever the rows hold."""
    proposal = proposed(BETTER_AUTH, rows=found, at_rest=at_rest)
    assert (proposal.shape.at_rest, proposal.decided, proposal.doubts) == (
        at_rest,
        True,
        (),
    )


def test_with_the_guess_no_stored_text_opens_a_session() -> None:
    """SHA-256 in hex is looked up as it is; sessions of other forms end."""
    for found, guess in ((rows(hex_64=9), "digest"), (rows(base64_43=9), "prefixed")):
        assert proposed(BETTER_AUTH, rows=found).shape.at_rest == guess
    narrow = BETTER_AUTH.replace("token text!", "token varchar:64!")
    assert proposed(narrow, rows=rows(base64_43=9)).shape.at_rest == "digest"


def test_a_column_named_after_digests_holds_digests() -> None:
    """Whatever its rows hold: no stored text opens a session."""
    assert proposed(AUTHIE, rows=rows(other=5)).shape.at_rest == "digest"


def test_the_preset_itself_is_found() -> None:
    """The documented table is proposed as the preset, by its name."""
    proposal = propose("user_sessions", a_table(PLAIN), rows=Rows())
    assert proposal.shape == UUID_PLAIN
    assert as_python(proposal.shape).endswith("shape = UUID_PLAIN\n")
    assert differences(proposal.shape, proposal.preset) == []
    assert proposal.doubts == ()
    assert nearest(a_table(PLAIN)) == "uuid"


@pytest.mark.parametrize("columns", [BETTER_AUTH, AUTHIE, LUCIA, PLAIN])
def test_the_python_makes_the_proposed_shape(columns: str) -> None:
    """And imports every name that it uses."""
    for shape in (
        proposed(columns).shape,
        replace(proposed(columns).shape, users=UsersTable()),
        replace(proposed(columns).shape, users=UsersTable(table="people", id="key")),
    ):
        assert run(as_python(shape)) == shape


@pytest.mark.parametrize("preset", [ULID_HASHED, UUID_PLAIN])
def test_the_python_of_a_preset_makes_it(preset: TableShape) -> None:
    """Also of a preset with a change or two."""
    for shape in (preset, replace(preset, table="app.s"), replace(preset, level=None)):
        assert run(as_python(shape)) == shape


@pytest.mark.parametrize("missing", ["user_id", "expires_at", "token_hash"])
def test_a_missing_column_is_asked_for(missing: str) -> None:
    """With the columns that it could be."""
    field = "token" if missing == "token_hash" else missing
    columns = ",".join(p for p in AUTHIE.split(",") if p.split()[0] != missing)
    with pytest.raises(ConfigError, match=rf"TableShape\({field}=…\)"):
        proposed(columns)


def test_all_missing_columns_are_asked_for_at_once() -> None:
    """And only columns that are still free are offered."""
    columns = a_table("ticket int8!,user_id int8!,why text,good_until timestamptz!").columns
    with pytest.raises(ConfigError) as refused:
        propose("t", Table(name="t", columns=columns))
    text = str(refused.value)
    assert "looks like id or token or expires_at" in text
    assert "TableShape(id=…, token=…, expires_at=…)" in text
    assert "token: one of why? expires_at: one of good_until?" in text
    assert "user_id" not in text


def test_a_key_with_another_name_is_the_id() -> None:
    """A unique column that is no text, also if no tokens were found."""
    columns = a_table("ticket int8!,user_id int8!,why text,expires_at timestamptz!").columns
    table = Table(name="t", columns=columns, unique=frozenset({("ticket",)}))
    with pytest.raises(ConfigError, match="looks like token: write"):
        propose("t", table)


def test_a_flag_that_is_not_read_is_a_danger() -> None:
    """A second date that ends a session is a warning."""
    proposal = proposed(AUTHIE + ",revoked bool=,revoked_at timestamp,ended_at timestamp")
    levels = {doubt.text.partition(" ")[0]: doubt.level for doubt in proposal.doubts}
    assert levels == {"revoked": Level.DANGER, "ended_at": Level.WARNING}


def test_a_column_with_a_wrong_type_is_reported() -> None:
    """Its feature is off, and the finding gives the reason."""
    proposal = proposed(BETTER_AUTH + ",trust_level text")
    assert proposal.shape.level is None
    (doubt,) = proposal.doubts
    assert "trust_level" in doubt.text
    assert "text" in doubt.text


def test_every_difference_is_explained() -> None:
    """There is a sentence for each field of the preset that the table lacks."""
    lacking = proposed(LUCIA).shape
    topics = {f.about for f in differences(lacking, "uuid")}
    gone = {
        f.name
        for f in fields(UUID_PLAIN)
        if getattr(lacking, f.name) is None and getattr(UUID_PLAIN, f.name) is not None
    }
    assert gone
    assert gone <= topics
    assert "revocation" in topics


def test_users_are_read_if_they_have_a_column_for_it() -> None:
    """A table of users with a flag is joined, one without such a column is not."""
    people = a_table("id int8!=,active bool,banned_at timestamptz", name="people")
    proposal = proposed(AUTHIE, users=Users(name="people", id="id", table=people))
    assert proposal.shape.users == UsersTable(
        table="people", is_active="active", locked_until=None, password_changed_at=None
    )
    assert any("people.banned_at" in doubt.text for doubt in proposal.doubts)
    bare = Users(name="people", id="id", table=a_table("id int8!="))
    assert proposed(AUTHIE, users=bare).shape.users is None


def test_a_column_whose_name_is_no_identifier_is_not_used() -> None:
    """It could not be in a shape."""
    table = a_table(BETTER_AUTH)
    odd = Column(name="trust.level", type="int4")
    shape = propose("t", replace(table, columns={**table.columns, odd.name: odd})).shape
    assert shape.level is None
