//! Sheet: what was found, per peer and figure.
//!
//! Owns: the values of all rounds, why something is missing, what is worth a word.
//! May not know: goals, formats.

use std::collections::HashMap;

use crate::targets::Figure;

/// One peer's results for one figure.
#[derive(Debug, Clone, Default)]
pub(crate) struct Cell {
    /// One value per round, or several.
    pub(crate) values: Vec<f64>,
    /// Why there is no value, or none any more.
    pub(crate) gap: Option<Gap>,
    /// What to say about the value.
    pub(crate) remark: Option<String>,
}

/// Why a value is missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Gap {
    /// The peer could not do it.
    Failed(String),
    /// It makes no sense here.
    NotApplicable(String),
}

impl Cell {
    /// The median of all values, if the figure could always be measured.
    pub(crate) fn median(&self) -> Option<f64> {
        if self.gap.is_some() {
            return None;
        }
        let mut sorted = self.values.clone();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        match sorted.len() {
            0 => None,
            count if count % 2 == 1 => Some(sorted[middle]),
            _ => Some(f64::midpoint(sorted[middle - 1], sorted[middle])),
        }
    }

    /// What counts of a figure's values: the worst, or the median.
    pub(crate) fn value(&self, figure: Figure) -> Option<f64> {
        if figure.is_worst() && self.gap.is_none() {
            return self.values.iter().copied().max_by(f64::total_cmp);
        }
        self.median()
    }

    /// How far the middle half of the values spreads, as a part of the median.
    pub(crate) fn spread(&self) -> Option<f64> {
        let median = self.median().filter(|median| *median > 0.0)?;
        let mut sorted = self.values.clone();
        sorted.sort_by(f64::total_cmp);
        let last = sorted.len() - 1;
        let at = |part: f64| sorted[(last as f64 * part).round() as usize];
        (last > 0).then(|| (at(0.75) - at(0.25)) / median)
    }
}

/// All results of a run.
#[derive(Debug, Default)]
pub(crate) struct Results(HashMap<(usize, Figure), Cell>);

impl Results {
    /// One peer's results for one figure; empty if it was not measured.
    pub(crate) fn cell(&self, peer: usize, figure: Figure) -> Cell {
        self.0.get(&(peer, figure)).cloned().unwrap_or_default()
    }

    /// Whether there is no more to be learned of this figure from this peer.
    pub(crate) fn settled(&self, peer: usize, figure: Figure) -> bool {
        self.0.get(&(peer, figure)).is_some_and(|cell| cell.gap.is_some())
    }

    /// The page of one peer.
    pub(crate) fn page(&mut self, peer: usize) -> Sheet<'_> {
        Sheet { results: self, peer, touched: Vec::new() }
    }
}

/// One peer's page, open for one probe.
#[derive(Debug)]
pub(crate) struct Sheet<'a> {
    results: &'a mut Results,
    peer: usize,
    touched: Vec<Figure>,
}

impl Sheet<'_> {
    fn cell(&mut self, figure: Figure) -> &mut Cell {
        self.touched.push(figure);
        self.results.0.entry((self.peer, figure)).or_default()
    }

    /// Whether there is still something to be learned of a figure.
    pub(crate) fn wants(&self, figure: Figure) -> bool {
        !self.results.settled(self.peer, figure)
    }

    /// Writes a value down.
    pub(crate) fn put(&mut self, figure: Figure, value: f64) {
        self.cell(figure).values.push(value);
    }

    /// The same, with a remark.
    pub(crate) fn put_with(&mut self, figure: Figure, value: f64, remark: String) {
        let cell = self.cell(figure);
        cell.values.push(value);
        cell.remark = Some(remark);
    }

    /// Writes down that a figure means nothing for this peer.
    pub(crate) fn not_applicable(&mut self, figure: Figure, why: &str) {
        self.cell(figure).gap = Some(Gap::NotApplicable(why.to_owned()));
    }

    /// Writes a gap into each of these figures that this probe has not written.
    pub(crate) fn fail_rest(&mut self, figures: &[Figure], gap: &Gap) {
        for figure in figures {
            if !self.touched.contains(figure) {
                self.cell(*figure).gap = Some(gap.clone());
            }
        }
    }
}
