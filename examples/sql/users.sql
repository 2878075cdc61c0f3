-- The users of an application whose sessions have UUIDs: what examples/accounts.py needs
-- to know of them. Run again it changes nothing.

create table if not exists users (
    id uuid not null default gen_random_uuid(),
    username character varying(50) not null,
    password_hash character varying(255) not null,
    is_active boolean default true,
    failed_login_attempts integer default 0,
    locked_until timestamp with time zone,
    last_password_change timestamp with time zone default now(),
    constraint users_pkey primary key (id),
    constraint users_username_key unique (username)
);
