-- Optional: makes every writer notify, GoTrue first of all, which deletes sessions when
-- somebody signs out or changes a password. Needs a role that may create triggers on these
-- tables. Row by row, and only for changes that can end a session early or change its
-- assurance level: a refresh moves other columns, or these ones forward, and never fires it.

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

-- name: function handstamp_notify_factor
create function handstamp_notify_factor() returns trigger
language plpgsql
as $body$
begin
    perform pg_notify('handstamp', 'u:' || coalesce(new.user_id, old.user_id)::text);
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

-- name: trigger handstamp_session_changed on auth.sessions
-- needs: auth.sessions.not_after auth.sessions.refreshed_at auth.sessions.aal
create trigger handstamp_session_changed
after update of user_id, created_at, not_after, refreshed_at, aal
on auth.sessions for each row
when (
    old.user_id is distinct from new.user_id
    or old.aal is distinct from new.aal
    or coalesce(new.not_after, 'infinity') < coalesce(old.not_after, 'infinity')
    or new.created_at < old.created_at
    or coalesce(new.refreshed_at, '-infinity') < coalesce(old.refreshed_at, '-infinity')
)
execute function handstamp_notify_session();

-- name: trigger handstamp_session_deleted on auth.sessions
create trigger handstamp_session_deleted
after delete on auth.sessions for each row
execute function handstamp_notify_session();

-- name: trigger handstamp_user_changed on auth.users
-- needs: auth.users.banned_until auth.users.deleted_at
create trigger handstamp_user_changed
after update of banned_until, deleted_at on auth.users for each row
when (
    old.banned_until is distinct from new.banned_until
    or old.deleted_at is distinct from new.deleted_at
)
execute function handstamp_notify_user();

-- name: trigger handstamp_user_deleted on auth.users
create trigger handstamp_user_deleted
after delete on auth.users for each row
execute function handstamp_notify_user();

-- name: trigger handstamp_factor_changed on auth.mfa_factors
-- needs: auth.mfa_factors.status auth.mfa_factors.user_id
create trigger handstamp_factor_changed
after insert or delete or update of status, user_id on auth.mfa_factors for each row
execute function handstamp_notify_factor();

-- name: trigger handstamp_sessions_truncated on auth.sessions
create trigger handstamp_sessions_truncated
after truncate on auth.sessions for each statement
execute function handstamp_notify_all();

-- name: trigger handstamp_users_truncated on auth.users
create trigger handstamp_users_truncated
after truncate on auth.users for each statement
execute function handstamp_notify_all();

-- name: trigger handstamp_factors_truncated on auth.mfa_factors
-- needs: auth.mfa_factors.status
create trigger handstamp_factors_truncated
after truncate on auth.mfa_factors for each statement
execute function handstamp_notify_all();
