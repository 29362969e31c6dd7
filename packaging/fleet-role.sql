-- The rights that hosts and operators of a fleet need, and no others. docs/fleet.md says how a fleet is set up.
--
-- To be run by the owner of the schema `phone_opus` who may create roles, or by a superuser, in the fleet's database, once its tables
-- are there and again after each upgrade that added some:
--
--     psql --set ON_ERROR_STOP=1 --single-transaction --file packaging/fleet-role.sql "host=db.example dbname=fleet user=fleet_owner"
--
-- Two roles without a login. A machine's user is made a member of the first, whoever sets caps and drains hosts of the second:
--
--     CREATE ROLE anna LOGIN IN ROLE phone_opus_host;
--     GRANT phone_opus_operator TO anna;
--
-- Everything here may be run again; what an earlier run granted and this one does not is taken back.

DO $$
BEGIN
    IF NOT EXISTS (SELECT 1 FROM pg_roles WHERE rolname = 'phone_opus_host') THEN
        CREATE ROLE phone_opus_host NOLOGIN;
    END IF;
    IF NOT EXISTS (SELECT 1 FROM pg_roles WHERE rolname = 'phone_opus_operator') THEN
        CREATE ROLE phone_opus_operator NOLOGIN;
    END IF;
END
$$;

REVOKE ALL ON SCHEMA phone_opus FROM PUBLIC, phone_opus_host, phone_opus_operator;
REVOKE ALL ON ALL TABLES IN SCHEMA phone_opus FROM PUBLIC, phone_opus_host, phone_opus_operator;
REVOKE ALL ON ALL SEQUENCES IN SCHEMA phone_opus FROM PUBLIC, phone_opus_host, phone_opus_operator;
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA phone_opus FROM PUBLIC, phone_opus_host, phone_opus_operator;

-- What a host does: eight verbs. It changes neither what was asked nor whose it is, sets no cap and drains nobody.
GRANT USAGE ON SCHEMA phone_opus TO phone_opus_host;
GRANT USAGE ON SEQUENCE phone_opus.fence TO phone_opus_host;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA phone_opus TO phone_opus_host;
GRANT SELECT ON ALL TABLES IN SCHEMA phone_opus TO phone_opus_host;
-- Which history of the database was seen last.
GRANT UPDATE (system_id, timeline, quiet_until) ON phone_opus.meta TO phone_opus_host;
GRANT INSERT (host, name, state_id, labels, lease_until), UPDATE (name, state_id, labels, lease_until, seen), DELETE
    ON phone_opus.host TO phone_opus_host;
GRANT INSERT (id, workspace, lane, request_key, request, digest, agent, account, needs, session, pin_state, timeout_s,
        traceparent, tracestate),
    UPDATE (state, fence, host, claimed, started, ended, hold_until, cancel, outcome), DELETE
    ON phone_opus.job TO phone_opus_host;
GRANT INSERT (job, fence, host, state, outcome), DELETE ON phone_opus.late TO phone_opus_host;
GRANT INSERT (lane, last_fence), UPDATE (last_fence), DELETE ON phone_opus.turn TO phone_opus_host;
GRANT INSERT (scope, until, why), UPDATE (until, why), DELETE ON phone_opus.pause TO phone_opus_host;
-- With whom a user shares its jobs, where users are kept apart (packaging/fleet-users.sql).
GRANT INSERT (with_user), DELETE ON phone_opus.share TO phone_opus_host;

-- What an operator does beside: `phone-opus fleet caps set`, `drain`, `resume`.
GRANT USAGE ON SCHEMA phone_opus TO phone_opus_operator;
GRANT SELECT ON ALL TABLES IN SCHEMA phone_opus TO phone_opus_operator;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA phone_opus TO phone_opus_operator;
GRANT UPDATE (drained) ON phone_opus.host TO phone_opus_operator;
GRANT INSERT (scope, n), UPDATE (n), DELETE ON phone_opus.cap TO phone_opus_operator;
