-- Domains, accounts, users and projects, and whose the things of the other tables are. What there is already belongs to the
-- admin of ROOT, whose ids are the same everywhere.
CREATE TABLE read.domain (
    id text PRIMARY KEY, name text, parent_id text, domain_id text, domain_path text, created timestamptz);

CREATE TABLE read.account (
    id text PRIMARY KEY, name text, role text, account_id text, account text, domain_id text, domain_path text, project_id text,
    created timestamptz);

-- No secrets: `password` and `secret_key` only name what the vault holds.
CREATE TABLE read."user" (
    id text PRIMARY KEY, name text, role text, account_id text, account text, domain_id text, domain_path text, project_id text,
    password text, email text, first_name text, last_name text, timezone text, api_key text, secret_key text,
    created timestamptz);
CREATE INDEX user_by_key ON read."user" (api_key);
CREATE INDEX user_by_name ON read."user" (name);

CREATE TABLE read.project (
    id text PRIMARY KEY, name text, display_text text, admin_id text, account_id text, account text, domain_id text, domain_path text,
    project_id text, created timestamptz);

CREATE TABLE read.project_account (
    id text PRIMARY KEY, project_id text, account_id text, name text, created timestamptz);
CREATE INDEX project_account_by_account ON read.project_account (account_id);

CREATE TABLE read.resource_limit (
    id text PRIMARY KEY, name text, max bigint, account_id text, account text, domain_id text, domain_path text, project_id text,
    created timestamptz);

DO $$
DECLARE
    source text;
BEGIN
    FOREACH source IN ARRAY ARRAY['volume', 'snapshot', 'template', 'job'] LOOP
        EXECUTE format(
            'ALTER TABLE read.%1$I ADD COLUMN account_id text DEFAULT ''aef284e7-7ca3-5e9b-84ee-5ab237634384'', ADD COLUMN account text DEFAULT ''admin'',
             ADD COLUMN domain_id text DEFAULT ''d22f6067-1c34-59f6-97f7-4dddeaa3982e'', ADD COLUMN domain_path text DEFAULT ''/'', ADD COLUMN project_id text;
             CREATE INDEX %2$I ON read.%1$I (account_id, created);
             CREATE INDEX %3$I ON read.%1$I (domain_path text_pattern_ops)',
            source, source || '_by_account', source || '_by_domain');
    END LOOP;
END $$;
GRANT SELECT ON read.domain, read.account, read."user", read.project, read.project_account, read.resource_limit TO storebus_app, storebus_projector;
