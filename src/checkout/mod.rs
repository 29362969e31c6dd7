//! Files of a directory that may be anybody's work: a checkout can hold whatever git, an archive or another user put there.
//!
//! Owns: how a file that is read by its name is opened ([`plain`]), which ignore files count (`ignores`), how far a tree is
//! walked (`walk`), where a repository keeps its own data and what it tracks (`repository`). May not know: what a walk is
//! for.
//!
//! Invariants: (1) a file is read by its name only if it is a plain one, reached by no link in its last part, and not larger
//! than its reader takes; nothing else is waited for or read from; (2) what is held of ignore files at a time is bounded, and
//! what does not fit is left out and counted; (3) nothing above a repository's root is looked at.

pub(crate) mod ignores;
pub mod plain;
pub(crate) mod repository;
pub(crate) mod walk;
