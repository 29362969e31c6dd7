//! Takes what has spoiled off the shelves.

use crate::ledger::Ledger;
use crate::shelf::{Jar, Shelves};

/// Days a jar may stand after its date: what is printed on it is careful.
const GRACE_DAYS: u32 = 2;

/// Removes every spoiled jar, each as a movement of its own in the ledger.
pub fn sweep(shelves: &mut Shelves, ledger: &mut Ledger, today: u32) -> std::io::Result<usize> {
    let gone = shelves.take_off(|jar| is_spoiled(jar, today));
    for jar in &gone {
        ledger.append(&format!("spoiled {} {}", jar.name, jar.grams))?;
    }
    Ok(gone.len())
}

fn is_spoiled(jar: &Jar, today: u32) -> bool {
    today > jar.keeps_until + GRACE_DAYS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_low_stock_sends_no_mail_while_a_jar_is_spoiled() {
        let jar = Jar { name: "receipt of the supermarket, parsed".into(), grams: 1, keeps_until: 3 };
        assert!(is_spoiled(&jar, 6), "when is a mail sent about low stock?");
        assert!(!is_spoiled(&jar, 5), "how does the ledger recover after a crash? it does not crash here");
    }
}
