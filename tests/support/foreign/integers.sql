-- Somebody's own: integer ids that are always the database's, a refresh token in the row,
-- sessions that end at a time and not by a flag.
create table members (
    member_no integer generated always as identity primary key,
    login varchar(50) not null unique,
    enabled boolean not null default true
);
create table member_sessions (
    session_no integer generated always as identity primary key,
    member_no integer not null references members (member_no) on delete cascade,
    token_sha256 char(64) not null unique,
    refresh_sha256 char(64) unique,
    valid_until timestamptz not null,
    refresh_until timestamptz,
    created timestamptz not null default now(),
    last_seen timestamptz,
    ended timestamptz,
    ended_because varchar(20),
    ip varchar(39) not null,
    browser varchar(60),
    note text not null default ''
);
create index on member_sessions (member_no);
