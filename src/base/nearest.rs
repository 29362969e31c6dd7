//! "Did you mean": the known name nearest to a misspelt one.

/// The known name nearest to a wrong one, if one is near enough to be meant.
#[must_use]
pub fn nearest<'a>(wrong: &str, known: &[&'a str]) -> Option<&'a str> {
    let folded: String = wrong.chars().filter(|c| c.is_ascii_alphanumeric()).collect::<String>().to_ascii_lowercase();
    known
        .iter()
        .map(|name| (strsim::normalized_damerau_levenshtein(&folded, &name.replace('_', "")), *name))
        .filter(|(score, _)| *score >= 0.5)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, name)| name)
}
