-- Read tables: folded from the log by the projector, never the truth, always rebuildable.
-- Schema `read`. Text ids: references keep the form `<thing>/<store>`. No secrets: details are not here.
CREATE SCHEMA IF NOT EXISTS read;

CREATE TABLE read.zone (
    id text PRIMARY KEY, name text, created timestamptz);

CREATE TABLE read.agent (
    id text PRIMARY KEY, zone_id text, roles jsonb, hypervisor text, providers jsonb, created timestamptz);

CREATE TABLE read.primary_store (
    id text PRIMARY KEY, name text, kind text, path text, zone_id text, agent text, hypervisor text,
    total_bytes bigint, created timestamptz);

CREATE TABLE read.image_store (
    id text PRIMARY KEY, name text, provider text, url text, protocol text, scope text, zone_id text, state text,
    read_only boolean, error text, job_id text, created timestamptz, removed timestamptz);

CREATE TABLE read.template (
    id text PRIMARY KEY, name text, display_text text, url text, format text, hypervisor text, zone_id text,
    state text, size bigint, physical_size bigint, checksum text, is_public boolean, is_featured boolean,
    is_extractable boolean, os_type_id text, error text, job_id text, created timestamptz, removed timestamptz);

CREATE TABLE read.template_store_ref (
    id text PRIMARY KEY, template_id text, store_id text, key text, state text, size bigint, physical_size bigint,
    root text, sha256 text, error text, created timestamptz);

CREATE TABLE read.volume (
    id text PRIMARY KEY, name text, zone_id text, state text, size bigint, physical_size bigint, primary_id text,
    path text, template_id text, snapshot_id text, hypervisor text, job_id text, error text,
    created timestamptz, removed timestamptz);

CREATE TABLE read.snapshot (
    id text PRIMARY KEY, name text, volume_id text, zone_id text, state text, size bigint, physical_size bigint,
    on_primary boolean, job_id text, error text, created timestamptz, removed timestamptz);

CREATE TABLE read.snapshot_store_ref (
    id text PRIMARY KEY, snapshot_id text, store_id text, key text, state text, size bigint, physical_size bigint,
    root text, created timestamptz);

CREATE TABLE read.job (
    id text PRIMARY KEY, command text, status text, step text, subject text, result jsonb, failure jsonb,
    principal text, body jsonb, cancel_requested boolean, work text, parent text,
    created timestamptz, completed timestamptz);
CREATE INDEX job_by_created ON read.job (created);

-- The founding specification's name for it.
CREATE VIEW read.image_data_store AS SELECT * FROM read.image_store;
