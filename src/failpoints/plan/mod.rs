//! Plans: which fault is to happen where and when.
//!
//! Owns: the grammar, its errors, the variables a plan is read from, the seeded draw. May not know: counts, what
//! carries an action out.
//!
//! ```text
//! plan   = [rule] {";" [rule]}
//! rule   = point ["@" operation] ["#" when] "=" action [":" argument]
//! when   = N (the N-th time, then never again; 1 when not given) | "*" (always) | "p" PROBABILITY (a draw each time)
//! ```
//!
//! Invariants: (1) every problem of a plan is told at once, each with its place and what is accepted; (2) what a plan
//! displays parses to the same rules; (3) a draw is decided by seed, rule and count alone.

use std::ffi::OsString;
use std::fmt;
use std::num::NonZeroU64;
use std::str::FromStr;
use std::time::Duration;

use super::point::{ActionKind, EXIT_CODE, FaultAction, FaultPoint, Operation, Tools};
use crate::base::nearest::nearest;

/// The plan.
pub const FAULTS: &str = "PHONE_OPUS_FAULTS";
/// The seed of its draws, a whole number; 0 when not set.
pub const FAULT_SEED: &str = "PHONE_OPUS_FAULT_SEED";
/// The same as the rule `worker.before_execute@OPERATION=panic`. Kept for compatibility.
pub const CRASH_ONCE_KEY: &str = "PHONE_OPUS_MCP_TEST_WORKER_CRASH_ONCE_KEY";
/// The operation at which an upgrade is forced. Kept for compatibility.
pub const FORCE_ROLLOUT_KEY: &str = "PHONE_OPUS_MCP_TEST_FORCE_ROLLOUT_KEY";

/// Rules of one plan: as many as a word has bits, so that those met at once are one word. A longer plan is refused.
pub const MAX_RULES: usize = 64;

/// Longest delay in milliseconds: ten minutes is more than any clock of the system but a job's own. Above it is refused.
const MAX_DELAY_MS: u64 = 600_000;

/// When a rule that is met is to fire.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum When {
    /// The n-th time, counted from 1; then it is spent.
    Nth(NonZeroU64),
    /// Each time.
    Always,
    /// Each time with this probability, above 0 and at most 1.
    Drawn(f64),
}

/// One rule of a plan.
#[derive(Debug, Clone, PartialEq)]
pub struct FaultRule {
    /// The point it strikes at.
    pub point: FaultPoint,
    /// In which operation; in any when not given.
    pub operation: Option<Box<str>>,
    /// At which time.
    pub when: When,
    /// What it does there.
    pub action: FaultAction,
}

impl FaultRule {
    /// Whether it is about this point and operation.
    #[must_use]
    pub fn is_met(&self, point: FaultPoint, operation: Operation<'_>) -> bool {
        self.point == point && self.operation.as_deref().is_none_or(|text| operation.is(text))
    }
}

/// As it is written in a plan.
impl fmt::Display for FaultRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.point.fmt(f)?;
        if let Some(operation) = &self.operation {
            write!(f, "@{operation}")?;
        }
        match self.when {
            When::Nth(NonZeroU64::MIN) => {}
            When::Nth(n) => write!(f, "#{n}")?,
            When::Always => f.write_str("#*")?,
            When::Drawn(probability) => write!(f, "#p{probability}")?,
        }
        write!(f, "={}", self.action)
    }
}

/// What is to be broken.
///
/// ```
/// use phone_opus::FaultPlan;
///
/// let plan = FaultPlan::parse("store.commit@accept#p0.1=error; stdio.read#3=panic", 7)?;
/// assert!(plan.seed() == 7 && !plan.is_empty());
/// assert!(FaultPlan::parse("store.comit=error", 7).is_err());            // it says what would be accepted
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq)]
pub struct FaultPlan {
    seed: u64,
    rules: Vec<FaultRule>,
    force_rollout: Option<String>,
}

/// Where in a plan something is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct PlanPlace {
    /// The variable, if the plan came from one.
    pub variable: Option<&'static str>,
    /// The rule, counted from 1, and the column in the whole text, in bytes from 1.
    pub rule: Option<(usize, usize)>,
}

impl fmt::Display for PlanPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.variable, self.rule) {
            (Some(variable), None) => f.write_str(variable),
            (Some(variable), Some((rule, column))) => write!(f, "{variable}, rule {rule}, column {column}"),
            (None, Some((rule, column))) => write!(f, "rule {rule}, column {column}"),
            (None, None) => f.write_str("the plan"),
        }
    }
}

