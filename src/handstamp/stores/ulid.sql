-- One user_sessions table with ULIDs, tokens stored as digests, and a refresh
-- token in the row; and the users it belongs to.
--
-- Each statement has a line that names it. `needs` lists the columns without
-- which an index or a trigger would be wrong on a table that somebody else made.

-- name: function generate_ulid
create function generate_ulid() returns text
language sql volatile parallel safe
as $body$
    -- 48 bits of time and 80 of strong randomness, five bits a character. A
    -- random UUID holds fixed bits in its bytes 7 and 9: they are left out.
    with entropy as materialized (
        select uuid_send(gen_random_uuid()) as bytes
    ),
    parts (place, bits, top) as (
        select 1, floor(extract(epoch from clock_timestamp()) * 1000)::bigint, 45
        union all
        select 2, ('x' || encode(substring(bytes from 1 for 5), 'hex'))::bit(40)::bigint, 35
        from entropy
        union all
        select 3, ('x' || encode(substring(bytes from 12 for 5), 'hex'))::bit(40)::bigint, 35
        from entropy
    )
    select string_agg(
        substr('0123456789ABCDEFGHJKMNPQRSTVWXYZ', ((bits >> shift) & 31)::integer + 1, 1),
        '' order by place, shift desc
    )
    from parts cross join lateral generate_series(top, 0, -5) as shift
$body$;

-- name: table users
create table users (
    id character(26) not null default generate_ulid(),
    username character varying(50) not null,
    email_encrypted bytea,
    email_hash character(64),
    password_hash character varying(255) not null,
    display_name character varying(100),
    avatar_url character varying(500),
    bio text,
    website_url character varying(500),
    timezone character varying(50) default 'UTC',
    language character varying(10) default 'en',
    theme character varying(20) default 'system',
    email_notifications boolean default true,
    weekly_digest boolean default true,
    trending_alerts boolean default false,
    failed_login_attempts integer default 0,
    locked_until timestamp with time zone,
    last_password_change timestamp with time zone default now(),
    password_reset_token_hash character(64),
    password_reset_expires_at timestamp with time zone,
    email_verification_token_hash character(64),
    email_verified_at timestamp with time zone,
    last_login_at timestamp with time zone,
    last_activity_at timestamp with time zone,
    articles_read_count integer default 0,
    bookmarks_count integer default 0,
    is_active boolean default true,
    is_admin boolean default false,
    created_at timestamp with time zone default now(),
    updated_at timestamp with time zone default now(),
    created_by character(26),
    updated_by character(26),
    constraint users_pkey primary key (id),
    constraint users_username_key unique (username),
    constraint users_email_hash_key unique (email_hash)
);

-- name: table user_sessions
create table user_sessions (
    id character(26) not null default generate_ulid(),
    user_id character(26) not null,
    session_token_hash character(64) not null,
    refresh_token_hash character(64),
    ip_address inet not null,
    user_agent_hash character(64) not null,
    device_fingerprint character(64),
    expires_at timestamp with time zone not null,
    refresh_expires_at timestamp with time zone,
    last_activity_at timestamp with time zone default now(),
    is_active boolean default true,
    revoked_at timestamp with time zone,
    revoked_reason character varying(100),
    created_at timestamp with time zone default now(),
    constraint user_sessions_pkey primary key (id),
    constraint user_sessions_session_token_hash_key unique (session_token_hash),
    constraint user_sessions_user_id_fkey
        foreign key (user_id) references users (id) on delete cascade,
    constraint sessions_expires_check check (expires_at > created_at)
);

-- name: index idx_sessions_token_hash on user_sessions
-- needs: user_sessions.session_token_hash
create unique index idx_sessions_token_hash on user_sessions (session_token_hash);

-- name: index idx_sessions_user_active on user_sessions
-- needs: user_sessions.user_id user_sessions.is_active user_sessions.last_activity_at
create index idx_sessions_user_active
    on user_sessions (user_id, is_active, last_activity_at desc);

-- name: index idx_sessions_expires on user_sessions
-- needs: user_sessions.expires_at user_sessions.is_active
create index idx_sessions_expires on user_sessions (expires_at)
    where is_active = true;

-- name: index idx_sessions_cleanup on user_sessions
-- needs: user_sessions.expires_at user_sessions.is_active
create index idx_sessions_cleanup on user_sessions (expires_at, is_active)
    where is_active = false;

-- name: function reset_failed_attempts_on_success
-- needs: users.id users.failed_login_attempts users.locked_until
create function reset_failed_attempts_on_success() returns trigger
language plpgsql
-- whoever inserts, with whatever search path: the users beside this function
set search_path from current
as $body$
begin
    update users
    set failed_login_attempts = 0, locked_until = null
    where id = new.user_id
        and (failed_login_attempts is distinct from 0 or locked_until is not null);
    return null;
end
$body$;

-- name: trigger trigger_reset_failed_attempts on user_sessions
-- needs: user_sessions.user_id users.id users.failed_login_attempts users.locked_until
create trigger trigger_reset_failed_attempts
    after insert on user_sessions
    for each row execute function reset_failed_attempts_on_success();
