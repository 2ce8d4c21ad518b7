-- The log and what is kept with it. Schema `es`: written only by its functions.
CREATE SCHEMA es;

-- One row: which installation this is. Partitions are fixed from the first day on; a restore begins a new epoch.
CREATE TABLE es.installation (
    id uuid NOT NULL, partitions int NOT NULL, epoch int NOT NULL, created timestamptz NOT NULL DEFAULT now(),
    one boolean PRIMARY KEY DEFAULT true CHECK (one));

-- The guard of optimistic concurrency: unique keys cannot span the partitions of es.event.
CREATE TABLE es.stream (name text PRIMARY KEY, version int NOT NULL) WITH (fillfactor = 70);

CREATE TABLE es.event (
    position bigint NOT NULL, stream text NOT NULL, version int NOT NULL, kind text NOT NULL, type text NOT NULL,
    type_version int NOT NULL, id uuid NOT NULL, key text NOT NULL, address text NOT NULL, tenant text NOT NULL,
    correlation uuid NOT NULL, causation uuid, recorded_at timestamptz NOT NULL, payload bytea NOT NULL,
    meta bytea NOT NULL, effects bytea NOT NULL, hash bytea NOT NULL,
    PRIMARY KEY (position)) PARTITION BY RANGE (position);
CREATE INDEX event_by_stream ON es.event (stream, version);
CREATE INDEX event_by_time ON es.event USING brin (recorded_at);

CREATE TABLE es.claim (name text, holder text, value text NOT NULL, PRIMARY KEY (name, holder));
CREATE TABLE es.counter (name text PRIMARY KEY, value bigint NOT NULL DEFAULT 0, ceiling bigint);
CREATE TABLE es.timer (
    id text PRIMARY KEY, due_at timestamptz NOT NULL, key text NOT NULL, type text NOT NULL, payload bytea NOT NULL);
CREATE INDEX timer_by_due ON es.timer (due_at);
CREATE TABLE es.checkpoint (name text PRIMARY KEY, epoch int NOT NULL, position bigint NOT NULL, event_id uuid);
CREATE TABLE es.lease (name text PRIMARY KEY, holder text NOT NULL, fence bigint NOT NULL, until timestamptz NOT NULL);
CREATE TABLE es.held (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, key text NOT NULL, partition int NOT NULL,
    headers jsonb NOT NULL, body bytea NOT NULL, reason text NOT NULL, attempts int NOT NULL DEFAULT 1,
    first_failed timestamptz NOT NULL DEFAULT now(), last_failed timestamptz NOT NULL DEFAULT now(),
    source text NOT NULL);
CREATE INDEX held_by_key ON es.held (key, id);
CREATE TABLE es.secret (id uuid PRIMARY KEY, sealed bytea NOT NULL, created timestamptz NOT NULL DEFAULT now());

-- Transient: lost with a crash of the server, told again within seconds.
CREATE UNLOGGED TABLE es.member (
    role text, member text, info jsonb NOT NULL, until timestamptz NOT NULL, PRIMARY KEY (role, member));
CREATE UNLOGGED TABLE es.progress (work text PRIMARY KEY, progress bytea NOT NULL, at timestamptz NOT NULL DEFAULT now());
