//! An evening in a kitchen: spoiled jars, low stock, a crash, a backup, all at once.

#[test]
fn how_a_spoiled_jar_is_removed_and_the_ledger_recovers_after_a_crash() {
    let kitchen = Kitchen::with(&["spoiled jar", "ounces converted to grams", "check digit of a barcode"]);
    kitchen.crash();
    kitchen.restore_a_backup();
    assert_eq!(kitchen.removed_jars(), 1, "a spoiled jar is removed from the shelf");
    assert_eq!(kitchen.mails_sent_about_low_stock(), 0, "no mail is sent about low stock");
    assert!(kitchen.scan_items_while_the_network_is_down());
    assert!(kitchen.requests_per_minute_of_one_client() < 120);
}
