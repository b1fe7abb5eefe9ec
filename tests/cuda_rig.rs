//! The rig of fake GPUs is tested itself: right kernels give what is known, wrong ones are caught, and its driver
//! does late what a driver may do late. Needs a clang++ of at least 16; without it there is nothing to test, which is
//! printed; with `SDSHARD_EXPECT=rig` it is a failure.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

use std::{path::Path, process::Command};

/// The tests of the rig, with another seed of its delays for each run; 0 is none.
#[test]
fn the_rig_does_what_a_driver_does_and_catches_what_kernels_do_wrong() {
    let rig = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cuda_rig");
    if !Command::new(rig.join("compiler")).output().is_ok_and(|found| found.status.success()) {
        println!("the rig of fake GPUs: no clang++ of at least 16 is here to build it");
        let expected = std::env::var("SDSHARD_EXPECT").unwrap_or_default();
        assert!(!expected.split(',').any(|name| name == "rig"), "the rig: expected, but cannot be built");
        return;
    }
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("../cuda_rig");
    for seed in ["0", "1", "2", "3"] {
        let tests = Command::new(rig.join("selftest/run")).arg(&out).env("SDSHARD_RIG_DELAYS", seed).output().unwrap();
        let (told, errors) = (String::from_utf8_lossy(&tests.stdout), String::from_utf8_lossy(&tests.stderr));
        assert!(tests.status.success(), "seed {seed}\n{told}\n{errors}");
        assert!(told.lines().all(|line| line.starts_with("ok ")) && told.lines().count() == 15, "{told}");
        // Whoever writes a kernel is told where it went wrong.
        for words in [
            "kernel divergent_barrier, block (0, 0, 0): 32 of 64 threads wait at the barrier at selftest.cu:",
            "kernel scale_too_much, block (0, 0, 0), thread (4, 0, 0): illegal address",
            "0 bytes behind an allocation of 16 bytes of device memory of device 0",
        ] {
            assert!(errors.contains(words), "{words}\n{errors}");
        }
    }
}
