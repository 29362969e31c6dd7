//! Who may come in by a WebSocket, and what is said to the others.
//!
//! Owns: the rules about a request's head (path, browsers, the token), about the peer's user, and where one may listen without a
//! token. Pure but for reading the token's file and the kernel's table of sockets. May not know: sessions, how bytes travel.
//!
//! ```text
//! Origin ─▶ 403   GET /readyz ─▶ 200   another path ─▶ 404   no WebSocket ─▶ 400
//! a token that is right ─▶ in      one that is wrong ─▶ 401
//! no token: from loopback, and the kernel says that the other end is our own user's ─▶ in      else ─▶ 401
//! ```
//!
//! Invariants: (1) what comes from beyond this machine needs the token; (2) a user that is not known is nobody: the kernel's word for
//! one without a number here (65534) included; (3) tokens are compared in the same time wherever they differ, and are in no log.

use std::fs::File;
use std::io::Read as _;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::{Digest as _, Sha256};

/// What the kernel says of a user whom this namespace has no number for.
pub const OVERFLOW_UID: u32 = 65_534;

/// How often the kernel's table is read for one peer. It is given out in pieces, and while other sockets come and go a row may be
/// passed over.
const LOOKS: u32 = 8;

/// The pause between two of them.
const LOOK_PAUSE: Duration = Duration::from_millis(5);

/// Bytes of a token; what `openssl rand -hex 32` gives is 64.
const TOKEN_LEAST: usize = 16;

/// Bytes of a token's file.
const TOKEN_MOST: usize = 4096;

/// The secret that peers bring. Only its digest is kept.
#[derive(Clone)]
pub struct BearerToken([u8; 32]);

impl std::fmt::Debug for BearerToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("BearerToken")
    }
}

/// A token's file that is not used.
#[derive(Debug, thiserror::Error)]
#[error("read the token in {}: {why}", path.display())]
pub struct TokenFileError {
    /// Which.
    pub path: PathBuf,
    /// What is wrong with it.
    pub why: String,
}

impl BearerToken {
    /// The token in a file that is ours and that nobody else can read.
    ///
    /// # Errors
    /// It is somebody else's, others can read it, or what is in it is no token.
    pub fn read(path: &Path) -> Result<Self, TokenFileError> {
        let wrong = |why: String| TokenFileError { path: path.to_owned(), why };
        let mut options = File::options();
        // A pipe at that place must not be waited for.
        options.read(true).custom_flags(nix::libc::O_NONBLOCK | nix::libc::O_CLOEXEC);
        let file = options.open(path).map_err(|error| wrong(error.to_string()))?;
        let found = file.metadata().map_err(|error| wrong(error.to_string()))?;
        let ours = rustix::process::geteuid().as_raw();
        if !found.is_file() {
            return Err(wrong("it is no file".to_owned()));
        }
        if found.uid() != ours {
            return Err(wrong(format!("it belongs to user id {} and this is user id {ours}", found.uid())));
        }
        if found.mode() & 0o077 != 0 {
            return Err(wrong(format!("others can read it (mode {:04o}); accepted: 0600", found.mode() & 0o7777)));
        }
        let mut text = Vec::new();
        file.take(TOKEN_MOST as u64 + 1).read_to_end(&mut text).map_err(|error| wrong(error.to_string()))?;
        let token = text.trim_ascii();
        if text.len() > TOKEN_MOST || token.len() < TOKEN_LEAST || !token.iter().all(u8::is_ascii_graphic) {
            let words = format!("accepted: one word of {TOKEN_LEAST} to {TOKEN_MOST} visible ASCII letters");
            return Err(wrong(words));
        }
        Ok(Self::of(token))
    }

    fn of(token: &[u8]) -> Self {
        Self(Sha256::digest(token).into())
    }

    /// Whether an `Authorization` header brings it.
    #[must_use]
    pub fn is_said_by(&self, authorization: &[u8]) -> bool {
        bearer(authorization).is_some_and(|said| self.is(said))
    }

