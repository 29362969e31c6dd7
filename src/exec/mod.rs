//! Process sessions.
