//! Where a repository is fetched from, as hosts of a fleet name it to each other.
//!
//! Owns: which addresses there are, their one spelling, and whether a pattern of a host's own list covers one. May not know: git,
//! which host has which list.
//!
//! An address comes from a checkout's configuration, goes through the database, and ends as an argument of git's. What git makes of
//! one is more than a place: a program to run (`ext::`), an option (a `-` in front), a file of the machine that fetches, a login. So
//! an address is two schemes, a name, a port and a path of plain characters, or it is refused; nothing of it is unescaped.
//!
//! Invariants: (1) what [`Remote::read`] gives is spelled in one way, and reading it again gives it again; (2) it begins with
//! `https://` or `ssh://`, holds no login beyond the user of ssh, no `..`, no `-` at the beginning of a part, no control
//! characters and no spaces; (3) a pattern covers addresses of its own scheme, user, host and port only.

use std::fmt;

use super::rows::BadRow;

/// Bytes of an address; those of real repositories have less than a hundred.
pub const REMOTE_BYTES: usize = 1_024;

/// What git knows as the beginning of an address, and what others do.
const SCHEMES: [&str; 9] = ["file", "http", "https", "ssh", "git", "ftp", "ftps", "ext", "fd"];

/// What ends a pattern that covers everything below it.
const BELOW: &str = "/*";

/// The address of a repository, in its one spelling.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Remote(String);

impl Remote {
    /// Reads an address as git takes it: `https://…`, `ssh://…`, or `user@host:path`, which is ssh.
    ///
    /// ```
    /// use phone_opus::internals::fleet::remote::Remote;
    ///
    /// assert_eq!(Remote::read("git@Git.Example:team/tool.git")?.as_str(), "ssh://git@git.example/team/tool.git");
    /// assert!(Remote::read("ext::sh -c true").is_err());
    /// # Ok::<(), &'static str>(())
    /// ```
    ///
    /// # Errors
    ///
    /// What is wrong with it, without its text: it may hold a login.
    pub fn read(address: &str) -> Result<Self, &'static str> {
        let (scheme, rest) = parted(address)?;
        let (authority, path) = rest.split_once('/').ok_or("names no repository")?;
        let place = place(scheme, authority)?;
        let path = path.trim_end_matches('/');
        if path.is_empty() {
            return Err("names no repository");
        }
        path.split('/').try_for_each(part)?;
        Ok(Self(format!("{scheme}://{place}/{path}")))
    }

    /// As a host tells it to another one.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Addresses a host fetches from: one, or all below a place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemotePattern {
    /// What an address has to be, or to begin with.
    text: String,
    below: bool,
}

impl RemotePattern {
    /// Reads one: an address, or one whose last part is `*`, as `https://git.example/team/*` or `ssh://git@git.example/*`.
    ///
    /// # Errors
    ///
    /// What is wrong with it.
    pub fn read(pattern: &str) -> Result<Self, &'static str> {
        let Some(above) = pattern.strip_suffix(BELOW) else {
            let text = Remote::read(pattern)?.0;
            return Ok(Self { text: bare(&text).to_owned(), below: false });
        };
        let (scheme, rest) = parted(&format!("{above}/"))?;
        let (authority, path) = rest.split_once('/').ok_or("names no host")?;
        let place = place(scheme, authority)?;
        let path = path.trim_end_matches('/');
        if !path.is_empty() {
            path.split('/').try_for_each(part)?;
        }
        let slash = if path.is_empty() { "" } else { "/" };
        Ok(Self { text: format!("{scheme}://{place}/{path}{slash}"), below: true })
    }

    /// Whether it covers an address. A `.git` at the end is the same repository as none.
    #[must_use]
    pub fn covers(&self, remote: &Remote) -> bool {
        if self.below { remote.0.starts_with(&self.text) } else { bare(&remote.0) == self.text }
    }
}

impl fmt::Display for RemotePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.text, if self.below { "*" } else { "" })
    }
}

/// Whether one of these patterns covers an address. What is no pattern, or no address, covers nothing and is covered by nothing.
#[must_use]
pub fn covered(patterns: &[String], remote: &str) -> bool {
    let Ok(remote) = Remote::read(remote) else { return false };
    patterns.iter().filter_map(|pattern| RemotePattern::read(pattern).ok()).any(|pattern| pattern.covers(&remote))
}

/// Whether this is an address in its one spelling.
pub(super) fn spelled(field: &'static str, value: &str) -> Result<(), BadRow> {
    match Remote::read(value) {
        Ok(remote) if remote.as_str() == value => Ok(()),
        _ => Err(BadRow::new(field, "is no address of a repository")),
    }
}