    /// Whether this is it. Takes as long wherever they differ.
    fn is(&self, said: &[u8]) -> bool {
        let said: [u8; 32] = Sha256::digest(said).into();
        let differing = self.0.iter().zip(said).fold(0, |all, (ours, theirs)| all | (ours ^ theirs));
        std::hint::black_box(differing) == 0
    }
}

/// What is known of a request before anything is said.
#[derive(Debug, Clone, Copy)]
pub struct UpgradeAsked<'a> {
    /// Its path, without a query.
    pub path: &'a str,
    /// Whether a browser's page sent it.
    pub has_origin: bool,
    /// What it says under `Authorization`.
    pub authorization: Option<&'a [u8]>,
    /// Whether it asks for a WebSocket as one asks for it.
    pub is_websocket: bool,
    /// Where it comes from.
    pub peer: SocketAddr,
    /// Whose process the other end is, where the kernel says so.
    pub uid: Option<u32>,
}

/// What a request gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// A session.
    In,
    /// An answer and nothing else: a status, and words for people.
    Answer(u16, &'static str),
}

/// Judges a request.
#[must_use]
pub fn judge(asked: &UpgradeAsked<'_>, token: Option<&BearerToken>, ours: u32) -> Admission {
    if asked.has_origin {
        return Admission::Answer(403, "pages of a browser are not served");
    }
    match asked.path {
        "/readyz" => return Admission::Answer(200, "ready"),
        "/" => {}
        _ => return Admission::Answer(404, "there is / and /readyz"),
    }
    if !asked.is_websocket {
        return Admission::Answer(400, "a WebSocket is served here");
    }
    if let Some(said) = asked.authorization {
        let right = token.is_some_and(|token| token.is_said_by(said));
        return if right { Admission::In } else { Admission::Answer(401, "the token is wrong") };
    }
    let is_ours = asked.uid == Some(ours) && ours != OVERFLOW_UID && is_loopback(asked.peer.ip());
    if is_ours { Admission::In } else { Admission::Answer(401, "a token is needed") }
}

/// The token of an `Authorization` header.
fn bearer(said: &[u8]) -> Option<&[u8]> {
    let (scheme, said) = said.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| said.trim_ascii())
}

/// Whether an address is of this machine and of no other.
#[must_use]
pub fn is_loopback(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}

/// Whose process the other end of a connection is, by the kernel's table of sockets; `None` where it does not say: it is on another
/// machine or in another network namespace, it is closing, or this is no Linux.
///
/// Reads files, and waits [`LOOKS`] times [`LOOK_PAUSE`] for whom it does not find: not for the runtime's thread.
#[must_use]
pub fn peer_uid(peer: SocketAddr, ours: SocketAddr) -> Option<u32> {
    let tables = ["/proc/self/net/tcp", "/proc/self/net/tcp6"];
    (0..LOOKS).find_map(|look| {
        if look > 0 {
            std::thread::sleep(LOOK_PAUSE);
        }
        let mut read = tables.iter().filter_map(|table| std::fs::read_to_string(table).ok());
        read.find_map(|table| uid_in(&table, peer, ours))
    })
}

/// The user of the established socket with these ends.
fn uid_in(table: &str, local: SocketAddr, remote: SocketAddr) -> Option<u32> {
    table.lines().skip(1).find_map(|line| {
        let mut columns = line.split_ascii_whitespace().skip(1);
        let (from, to, state) = (columns.next()?, columns.next()?, columns.next()?);
        if state != "01" || address(from)? != canonical(local) || address(to)? != canonical(remote) {
            return None;
        }
        // Queues, timer, retransmits; then the user, and after one more the inode. A socket nobody has any more shows user 0.
        let uid = columns.nth(3)?.parse().ok()?;
        let inode: u64 = columns.nth(1)?.parse().ok()?;
        (inode != 0).then_some(uid)
    })
}

