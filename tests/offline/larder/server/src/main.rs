//! The server: one process that owns the shelves of a kitchen.

mod expiry;
mod ledger;
mod limits;
mod notify;
mod shelf;

use std::net::TcpListener;

fn main() -> std::io::Result<()> {
    let shelves = ledger::replay("larder.ledger".as_ref())?;
    let listener = TcpListener::bind("127.0.0.1:4070")?;
    for stream in listener.incoming() {
        serve(stream?, &shelves);
    }
    Ok(())
}

/// Answers the requests of one client until it hangs up.
fn serve(stream: std::net::TcpStream, shelves: &shelf::Shelves) {
    let mut allowance = limits::Allowance::new(std::time::Instant::now());
    for request in shelf::requests(stream) {
        if allowance.take(std::time::Instant::now()) {
            shelves.answer(request);
        }
    }
}
