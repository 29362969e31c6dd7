#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| phone_opus::testkit::fuzzing::exec_server(data));