/// One thing that is wrong with a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct PlanProblem {
    /// The part of the plan it stands in.
    pub place: PlanPlace,
    /// The text that is wrong, as it stands there.
    pub text: String,
    /// What is wrong with it.
    pub wrong: String,
    /// What would be right.
    pub accepted: String,
}

impl fmt::Display for PlanProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} {}; accepted: {}", self.place, quoted(&self.text), self.wrong, self.accepted)
    }
}

/// A plan that cannot be used, with everything that is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub struct PlanError {
    /// At least one problem, in the order of the text.
    pub problems: Vec<PlanProblem>,
}

impl fmt::Display for PlanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let [problem] = &self.problems[..] {
            return problem.fmt(f);
        }
        write!(f, "{} problems with the fault plan: ", self.problems.len())?;
        for (n, problem) in self.problems.iter().enumerate() {
            let between = if n == 0 { "" } else { "; " };
            write!(f, "{between}({}) {problem}", n + 1)?;
        }
        Ok(())
    }
}

impl FaultPlan {
    /// Reads a plan. `seed` decides its draws. A rule may name the call of any tool; every other operation has to be one
    /// that can be met at its point. `text.parse()` is the same with the seed 0.
    ///
    /// # Errors
    ///
    /// Everything that is wrong with the text.
    pub fn parse(text: &str, seed: u64) -> Result<Self, PlanError> {
        let mut reader = Reader::new(None, Tools::Any);
        let plan = Self { seed, rules: reader.rules(text), force_rollout: None };
        reader.finish(plan)
    }

    /// Reads the plan of the environment; `None` when it holds none. An empty variable counts as not set. A rule may name
    /// the call of any tool.
    ///
    /// # Errors
    ///
    /// Everything that is wrong with any of the variables.
    #[doc(hidden)]
    pub fn from_environment(lookup: impl Fn(&str) -> Option<OsString>) -> Result<Option<Self>, PlanError> {
        Self::from_environment_with(lookup, Tools::Any)
    }

    /// The same for a program that has these tools: a call of another one is refused.
    ///
    /// # Errors
    ///
    /// Everything that is wrong with any of the variables.
    #[doc(hidden)]
    pub fn from_environment_with(
        lookup: impl Fn(&str) -> Option<OsString>,
        tools: Tools<'_>,
    ) -> Result<Option<Self>, PlanError> {
        let mut reader = Reader::new(Some(FAULTS), tools);
        let variable = |name: &'static str, reader: &mut Reader<'_>| match lookup(name)?.into_string() {
            Ok(text) => Some(text).filter(|text| !text.trim().is_empty()),
            Err(raw) => {
                reader.variable = Some(name);
                reader.problem(None, raw.to_string_lossy(), "is not UTF-8", "text");
                None
            }
        };
        let text = variable(FAULTS, &mut reader);
        let seed = variable(FAULT_SEED, &mut reader);
        let crash = variable(CRASH_ONCE_KEY, &mut reader);
        let rollout = variable(FORCE_ROLLOUT_KEY, &mut reader);

        let mut plan = Self::default();
        if let Some(text) = text {
            reader.variable = Some(FAULTS);
            plan.rules = reader.rules(&text);
        }
        reader.variable = Some(FAULT_SEED);
        if let Some(text) = seed {
            match text.trim().parse() {
                Ok(seed) => plan.seed = seed,
                Err(_) => {
                    reader.problem(None, text, "is no seed", format_args!("a whole number from 0 to {}", u64::MAX))
                }
            }
        }
        reader.variable = Some(CRASH_ONCE_KEY);
        if let Some(operation) =
            crash.and_then(|text| reader.operation(text.trim(), None, Some(FaultPoint::WorkerBeforeExecute)))
        {
            let rule = FaultRule {
                point: FaultPoint::WorkerBeforeExecute,
                operation: Some(operation),
                when: When::Nth(NonZeroU64::MIN),
                action: FaultAction::Panic,
            };
            // A child is given its parent's whole plan as text and inherits this variable as well.
            if !plan.rules.contains(&rule) {
                plan.rules.push(rule);
                reader.bound(plan.rules.len(), None);
            }
        }
        reader.variable = Some(FORCE_ROLLOUT_KEY);
        plan.force_rollout = rollout
            .and_then(|text| reader.operation(text.trim(), None, Some(FaultPoint::WorkerBeforeExecute)))
            .map(String::from);
        // It is counted like a rule.
        if plan.force_rollout.is_some() && plan.rules.len() == MAX_RULES {
            reader.bound(MAX_RULES + 1, None);
        }
        reader.finish(plan).map(|plan| Some(plan).filter(|plan| !plan.is_empty()))
    }

