//! Tells the household by mail what is running out.

use std::collections::BTreeMap;

use crate::shelf::Shelves;

/// Grams below which something counts as low, where the household named no other number.
const LOW_GRAMS: u32 = 150;

/// Who was told about what, and on which day.
#[derive(Default)]
pub struct Mailer {
    told: BTreeMap<String, u32>,
}

impl Mailer {
    /// What is to be told today: each food that is low, once a day at most.
    pub fn due(&mut self, shelves: &Shelves, foods: &[&str], today: u32) -> Vec<String> {
        let low = foods.iter().filter(|food| shelves.grams_of(food) < LOW_GRAMS);
        let mut due = Vec::new();
        for food in low {
            if self.told.insert((*food).to_owned(), today) != Some(today) {
                due.push(format!("{food} is low"));
            }
        }
        due
    }
}
