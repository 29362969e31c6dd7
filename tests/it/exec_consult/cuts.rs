//! A connection that is cut, again and again, shorter than the lease: it costs nothing.
//!
//! Laws: L3, L7, L20.

use phone_opus::testkit::{Script, Step};
use serde_json::json;

use super::kit::{Draws, House, Way};

/// How often each connection is cut.
const CUTS: u64 = 20;

#[tokio::test]
async fn twenty_cuts_at_any_moments_cost_a_consult_nothing() {
    for (way, seed) in Way::SOCKETS.into_iter().zip([7_u64, 11]) {
        let (mut house, mut wire) = House::with_a_wire(way, 30).await;
        let mut host = house.rig.serve().await;
        let mut draws = Draws(seed);
        // It says much, so that there is something to lose at each moment, and stops when it is told to.
        let mut steps: Vec<Step> = Vec::new();
        for number in 0..400 {
            steps.push(Step::Text(format!("piece {number} ")));
            steps.push(Step::DelayMs(4));
        }
        steps.insert(0, Step::Touch(house.rig.sign("begun")));
        steps.push(Step::WaitForFile(house.rig.sign("go")));
        steps.push(Step::HugeText(300_000));
        let prompt = house.rig.prompt(Script { steps, answer: Some("whole".to_owned()), ..Script::default() });
        let sent = host.start("consult", json!({"prompt": prompt})).await;
        for cut in 0..CUTS {
            // Long enough to be whole again now and then: an outage that goes on for 25 s is one.
            wire.cut_after(100 + draws.below(300)).await;
            if cut == CUTS - 1 {
                house.rig.wait_for_sign("begun").await;
            }
        }
        house.rig.give_sign("go");
        let reply = host.reply(sent).await.expect_success();
        assert_eq!(reply["response"], "whole", "{way:?}, seed {seed}: {:#}", reply.0);
        house.rig.expect_runs(1);
        house.close([host]).await;
    }
}

#[tokio::test]
async fn a_cancel_while_the_wire_is_cut_reaches_the_agent() {
    let (mut house, mut wire) = House::with_a_wire(Way::Unix, 30).await;
    let mut host = house.rig.serve().await;
    let job = host.consult_in_background(&house.rig.hanging("begun")).await;
    house.rig.wait_for_sign("begun").await;
    wire.cut_after(0).await;
    let reply = host.call("consult_cancel", json!({"job_id": job})).await;
    assert_eq!((reply.is_error(), reply.str("status")), (false, "cancelled"), "{:#}", reply.0);
    assert_eq!(house.rig.agents().len(), 0, "{:?}", house.rig.agents());
    house.rig.expect_runs(1);
    house.close([host]).await;
}
