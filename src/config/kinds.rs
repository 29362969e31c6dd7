//! The kinds of configuration values: how each is written in a source, and what becomes of it in the configuration.
//!
//! Owns: reading a value of a kind and refusing one. May not know: which keys there are.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::marker::PhantomData;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use serde::de::DeserializeOwned;

use super::clients::ClientSettings;
use super::keys::Key;
use super::otlp::{self, OtlpTarget};
use super::{AGENT_ENV_MOST, RolloutMode, WorkerIsolation};
use crate::agents::ExtraUsage;
use crate::base::nearest::nearest;
use crate::fleet::remote::RemotePattern;
use crate::fleet::rows::{BadRow, NAME_BYTES, text as text_row, word as word_row};
use crate::fleet::{FleetAddress, Placement, address, labels};
use crate::jobs::Billing;

/// How a value is written in a source.
pub(super) trait Kind {
    /// What a source holds before it is checked.
    type Raw: Clone + PartialEq + std::fmt::Debug + DeserializeOwned;

    /// Whether the environment can hold it.
    const VARIABLE: bool = true;

    /// Reads the value of a variable, which is not empty; or says what is wrong with it.
    fn from_variable(value: OsString) -> Result<Self::Raw, String>;

    /// What is accepted, for the page of keys.
    fn accepted(bounds: Option<&RangeInclusive<u64>>) -> String;
}

/// How a value becomes a field of this type.
pub(super) trait Lay<Field>: Kind {
    /// Lays the value over what is there, or says what is wrong with it.
    fn lay(key: &Key, raw: &Self::Raw, field: &mut Field) -> Result<(), String>;

    /// The field, for the page of keys.
    fn shown(field: &Field) -> String;
}

/// A number that a field can be made of.
pub(super) trait Fill {
    /// What the number means.
    type Value;

    /// The value of this number.
    fn fill(number: u64) -> Self::Value;

    /// The number of this value.
    fn number(value: &Self::Value) -> u64;
}

/// A limit that can be lowered.
pub(super) trait Lower<Value> {
    /// Makes it no more than this.
    fn lower(&mut self, most: Value);
}

impl<Value: Ord + Copy> Lower<Value> for Value {
    fn lower(&mut self, most: Value) {
        *self = (*self).min(most);
    }
}

impl<Value: Ord + Copy> Lower<Value> for Option<Value> {
    fn lower(&mut self, most: Value) {
        *self = Some(self.map_or(most, |value| value.min(most)));
    }
}

/// A choice that is written as one of a few words.
pub trait Words: Copy + PartialEq + 'static {
    /// The words in the order they are told, with what each means.
    const WORDS: &'static [(&'static str, Self, &'static str)];

    /// The choice of this word.
    ///
    /// # Errors
    ///
    /// What is accepted, with the nearest word.
    fn of_word(text: &str) -> Result<Self, String> {
        if let Some((_, choice, _)) = Self::WORDS.iter().find(|(word, ..)| *word == text) {
            return Ok(*choice);
        }
        let known: Vec<&str> = Self::WORDS.iter().map(|(word, ..)| *word).collect();
        let meant = nearest(text, &known).map_or_else(String::new, |near| format!(" (did you mean {near}?)"));
        Err(format!("{text:?}{meant}; accepted: {}", known.join(", ")))
    }
}

impl Words for Billing {
    const WORDS: &'static [(&'static str, Self, &'static str)] = &[
        (Self::Subscription.as_str(), Self::Subscription, "the user's login; API keys are withheld"),
        (Self::ApiKey.as_str(), Self::ApiKey, "the API key of the environment"),
    ];
}

impl Words for ExtraUsage {
    const WORDS: &'static [(&'static str, Self, &'static str)] = &[
        (Self::Allow.as_str(), Self::Allow, "the run goes on, and its reply says so"),
        (Self::Stop.as_str(), Self::Stop, "the run is ended"),
    ];
}

impl Words for WorkerIsolation {
    const WORDS: &'static [(&'static str, Self, &'static str)] = &[
        (Self::InProcess.as_str(), Self::InProcess, "in the server's own process"),
        (Self::Process.as_str(), Self::Process, "in a process of its own"),
    ];
}

impl Words for Placement {
    const WORDS: &'static [(&'static str, Self, &'static str)] = &[
        ("local", Self::Local, "on this machine"),
        ("fleet", Self::Fleet, "on whichever machine of the fleet has the workspace"),
        ("clone", Self::Clone, "on another machine as well, with a clone of the exact commit"),
    ];
}

impl Words for RolloutMode {
    const WORDS: &'static [(&'static str, Self, &'static str)] = &[
        ("auto", Self::Auto, "when it is there and passes the check, and when somebody asks"),
        ("on_request", Self::OnRequest, "only when somebody asks"),
        ("off", Self::Off, "never"),
    ];
}

