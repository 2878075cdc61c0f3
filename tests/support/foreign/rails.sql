-- A Rails schema with sessions like Authie's: bigint ids, times in UTC without a zone.
create table users (
    id bigserial primary key,
    email varchar not null unique,
    encrypted_password varchar not null default '',
    password_changed_at timestamp(6),
    created_at timestamp(6) not null default timezone('utc', now()),
    updated_at timestamp(6) not null default timezone('utc', now())
);
create table authie_sessions (
    id bigserial primary key,
    token_hash varchar not null,
    browser_id varchar,
    user_id bigint not null references users (id) on delete cascade,
    active boolean default true,
    data text,
    expires_at timestamp(6),
    login_at timestamp(6),
    login_ip varchar,
    last_activity_at timestamp(6),
    last_activity_ip varchar,
    user_agent text,
    requests integer default 0,
    created_at timestamp(6) not null,
    updated_at timestamp(6) not null default timezone('utc', now())
);
create unique index index_authie_sessions_on_token_hash on authie_sessions (token_hash);
create index index_authie_sessions_on_user_id on authie_sessions (user_id);
create index index_authie_sessions_on_browser_id on authie_sessions (browser_id);