    /// The variables from which [`FaultPlan::from_environment`] reads this plan, for a process that is to share it.
    #[must_use]
    #[doc(hidden)]
    pub fn variables(&self) -> Vec<(&'static str, String)> {
        let mut variables = vec![(FAULTS, self.to_string()), (FAULT_SEED, self.seed.to_string())];
        variables.extend(self.force_rollout.iter().map(|operation| (FORCE_ROLLOUT_KEY, operation.clone())));
        variables
    }

    /// Whether it asks for nothing.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.rules.is_empty() && self.force_rollout.is_none()
    }

    /// The rules, at most [`MAX_RULES`].
    #[must_use]
    #[doc(hidden)]
    pub fn rules(&self) -> &[FaultRule] {
        &self.rules
    }

    /// The seed of the draws.
    #[must_use]
    pub const fn seed(&self) -> u64 {
        self.seed
    }

    /// The operation at which an upgrade is to be forced.
    #[must_use]
    #[doc(hidden)]
    pub fn force_rollout(&self) -> Option<&str> {
        self.force_rollout.as_deref()
    }

    /// The rules at points nothing meets yet.
    #[doc(hidden)]
    pub fn unreached(&self) -> impl Iterator<Item = &FaultRule> {
        self.rules.iter().filter(|rule| !rule.point.is_reached())
    }

    /// Whether the rule at `index` fires when it is met for the `hits`-th time, counted from 1.
    pub(super) fn is_due(&self, index: usize, hits: u64) -> bool {
        match self.rules[index].when {
            When::Nth(n) => n.get() == hits,
            When::Always => true,
            When::Drawn(probability) => drawn(self.seed, index, hits) < probability,
        }
    }

    /// Whether the rule at `index` can never fire again once it was met `hits` times.
    pub(super) fn is_spent(&self, index: usize, hits: u64) -> bool {
        matches!(self.rules[index].when, When::Nth(n) if n.get() <= hits)
    }

    /// Tells this plan from others, the same in every build: counts are kept in files that outlive a program.
    pub(super) fn fingerprint(&self) -> u64 {
        digest(format!("{};{self}", self.seed).as_bytes())
    }
}

/// A plan as it is written, with the seed 0.
impl FromStr for FaultPlan {
    type Err = PlanError;

    fn from_str(text: &str) -> Result<Self, PlanError> {
        Self::parse(text, 0)
    }
}

/// The rules as they are written. Seed and forced rollout have variables of their own.
impl fmt::Display for FaultPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, rule) in self.rules.iter().enumerate() {
            let between = if n == 0 { "" } else { ";" };
            write!(f, "{between}{rule}")?;
        }
        Ok(())
    }
}

/// A number from 0 up to but not 1, the same for the same seed, rule and count whatever else happens.
fn drawn(seed: u64, rule: usize, hits: u64) -> f64 {
    let bits = mixed(mixed(mixed(seed).wrapping_add(rule as u64)).wrapping_add(hits));
    // The upper 53 bits: what a double holds exactly.
    (bits >> 11) as f64 / (1_u64 << 53) as f64
}

/// One step of `SplitMix64`.
const fn mixed(state: u64) -> u64 {
    let z = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// FNV-1a: tells texts apart that nobody chose to look alike, and is the same in every build.
pub(super) fn digest(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Reads rules and collects what is wrong with them.
struct Reader<'t> {
    variable: Option<&'static str>,
    tools: Tools<'t>,
    problems: Vec<PlanProblem>,
}

/// A piece of the text and where it stands: the rule's number and the piece's first byte, from 0.
#[derive(Clone, Copy)]
struct Piece<'a> {
    rule: usize,
    at: usize,
    text: &'a str,
}

impl<'a> Piece<'a> {
    fn trimmed(self) -> Self {
        let text = self.text.trim_start();
        Self { at: self.at + (self.text.len() - text.len()), text: text.trim_end(), ..self }
    }

