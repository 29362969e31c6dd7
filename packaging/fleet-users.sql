-- Keeps the users of one fleet apart: each sees its own jobs, and those of users who share theirs with it. docs/fleet.md says what that
-- costs. To be run after packaging/fleet-role.sql, by the same user, in the same way. May be run again.
--
-- A user shares its jobs with another one, whose hosts may then run them if their configuration accepts it:
--
--     INSERT INTO phone_opus.share (with_user) VALUES ('build');
--
-- The owner of the tables sees everything. Caps are exact all the same: hosts are told how many jobs there are that they do not see.

ALTER TABLE phone_opus.job ENABLE ROW LEVEL SECURITY;
ALTER TABLE phone_opus.late ENABLE ROW LEVEL SECURITY;
ALTER TABLE phone_opus.host ENABLE ROW LEVEL SECURITY;
ALTER TABLE phone_opus.turn ENABLE ROW LEVEL SECURITY;
ALTER TABLE phone_opus.share ENABLE ROW LEVEL SECURITY;

DROP POLICY IF EXISTS seen ON phone_opus.job;
DROP POLICY IF EXISTS asked ON phone_opus.job;
DROP POLICY IF EXISTS moved ON phone_opus.job;
DROP POLICY IF EXISTS forgotten ON phone_opus.job;
CREATE POLICY seen ON phone_opus.job FOR SELECT USING (phone_opus.shows(owner));
CREATE POLICY asked ON phone_opus.job FOR INSERT WITH CHECK (owner = session_user);
CREATE POLICY moved ON phone_opus.job FOR UPDATE USING (phone_opus.shows(owner));
CREATE POLICY forgotten ON phone_opus.job FOR DELETE USING (owner = session_user);

DROP POLICY IF EXISTS seen ON phone_opus.late;
DROP POLICY IF EXISTS told ON phone_opus.late;
DROP POLICY IF EXISTS forgotten ON phone_opus.late;
CREATE POLICY seen ON phone_opus.late FOR SELECT
    USING (owner = session_user OR EXISTS (SELECT 1 FROM phone_opus.job j WHERE j.id = late.job));
CREATE POLICY told ON phone_opus.late FOR INSERT WITH CHECK (owner = session_user);
CREATE POLICY forgotten ON phone_opus.late FOR DELETE USING (owner = session_user);

-- Everybody sees who lives: a job of one user may be with a host of another one. Nobody speaks for somebody else's, but an operator
-- drains it: the column is all that its role may write.
DROP POLICY IF EXISTS seen ON phone_opus.host;
DROP POLICY IF EXISTS came ON phone_opus.host;
DROP POLICY IF EXISTS lives ON phone_opus.host;
DROP POLICY IF EXISTS drains ON phone_opus.host;
DROP POLICY IF EXISTS gone ON phone_opus.host;
CREATE POLICY seen ON phone_opus.host FOR SELECT USING (true);
CREATE POLICY came ON phone_opus.host FOR INSERT WITH CHECK (owner = session_user);
CREATE POLICY lives ON phone_opus.host FOR UPDATE USING (owner = session_user);
CREATE POLICY drains ON phone_opus.host FOR UPDATE TO phone_opus_operator USING (true);
CREATE POLICY gone ON phone_opus.host FOR DELETE USING (owner = session_user);

-- A workspace's turn is a digest and a number. It is forgotten when it has no jobs of anybody.
DROP POLICY IF EXISTS seen ON phone_opus.turn;
DROP POLICY IF EXISTS came ON phone_opus.turn;
DROP POLICY IF EXISTS served ON phone_opus.turn;
DROP POLICY IF EXISTS forgotten ON phone_opus.turn;
CREATE POLICY seen ON phone_opus.turn FOR SELECT USING (true);
CREATE POLICY came ON phone_opus.turn FOR INSERT WITH CHECK (true);
CREATE POLICY served ON phone_opus.turn FOR UPDATE USING (true);
CREATE POLICY forgotten ON phone_opus.turn FOR DELETE USING (NOT phone_opus.has_jobs(lane));

DROP POLICY IF EXISTS own ON phone_opus.share;
CREATE POLICY own ON phone_opus.share USING (owner = session_user) WITH CHECK (owner = session_user);
