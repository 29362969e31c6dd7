//! The shared cases, each at every place. Ids of the cases are those of the protocol's list.
//!
//! Laws: L7, L9, L20.

use phone_opus::testkit::machine::{StreamedHere, try_out};

use super::cases;
use super::place::{Here, Place, scratch};

macro_rules! conformance {
    ($($place:ident: [$($case:ident)*])*) => {
        $(mod $place {
            use super::*;
            $(#[tokio::test]
            async fn $case() {
                let Some(place) = Place::$place().await else { return };
                cases::$case(&place).await;
                place.close().await;
            })*
        })*
    };
    (at $($place:ident)*; $cases:tt) => { conformance! { $($place: $cases)* } };
}

conformance! { at local unix ws stdio codex_ws codex_stdio; [
    case_01_events_are_numbered_from_one_and_ordered
    case_02_output_may_follow_the_exit_and_closed_follows_the_output
    case_03a_exit_codes_and_deaths_by_signal
    case_03b_a_terminal_is_one
    case_03c_a_terminal_takes_another_size_and_a_pipe_has_none
    case_04_a_taken_name_a_failed_start_and_a_missing_directory_are_told
    case_05_environment_directory_names_and_argument_zero_are_exact
    case_06_reads_follow_the_cursor_and_wait
    case_07a_writes_arrive_in_order_and_say_when_nobody_reads
    case_07b_four_hundred_kilobytes_go_through_standard_input
    case_07c_input_given_with_the_start_arrives_whole_and_ends
    case_08a_an_interrupt_reaches_the_group
    case_08b_terminate_ends_the_group
    case_09_the_ring_is_a_bounded_tail_and_the_tap_is_complete
    case_10a_much_output_has_no_gap
    case_10b_two_busy_streams_are_complete
    case_11_five_hundred_processes_at_once
    case_12_13_late_and_slow_subscribers_are_told_and_get_the_end
    case_14_a_reader_that_does_not_read_blocks_its_producer_only
    case_15_the_last_handle_takes_its_process_along
    case_16_a_cancelled_start_leaves_no_process
] }

// Machines of a program's own, which have no terminals: by programs of this machine, and by streams.
conformance! { at machine_here machine_streamed; [
    case_01_events_are_numbered_from_one_and_ordered
    case_02_output_may_follow_the_exit_and_closed_follows_the_output
    case_03a_exit_codes_and_deaths_by_signal
    case_04_a_taken_name_a_failed_start_and_a_missing_directory_are_told
    case_05_environment_directory_names_and_argument_zero_are_exact
    case_06_reads_follow_the_cursor_and_wait
    case_07a_writes_arrive_in_order_and_say_when_nobody_reads
    case_07b_four_hundred_kilobytes_go_through_standard_input
    case_07c_input_given_with_the_start_arrives_whole_and_ends
    case_08b_terminate_ends_the_group
    case_09_the_ring_is_a_bounded_tail_and_the_tap_is_complete
    case_10a_much_output_has_no_gap
    case_10b_two_busy_streams_are_complete
    case_11_five_hundred_processes_at_once
    case_12_13_late_and_slow_subscribers_are_told_and_get_the_end
    case_14_a_reader_that_does_not_read_blocks_its_producer_only
    case_15_the_last_handle_takes_its_process_along
    case_16_a_cancelled_start_leaves_no_process
] }

/// What an embedding program's tests do with its own.
#[tokio::test]
async fn machines_of_a_programs_own_keep_their_promises() {
    for name in ["here", "streamed"] {
        let dir = scratch();
        match name {
            "here" => try_out(Here, dir.path()).await,
            _ => try_out(StreamedHere, dir.path()).await,
        }
    }
}
