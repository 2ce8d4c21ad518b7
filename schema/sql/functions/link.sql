-- es.link: the hash of a row, chained to the one before it. Changing any column of any row changes every later hash.
CREATE OR REPLACE FUNCTION es.link(
    previous bytea, pos bigint, stream text, ver int, kind text, typ text, type_version int, id uuid, key text,
    address text, tenant text, correlation uuid, causation uuid, at timestamptz, payload bytea, meta bytea,
    effects bytea)
RETURNS bytea LANGUAGE sql IMMUTABLE
RETURN sha256(previous || sha256(payload) || sha256(meta || effects) || convert_to(
    pos::text || '|' || stream || '|' || ver::text || '|' || kind || '|' || typ || '|' || type_version::text || '|' ||
    id::text || '|' || key || '|' || address || '|' || tenant || '|' || correlation::text || '|' ||
    coalesce(causation::text, '') || '|' || (extract(epoch FROM at) * 1000000)::bigint::text, 'UTF8'));
