-- Named queries of the event store. A block begins with `-- name: <name>` and ends at the next one.

-- name: append
SELECT base, failed FROM es.append($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17::jsonb)
-- name: notify
SELECT pg_notify('storebus_log', $1)
-- name: alive
SELECT 1
-- name: now
SELECT clock_timestamp()
-- name: read_stream
SELECT position, stream, version, kind, type, type_version, id, key, address, tenant, correlation, causation, recorded_at, payload, meta
FROM es.event WHERE stream = $1 AND version > $2 ORDER BY version LIMIT $3
-- name: read_streams
SELECT position, stream, version, kind, type, type_version, id, key, address, tenant, correlation, causation, recorded_at, payload, meta
FROM es.event WHERE stream = ANY ($1::text[]) AND version < 10000 ORDER BY stream, version
-- name: read_log
SELECT position, stream, version, kind, type, type_version, id, key, address, tenant, correlation, causation, recorded_at, payload, meta
FROM es.event WHERE position > $1 ORDER BY position LIMIT $2
-- name: read_log_where
WITH scanned AS (SELECT max(position) AS last, count(*) AS count FROM es.event WHERE position > $1 AND position <= $2),
     found AS (
        SELECT position, stream, version, kind, type, type_version, id, key, address, tenant, correlation, causation,
               recorded_at, payload, meta
        FROM es.event WHERE position > $1 AND position <= $2
          AND ($3::text[] IS NULL OR kind = ANY ($3)) AND ($4::text IS NULL OR type ~ $4)
          AND ($5::text[] IS NULL OR stream = ANY ($5)) AND ($6::uuid IS NULL OR correlation = $6)
          AND ($7::timestamptz IS NULL OR recorded_at < $7)
        ORDER BY position LIMIT $8)
SELECT f.*, s.last, s.count FROM scanned s LEFT JOIN found f ON true ORDER BY f.position
-- name: head
SELECT coalesce((SELECT position FROM es.event ORDER BY position DESC LIMIT 1), 0)
-- name: installation
SELECT id, partitions, epoch FROM es.installation
-- name: position_at
-- Time never goes back along the log, so halving finds the place in some twenty steps whatever the log's length.
WITH RECURSIVE halving (low, high) AS (
    SELECT 0::bigint, coalesce((SELECT position FROM es.event ORDER BY position DESC LIMIT 1), 0)
    UNION ALL
    SELECT CASE WHEN earlier THEN middle ELSE low END, CASE WHEN earlier THEN high ELSE middle - 1 END
    FROM (SELECT low, high, (low + high + 1) / 2 AS middle FROM halving WHERE low < high) AS step,
         LATERAL (SELECT coalesce((SELECT recorded_at < $1::timestamptz FROM es.event WHERE position = middle), false) AS earlier) AS seen)
SELECT low FROM halving WHERE low = high
-- name: checkpoint
SELECT name, epoch, position, event_id FROM es.checkpoint WHERE name = $1
-- name: checkpoints
SELECT name, epoch, position, event_id FROM es.checkpoint
-- name: save_checkpoint
SELECT es.save_checkpoint($1, $2, $3, $4, $5, $6)
-- name: claims
SELECT name, value, holder FROM es.claim ORDER BY name, holder
-- name: counters
SELECT name, value, ceiling FROM es.counter
-- name: counter_values
SELECT name, value FROM es.counter WHERE name = ANY ($1::text[])
-- name: due_timers
SELECT id, key, type, payload, due_at FROM es.due_timers($1, $2, $3)
-- name: timers
SELECT id, key, type, payload, due_at FROM es.timer
-- name: acquire_lease
SELECT es.acquire_lease($1, $2, $3, $4)
-- name: release_lease
SELECT es.release_lease($1, $2, $3)
-- name: beat
SELECT es.beat($1, $2, $3::jsonb, $4)
-- name: members
SELECT member, info::text FROM es.member WHERE role = $1 AND until > clock_timestamp()
-- name: set_progress
SELECT es.set_progress($1, $2)
-- name: progress
SELECT work, progress FROM es.progress WHERE work = ANY ($1::text[])
-- name: hold
SELECT es.hold($1, $2, $3::jsonb, $4, $5, $6)
-- name: held
SELECT id, key, partition, headers::text, body, reason, attempts, first_failed, last_failed, source FROM es.held
WHERE $1::text IS NULL OR key = $1 ORDER BY id LIMIT $2
-- name: held_keys
SELECT DISTINCT key FROM es.held WHERE key <> ''
-- name: held_failed
SELECT es.held_failed($1, $2)
-- name: drop_held
SELECT es.drop_held($1)
-- name: put_secret
SELECT es.put_secret($1, $2)
-- name: get_secret
SELECT es.get_secret($1)
-- name: drop_secret
SELECT es.drop_secret($1)
-- name: make_partitions
SELECT es.make_partitions()
-- name: verify_page
SELECT position, stream, version, type, effects, hash,
       hash = es.link(coalesce(lag(hash) OVER (ORDER BY position), $2), position, (extract(epoch FROM recorded_at) * 1000000)::bigint,
                      es.body(stream, version, kind, type, type_version, id, key, address, tenant, correlation, causation,
                              payload, meta, effects)) AS linked
FROM (SELECT * FROM es.event WHERE position > $1 ORDER BY position LIMIT $3) AS page ORDER BY position
-- name: stream_heads
SELECT name, version FROM es.stream
-- name: doctor_server
SELECT current_setting('server_version') AS version, to_regclass('public.storebus_migration') IS NOT NULL AS migrated,
       current_setting('fsync') AS fsync, current_setting('synchronous_commit') AS synchronous_commit,
       current_setting('full_page_writes') AS full_page_writes
-- name: doctor_migrations
SELECT name, checksum FROM public.storebus_migration
-- name: doctor_clock
SELECT clock_timestamp()
-- name: doctor_secret
SELECT id FROM es.secret ORDER BY created DESC LIMIT 1
-- name: migration_lock
SELECT pg_advisory_xact_lock($1)
-- name: migration_applied
INSERT INTO public.storebus_migration (name, checksum) VALUES ($1, $2)
-- name: make_installation
INSERT INTO es.installation (id, partitions, epoch) VALUES ($1, $2, 1) ON CONFLICT DO NOTHING
-- name: partitions
SELECT partitions FROM es.installation
-- name: new_epoch
-- Readers whose state was restored together with the log (relay, projector) go on in the new epoch. Groups of subscribers
-- (sub/...) had effects elsewhere, perhaps of rows that are gone: they stop, and somebody decides.
WITH moved AS (UPDATE es.installation SET epoch = epoch + 1 RETURNING epoch)
UPDATE es.checkpoint SET epoch = moved.epoch FROM moved
WHERE name NOT LIKE 'sub/%' AND position <= coalesce((SELECT max(position) FROM es.event), 0)
