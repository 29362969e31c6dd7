//! The passages of a file in which terms stand together.
//!
//! Owns: how lines become passages, and which of them are good. May not know: files, kinds, the walk.
//!
//! A passage is as good as the different terms that stand close together in it, each where it tells most.

use super::score::Occurrence;

/// Matching lines looked at for the passages of one file; the first ones, which in most files are the telling ones.
pub(super) const MAX_HITS: usize = 400;
/// Lines a passage spans at most: what fits on a screen next to others.
pub(super) const PASSAGE_LINES: u64 = 12;
/// Passages shown of one file.
const MAX_PASSAGES: usize = 2;

/// Some lines close together.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Passage {
    /// Its first line, from 1.
    pub(super) from: u64,
    /// Its last line with a term.
    pub(super) to: u64,
    /// The line that tells most.
    pub(super) best: u64,
    /// Every line of it that has a term.
    pub(super) lines: Vec<u64>,
    /// The terms it has, as bits of their position.
    pub(super) terms: u64,
    pub(super) score: f64,
}

/// One line that has terms.
#[derive(Debug, Clone, Copy)]
pub(super) struct Hit {
    line: u64,
    terms: u64,
    factor: f64,
}

impl Hit {
    pub(super) fn new(line: u64, found: &[Occurrence]) -> Self {
        let terms = found.iter().fold(0, |bits, one| bits | 1 << one.of);
        // Closeness counts beside what each is worth, so parts differ less here than in the whole file.
        let factor = found.iter().map(|one| f64::from(one.weight).sqrt()).fold(0.0, f64::max);
        Self { line, terms, factor }
    }

    /// The beginning of a file that was asked for and has no term.
    pub(super) fn beginning() -> Self {
        Self { line: 1, terms: 0, factor: 1.0 }
    }
}

/// The positions of the set bits.
pub(super) fn each(bits: u64) -> impl Iterator<Item = usize> {
    (0..64).filter(move |bit| bits & (1 << bit) != 0)
}

/// The best passages that do not overlap.
pub(super) fn passages(hits: &[Hit], worth: &[f64]) -> Vec<Passage> {
    let mut all: Vec<Passage> = (0..hits.len()).map(|first| passage(&hits[first..], worth)).collect();
    all.sort_by(|a, b| b.score.total_cmp(&a.score).then_with(|| a.from.cmp(&b.from)));
    let mut kept: Vec<Passage> = Vec::new();
    for passage in all {
        let good = kept.first().is_none_or(|best| passage.score > 0.5 * best.score);
        let apart = kept.iter().all(|other| passage.from > other.to + 4 || passage.to + 4 < other.from);
        if good && apart {
            kept.push(passage);
        }
        if kept.len() == MAX_PASSAGES {
            break;
        }
    }
    kept
}

/// The passage that begins with the first of these hits.
fn passage(hits: &[Hit], worth: &[f64]) -> Passage {
    let from = hits.first().map_or(1, |hit| hit.line);
    let hits: Vec<&Hit> = hits.iter().take_while(|hit| hit.line < from + PASSAGE_LINES).collect();
    let terms = hits.iter().fold(0, |terms, hit| terms | hit.terms);
    // Each term counts once, where it stands best.
    let sum: f64 = each(terms)
        .map(|bit| {
            let factors = hits.iter().filter(|hit| hit.terms & (1 << bit) != 0).map(|hit| hit.factor);
            worth[bit] * factors.fold(0.0, f64::max)
        })
        .sum();
    let together = hits.iter().map(|hit| hit.terms.count_ones()).max().unwrap_or(1);
    let line_score = |hit: &Hit| each(hit.terms).map(|bit| worth[bit]).sum::<f64>() * hit.factor;
    let mut best = (from, f64::MIN);
    for hit in &hits {
        let score = line_score(hit);
        if score > best.1 {
            best = (hit.line, score);
        }
    }
    // A passage that begins with its best lines is preferred to one that ends with them.
    let spread = hits.last().map_or(0, |hit| hit.line - from);
    let tightness = if spread < PASSAGE_LINES / 2 { 1.05 } else { 1.0 };
    Passage {
        from,
        to: hits.last().map_or(from, |hit| hit.line),
        best: best.0,
        lines: hits.iter().map(|hit| hit.line).collect(),
        terms,
        score: sum * (1.0 + 0.25 * f64::from(together.saturating_sub(1))) * tightness,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hit(line: u64, terms: u64, factor: f64) -> Hit {
        Hit { line, terms, factor }
    }

    #[test]
    fn terms_that_stand_together_are_the_best_passage() {
        let worth = [1.0, 1.0, 3.0];
        for (why, hits, from, best) in [
            (
                "two lines close together before one alone",
                &[hit(1, 1, 1.0), hit(90, 1, 1.0), hit(92, 2, 1.0)][..],
                90,
                90,
            ),
            ("one line with both before two with one each", &[hit(1, 1, 1.0), hit(3, 2, 1.0), hit(90, 3, 1.0)], 90, 90),
            ("the rare term", &[hit(1, 1, 1.0), hit(90, 4, 1.0)], 90, 90),
            ("where it tells most", &[hit(1, 1, 0.4), hit(90, 1, 1.6)], 90, 90),
            ("the line that tells most", &[hit(1, 1, 1.0), hit(3, 4, 1.0)], 1, 3),
            ("a file without any term begins at its beginning", &[Hit::beginning()], 1, 1),
        ] {
            let found = passages(hits, &worth);
            assert_eq!(found.first().map(|passage| (passage.from, passage.best)), Some((from, best)), "{why}");
        }
        assert!(passages(&[], &worth).is_empty());
    }

    #[test]
    fn passages_are_few_and_apart() {
        let hits: Vec<Hit> = (1..400).map(|line| hit(line * 3, 1, 1.0)).collect();
        let found = passages(&hits, &[1.0]);
        assert_eq!(found.len(), MAX_PASSAGES);
        assert!(found[0].to < found[1].from || found[1].to < found[0].from, "{found:?}");
    }
}
