//! Which consults a usage limit is about.
//!
//! Owns: the families of models that providers limit apart, and whether a request is of one. May not know: agents, the
//! store.

/// Families that have limits of their own, by the word in their models' names. A limit with another name is taken for one
/// of the whole account.
const FAMILIES: [&str; 4] = ["opus", "sonnet", "haiku", "fable"];

/// What a caller may write for the model that is used when none is named.
const DEFAULT: &str = "default";

/// The family of models that this limit (`seven_day_opus`) or this model (`claude-opus-4-5`) is about.
#[must_use]
pub fn family(name: &str) -> Option<&'static str> {
    let name = name.to_ascii_lowercase();
    FAMILIES.into_iter().find(|family| name.contains(family))
}

/// What a limit is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scope {
    /// The family of models; all of an account's when there is none.
    pub family: Option<&'static str>,
    /// Whether the run that was refused named no model, so that this is the family of the default.
    pub by_default: bool,
}

impl Scope {
    /// What a limit of this name is about that refused a run with this model.
    #[must_use]
    pub fn of(limit: Option<&str>, model: Option<&str>) -> Self {
        Self { family: limit.and_then(family), by_default: is_default(model) }
    }

    /// Whether a request for this model would be refused. One for a model of an unknown family would not: at worst the
    /// provider says so.
    #[must_use]
    pub fn concerns(&self, model: Option<&str>) -> bool {
        match self.family {
            None => true,
            Some(_) if is_default(model) => self.by_default,
            limited => model.and_then(family) == limited,
        }
    }
}

fn is_default(model: Option<&str>) -> bool {
    model.is_none_or(|model| model.is_empty() || model == DEFAULT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_of_one_family_leaves_the_others_alone() {
        for (limit, refused, model, concerns) in [
            (Some("seven_day_opus"), Some("opus"), Some("sonnet"), false),
            (Some("seven_day_opus"), Some("opus"), Some("claude-opus-4-5"), true),
            (Some("seven_day_opus"), Some("opus"), Some("opusplan"), true),
            (Some("seven_day_opus"), Some("opus"), None, false),
            (Some("seven_day_opus"), None, None, true),
            (Some("seven_day_opus"), None, Some("default"), true),
            (Some("seven_day_opus"), None, Some("haiku"), false),
            (Some("seven_day_opus"), None, Some("my-own"), false),
            (Some("five_hour"), Some("opus"), Some("sonnet"), true),
            (Some("seven_day"), None, Some("opus"), true),
            (Some("something_new"), Some("opus"), Some("sonnet"), true),
            (None, Some("opus"), None, true),
        ] {
            let scope = Scope::of(limit, refused);
            assert_eq!(scope.concerns(model), concerns, "{limit:?} for {refused:?}, {model:?} asked");
        }
    }
}