fn text(value: OsString) -> Result<String, String> {
    value.into_string().map_err(|_| "is not UTF-8".to_owned())
}

/// A program's file.
#[derive(Debug)]
pub(super) struct Program;

impl Kind for Program {
    type Raw = PathBuf;

    fn from_variable(value: OsString) -> Result<PathBuf, String> {
        Ok(PathBuf::from(value))
    }

    fn accepted(_: Option<&RangeInclusive<u64>>) -> String {
        "a path".to_owned()
    }
}

impl Lay<Option<PathBuf>> for Program {
    fn lay(_: &Key, raw: &PathBuf, field: &mut Option<PathBuf>) -> Result<(), String> {
        *field = Some(raw.clone());
        Ok(())
    }

    fn shown(field: &Option<PathBuf>) -> String {
        field.as_ref().map_or_else(|| "none".to_owned(), |path| format!("`{}`", path.display()))
    }
}

/// A name.
#[derive(Debug)]
pub(super) struct Text;

impl Kind for Text {
    type Raw = String;

    fn from_variable(value: OsString) -> Result<String, String> {
        text(value)
    }

    fn accepted(_: Option<&RangeInclusive<u64>>) -> String {
        "a text".to_owned()
    }
}

impl Lay<String> for Text {
    fn lay(_: &Key, raw: &String, field: &mut String) -> Result<(), String> {
        field.clone_from(raw);
        Ok(())
    }

    fn shown(field: &String) -> String {
        format!("`{field}`")
    }
}

/// One of a few words.
#[derive(Debug)]
pub(super) struct Word<Choice>(PhantomData<Choice>);

impl<Choice: Words + std::fmt::Debug + DeserializeOwned> Kind for Word<Choice> {
    type Raw = Choice;

    fn from_variable(value: OsString) -> Result<Choice, String> {
        Choice::of_word(&text(value)?)
    }

    fn accepted(_: Option<&RangeInclusive<u64>>) -> String {
        Choice::WORDS.iter().map(|(word, ..)| format!("`{word}`")).collect::<Vec<_>>().join(", ")
    }
}

impl<Choice: Words + std::fmt::Debug + DeserializeOwned> Lay<Choice> for Word<Choice> {
    fn lay(_: &Key, raw: &Choice, field: &mut Choice) -> Result<(), String> {
        *field = *raw;
        Ok(())
    }

    fn shown(field: &Choice) -> String {
        let found = Choice::WORDS.iter().find(|(_, choice, _)| choice == field);
        found.map_or_else(String::new, |(word, ..)| format!("`{word}`"))
    }
}

