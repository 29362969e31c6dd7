//! Where a fleet's database is, as the user's configuration says it.
//!
//! Owns: what is accepted, and what is shown of it. May not know: how a database is spoken to.
//!
//! Invariant: the password stands in [`FleetAddress::as_str`] alone; what is shown, logged or refused repeats none of it (L13).

use std::fmt;

use serde::{Deserialize, Serialize};

/// Bytes of an address; real ones have about a hundred.
const MOST: usize = 2_048;

/// What an address looks like, for whoever wrote another one.
pub const FORM: &str =
    "`postgres://USER@HOST/DATABASE`; a Unix socket's directory stands for HOST with each / written %2F";

/// The schemes that mean PostgreSQL.
const SCHEMES: [&str; 2] = ["postgres://", "postgresql://"];

/// The URL of a fleet's database.
///
/// ```
/// use phone_opus::FleetAddress;
///
/// let address = FleetAddress::new("postgres://ada:secret@db.example/fleet");
/// assert_eq!(address.shown(), "postgres://ada@db.example/fleet");
/// assert!(address.as_str().contains("secret"));
/// ```
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct FleetAddress(String);

impl fmt::Debug for FleetAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown())
    }
}

impl FleetAddress {
    /// An address that was not looked at yet.
    #[must_use]
    pub fn new(url: impl Into<String>) -> Self {
        Self(url.into())
    }

    /// The URL, its password included.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The URL without a password and without parameters, but for the place of a socket.
    #[must_use]
    pub fn shown(&self) -> String {
        let Some(parts) = Parts::of(&self.0) else { return "an address that is not understood".to_owned() };
        let user = parts.user.map(|user| format!("{user}@")).unwrap_or_default();
        let hosts: Vec<&str> = parts.query.split('&').filter(|one| one.starts_with("host=")).collect();
        let query = if hosts.is_empty() { String::new() } else { format!("?{}", hosts.join("&")) };
        format!("{}{user}{}{query}", parts.scheme, parts.place)
    }

    /// Whether it can be used by this program.
    ///
    /// # Errors
    ///
    /// What is wrong with it, without its text, and what is accepted.
    pub(crate) fn check(&self) -> Result<(), String> {
        let accepted = format!("accepted: {FORM}").replace('`', "");
        if self.0.len() > MOST || self.0.chars().any(char::is_control) {
            return Err(format!("is longer than {MOST} bytes or has control characters; {accepted}"));
        }
        let Some(parts) = Parts::of(&self.0) else {
            return Err(match self.0.split_once(':') {
                Some((scheme, _)) if scheme.len() < 16 && scheme.bytes().all(|byte| byte.is_ascii_lowercase()) => {
                    format!(
                        "begins with {scheme}:, which is no database of a fleet (did you mean postgres://?); {accepted}"
                    )
                }
                _ => format!("is no URL of a PostgreSQL database; {accepted}"),
            });
        };
        if parts.place.contains('@') || parts.user.is_some_and(|user| user.contains(['/', '?'])) {
            return Err(format!("has a character of its password as it is (an @ is written %40, a / %2F); {accepted}"));
        }
        if !cfg!(any(test, feature = "fleet")) {
            let lacks = "needs a program that was built with the feature `fleet`, and this one was built without it";
            let helps = "take a released program, or build with `cargo install phone-opus --features fleet`";
            return Err(format!("{lacks}; {helps}").replace('`', ""));
        }
        #[cfg(any(test, feature = "fleet"))]
        if let Err(wrong) = super::postgres::understood(&self.0) {
            return Err(format!("cannot be used: {wrong}; {accepted}"));
        }
        Ok(())
    }
}

/// A URL in its parts.
struct Parts<'a> {
    scheme: &'a str,
    user: Option<&'a str>,
    /// Host, port and database.
    place: &'a str,
    query: &'a str,
}

impl<'a> Parts<'a> {
    fn of(url: &'a str) -> Option<Self> {
        let scheme = SCHEMES.into_iter().find(|scheme| url.starts_with(scheme))?;
        let rest = url.get(scheme.len()..)?;
        // As `tokio-postgres` reads it: who logs in ends at the first @.
        let (user, rest) = match rest.split_once('@') {
            Some((who, rest)) => (Some(who.split_once(':').map_or(who, |(user, _)| user)), rest),
            None => (None, rest),
        };
        let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
        Some(Self { scheme, user, place, query })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_shown_without_its_password_wherever_that_stands() {
        for (url, shown) in [
            ("postgres://ada:SECRET@db.example:5433/fleet", "postgres://ada@db.example:5433/fleet"),
            ("postgres://ada@db.example/fleet?password=SECRET", "postgres://ada@db.example/fleet"),
            ("postgres:///fleet?host=/run/pg&password=SECRET", "postgres:///fleet?host=/run/pg"),
            ("postgresql://:SECRET@%2Frun%2Fpg/fleet", "postgresql://@%2Frun%2Fpg/fleet"),
            ("host=db password=SECRET", "an address that is not understood"),
        ] {
            let address = FleetAddress::new(url);
            assert_eq!(address.shown(), shown);
            assert_eq!(format!("{address:?}"), shown);
        }
    }

    #[test]
    fn an_address_that_cannot_be_used_is_refused_without_its_text() {
        for good in ["postgres://ada:x@db.example/fleet", "postgres://ada@%2Frun%2Fpg/fleet", "postgresql://db/fleet"] {
            assert_eq!(FleetAddress::new(good).check(), Ok(()), "{good}");
        }
        for (url, why) in [
            (
                "mysql://ada:SECRET@db/fleet",
                "begins with mysql:, which is no database of a fleet (did you mean postgres://?)",
            ),
            ("host=db password=SECRET", "is no URL of a PostgreSQL database; accepted: postgres://USER@HOST/DATABASE"),
            ("postgres://ada:SEC@RET@db/fleet", "an @ is written %40"),
            ("postgres://ada@db:SECRET/fleet", "cannot be used: "),
            ("postgres://ada@db/fleet?sslmode=SECRET", "cannot be used: "),
            ("postgres://ada@db/fleet?hostaddr=1.2.3.4\n", "control characters"),
        ] {
            let wrong = FleetAddress::new(url).check().expect_err(url);
            assert!(wrong.contains(why) && !wrong.contains("SECRET"), "{url}: {wrong}");
        }
    }
}
