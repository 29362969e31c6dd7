//! Reads a file by its name where the name may stand for anything.

use std::fs::{File, Metadata};
use std::io::{self, Read as _};
use std::path::Path;

use rustix::fs::{Mode, OFlags};

/// Why there is something under a name that is not read. Never quotes what is in it.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// A link, a pipe, a socket, a device or a directory.
    #[error("is no plain file (links are not followed)")]
    NotPlain,
    /// More than its reader takes.
    #[error("is larger than {most} bytes")]
    TooLarge {
        /// What its reader takes.
        most: usize,
    },
    /// The system refuses.
    #[error("cannot be read: {0}")]
    Io(#[from] io::Error),
}

/// Reads a plain file of at most `most` bytes. `None` when there is nothing under the name. Never waits for a writer, and
/// follows no link in the last part of the path.
///
/// # Errors
///
/// There is something else under the name.
pub fn read(path: &Path, most: usize) -> Result<Option<Vec<u8>>, Unusable> {
    Ok(open(path)?.map(|(file, found)| contents(file, &found, most)).transpose()?.map(|(bytes, _)| bytes))
}

/// The same, with what the system says about the very file that was read.
pub(crate) fn read_with(path: &Path, most: usize) -> Result<Option<(Vec<u8>, Metadata)>, Unusable> {
    open(path)?.map(|(file, found)| contents(file, &found, most)).transpose()
}

/// Opens a plain file for reading.
pub(crate) fn open(path: &Path) -> Result<Option<(File, Metadata)>, Unusable> {
    use rustix::io::Errno;
    // A pipe without a writer must not be waited for, and a terminal must not become ours.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(file) => File::from(file),
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
        // A link says LOOP; a socket, and a device nobody serves, say that they cannot be opened.
        Err(Errno::LOOP | Errno::NXIO | Errno::NODEV) => return Err(Unusable::NotPlain),
        Err(error) => return Err(Unusable::Io(error.into())),
    };
    let found = file.metadata()?;
    if !found.is_file() {
        return Err(Unusable::NotPlain);
    }
    Ok(Some((file, found)))
}

fn contents(file: File, found: &Metadata, most: usize) -> Result<(Vec<u8>, Metadata), Unusable> {
    let too_large = Unusable::TooLarge { most };
    if usize::try_from(found.len()).map_or(true, |size| size > most) {
        return Err(too_large);
    }
    let mut bytes = Vec::new();
    // It may grow while it is read, and some files of /proc have no size at all.
    file.take(most as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > most {
        return Err(too_large);
    }
    Ok((bytes, found.clone()))
}

#[cfg(test)]
#[cfg(feature = "testkit")]
mod tests {
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    use super::*;
    use crate::testkit::places::Stand;

    #[test]
    fn only_a_plain_file_that_fits_is_read() {
        let dir = tempfile::tempdir().expect("a directory");
        let at = |name: &str| dir.path().join(name);
        std::fs::write(at("plain"), "x".repeat(100)).expect("written");
        assert_eq!(read(&at("plain"), 100).expect("plain").map(|bytes| bytes.len()), Some(100));
        assert!(matches!(read(&at("plain"), 99), Err(Unusable::TooLarge { most: 99 })));
        assert!(matches!(read(&at("nothing"), 9), Ok(None)));
        assert!(matches!(read(&at("plain/below"), 9), Ok(None)));
        for stand in Stand::ALL {
            let path = at(&format!("{stand:?}"));
            if stand.put(&path) {
                assert!(read(&path, 1 << 16).is_err(), "{stand:?}");
            }
        }
        let _socket = UnixListener::bind(at("socket")).expect("bound");
        assert!(matches!(read(&at("socket"), 9), Err(Unusable::NotPlain)));
        symlink(at("plain"), at("link")).expect("linked");
        assert!(matches!(read(&at("link"), 100), Err(Unusable::NotPlain)), "a link to a good file is none");
        assert!(matches!(read(Path::new("/dev/zero"), 9), Err(Unusable::NotPlain)));
    }
}
