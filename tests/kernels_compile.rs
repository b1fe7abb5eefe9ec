//! Every CUDA kernel for every architecture, through NVIDIA's own compilers: no register is spilled, nothing lives in
//! local memory, and registers, shared memory and occupancy are those of `kernels/resources.txt`.
//!
//! The compilers come by `kernels/tools/fetch`; without them there is nothing to test, which is printed, and with
//! `SDSHARD_EXPECT=cuda_tools` it is a failure. A change of the table is made by `SDSHARD_WRITE=1 cargo test --test
//! kernels_compile`, and shows in review. `SDSHARD_KERNEL_IMAGES=FOLDER` also writes what a build can embed.
#![cfg(feature = "cuda")]

use std::{
    collections::BTreeMap,
    fmt::Write,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use sdshard::backend::cuda::{
    kernels::{HEADERS, SOURCES},
    nvrtc,
};

const ARCHS: [u32; 8] = [70, 75, 80, 86, 89, 90, 100, 120];

/// Where the compilers are, if they are.
fn tools() -> Option<PathBuf> {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| PathBuf::from("target"), PathBuf::from);
    let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join(target).join("cuda_tools/nvidia");
    if tools.join("cuda_nvcc/bin/ptxas").exists() {
        return Some(tools);
    }
    println!("cuda_tools: not here; kernels/tools/fetch installs them");
    let expected = std::env::var("SDSHARD_EXPECT").unwrap_or_default();
    assert!(!expected.split(',').any(|name| name == "cuda_tools"), "cuda_tools: expected, but not here");
    None
}

/// What a multiprocessor has, by NVIDIA's tables of compute capabilities.
struct Multiprocessor {
    warps: u32,
    blocks: u32,
    shared_bytes: u32,
}

fn multiprocessor(arch: u32) -> Multiprocessor {
    const KIB: u32 = 1024;
    let (warps, blocks, shared) = match arch {
        70 => (64, 32, 96),
        75 => (32, 16, 64),
        80 => (64, 32, 164),
        86 => (48, 16, 100),
        89 => (48, 24, 100),
        90 | 100 => (64, 32, 228),
        120 => (48, 24, 100),
        _ => panic!("sm_{arch} has no row here"),
    };
    Multiprocessor { warps, blocks, shared_bytes: shared * KIB }
}

/// What one kernel takes.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Use {
    threads: u32,
    registers: u32,
    shared_bytes: u32,
}

impl Use {
    /// Warps that a multiprocessor holds at once, of the most that it can: registers go to warps in units of 256, shared
    /// memory to blocks in units of 128 bytes, from sm_80 on after 1 KiB of the system's own.
    fn occupancy(self, arch: u32) -> u32 {
        let has = multiprocessor(arch);
        let warps = self.threads.div_ceil(32);
        let by_registers = (65536 / (self.registers * 32).next_multiple_of(256).max(256)) / warps;
        let own = if arch >= 80 { 1024 } else { 0 };
        let by_shared = match (self.shared_bytes + own).next_multiple_of(128) {
            0 => u32::MAX,
            bytes => has.shared_bytes / bytes,
        };
        let blocks = has.blocks.min(has.warps / warps).min(by_registers).min(by_shared);
        100 * blocks * warps / has.warps
    }
}

/// A number that stands in front of `unit` in what ptxas says.
fn number_before(line: &str, unit: &str) -> u32 {
    let words: Vec<&str> = line.split([' ', ',']).collect();
    let unit: Vec<&str> = unit.split(' ').collect();
    let at = words.windows(unit.len()).position(|words| words == unit);
    at.and_then(|at| words[at.checked_sub(1)?].parse().ok()).unwrap_or(0)
}

/// The threads of each kernel's blocks, by its launch bounds in the PTX.
fn threads(ptx: &str) -> BTreeMap<String, u32> {
    let mut threads = BTreeMap::new();
    let mut kernel = None;
    for line in ptx.lines() {
        if let Some((_, rest)) = line.split_once(".entry ") {
            kernel = rest.split('(').next().map(str::to_string);
        }
        if let (Some(name), Some(count)) = (&kernel, line.trim().strip_prefix(".maxntid ")) {
            let count = count.split(',').next().and_then(|count| count.trim().parse().ok());
            threads.insert(name.clone(), count.expect("a number of threads"));
        }
    }
    threads
}