    /// What stands before and after the first of these characters.
    fn split(self, at: char) -> (Self, Option<Self>) {
        match self.text.split_once(at) {
            None => (self.trimmed(), None),
            Some((before, after)) => {
                let after = Self { at: self.at + before.len() + at.len_utf8(), text: after, ..self };
                (Self { text: before, ..self }.trimmed(), Some(after.trimmed()))
            }
        }
    }
}

impl<'t> Reader<'t> {
    const fn new(variable: Option<&'static str>, tools: Tools<'t>) -> Self {
        Self { variable, tools, problems: Vec::new() }
    }

    fn finish(self, plan: FaultPlan) -> Result<FaultPlan, PlanError> {
        if self.problems.is_empty() { Ok(plan) } else { Err(PlanError { problems: self.problems }) }
    }

    fn problem(
        &mut self,
        piece: Option<Piece<'_>>,
        text: impl Into<String>,
        wrong: impl fmt::Display,
        accepted: impl fmt::Display,
    ) {
        self.problems.push(PlanProblem {
            place: PlanPlace { variable: self.variable, rule: piece.map(|piece| (piece.rule, piece.at + 1)) },
            text: text.into(),
            wrong: wrong.to_string(),
            accepted: accepted.to_string(),
        });
    }

    fn rules(&mut self, text: &str) -> Vec<FaultRule> {
        let mut rules = Vec::new();
        let mut number = 0;
        let mut rest = Some(Piece { rule: 0, at: 0, text });
        while let Some(piece) = rest {
            let (rule, after) = piece.split(';');
            rest = after;
            // A plan may end in a semicolon, and one put together by a script may have two in a row.
            if rule.text.is_empty() {
                continue;
            }
            number += 1;
            let rule = Piece { rule: number, ..rule };
            if number == MAX_RULES + 1 {
                self.bound(number, Some(rule));
            }
            rules.extend(self.rule(rule));
        }
        rules
    }

    fn bound(&mut self, rules: usize, piece: Option<Piece<'_>>) {
        if rules > MAX_RULES {
            let text = piece.map_or("", |piece| piece.text);
            self.problem(piece, text, "is a rule too many", format_args!("at most {MAX_RULES} rules"));
        }
    }

    fn rule(&mut self, rule: Piece<'_>) -> Option<FaultRule> {
        let (place, action) = rule.split('=');
        let (place, when) = place.split('#');
        let (name, operation) = place.split('@');

        let point = self.point(name);
        let operation = match operation {
            None => Some(None),
            Some(piece) => self.operation(piece.text, Some(piece), point).map(Some),
        };
        let when = match when {
            None => Some(When::Nth(NonZeroU64::MIN)),
            Some(piece) => self.when(piece),
        };
        let action = match action {
            Some(piece) => self.action(piece, point),
            None => {
                self.problem(Some(rule), rule.text, "has no action", "point[@operation][#n]=action[:argument]");
                None
            }
        };
        Some(FaultRule { point: point?, operation: operation?, when: when?, action: action? })
    }

    fn point(&mut self, name: Piece<'_>) -> Option<FaultPoint> {
        let found = FaultPoint::ALL.iter().copied().find(|point| point.as_str() == name.text);
        if found.is_none() {
            let known: Vec<&str> = FaultPoint::ALL.iter().map(|point| point.as_str()).collect();
            let wrong = format!("is not a fault point{}", meant(name.text, &known));
            self.problem(Some(name), name.text, wrong, known.join(", "));
        }
        found
    }

    /// An operation, which must be one that can be met at the point.
    fn operation(&mut self, text: &str, piece: Option<Piece<'_>>, point: Option<FaultPoint>) -> Option<Box<str>> {
        let wrong = if text.is_empty() {
            "is no operation"
        } else if text.contains(['#', '=', ';', '@']) {
            "is no operation: it has a character with a meaning in plans"
        } else if let Some(point) = point.filter(|point| !point.operations().accept(text, self.tools)) {
            self.never_met(text, piece, point);
            return None;
        } else {
            return Some(text.into());
        };
        self.problem(piece, text, wrong, "text without `#`, `=`, `;` and `@`, such as tools/call:consult or ping");
        None
    }

    fn never_met(&mut self, text: &str, piece: Option<Piece<'_>>, point: FaultPoint) {
        let names = point.operations().names(self.tools);
        if names.is_empty() {
            return self.problem(piece, text, format_args!("is never met at {point}"), "no operation here");
        }
        let known: Vec<&str> = names.iter().map(String::as_str).collect();
        let wrong = format!("is never met at {point}{}", meant(text, &known));
        self.problem(piece, text, wrong, known.join(", "));
    }