fn canonical(address: SocketAddr) -> (IpAddr, u16) {
    (address.ip().to_canonical(), address.port())
}

/// `0100007F:1F90`: groups of four bytes, each in the order of this machine.
fn address(text: &str) -> Option<(IpAddr, u16)> {
    let (host, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let mut bytes = [0; 16];
    let groups = host.len() / 8;
    if host.len() % 8 != 0 || !(groups == 1 || groups == 4) || !host.is_ascii() {
        return None;
    }
    for group in 0..groups {
        let word = u32::from_str_radix(&host[group * 8..group * 8 + 8], 16).ok()?;
        bytes[group * 4..group * 4 + 4].copy_from_slice(&word.to_ne_bytes());
    }
    let ip = if groups == 1 {
        IpAddr::from([bytes[0], bytes[1], bytes[2], bytes[3]])
    } else {
        IpAddr::from(Ipv6Addr::from(bytes)).to_canonical()
    };
    Some((ip, port))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    const OURS: u32 = 1000;

    fn asked<'a>() -> UpgradeAsked<'a> {
        let peer = SocketAddr::from(([127, 0, 0, 1], 4000));
        UpgradeAsked { path: "/", has_origin: false, authorization: None, is_websocket: true, peer, uid: Some(OURS) }
    }

    #[test]
    fn who_comes_in_and_what_the_others_are_told() {
        let token = BearerToken::of(b"0123456789abcdef");
        let (far, six) = (SocketAddr::from(([10, 0, 0, 1], 4000)), "[::ffff:127.0.0.1]:9".parse().expect("an address"));
        let right = Some(&b"Bearer 0123456789abcdef"[..]);
        let status = |asked: UpgradeAsked<'_>, token: Option<&BearerToken>| match judge(&asked, token, OURS) {
            Admission::In => 101,
            Admission::Answer(status, _) => status,
        };
        for (given, with_token, without) in [
            (asked(), 101, 101),
            (UpgradeAsked { peer: six, ..asked() }, 101, 101),
            (UpgradeAsked { uid: None, ..asked() }, 401, 401),
            (UpgradeAsked { uid: Some(1001), ..asked() }, 401, 401),
            (UpgradeAsked { uid: Some(0), ..asked() }, 401, 401),
            (UpgradeAsked { uid: Some(OVERFLOW_UID), ..asked() }, 401, 401),
            (UpgradeAsked { peer: far, ..asked() }, 401, 401),
            (UpgradeAsked { uid: None, authorization: right, ..asked() }, 101, 401),
            (UpgradeAsked { uid: Some(1001), authorization: right, ..asked() }, 101, 401),
            (UpgradeAsked { peer: far, authorization: right, ..asked() }, 101, 401),
            (UpgradeAsked { authorization: Some(b"bearer 0123456789abcdef "), ..asked() }, 101, 401),
            (UpgradeAsked { authorization: Some(b"Bearer 0123456789abcdeg"), ..asked() }, 401, 401),
            (UpgradeAsked { authorization: Some(b"Basic 0123456789abcdef"), ..asked() }, 401, 401),
            (UpgradeAsked { authorization: Some(b""), ..asked() }, 401, 401),
            (UpgradeAsked { has_origin: true, ..asked() }, 403, 403),
            (UpgradeAsked { has_origin: true, path: "/readyz", ..asked() }, 403, 403),
            (UpgradeAsked { path: "/readyz", uid: None, is_websocket: false, ..asked() }, 200, 200),
            (UpgradeAsked { path: "/other", ..asked() }, 404, 404),
            (UpgradeAsked { is_websocket: false, ..asked() }, 400, 400),
        ] {
            assert_eq!(status(given, Some(&token)), with_token, "{given:?}");
            assert_eq!(status(given, None), without, "{given:?}");
        }
        // A process whose own user has no number here knows nobody.
        let nobody = UpgradeAsked { uid: Some(OVERFLOW_UID), ..asked() };
        assert_eq!(judge(&nobody, None, OVERFLOW_UID), Admission::Answer(401, "a token is needed"));
    }

    #[test]
    fn the_kernels_table_is_read_and_only_an_owned_established_socket_counts() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
             0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 11 1\n\
             1: 0100007F:A000 0100007F:1F90 01 00000000:00000000 00:00000000 00000000  1001        0 12 1\n\
             2: 0100007F:A001 0100007F:1F90 01 00000000:00000000 00:00000000 00000000     0        0 0 1\n\
             3: 0100007F:A002 0100007F:1F90 04 00000000:00000000 00:00000000 00000000     0        0 13 1\n\
             4: 0000000000000000FFFF00000100007F:A003 0000000000000000FFFF00000100007F:1F90 01 0:0 0:0 0  7 0 14 1\n\
             5: 00000000000000000000000001000000:A004 00000000000000000000000001000000:1F90 01 0:0 0:0 0  8 0 15 1\n\
             broken\n";
        let at = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
        let six = |port: u16| SocketAddr::from((Ipv6Addr::LOCALHOST, port));
        if cfg!(target_endian = "little") {
            assert_eq!(uid_in(table, at(0xA000), at(0x1F90)), Some(1001));
            assert_eq!(uid_in(table, at(0xA001), at(0x1F90)), None, "a socket nobody has any more");
            assert_eq!(uid_in(table, at(0xA002), at(0x1F90)), None, "a socket that is closing");
            assert_eq!(
                uid_in(table, at(0xA003), at(0x1F90)),
                Some(7),
                "an address of the older kind, in the newer's table"
            );
            assert_eq!(uid_in(table, six(0xA004), six(0x1F90)), Some(8));
        }
        assert_eq!(uid_in(table, at(0xA000), at(0x1F91)), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_other_end_of_a_connection_of_ours_is_ours() {
        let ours = rustix::process::geteuid().as_raw();
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = std::net::TcpListener::bind(address) else { continue };
            let here = listener.local_addr().expect("an address");
            let client = std::net::TcpStream::connect(here).expect("a client");
            // Kept: a connection whose one end is closed is a closing one.
            let (_server, peer) = listener.accept().expect("it is there");
            assert_eq!(peer_uid(peer, here), Some(ours), "{address}");
            drop(client);
            assert_eq!(peer_uid(peer, here), None, "it has gone");
        }
    }

    #[test]
    fn a_token_is_read_from_a_file_that_is_ours_alone() {
        let scratch = tempfile::tempdir().expect("a directory");
        let path = scratch.path().join("token");
        let write = |text: &str, mode: u32| {
            std::fs::write(&path, text).expect("a file");
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("a mode");
            BearerToken::read(&path)
        };
        assert!(write("0123456789abcdef\n", 0o600).expect("a token").is(b"0123456789abcdef"));
        assert!(write("0123456789abcdef", 0o400).is_ok());
        for mode in [0o640, 0o604, 0o660, 0o777] {
            let said = write("0123456789abcdef", mode).expect_err("others can read it").to_string();
            assert!(said.contains("0600") && !said.contains("0123456789"), "{said}");
        }
        for text in ["", "short", "two words of a token", &"x".repeat(TOKEN_MOST + 1)] {
            assert!(write(text, 0o600).expect_err("no token").to_string().contains("one word"), "{text}");
        }
        assert!(BearerToken::read(scratch.path()).expect_err("a directory").to_string().contains("no file"));
        let pipe = scratch.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
        assert!(BearerToken::read(&pipe).expect_err("a pipe").to_string().contains("no file"));
        assert!(BearerToken::read(&scratch.path().join("none")).is_err());
        assert_eq!(format!("{:?}", BearerToken::of(b"0123456789abcdef")), "BearerToken");
    }
}
