-- Lucia's whole schema: the id of a session is the SHA-256 of its token, and that is all.
create table auth_user (
    id text primary key,
    username text not null unique,
    password_hash text not null
);
create table user_session (
    id text primary key,
    user_id text not null references auth_user (id),
    expires_at timestamp with time zone not null
);
