-- es.link: the hash of a row, chained to the hash of the row before it (empty before the first). `at` in microseconds.
-- Changing any column of any row changes its hash, and with it every later one.
CREATE OR REPLACE FUNCTION es.link(previous bytea, pos bigint, at bigint, body bytea)
RETURNS bytea LANGUAGE sql IMMUTABLE
RETURN sha256(previous || int8send(pos) || int8send(at) || body);
