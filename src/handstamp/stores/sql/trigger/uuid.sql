-- Optional: makes every writer notify, whether it is an administrator at psql, another
-- service, or a cascade. Row by row, and only for changes that can end a session early:
-- activity moves the expiry ahead, and never fires it, nor does a token in clear that its
-- digest takes the place of. Another token is the end of the one before.

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
-- needs: user_sessions.is_active user_sessions.deleted_at user_sessions.expires_at user_sessions.created_at user_sessions.user_id user_sessions.trust_level user_sessions.session_token
create trigger handstamp_session_changed
after update of is_active, deleted_at, expires_at, created_at, user_id, trust_level,
    session_token
on user_sessions for each row
when (
    old.is_active is distinct from new.is_active
    or old.deleted_at is distinct from new.deleted_at
    or old.user_id is distinct from new.user_id
    or new.expires_at < old.expires_at
    or new.created_at < old.created_at
    or coalesce(new.trust_level, 0) < coalesce(old.trust_level, 0)
    or old.session_token is distinct from new.session_token
    and new.session_token is distinct from
        'sha256:' || encode(sha256(convert_to(old.session_token, 'UTF8')), 'hex')
)
execute function handstamp_notify_session();

-- name: trigger handstamp_session_deleted on user_sessions
-- needs: user_sessions.is_active user_sessions.expires_at
create trigger handstamp_session_deleted
after delete on user_sessions for each row
when (old.is_active and old.expires_at > now())
execute function handstamp_notify_session();

-- name: trigger handstamp_sessions_truncated on user_sessions
create trigger handstamp_sessions_truncated
after truncate on user_sessions for each statement
execute function handstamp_notify_all();