/// What each kernel of a source takes, and what is wrong with it.
fn assemble(tools: &Path, source: &str, arch: u32, ptx: &[u8], folder: &Path) -> (BTreeMap<String, Use>, Vec<String>) {
    let text = std::str::from_utf8(ptx).expect("PTX is text").trim_end_matches('\0');
    let (file, image) =
        (folder.join(format!("{source}.compute_{arch}.ptx")), folder.join(format!("{source}.sm_{arch}.cubin")));
    std::fs::write(&file, text).unwrap();
    let ran = Command::new(tools.join("cuda_nvcc/bin/ptxas"))
        .arg(format!("-arch=sm_{arch}"))
        .args(["-v", "--warn-on-spills", "--warn-on-local-memory-usage", "--warn-on-double-precision-use"])
        .arg(&file)
        .arg("-o")
        .arg(&image)
        .output()
        .expect("ptxas starts");
    let said = String::from_utf8_lossy(&ran.stderr).into_owned() + &String::from_utf8_lossy(&ran.stdout);
    let threads = threads(text);
    let (mut uses, mut wrong, mut kernel) = (BTreeMap::new(), Vec::new(), String::new());
    if !ran.status.success() {
        wrong.push(format!("{source} sm_{arch}: {said}"));
    }
    for line in said.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            kernel = rest.split('\'').next().unwrap_or_default().to_string();
        } else if line.contains("warning") {
            wrong.push(format!("{source} sm_{arch}: {line}"));
        } else if line.contains("bytes stack frame")
            && !line.contains("0 bytes stack frame, 0 bytes spill stores, 0 bytes")
        {
            wrong.push(format!("{kernel} sm_{arch}: {}", line.trim()));
        } else if line.contains("Used ") {
            let used = Use {
                threads: threads[&kernel],
                registers: number_before(line, "registers"),
                shared_bytes: number_before(line, "bytes smem"),
            };
            uses.insert(kernel.clone(), used);
        }
    }
    if uses.len() != threads.len() {
        wrong.push(format!("{source} sm_{arch}: ptxas spoke of {} of {} kernels", uses.len(), threads.len()));
    }
    // What only this architecture's instructions can be fast with is there.
    let wanted: &[(&str, &str, u32)] = &[
        ("linear", "wmma.mma.sync.aligned.row.col.m16n16k16.f32.f32", 70),
        ("conv2d", "wmma.mma.sync.aligned.row.col.m16n16k16.f32.f32", 70),
        ("linear", "mma.sync.aligned.m16n8k16.row.col.f32.f16", 80),
        ("conv2d", "mma.sync.aligned.m16n8k16.row.col.f32.bf16", 80),
        ("attention", "ldmatrix.sync.aligned.m8n8.x4.trans", 75),
        ("linear", "cp.async.cg.shared.global", 80),
        ("linear", "mma.sync.aligned.m16n8k8.row.col.f32.f16", 75),
    ];
    for (_, instruction, _) in wanted.iter().filter(|(of, instruction, since)| {
        *of == source && arch >= *since && (*since == 80 || arch == *since) && !text.contains(instruction)
    }) {
        wrong.push(format!("{source} sm_{arch}: no {instruction}"));
    }
    (uses, wrong)
}

