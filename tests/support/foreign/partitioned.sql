-- A busy table, split by its token: a key of such a table contains what it is split by.
create table app_sessions (
    id uuid not null,
    token varchar(71) not null,
    user_id uuid not null,
    expires_at timestamptz not null,
    created_at timestamptz not null,
    seen_at timestamptz,
    is_active boolean not null,
    ended_at timestamptz,
    device jsonb,
    primary key (token, id),
    unique (token)
) partition by hash (token);
create table app_sessions_0 partition of app_sessions for values with (modulus 4, remainder 0);
create table app_sessions_1 partition of app_sessions for values with (modulus 4, remainder 1);
create table app_sessions_2 partition of app_sessions for values with (modulus 4, remainder 2);
create table app_sessions_3 partition of app_sessions for values with (modulus 4, remainder 3);
create index on app_sessions (id);
create index on app_sessions (user_id);