/// The scheme of an address, and what follows it. What is written as `user@host:path` is written out.
fn parted(address: &str) -> Result<(&'static str, String), &'static str> {
    if address.len() > REMOTE_BYTES {
        return Err("is too long");
    }
    if !address.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err("has spaces, control characters or letters beyond ASCII");
    }
    if address.starts_with('-') {
        return Err("begins with `-`");
    }
    if address.contains("::") {
        return Err("names a program of git's (`::`)");
    }
    match address.split_once("://") {
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("https") => Ok(("https", rest.to_owned())),
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("ssh") => Ok(("ssh", rest.to_owned())),
        Some(_) => Err("is neither https nor ssh"),
        None => match address.split_once(':') {
            // What is written like a scheme would be a host to git.
            Some((host, _)) if SCHEMES.iter().any(|scheme| host.eq_ignore_ascii_case(scheme)) => {
                Err("is neither https nor ssh")
            }
            // A directory of this machine may have a colon behind its first slash.
            Some((host, path)) if !host.contains('/') => {
                Ok(("ssh", format!("{host}/{}", path.strip_prefix('/').unwrap_or(path))))
            }
            _ => Err("is a directory, which no other machine has"),
        },
    }
}

/// User, host and port, in one spelling.
fn place(scheme: &str, authority: &str) -> Result<String, &'static str> {
    let (user, host) = match authority.rsplit_once('@') {
        Some((user, host)) => (Some(user), host),
        None => (None, authority),
    };
    let user = match (scheme, user) {
        ("ssh", Some(user)) if user.contains(':') => return Err("holds a password"),
        ("ssh", Some(user)) if is_user(user) => format!("{user}@"),
        ("ssh", Some(_)) => return Err("names a user that is none"),
        (_, Some(_)) => return Err("holds a login"),
        (_, None) => String::new(),
    };
    let (host, port) = match host.split_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (host, None),
    };
    if !is_host(host) {
        return Err("names a host that is none");
    }
    let usual = if scheme == "https" { 443 } else { 22 };
    let port = match port {
        None => String::new(),
        Some(port) => {
            let digits = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
            match port.parse::<u16>() {
                Ok(number) if digits && number != 0 => {
                    if number == usual {
                        String::new()
                    } else {
                        format!(":{number}")
                    }
                }
                _ => return Err("names a port that is none"),
            }
        }
    };
    Ok(format!("{user}{}{port}", host.to_ascii_lowercase()))
}

fn is_user(user: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    !user.is_empty() && !user.starts_with(['-', '.']) && user.bytes().all(plain)
}

fn is_host(host: &str) -> bool {
    let label = |label: &str| {
        let plain = label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
        !label.is_empty() && plain && !label.starts_with('-')
    };
    host.len() <= 253 && host.split('.').all(label)
}

/// Whether this can be one part of a path.
fn part(part: &str) -> Result<(), &'static str> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-' | b'~' | b'+' | b'@');
    match part {
        "" => Err("has an empty part in its path"),
        "." | ".." => Err("has a part in its path that leads elsewhere"),
        dashed if dashed.starts_with('-') => Err("has a part that begins with `-`"),
        odd if !odd.bytes().all(plain) => Err("has characters in its path that addresses here do not have"),
        _ => Ok(()),
    }
}