macro_rules! numbers {
    ($($(#[$doc:meta])* $kind:ident: $value:ty, |$number:ident| $fill:expr, |$held:ident| $back:expr;)*) => {$(
        $(#[$doc])*
        #[derive(Debug)]
        pub(super) struct $kind;

        impl Fill for $kind {
            type Value = $value;

            fn fill($number: u64) -> $value {
                $fill
            }

            fn number($held: &$value) -> u64 {
                $back
            }
        }

        impl Kind for $kind {
            type Raw = u64;

            fn from_variable(value: OsString) -> Result<u64, String> {
                let text = text(value)?;
                text.trim().parse().map_err(|_| format!("{text:?} is not a whole number"))
            }

            fn accepted(bounds: Option<&RangeInclusive<u64>>) -> String {
                let bounds = bounds.map(|bounds| format!("{} to {}", grouped(*bounds.start()), grouped(*bounds.end())));
                bounds.unwrap_or_else(|| "a whole number".to_owned())
            }
        }

        impl Lay<$value> for $kind {
            fn lay(key: &Key, raw: &u64, field: &mut $value) -> Result<(), String> {
                *field = Self::fill(key.check(key.name, *raw)?);
                Ok(())
            }

            fn shown(field: &$value) -> String {
                Self::number(field).to_string()
            }
        }

        impl Lay<Option<$value>> for $kind {
            fn lay(key: &Key, raw: &u64, field: &mut Option<$value>) -> Result<(), String> {
                *field = Some(Self::fill(key.check(key.name, *raw)?));
                Ok(())
            }

            fn shown(field: &Option<$value>) -> String {
                field.as_ref().map_or_else(|| "none".to_owned(), |value| Self::number(value).to_string())
            }
        }
    )*};
}

numbers! {
    /// How many.
    Count: usize, |number| usize::try_from(number).unwrap_or(usize::MAX), |count| u64::try_from(*count).unwrap_or(u64::MAX);
    /// A time in seconds.
    Seconds: Duration, |number| Duration::from_secs(number), |time| time.as_secs();
    /// A time in milliseconds.
    Millis: Duration, |number| Duration::from_millis(number), |time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
}

/// A number as a page writes it: with a comma before each group of three digits.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// Names of variables.
#[derive(Debug)]
pub(super) struct Names;

impl Kind for Names {
    type Raw = Vec<String>;

    fn from_variable(value: OsString) -> Result<Vec<String>, String> {
        let text = text(value)?;
        Ok(text.split([',', ' ']).filter(|name| !name.is_empty()).map(str::to_owned).collect())
    }

    fn accepted(_: Option<&RangeInclusive<u64>>) -> String {
        "names of variables".to_owned()
    }
}

impl Lay<Vec<String>> for Names {
    fn lay(key: &Key, names: &Vec<String>, field: &mut Vec<String>) -> Result<(), String> {
        let key = key.name;
        if names.len() > AGENT_ENV_MOST {
            return Err(format!("{key} has {} names; accepted: up to {AGENT_ENV_MOST}", names.len()));
        }
        for name in names {
            if let Some(why) = crate::agents::variable_refused(name) {
                let shown: String = name.chars().filter(|c| !c.is_control()).take(60).collect();
                return Err(format!("{key}: {shown} {why}"));
            }
        }
        field.clone_from(names);
        Ok(())
    }

    fn shown(field: &Vec<String>) -> String {
        listed(field.iter().map(String::clone))
    }
}

/// The address of a database. What is wrong with one is told without its text.
#[derive(Debug)]
pub(super) struct Address;

impl Kind for Address {
    type Raw = FleetAddress;

    fn from_variable(value: OsString) -> Result<FleetAddress, String> {
        text(value).map(FleetAddress::new)
    }

    fn accepted(_: Option<&RangeInclusive<u64>>) -> String {
        address::FORM.to_owned()
    }
}

impl Lay<Option<FleetAddress>> for Address {
    fn lay(key: &Key, raw: &FleetAddress, field: &mut Option<FleetAddress>) -> Result<(), String> {
        raw.check().map_err(|wrong| format!("{} {wrong}", key.name))?;
        *field = Some(raw.clone());
        Ok(())
    }

    fn shown(field: &Option<FleetAddress>) -> String {
        field.as_ref().map_or_else(|| "none".to_owned(), |address| format!("`{}`", address.shown()))
    }
}

/// Where a collector is.
#[derive(Debug)]
pub(super) struct Collector;

impl Kind for Collector {
    type Raw = OtlpTarget;

    fn from_variable(value: OsString) -> Result<OtlpTarget, String> {
        text(value).map(OtlpTarget::new)
    }

    fn accepted(_: Option<&RangeInclusive<u64>>) -> String {
        otlp::FORM.to_owned()
    }
}

impl Lay<Option<OtlpTarget>> for Collector {
    fn lay(key: &Key, raw: &OtlpTarget, field: &mut Option<OtlpTarget>) -> Result<(), String> {
        raw.check().map_err(|wrong| format!("{} {wrong}", key.name))?;
        *field = Some(raw.clone());
        Ok(())
    }

    fn shown(field: &Option<OtlpTarget>) -> String {
        field.as_ref().map_or_else(|| "none".to_owned(), |target| format!("`{}`", target.as_str()))
    }
}

/// Names of the database's users, without control characters.
#[derive(Debug)]
pub(super) struct Users;

/// Words, as a fleet's labels are.
#[derive(Debug)]
pub(super) struct Tags;

/// Addresses of repositories, and patterns of them.
#[derive(Debug)]
pub(super) struct Remotes;

/// Names of git's credential helpers.
#[derive(Debug)]
pub(super) struct Helpers;

/// Helpers git asks one after the other; people have one or two.
const HELPERS_MOST: usize = 4;

/// Users a host takes jobs of; a team.
const USERS_MOST: usize = 64;

macro_rules! lists {
    ($($kind:ident: $most:expr, $accepted:literal, $separators:expr, $check:expr;)*) => {$(
        impl Kind for $kind {
            type Raw = Vec<String>;

            fn from_variable(value: OsString) -> Result<Vec<String>, String> {
                let text = text(value)?;
                Ok(text.split($separators).map(str::trim).filter(|one| !one.is_empty()).map(str::to_owned).collect())
            }

            fn accepted(_: Option<&RangeInclusive<u64>>) -> String {
                $accepted.to_owned()
            }
        }

        impl Lay<Vec<String>> for $kind {
            fn lay(key: &Key, raw: &Vec<String>, field: &mut Vec<String>) -> Result<(), String> {
                let accepted = $accepted.replace('`', "");
                if raw.len() > $most {
                    return Err(format!("{} lists {}; accepted: {accepted}", key.name, raw.len()));
                }
                for one in raw {
                    if let Err(bad) = $check(one) {
                        let shown: String = one.chars().filter(|c| !c.is_control()).take(60).collect();
                        return Err(format!("{} holds {shown:?}, which {}; accepted: {accepted}", key.name, bad.problem));
                    }
                }
                field.clone_from(raw);
                Ok(())
            }

            fn shown(field: &Vec<String>) -> String {
                listed(field.iter().map(String::clone))
            }
        }
    )*};
}

lists! {
    Users: USERS_MOST, "up to 64 users of the database, as `[\"ada\", \"grace\"]`; in the environment with commas between",
        [','], |one: &str| text_row("it", one, NAME_BYTES).map(drop);
    Tags: labels::LIST, "up to 512 words without spaces, as `[\"gpu\", \"big\"]`; in the environment with commas or spaces between",
        [',', ' '], |one: &str| word_row("it", one).map(drop);
    Remotes: labels::LIST, "up to 512 addresses by https or ssh, as `[\"https://git.example/team/*\", \"ssh://git@git.example/*\"]`; in the environment with commas or spaces between",
        [',', ' '], |one: &str| RemotePattern::read(one).map(drop).map_err(|problem| BadRow::new("it", problem));
    Helpers: HELPERS_MOST, "up to 4 names of helpers, as `[\"store\"]`; in the environment with commas or spaces between",
        [',', ' '], |one: &str| helper(one);
}

/// git runs what is no plain name by a shell.
fn helper(name: &str) -> Result<(), BadRow> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    match !name.is_empty() && name.len() <= 40 && !name.starts_with('-') && name.bytes().all(plain) {
        true => Ok(()),
        false => Err(BadRow::new("it", "is no name of a helper")),
    }
}

/// Absolute directories.
#[derive(Debug)]
pub(super) struct Directories;

impl Kind for Directories {
    type Raw = Vec<PathBuf>;

    fn from_variable(value: OsString) -> Result<Vec<PathBuf>, String> {
        Ok(std::env::split_paths(&value).filter(|dir| !dir.as_os_str().is_empty()).collect())
    }

    fn accepted(_: Option<&RangeInclusive<u64>>) -> String {
        "absolute directories; in the environment with colons between".to_owned()
    }
}

impl Lay<Vec<PathBuf>> for Directories {
    fn lay(key: &Key, listed: &Vec<PathBuf>, field: &mut Vec<PathBuf>) -> Result<(), String> {
        if let Some(wrong) = listed.iter().find(|dir| !dir.is_absolute()) {
            return Err(format!("{} holds {}; accepted: absolute directories", key.name, wrong.display()));
        }
        field.clone_from(listed);
        Ok(())
    }

    fn shown(field: &Vec<PathBuf>) -> String {
        listed(field.iter().map(|dir| dir.display().to_string()))
    }
}

pub(super) fn listed(items: impl Iterator<Item = String>) -> String {
    let items: Vec<String> = items.map(|item| format!("`{item}`")).collect();
    if items.is_empty() { "none".to_owned() } else { items.join(", ") }
}

/// A table for each client, laid key by key. In files only: a table is no variable.
#[derive(Debug)]
pub(super) struct PerClient;

impl Kind for PerClient {
    type Raw = BTreeMap<String, ClientSettings>;

    const VARIABLE: bool = false;

    fn from_variable(_: OsString) -> Result<Self::Raw, String> {
        Err("is a table, which no variable holds".to_owned())
    }

    fn accepted(_: Option<&RangeInclusive<u64>>) -> String {
        "a table; in files only".to_owned()
    }
}

impl Lay<BTreeMap<String, ClientSettings>> for PerClient {
    fn lay(key: &Key, raw: &Self::Raw, field: &mut BTreeMap<String, ClientSettings>) -> Result<(), String> {
        for (client, own) in raw {
            let check = |of: &Key, number: u64| of.check(&format!("{}.{client}.{}", key.name, of.name), number);
            let known = field.entry(client.clone()).or_default();
            if let Some(seconds) = own.wait_s {
                known.wait_s = Some(check(&Key::wait_s, seconds)?);
            }
            if let Some(seconds) = own.progress_s {
                known.progress_s = Some(check(&Key::progress_s, seconds)?);
            }
            if let Some(chars) = own.response_chars {
                known.response_chars = Some(Count::fill(check(&Key::response_chars, Count::number(&chars))?));
            }
        }
        Ok(())
    }

    fn shown(field: &BTreeMap<String, ClientSettings>) -> String {
        listed(field.keys().map(String::clone))
    }
}
