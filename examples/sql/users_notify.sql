-- A user who is disabled or deleted, by anybody, is refused everywhere within
-- milliseconds. The sessions' own trigger is that of `handstamp init --trigger`.

create or replace function handstamp_notify_user() returns trigger
language plpgsql
as $body$
begin
    perform pg_notify('handstamp', 'u:' || old.id::text);
    return null;
end
$body$;

create or replace trigger handstamp_user_changed
after update of is_active, last_password_change on users for each row
when (
    old.is_active is distinct from new.is_active
    or old.last_password_change is distinct from new.last_password_change
)
execute function handstamp_notify_user();

create or replace trigger handstamp_user_deleted
after delete on users for each row
execute function handstamp_notify_user();

create or replace trigger handstamp_users_truncated
after truncate on users for each statement
execute function handstamp_notify_all();