fn bare(address: &str) -> &str {
    address.strip_suffix(".git").unwrap_or(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_one_spelling_however_it_is_written() {
        for (written, once) in [
            ("https://git.example/team/tool", "https://git.example/team/tool"),
            ("HTTPS://Git.Example:443/team/tool.git/", "https://git.example/team/tool.git"),
            ("https://git.example:8443/a", "https://git.example:8443/a"),
            ("ssh://git@git.example:22/team/tool.git", "ssh://git@git.example/team/tool.git"),
            ("ssh://git.example:2222/srv/a.git", "ssh://git.example:2222/srv/a.git"),
            ("git@git.example:team/tool.git", "ssh://git@git.example/team/tool.git"),
            ("git@git.example:/srv/tool.git", "ssh://git@git.example/srv/tool.git"),
            ("box:tool", "ssh://box/tool"),
            ("ssh://git.example/~ada/tool", "ssh://git.example/~ada/tool"),
            ("https://git.example/a/b+c_d-e@f.g", "https://git.example/a/b+c_d-e@f.g"),
        ] {
            let read = Remote::read(written).unwrap_or_else(|wrong| panic!("{written} {wrong}"));
            assert_eq!(read.as_str(), once, "{written}");
            assert_eq!(Remote::read(once).as_ref(), Ok(&read), "{once}");
            assert!(spelled("x", once).is_ok(), "{once}");
        }
        assert!(spelled("x", "git@git.example:a").is_err(), "another spelling");
    }

    /// What a checkout, a database or another host may hold instead of an address.
    const HOSTILE: [&str; 52] = [
        "",
        "-",
        "--upload-pack=touch /tmp/x",
        "--upload-pack=x",
        "-oProxyCommand=x",
        "ext::sh -c touch% /tmp/x",
        "ext::sh",
        "fd::17",
        "https::https://git.example/a",
        "file:///etc/passwd",
        "file:/etc",
        "/srv/repo.git",
        "./repo",
        "../repo",
        "repo",
        "C:\\repo",
        "git://git.example/a",
        "http://git.example/a",
        "ftp://git.example/a",
        "ssh+git://git.example/a",
        "https://ada:secret@git.example/a",
        "https://token@git.example/a",
        "ssh://ada:secret@git.example/a",
        "ada:secret@git.example:a",
        "ssh://-oProxyCommand=x/a",
        "ssh://-host/a",
        "ssh://a@-host/a",
        "ssh://-user@host/a",
        "-user@host:a",
        "host:-path",
        "ssh://host/-path",
        "ssh://host/a/--b",
        "ssh://host:22;x/a",
        "ssh://host:0/a",
        "ssh://host:99999/a",
        "ssh://host:/a",
        "ssh://host:+22/a",
        "ssh:///a",
        "https:///a",
        "https://git.example",
        "https://git.example/",
        "https://git.example/a/../b",
        "https://git.example/./a",
        "https://git.example//a",
        "https://git.example/a%2e%2e/b",
        "https://git.example/a?b",
        "https://git.example/a#b",
        "https://git.example/a b",
        "https://git.example/a\nb",
        "https://git.example/a\u{1b}[2J",
        "https://git.example/$(x)",
        "https://git.ex\u{430}mple/a",
    ];

    #[test]
    fn what_is_no_plain_address_is_refused_and_never_repeated() {
        for hostile in HOSTILE {
            let wrong = Remote::read(hostile).expect_err(hostile);
            assert!(!wrong.contains("secret") && !wrong.contains("token"), "{wrong}");
            assert!(RemotePattern::read(hostile).is_err(), "{hostile}");
            assert!(!covered(&["https://git.example/*".to_owned(), "ssh://host/*".to_owned()], hostile), "{hostile}");
        }
        let long = format!("https://git.example/{}", "a".repeat(REMOTE_BYTES));
        assert_eq!(Remote::read(&long), Err("is too long"));
    }

    #[test]
    fn a_pattern_covers_its_own_scheme_user_host_and_port_and_what_lies_below_it() {
        for (pattern, address, covers) in [
            ("https://git.example/team/*", "https://git.example/team/a", true),
            ("https://git.example/team/*", "https://git.example/team/a/b.git", true),
            ("https://git.example/team/*", "https://git.example/team", false),
            ("https://git.example/team/*", "https://git.example/teams/a", false),
            ("https://git.example/team/*", "ssh://git.example/team/a", false),
            ("https://git.example/*", "https://git.example/any/a", true),
            ("https://git.example/*", "https://git.example.evil/a", false),
            ("https://git.example/*", "https://git.example:8443/a", false),
            ("https://git.example:443/*", "https://git.example/a", true),
            ("ssh://git@git.example/*", "git@git.example:team/a.git", true),
            ("ssh://git@git.example/*", "ssh://git.example/team/a.git", false),
            ("ssh://git@git.example/*", "ssh://ada@git.example/team/a.git", false),
            ("git@git.example:team/*", "ssh://git@git.example/team/a", true),
            ("https://git.example/a", "https://git.example/a.git", true),
            ("https://git.example/a.git", "https://git.example/a", true),
            ("https://git.example/a", "https://git.example/ab", false),
        ] {
            let (pattern, remote) =
                (RemotePattern::read(pattern).expect(pattern), Remote::read(address).expect(address));
            assert_eq!(pattern.covers(&remote), covers, "{pattern} and {address}");
        }
        for none in [
            "*",
            "https://*",
            "https://*/a",
            "https://*.example/*",
            "https://git.example/*/a",
            "https://git.example/a*",
        ] {
            assert!(RemotePattern::read(none).is_err(), "{none}");
        }
    }
}
