//! Who may come in.
//!
//! Owns: the rule about a peer's user id. May not know: sockets. The socket lies in a directory that nobody else can enter;
//! this is the second lock on the same door.

/// A peer that is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Stranger {
    /// The kernel does not say who it is.
    #[error("the system does not say whose process this is")]
    Unknown,
    /// It is somebody else.
    #[error("this daemon serves user id {ours} and you are user id {theirs}")]
    Other {
        /// Whom the daemon serves.
        ours: u32,
        /// Whose process it is.
        theirs: u32,
    },
}

/// Whether a peer is one of ours: `theirs` is the user id by the kernel's word, `ours` that of this process. A pid is no
/// evidence of anything, across namespaces least of all, and is not asked for.
///
/// # Errors
///
/// It is not.
pub const fn admit(theirs: Option<u32>, ours: u32) -> Result<(), Stranger> {
    match theirs {
        None => Err(Stranger::Unknown),
        Some(theirs) if theirs == ours => Ok(()),
        Some(theirs) => Err(Stranger::Other { ours, theirs }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel says of a user whom this namespace has no number for.
    const OVERFLOW: u32 = 65_534;

    #[test]
    fn only_the_same_user_comes_in() {
        let cases = [
            (Some(1000), 1000, Ok(())),
            (Some(0), 0, Ok(())),
            // Root has other ways; a socket is none of them.
            (Some(0), 1000, Err(Stranger::Other { ours: 1000, theirs: 0 })),
            (Some(1001), 1000, Err(Stranger::Other { ours: 1000, theirs: 1001 })),
            (Some(OVERFLOW), 1000, Err(Stranger::Other { ours: 1000, theirs: OVERFLOW })),
            (Some(OVERFLOW), OVERFLOW, Ok(())),
            (None, 1000, Err(Stranger::Unknown)),
        ];
        for (theirs, ours, expected) in cases {
            assert_eq!(admit(theirs, ours), expected, "{theirs:?} at {ours}");
        }
    }
}
