#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| wb_tests::fuzz::nbd_transmission(data));
