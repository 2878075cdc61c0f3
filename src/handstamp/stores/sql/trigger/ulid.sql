-- Optional: makes every writer notify, whether it is an administrator at psql, another
-- service, or a cascade. Row by row, and only for changes that can end a session early:
-- activity and rotation move other columns, or these ones forward, and never fire it. A
-- token that is replaced while its expiry stays was replaced by somebody else.

-- name: function handstamp_notify_session
create function handstamp_notify_session() returns trigger
language plpgsql
as $body$
begin
    if current_setting('handstamp.quietly', true) is distinct from 'on' then
        perform pg_notify('handstamp', 's:' || rtrim(old.id::text));
    end if;
    return null;
end
$body$;

-- name: function handstamp_notify_user
create function handstamp_notify_user() returns trigger
language plpgsql
as $body$
begin
    perform pg_notify('handstamp', 'u:' || rtrim(old.id::text));
    return null;
end
$body$;

-- name: function handstamp_notify_all
create function handstamp_notify_all() returns trigger
language plpgsql
as $body$
begin
    perform pg_notify('handstamp', 'all');
    return null;
end
$body$;

-- name: trigger handstamp_session_changed on user_sessions
-- needs: user_sessions.is_active user_sessions.revoked_at user_sessions.expires_at user_sessions.refresh_expires_at user_sessions.created_at user_sessions.user_id user_sessions.session_token_hash
create trigger handstamp_session_changed
after update of is_active, revoked_at, expires_at, refresh_expires_at, created_at, user_id,
    session_token_hash
on user_sessions for each row
when (
    old.is_active is distinct from new.is_active
    or old.revoked_at is distinct from new.revoked_at
    or old.user_id is distinct from new.user_id
    or new.expires_at < old.expires_at
    or new.refresh_expires_at < old.refresh_expires_at
    or new.created_at < old.created_at
    or old.session_token_hash is distinct from new.session_token_hash
    and old.expires_at is not distinct from new.expires_at
)
execute function handstamp_notify_session();

-- name: trigger handstamp_session_deleted on user_sessions
-- needs: user_sessions.is_active user_sessions.expires_at user_sessions.refresh_expires_at
create trigger handstamp_session_deleted
after delete on user_sessions for each row
when (old.is_active and coalesce(old.refresh_expires_at, old.expires_at) > now())
execute function handstamp_notify_session();

-- name: trigger handstamp_user_changed on users
-- needs: users.is_active users.last_password_change
create trigger handstamp_user_changed
after update of is_active, last_password_change on users for each row
when (
    old.is_active is distinct from new.is_active
    or old.last_password_change is distinct from new.last_password_change
)
execute function handstamp_notify_user();

-- name: trigger handstamp_user_deleted on users
-- needs: users.is_active
create trigger handstamp_user_deleted
after delete on users for each row
execute function handstamp_notify_user();

-- name: trigger handstamp_sessions_truncated on user_sessions
create trigger handstamp_sessions_truncated
after truncate on user_sessions for each statement
execute function handstamp_notify_all();

-- name: trigger handstamp_users_truncated on users
create trigger handstamp_users_truncated
after truncate on users for each statement
execute function handstamp_notify_all();
