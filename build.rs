//! Embeds compiled kernels, if there are any: nothing is compiled or fetched here.
//!
//! `SDSHARD_CUDA_KERNELS` may name a folder with files such as `linear.sm_89.cubin` and `linear.compute_70.ptx`, as
//! `SDSHARD_KERNEL_IMAGES=FOLDER cargo test --test kernels_compile` makes them. Without it the program compiles its kernels when it first meets a GPU.

use std::{env, fmt::Write, fs, path::PathBuf};

fn main() {
    println!("cargo::rerun-if-env-changed=SDSHARD_CUDA_KERNELS");
    println!("cargo::rerun-if-changed=build.rs");
    let mut images = String::from("&[\n");
    if let Some(folder) = env::var_os("SDSHARD_CUDA_KERNELS").map(PathBuf::from) {
        println!("cargo::rerun-if-changed={}", folder.display());
        let entries =
            fs::read_dir(&folder).unwrap_or_else(|e| panic!("SDSHARD_CUDA_KERNELS: {}: {e}", folder.display()));
        let mut files: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
        files.sort();
        for file in files {
            let file = fs::canonicalize(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
            let name = file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let parts: Vec<&str> = name.split('.').collect();
            if let [source, arch, "cubin" | "ptx"] = parts[..] {
                let _ = writeln!(images, "    ({source:?}, {arch:?}, include_bytes!({file:?})),");
            }
        }
    }
    images.push(']');
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it")).join("cuda_kernels.rs");
    fs::write(&out, images).unwrap_or_else(|e| panic!("{}: {e}", out.display()));
}
