//! Every CUDA kernel for every architecture, through NVIDIA's own compilers and disassembler: no register is spilled,
//! nothing lives in local memory, tensor cores and wide accesses are used where `kernels_compile/expected.rs` says so,
//! and what a kernel takes and is made of is in `kernels/resources.txt` and `kernels/instructions.txt`.
//!
//! The tools come by `kernels/tools/fetch`; without them there is nothing to test, which is printed, and with
//! `SDSHARD_EXPECT=cuda_tools` it is a failure. A change of the tables is made by `SDSHARD_WRITE=1 cargo test --test
//! kernels_compile`, and shows in review. `SDSHARD_KERNEL_IMAGES=FOLDER` also writes what a build can embed.
#![cfg(feature = "cuda")]

mod kernels_compile {
    pub mod expected;
    pub mod sass;
}

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

use kernels_compile::{
    expected::objections,
    sass::{Instructions, disassemble},
};
use sdshard::backend::cuda::{
    kernels::{HEADERS, SOURCES},
    nvrtc,
};

const ARCHS: [u32; 8] = [70, 75, 80, 86, 89, 90, 100, 120];

const PTXAS: &str = "cuda_nvcc/bin/ptxas";
const NVDISASM: &str = "cu13/bin/nvdisasm";

/// Where the tools are, if they are.
fn tools() -> Option<PathBuf> {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| PathBuf::from("target"), PathBuf::from);
    let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join(target).join("cuda_tools/nvidia");
    if [PTXAS, NVDISASM].iter().all(|tool| tools.join(tool).exists()) {
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
    /// Warps that a multiprocessor holds at once, of the most that it can: registers go to warps in units of 256,
    /// shared memory to blocks in units of 128 bytes, from sm_80 on after 1 KiB of the system's own.
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

/// A kernel as it was compiled.
struct Compiled {
    takes: Use,
    code: Instructions,
}

/// Each kernel of a source, and what is wrong with it.
fn assemble(
    tools: &Path,
    source: &str,
    arch: u32,
    ptx: &[u8],
    folder: &Path,
) -> (BTreeMap<String, Compiled>, Vec<String>) {
    let text = std::str::from_utf8(ptx).expect("PTX is text").trim_end_matches('\0');
    let (file, image) =
        (folder.join(format!("{source}.compute_{arch}.ptx")), folder.join(format!("{source}.sm_{arch}.cubin")));
    std::fs::write(&file, text).unwrap();
    let ran = Command::new(tools.join(PTXAS))
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
    let mut codes = disassemble(&tools.join(NVDISASM), &image, arch).unwrap_or_else(|words| {
        wrong.push(format!("{source} sm_{arch}: {words}"));
        BTreeMap::new()
    });
    let mut compiled = BTreeMap::new();
    for (kernel, takes) in uses {
        let code = codes.remove(&kernel).unwrap_or_default();
        wrong.extend(objections(&kernel, arch, &code).iter().map(|words| format!("{kernel} sm_{arch}: {words}")));
        compiled.insert(kernel, Compiled { takes, code });
    }
    (compiled, wrong)
}

#[test]
fn kernels_compile_for_every_architecture_into_what_they_claim_and_the_tables_say() {
    let Some(tools) = tools() else { return };
    // Of this process's own: nothing else runs here.
    // SAFETY: `kernels/tools/fetch` has put NVIDIA's library there.
    unsafe { nvrtc::look_in(&tools.join("cuda_nvrtc/lib")) };
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
                    let (kernels, wrong) = match nvrtc::compile(&format!("{source}.cu"), text, &HEADERS, arch) {
                        Ok(ptx) => assemble(&tools, source, arch, &ptx, folder),
                        Err(words) => (BTreeMap::new(), vec![words]),
                    };
                    let mut found = found.lock().unwrap();
                    found.0.extend(kernels.into_iter().map(|(kernel, compiled)| ((kernel, arch), compiled)));
                    found.1.extend(wrong);
                }
            });
        }
    });
    let (kernels, wrong) = found.into_inner().unwrap();
    assert!(wrong.is_empty(), "{} objections:\n{}", wrong.len(), wrong.join("\n"));

    let resources = table(RESOURCES, 17, &kernels, |compiled, arch| {
        let used = compiled.takes;
        let shared = f64::from(used.shared_bytes) / 1024.0;
        format!("{} /{shared:>5.1} /{:>4}", used.registers, used.occupancy(arch))
    });
    let instructions = table(INSTRUCTIONS, 19, &kernels, |compiled, _| {
        let code = &compiled.code;
        let all = |name| code.named(name).map(|(_, count)| count).sum::<u32>();
        let (loads, stores) = (code.moving("LDG", 16), code.moving("STG", 16));
        let products = format!("{:>3} {:>2} {:>2}", all("HMMA"), all("LDSM"), all("LDGSTS"));
        format!("{:>4} {products} {loads:>2} {stores:>1}", code.count())
    });
    let differing = [same("resources.txt", &resources), same("instructions.txt", &instructions)].concat();
    assert!(
        differing.is_empty(),
        "tables say otherwise; SDSHARD_WRITE=1 cargo test --test kernels_compile writes them anew:\n{differing}"
    );
}

/// The lines in which a table differs from the one that is kept in `kernels/`, or is written in its place.
fn same(name: &str, table: &str) -> String {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels").join(name);
    if std::env::var_os("SDSHARD_WRITE").is_some() {
        std::fs::write(&file, table).unwrap();
    }
    let want = std::fs::read_to_string(&file).unwrap_or_default();
    if table == want {
        return String::new();
    }
    let differing = table.lines().filter(|line| !want.lines().any(|want| want == *line));
    format!("{name}:\n{}\n", differing.collect::<Vec<_>>().join("\n"))
}

const RESOURCES: &str = "\
# What each kernel takes: registers per thread / KiB of shared memory per block / warps at once in percent of what a
# multiprocessor holds. Written by tests/kernels_compile.rs, from what ptxas 12.9 says. No kernel spills a register or
# uses local memory.
";

const INSTRUCTIONS: &str = "\
# What each kernel is made of: instructions, and among them products of tensor cores (HMMA), matrices read for them (LDSM),
# copies into shared memory (LDGSTS), loads and stores of 16 bytes (LDG, STG). Written by tests/kernels_compile.rs, from what
# nvdisasm says.
";

/// A line for each kernel, with a cell for each architecture.
fn table(
    words: &str,
    width: usize,
    kernels: &BTreeMap<(String, u32), Compiled>,
    cell: impl Fn(&Compiled, u32) -> String,
) -> String {
    let mut table = format!("{words}{:<28} threads", "# kernel");
    for arch in ARCHS {
        write!(table, " {:>width$}", format!("sm_{arch}")).unwrap();
    }
    table.push('\n');
    let mut names: Vec<&String> = kernels.keys().map(|(kernel, _)| kernel).collect();
    names.dedup();
    for kernel in names {
        let of = |arch: u32| kernels.get(&(kernel.clone(), arch));
        let threads = ARCHS.iter().find_map(|&arch| of(arch)).expect("it is there for one of them").takes.threads;
        write!(table, "{kernel:<28} {threads:>7}").unwrap();
        for arch in ARCHS {
            write!(table, " {:>width$}", of(arch).map_or("-".into(), |compiled| cell(compiled, arch))).unwrap();
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
