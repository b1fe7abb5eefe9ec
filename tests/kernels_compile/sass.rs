//! What the machine code of kernels is made of, as NVIDIA's disassembler reads it.

use std::{collections::BTreeMap, path::Path, process::Command};

/// How often each instruction stands in a kernel, with its modifiers: `LDG.E.128`, 6.
#[derive(Debug, Default)]
pub struct Instructions(BTreeMap<String, u32>);

impl Instructions {
    /// All of them.
    pub fn count(&self) -> u32 {
        self.0.values().sum()
    }

    /// Those of a name without modifiers: `LDG`.
    pub fn named(&self, name: &str) -> impl Iterator<Item = (&str, u32)> {
        self.0.iter().filter(move |(full, _)| full.split('.').next() == Some(name)).map(|(full, n)| (full.as_str(), *n))
    }

    /// How many of a name move so many bytes per thread.
    pub fn moving(&self, name: &str, bytes: u32) -> u32 {
        self.named(name).filter(|(full, _)| bytes_moved(full) == bytes).map(|(_, n)| n).sum()
    }

    /// Bytes per thread that the widest of some names moves; 0 if there is none.
    pub fn widest(&self, names: &[&str]) -> u32 {
        names.iter().flat_map(|name| self.named(name)).map(|(full, _)| bytes_moved(full)).max().unwrap_or(0)
    }
}

impl<'a> FromIterator<&'a str> for Instructions {
    fn from_iter<I: IntoIterator<Item = &'a str>>(names: I) -> Self {
        let mut counts = Self::default();
        for name in names {
            *counts.0.entry(name.to_string()).or_default() += 1;
        }
        counts
    }
}

/// By the modifiers of a load, a store or a copy; without any it is a register.
fn bytes_moved(instruction: &str) -> u32 {
    let of = |modifier| match modifier {
        "128" => Some(16),
        "64" => Some(8),
        "U16" | "S16" => Some(2),
        "U8" | "S8" => Some(1),
        _ => None,
    };
    instruction.split('.').find_map(of).unwrap_or(4)
}

/// The instructions of each kernel of a cubin.
///
/// # Errors
/// What the disassembler says, or that it is not understood.
pub fn disassemble(nvdisasm: &Path, cubin: &Path, arch: u32) -> Result<BTreeMap<String, Instructions>, String> {
    let mut image = std::fs::read(cubin).map_err(|e| e.to_string())?;
    if arch == 70 {
        as_turing(&mut image)?;
    }
    let file = tempfile::NamedTempFile::with_suffix(".cubin").map_err(|e| e.to_string())?;
    std::fs::write(&file, image).map_err(|e| e.to_string())?;
    let ran = Command::new(nvdisasm).args(["--print-code", "--no-dataflow"]).arg(file.path()).output();
    let ran = ran.map_err(|e| format!("{}: {e}", nvdisasm.display()))?;
    if !ran.status.success() {
        return Err(String::from_utf8_lossy(&ran.stderr).into_owned());
    }
    kernels(&String::from_utf8_lossy(&ran.stdout))
}

/// Names a cubin of sm_70 one of sm_75. This disassembler no longer knows the older name, but the instructions, which
/// sm_75 took over with their encoding. The name is in two bytes of the flags of the ELF header.
fn as_turing(image: &mut [u8]) -> Result<(), String> {
    match image.get_mut(48..52) {
        Some([real, _, virtual_one, _]) if (*real, *virtual_one) == (70, 70) => {
            (*real, *virtual_one) = (75, 75);
            Ok(())
        }
        other => Err(format!("the flags of a cubin of sm_70 are {other:?}")),
    }
}

/// Reads the text of a disassembler.
fn kernels(text: &str) -> Result<BTreeMap<String, Instructions>, String> {
    let mut kernels: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    let mut kernel = None;
    for line in text.lines() {
        if let Some(name) = line.strip_prefix(".text.").and_then(|rest| rest.strip_suffix(':')) {
            kernel = Some(kernels.entry(name.to_string()).or_default());
        } else if let Some((_, code)) = line.trim_start().strip_prefix("/*").and_then(|rest| rest.split_once("*/")) {
            // "@!P0 LDG.E.128 R4, [R2] ;"
            let name = code.split_whitespace().find(|word| !word.starts_with('@')).unwrap_or_default();
            let is_name = name.starts_with(|first: char| first.is_ascii_uppercase());
            let Some(kernel) = kernel.as_mut().filter(|_| is_name) else {
                return Err(format!("{line:?} is no instruction of a kernel"));
            };
            kernel.push(name);
        }
    }
    Ok(kernels.into_iter().map(|(kernel, names)| (kernel, names.into_iter().collect())).collect())
}

#[test]
fn what_nvdisasm_says_is_read() {
    let text = "\t.section\t.text.first,\"ax\",@progbits\nfirst:\n.text.first:\n\
        \x20       /*0000*/                   LDG.E.128.SYS R4, [R2] ;\n\
        \x20       /*0010*/              @!P0 LDG.E.U16 R8, [R2+0x10] ;\n.L_x_1:\n\
        \x20       /*0020*/                   EXIT ;\n.text.second:\n        /*0000*/  HMMA.1688.F32 R4, R8, R2, R4 ;\n";
    let kernels = kernels(text).unwrap();
    let (first, second) = (&kernels["first"], &kernels["second"]);
    assert_eq!((first.count(), first.moving("LDG", 16), first.moving("LDG", 2)), (3, 1, 1));
    assert_eq!((first.widest(&["LDG"]), first.widest(&["STG"]), second.widest(&["LDG"])), (16, 0, 0));
    assert_eq!(second.named("HMMA").collect::<Vec<_>>(), [("HMMA.1688.F32", 1)]);
    super::sass::kernels(".text.first:\n /*0000*/ .byte 0x12 ;\n").unwrap_err();
}
