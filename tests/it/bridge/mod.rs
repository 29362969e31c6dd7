//! `mcp connect`, the real program, with daemons of a test's own and with real ones.

mod alone;
mod kills;
mod peer;
mod real;
mod skew;
mod stops;

use phone_opus::testkit::client::REVISION;
use phone_opus::testkit::{Rig, TestClient, tried_program};

/// A world of its own around the program.
fn new_rig() -> Rig {
    Rig::new(tried_program(env!("CARGO_BIN_EXE_phone-opus")))
}

/// A bridge that was greeted.
async fn connect(rig: &mut Rig) -> TestClient {
    let work = rig.work();
    let mut client = rig.host_with(&["mcp", "connect"], &work);
    client.handshake(REVISION).await;
    client
}
