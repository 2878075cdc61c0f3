-- One user_sessions table with UUIDs, one session token a row, an expiry that activity
-- moves ahead, and a trust level. It refers to no table of users.

-- name: table user_sessions
create table user_sessions (
    id uuid not null default gen_random_uuid(),
    user_id uuid not null,
    session_token character varying(255) not null,
    expires_at timestamp with time zone not null,
    is_active boolean default true,
    device_id character varying(100),
    ip_address character varying(45),
    user_agent character varying(500),
    location character varying(100),
    trust_level integer default 0,
    created_at timestamp with time zone default current_timestamp,
    updated_at timestamp with time zone default current_timestamp,
    deleted_at timestamp with time zone,
    constraint user_sessions_pkey primary key (id),
    constraint user_sessions_session_token_key unique (session_token)
);

-- name: index idx_user_sessions_token on user_sessions
-- needs: user_sessions.session_token
create index idx_user_sessions_token on user_sessions (session_token);

-- name: index idx_user_sessions_user_id on user_sessions
-- needs: user_sessions.user_id
create index idx_user_sessions_user_id on user_sessions (user_id);

-- name: index idx_user_sessions_expires_at on user_sessions
-- needs: user_sessions.expires_at
create index idx_user_sessions_expires_at on user_sessions (expires_at);

-- name: index idx_user_sessions_session_token on user_sessions
-- needs: user_sessions.session_token
create index idx_user_sessions_session_token on user_sessions (session_token);

-- name: index idx_user_sessions_user_active on user_sessions
-- needs: user_sessions.user_id user_sessions.is_active
create index idx_user_sessions_user_active on user_sessions (user_id, is_active)
    where is_active = true;

-- name: index idx_user_sessions_device_user on user_sessions
-- needs: user_sessions.device_id user_sessions.user_id
create index idx_user_sessions_device_user on user_sessions (device_id, user_id);

-- name: index idx_user_sessions_ip_created on user_sessions
-- needs: user_sessions.ip_address user_sessions.created_at
create index idx_user_sessions_ip_created on user_sessions (ip_address, created_at desc);

-- name: index idx_user_sessions_token_active on user_sessions
-- needs: user_sessions.session_token user_sessions.is_active
create index idx_user_sessions_token_active on user_sessions (session_token)
    where is_active = true;

-- name: index idx_user_sessions_user_device_active on user_sessions
-- needs: user_sessions.user_id user_sessions.device_id user_sessions.is_active
create index idx_user_sessions_user_device_active
    on user_sessions (user_id, device_id, is_active);