#[test]
fn kernels_compile_for_every_architecture_and_take_what_the_table_says() {
    let Some(tools) = tools() else { return };
    // Of this process's own: nothing else runs here.
    nvrtc::look_in(&tools.join("cuda_nvrtc/lib"));
    let scratch = tempfile::tempdir().unwrap();
    let kept = std::env::var_os("SDSHARD_KERNEL_IMAGES").map(PathBuf::from);
    let folder = kept.as_deref().unwrap_or(scratch.path());
    std::fs::create_dir_all(folder).unwrap();

    let jobs: Vec<_> = ARCHS.iter().flat_map(|arch| SOURCES.iter().map(move |source| (*arch, source))).collect();
    let (next, found) = (AtomicUsize::new(0), Mutex::new((BTreeMap::new(), Vec::new())));
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while let Some(&(arch, (source, text))) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let (uses, wrong) = match nvrtc::compile(&format!("{source}.cu"), text, &HEADERS, arch) {
                        Ok(ptx) => assemble(&tools, source, arch, &ptx, folder),
                        Err(words) => (BTreeMap::new(), vec![words]),
                    };
                    let mut found = found.lock().unwrap();
                    found.0.extend(uses.into_iter().map(|(kernel, used)| ((kernel, arch), used)));
                    found.1.extend(wrong);
                }
            });
        }
    });
    let (uses, wrong) = found.into_inner().unwrap();
    assert!(wrong.is_empty(), "{} objections:\n{}", wrong.len(), wrong.join("\n"));

    let table = table(&uses);
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/kernels/resources.txt");
    if std::env::var_os("SDSHARD_WRITE").is_some() {
        std::fs::write(file, &table).unwrap();
    }
    let want = std::fs::read_to_string(file).unwrap_or_default();
    let differing: Vec<_> = table.lines().filter(|line| !want.lines().any(|want| want == *line)).collect();
    assert!(
        table == want,
        "kernels/resources.txt says otherwise; SDSHARD_WRITE=1 cargo test --test kernels_compile writes it anew:\n{}",
        differing.join("\n")
    );
}

/// A line for each kernel: for each architecture registers / bytes of shared memory / occupancy in percent.
fn table(uses: &BTreeMap<(String, u32), Use>) -> String {
    let mut table = String::from(
        "# What each kernel takes: registers per thread / KiB of shared memory per block / warps at once in percent of what a\n\
         # multiprocessor holds. Written by tests/kernels_compile.rs, from what ptxas 12.9 says. No kernel spills a register or\n\
         # uses local memory.\n",
    );
    write!(table, "{:<28} threads", "# kernel").unwrap();
    for arch in ARCHS {
        write!(table, " {:>17}", format!("sm_{arch}")).unwrap();
    }
    table.push('\n');
    let mut kernels: Vec<&String> = uses.keys().map(|(kernel, _)| kernel).collect();
    kernels.dedup();
    for kernel in kernels {
        let of = |arch: u32| uses.get(&(kernel.clone(), arch));
        let threads = ARCHS.iter().find_map(|&arch| of(arch)).expect("it is there for one of them").threads;
        write!(table, "{kernel:<28} {threads:>7}").unwrap();
        for arch in ARCHS {
            let cell = of(arch).map_or("-".into(), |used| {
                let shared = f64::from(used.shared_bytes) / 1024.0;
                format!("{} /{shared:>5.1} /{:>4}", used.registers, used.occupancy(arch))
            });
            write!(table, " {cell:>17}").unwrap();
        }
        table.push('\n');
    }
    table
}

#[test]
fn what_ptxas_says_is_read() {
    let line = "ptxas info    : Used 126 registers, used 1 barriers, 49152 bytes smem, 420 bytes cmem[0]";
    assert_eq!((number_before(line, "registers"), number_before(line, "bytes smem")), (126, 49152));
    assert_eq!(number_before("ptxas info    : Used 26 registers, used 0 barriers", "bytes smem"), 0);
    let ptx =
        ".visible .entry first(\n.param .u64 x\n)\n.maxntid 256, 1, 1\n{\n.visible .entry second(\n)\n.maxntid 128\n";
    assert_eq!(threads(ptx), [("first".to_string(), 256), ("second".to_string(), 128)].into());
    // 2 blocks of 8 warps by registers (128 each) and by shared memory (48 KiB of 164); 2048 threads at most.
    let large = Use { threads: 256, registers: 126, shared_bytes: 49152 };
    assert_eq!((large.occupancy(80), large.occupancy(86), large.occupancy(75)), (25, 33, 25));
}
