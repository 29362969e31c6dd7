//! `phone-opus`: our server with one echo tool, made through the library's own tool trait.
//!
//! It owes the harness what every server here does: one tool `echo {text}` that returns the text; a panic inside the
//! tool when the text is `please panic`; a longest line of `BENCH_MAX_LINE` bytes when that is set, else the default.

use std::process::ExitCode;

#[expect(clippy::print_stderr, reason = "the harness shows the last line of a server that cannot start")]
fn main() -> ExitCode {
    eprintln!("the library has no tool trait yet, so there is no server to measure");
    ExitCode::from(2)
}
