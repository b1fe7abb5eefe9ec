//! The rig of fake GPUs, if it is this process's driver: `tests/cuda_rig/run`.

use std::{
    ffi::{CString, c_char, c_int},
    path::{Path, PathBuf},
};

use libloading::Library;

/// The driver's library is the rig.
pub struct Rig {
    driver: Library,
    folder: PathBuf,
}

impl Rig {
    /// The rig, or a line that says that it is not here; with `SDSHARD_EXPECT=rig` its absence is a failure.
    pub fn here() -> Option<Self> {
        let found = std::env::var_os("SDSHARD_RIG").map(PathBuf::from).map(|folder| {
            // SAFETY: it is the library that this process has for its driver.
            let driver = unsafe { Library::new(folder.join("libcuda.so.1")) }.expect("tests/cuda_rig/run built it");
            Self { driver, folder }
        });
        if found.is_none() {
            println!("the rig of fake GPUs: not here; tests/cuda_rig/run cargo test");
            let expected = std::env::var("SDSHARD_EXPECT").unwrap_or_default();
            assert!(!expected.split(',').any(|name| name == "rig"), "the rig: expected, but not here");
        }
        found
    }

    /// Where it and its kernels lie.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// As `SDSHARD_RIG_KEY=value` in the environment, from here on.
    pub fn set(&self, key: &str, value: &str) {
        let (key, value) = (CString::new(key).unwrap(), CString::new(value).unwrap());
        // SAFETY: that is the function's signature, and it copies what it keeps.
        unsafe {
            let set =
                self.driver.get::<unsafe extern "C" fn(*const c_char, *const c_char)>(b"sdshard_rig_set").unwrap();
            set(key.as_ptr(), value.as_ptr());
        }
    }

    /// How often a function of the driver was called on a device.
    pub fn calls(&self, function: &str, device: usize) -> u64 {
        let function = CString::new(function).unwrap();
        // SAFETY: that is the function's signature, and it only reads.
        unsafe {
            let calls =
                self.driver.get::<unsafe extern "C" fn(*const c_char, c_int) -> u64>(b"sdshard_rig_calls").unwrap();
            calls(function.as_ptr(), device as c_int)
        }
    }

    /// What is allocated on a device.
    pub fn used_bytes(&self, device: usize) -> u64 {
        // SAFETY: that is the function's signature, and it only reads.
        unsafe {
            self.driver.get::<unsafe extern "C" fn(c_int) -> u64>(b"sdshard_rig_used_bytes").unwrap()(device as c_int)
        }
    }

    /// Back to the environment; devices that have failed work again.
    pub fn reset(&self) {
        // SAFETY: that is the function's signature.
        unsafe { self.driver.get::<unsafe extern "C" fn()>(b"sdshard_rig_reset").unwrap()() };
    }
}
