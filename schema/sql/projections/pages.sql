-- Pages as text: what is read once and sent on is not made jsonb first.

-- The list of templates as it was, without what depends on a copy: enough for counting, unless the filter asks for that.
CREATE VIEW read.template_in_zone AS
    SELECT t.id || '/' || z.id AS id, t.id AS template_id, z.id AS in_zone, z.name AS zone_name, t.name, t.display_text, t.url, t.format,
           t.hypervisor, t.zone_id, t.size, t.checksum, t.is_public, t.is_featured, t.is_extractable, t.os_type_id, t.created, t.removed,
           t.account_id, t.account, t.domain_id, t.domain_path, t.project_id, t.tags, t.kind, t.cross_zones, t.granted, t.volume_id,
           t.snapshot_id, t.bits, t.requires_hvm, t.password_enabled, t.ssh_key_enabled, t.dynamically_scalable, t.bootable, t.details,
           t.template_tag, t.template_type, t.arch, t.sort_key
    FROM read.template t
    JOIN read.template_zone tz ON tz.template_id = t.id
    JOIN read.zone z ON tz.zone_id IS NULL OR z.id = tz.zone_id;
GRANT SELECT ON read.template_in_zone TO storebus_app, storebus_projector;

-- As it was at first: the best copy is looked for once for each row, and not in each column.
CREATE OR REPLACE VIEW read.template_view AS
    SELECT t.id || '/' || z.id AS id, t.id AS template_id, z.id AS in_zone, z.name AS zone_name, t.name, t.display_text, t.url, t.format,
           t.hypervisor, t.zone_id, coalesce(best.state, CASE WHEN t.state = 'Ready' THEN 'Absent' ELSE t.state END) AS state, t.size,
           coalesce(best.physical_size, t.physical_size) AS physical_size, t.checksum, t.is_public, t.is_featured,
           t.is_extractable, t.os_type_id, coalesce(best.error, tz.error, t.error) AS error,
           coalesce(best.job_id, t.job_id) AS job_id, t.created, t.removed, t.account_id, t.account,
           t.domain_id, t.domain_path, t.project_id, t.tags, t.kind, t.cross_zones, t.granted, t.volume_id, t.snapshot_id, t.bits,
           t.requires_hvm, t.password_enabled, t.ssh_key_enabled, t.dynamically_scalable, t.bootable, t.details, t.template_tag,
           t.template_type, t.arch, t.sort_key
    FROM read.template t
    JOIN read.template_zone tz ON tz.template_id = t.id
    JOIN read.zone z ON tz.zone_id IS NULL OR z.id = tz.zone_id
    LEFT JOIN LATERAL (SELECT c.state, c.physical_size, c.error, c.job_id FROM read.template_store_ref c
                       WHERE c.template_id = t.id AND (c.zone_id IS NULL OR c.zone_id = z.id)
                       ORDER BY c.state <> 'Ready', c.created LIMIT 1) best ON true;

-- read.total(...): as before; templates are counted without their copies where the filter does not ask for them.
CREATE OR REPLACE FUNCTION read.total(source text, filter jsonb, wanted text, search text, lim int, off int, shown int)
RETURNS bigint LANGUAGE plpgsql VOLATILE SET search_path = read, pg_temp AS $$
DECLARE
    of_things text := CASE source WHEN 'template_view' THEN 'template' WHEN 'snapshot_in_zone' THEN 'snapshot' ELSE source END;
    counted text := CASE WHEN source = 'template_view' AND wanted !~ 't\.(state|physical_size|error|job_id)\M' THEN 'template_in_zone' ELSE source END;
    total bigint;
    guess json;
BEGIN
    IF shown < lim OR jsonb_typeof(filter->'id') = 'string' THEN
        RETURN off + shown;
    END IF;
    IF search = '' AND of_things IN ('volume', 'snapshot', 'template') AND read.only_live(filter) AND read.only_owners(filter) THEN
        EXECUTE format('SELECT coalesce(sum(t.live), 0) FROM read.kept_count t WHERE t.source = %L AND %s', of_things,
                       read.conditions(read.without_removed(filter))) INTO total;
        RETURN greatest(total, off + shown + (of_things <> source)::int);
    END IF;
    EXECUTE format('SELECT count(*) FROM (SELECT FROM read.%I t WHERE %s LIMIT 10001) AS few', counted, wanted) INTO total;
    IF total <= 10000 THEN
        RETURN greatest(total, off + shown);
    END IF;
    EXECUTE format('EXPLAIN (FORMAT JSON) SELECT FROM read.%I t WHERE %s', counted, wanted) INTO guess;
    RETURN greatest(total, (guess->0->'Plan'->>'Plan Rows')::bigint, off + shown + 1);
END $$;

-- read.page(source, filter, search, sorted, lim, off): what read.rows gave, as one row: how many match, and the page as a list in JSON.
-- No row where the page is empty.
CREATE FUNCTION read.page(source text, filter jsonb, search text, sorted text, lim int, off int)
RETURNS TABLE (total bigint, items text) LANGUAGE plpgsql VOLATILE SET search_path = read, pg_temp AS $$
DECLARE
    target regclass := format('read.%I', source)::regclass;
    wanted text := read.conditions(filter);
    shown int;
BEGIN
    IF search <> '' THEN
        wanted := wanted || format(' AND lower(t.name) LIKE %L',
            '%' || replace(replace(replace(lower(search), '\', '\\'), '%', '\%'), '_', '\_') || '%');
    END IF;
    EXECUTE format('SELECT count(*), json_agg(p)::text FROM (
                        SELECT t.* FROM %1$s t WHERE %2$s ORDER BY t.%3$I NULLS LAST, t.id LIMIT $1 OFFSET $2) AS p',
                   target, wanted, sorted) INTO shown, items USING lim, off;
    IF shown > 0 THEN
        total := read.total(source, filter, wanted, search, lim, off, shown);
        RETURN NEXT;
    END IF;
END $$;
REVOKE EXECUTE ON FUNCTION read.page(text, jsonb, text, text, int, int) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION read.page(text, jsonb, text, text, int, int) TO storebus_app;
DROP FUNCTION read.rows(text, jsonb, text, text, int, int);

-- There are few zones, and a table with few changes is not analyzed by itself: the planner would take it for hundreds, and read a million
-- templates in order to find the one that a keyword names.
ALTER TABLE read.zone SET (autovacuum_analyze_threshold = 0, autovacuum_analyze_scale_factor = 0);
ANALYZE read.zone;
