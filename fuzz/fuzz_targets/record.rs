#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| wb_tests::fuzz::record(data));