    fn when(&mut self, piece: Piece<'_>) -> Option<When> {
        let when = match piece.text.strip_prefix('p') {
            _ if piece.text == "*" => Some(When::Always),
            Some(number) => {
                number.parse().ok().filter(|p: &f64| *p > 0.0 && *p <= 1.0 && is_number(number)).map(When::Drawn)
            }
            None => piece.text.parse().ok().filter(|_| is_number(piece.text)).map(When::Nth),
        };
        if when.is_none() {
            let wrong = if piece.text.contains('@') {
                "does not say when: the operation stands before the `#`"
            } else {
                "does not say when"
            };
            let accepted = format!("#N with N from 1 to {}, #* for always, #pP with P above 0 and at most 1", u64::MAX);
            self.problem(Some(piece), piece.text, wrong, accepted);
        }
        when
    }

    fn action(&mut self, piece: Piece<'_>, point: Option<FaultPoint>) -> Option<FaultAction> {
        let (name, argument) = piece.split(':');
        let accepted = point.map_or(ActionKind::ALL, FaultPoint::accepted);
        let names = accepted.iter().map(|kind| kind.as_str()).collect::<Vec<_>>();
        let Some(kind) = ActionKind::ALL.iter().copied().find(|kind| kind.as_str() == name.text) else {
            let wrong = format!("is not an action{}", meant(name.text, &names));
            self.problem(Some(name), name.text, wrong, names.join(", "));
            return None;
        };
        let action = self.argument(piece, kind, argument);
        if let Some(point) = point.filter(|point| !point.accepts(kind)) {
            self.problem(Some(name), name.text, format_args!("cannot happen at {point}"), names.join(", "));
            return None;
        }
        action
    }

    fn argument(&mut self, piece: Piece<'_>, kind: ActionKind, argument: Option<Piece<'_>>) -> Option<FaultAction> {
        let number =
            argument.and_then(|argument| argument.text.parse::<u64>().ok().filter(|_| is_number(argument.text)));
        let plain = match kind {
            ActionKind::Delay => {
                let delay = number.filter(|ms| (1..=MAX_DELAY_MS).contains(ms)).map(Duration::from_millis);
                if delay.is_none() {
                    let accepted = format!("delay:MS with MS from 1 to {MAX_DELAY_MS}");
                    let wrong = if argument.is_none() { "has no time" } else { "has no such time" };
                    self.problem(Some(piece), piece.text, wrong, accepted);
                }
                return delay.map(FaultAction::Delay);
            }
            ActionKind::Exit => {
                let code = match argument {
                    None => Some(EXIT_CODE),
                    Some(_) => number.and_then(|code| u8::try_from(code).ok()),
                };
                if code.is_none() {
                    let accepted = format!("exit ({EXIT_CODE}), or exit:CODE with CODE from 0 to 255");
                    self.problem(Some(piece), piece.text, "has no such code", accepted);
                }
                return code.map(FaultAction::Exit);
            }
            ActionKind::Panic => FaultAction::Panic,
            ActionKind::Error => FaultAction::Error,
            ActionKind::Kill => FaultAction::Kill,
            ActionKind::Abort => FaultAction::Abort,
            ActionKind::Hang => FaultAction::Hang,
            ActionKind::Drop => FaultAction::Drop,
            ActionKind::Torn => FaultAction::Torn,
            ActionKind::Garbage => FaultAction::Garbage,
            ActionKind::Silence => FaultAction::Silence,
            ActionKind::StopReading => FaultAction::StopReading,
        };
        if argument.is_some() {
            self.problem(Some(piece), piece.text, format_args!("gives {kind} an argument it does not take"), kind);
            return None;
        }
        Some(plain)
    }
}

/// Whether a text is a number as people write it: what Rust also reads (`+1`, `inf`) is no plan's spelling.
fn is_number(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_digit())
}

fn meant(wrong: &str, known: &[&str]) -> String {
    nearest(wrong, known).map_or_else(String::new, |near| format!(" (did you mean `{near}`?)"))
}

/// A wrong text as a message shows it.
fn quoted(text: &str) -> String {
    /// Enough to find it in the plan; the place is told as well.
    const SHOWN: usize = 60;
    if text.chars().count() > SHOWN {
        format!("{:?}…", text.chars().take(SHOWN).collect::<String>())
    } else {
        format!("{text:?}")
    }
}

#[cfg(test)]
mod tests;
