-- Machines, whose they are, and which volume is attached to which; more of zones and primary stores.
CREATE TABLE read.machine (
    id text PRIMARY KEY, name text, state text, memory_mib int, trouble text, agent text, host_id text, zone_id text, hypervisor text,
    account_id text, account text, domain_id text, domain_path text, project_id text, created timestamptz, removed timestamptz);
CREATE INDEX machine_by_account ON read.machine (account_id, created);
CREATE INDEX machine_by_domain ON read.machine (domain_path text_pattern_ops);

ALTER TABLE read.volume ADD COLUMN machine_id text, ADD COLUMN device_id int, ADD COLUMN attached timestamptz;
CREATE INDEX volume_by_machine ON read.volume (machine_id) WHERE machine_id IS NOT NULL;

ALTER TABLE read.zone ADD COLUMN network_type text, ADD COLUMN dns1 text, ADD COLUMN dns2 text, ADD COLUMN internal_dns1 text,
    ADD COLUMN internal_dns2 text, ADD COLUMN domain text;
-- What there is already was made by configuration.
UPDATE read.zone SET network_type = 'Advanced', dns1 = '', dns2 = '', internal_dns1 = '', internal_dns2 = '', domain = '';

ALTER TABLE read.primary_store ADD COLUMN state text, ADD COLUMN scope text, ADD COLUMN error text, ADD COLUMN job_id text,
    ADD COLUMN removed timestamptz;
UPDATE read.primary_store SET state = 'Up', scope = 'HOST';

GRANT SELECT ON read.machine TO storebus_app, storebus_projector;
