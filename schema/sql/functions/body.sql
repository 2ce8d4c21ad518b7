-- es.body: what a row says, in one unambiguous form: its columns as a quoted record with the lengths of its bytes, then the
-- hash of those bytes. STABLE and without settings of its own, so that the planner expands it in place.
CREATE OR REPLACE FUNCTION es.body(
    stream text, version int, kind text, type text, type_version int, id uuid, key text, address text, tenant text,
    correlation uuid, causation uuid, payload bytea, meta bytea, effects bytea)
RETURNS bytea LANGUAGE sql STABLE
RETURN convert_to(ROW(stream, version, kind, type, type_version, id, key, address, tenant, correlation, causation,
                      length(payload), length(meta), length(effects))::text, 'UTF8')
       || sha256(payload || meta || effects);
