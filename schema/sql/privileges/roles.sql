-- Who may do what. The application executes functions and reads; it writes no table. The projector writes read tables, by
-- their functions only.
DO $$ BEGIN
    IF NOT EXISTS (SELECT 1 FROM pg_roles WHERE rolname = 'storebus_app') THEN CREATE ROLE storebus_app NOLOGIN; END IF;
    IF NOT EXISTS (SELECT 1 FROM pg_roles WHERE rolname = 'storebus_projector') THEN CREATE ROLE storebus_projector NOLOGIN; END IF;
END $$;
GRANT storebus_app, storebus_projector TO CURRENT_USER;
GRANT USAGE ON SCHEMA es, read TO storebus_app, storebus_projector;
REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA es, read FROM PUBLIC;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA es TO storebus_app;
REVOKE EXECUTE ON FUNCTION es.apply_effects(jsonb), es.lock_effects(jsonb) FROM storebus_app;
GRANT SELECT ON ALL TABLES IN SCHEMA es TO storebus_app;
REVOKE SELECT ON es.secret FROM storebus_app;
GRANT SELECT ON ALL TABLES IN SCHEMA read TO storebus_app, storebus_projector;
GRANT EXECUTE ON FUNCTION read.rows(text, jsonb, text, text, int, int) TO storebus_app;
GRANT EXECUTE ON FUNCTION read.apply(jsonb), read.clear() TO storebus_projector;
