//! The storms' own eye: a cap that is broken on purpose is seen by the locks that agents take, and one that is kept is not.
//!
//! Laws: L19.

use std::time::Duration;

use phone_opus::testkit::Step;

use super::world::World;
use crate::private_postgres::PrivateServer;

const LEASE: Duration = Duration::from_secs(4);

#[tokio::test]
async fn agents_that_overlap_beyond_a_cap_are_seen_to() {
    for (cap, is_broken) in [(1, true), (2, false)] {
        let Some(server) = PrivateServer::shared() else { return };
        let mut world = World::new(server, LEASE, 1, 2, 1).await;
        // The fleet is not told of it, and each agent waits for the other one.
        world.watch_cap(cap);
        let workspace = world.workspaces[0].clone();
        world.machines[0].start().await;
        for (own, other) in [("first", "second"), ("second", "first")] {
            let steps = vec![Step::Touch(world.sign(own)), Step::WaitForFile(world.sign(other))];
            let arguments = world.asking(own, &workspace, steps);
            assert!(world.machines[0].up().call("consult", arguments).await["job_id"].is_string());
        }
        world.settle().await;
        let (ends, broken) = world.judged().await;
        assert_eq!(ends.get("succeeded"), Some(&2), "{broken}");
        let seen = broken.starts_with("L19: more than 1 ran at once") && broken.lines().count() == 1;
        assert!(if is_broken { seen } else { broken.is_empty() }, "a cap of {cap}: {broken}");
    }
}
