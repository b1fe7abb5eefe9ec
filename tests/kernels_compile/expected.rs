//! What kernels claim of their machine code. A row is held to both ways: what it claims is there, and what it does not
//! is not, so that a kernel that becomes better has to say so.

use Access::{Bytes, Elements};

use super::sass::Instructions;

/// The widest access of a thread to global memory.
#[derive(Clone, Copy)]
enum Access {
    Bytes(u32),
    /// So many elements of the kernel's type.
    Elements(u32),
}

/// As much as an instruction can move.
const WIDE: Access = Bytes(16);

/// How products are computed, in the types that the architecture has tensor cores for.
#[derive(Clone, Copy, PartialEq)]
enum Products {
    /// By plain arithmetic, in every type.
    Plain,
    /// By tensor cores; operands come element by element.
    Cores,
    /// By tensor cores; from sm_80 on, operands travel into shared memory by themselves.
    Pipelined,
}
use Products::{Cores, Pipelined, Plain};

/// Kernels whose names begin so, products, loads, stores. The first row that fits.
const CLAIMS: &[(&str, Products, Access, Access)] = &[
    ("linear_large", Pipelined, WIDE, WIDE),
    ("linear_small", Pipelined, WIDE, WIDE),
    ("conv2d_large", Pipelined, WIDE, WIDE),
    ("conv2d_small", Pipelined, WIDE, WIDE),
    // Rows of any width: elements of x and w one by one. What is wide here is the epilogue.
    ("linear_any", Cores, WIDE, WIDE),
    ("conv2d_any", Cores, WIDE, WIDE),
    ("split_k", Plain, WIDE, WIDE),
    ("attention_mma", Pipelined, WIDE, WIDE),
    // Four channels of a thread at a time in, one by one out: the products decide, not memory.
    ("attention", Plain, Elements(4), Elements(1)),
    // A lane has one channel of a pixel, so that groups of any width are read alike; what it writes are f32 sums.
    ("group_norm_statistics", Plain, Elements(1), Bytes(4)),
    ("group_norm_combine", Plain, Bytes(4), Bytes(4)),
    ("group_norm_scale", Plain, WIDE, WIDE),
    // A lane has every 32nd channel; weight and bias are f32.
    ("layer_norm", Plain, Bytes(4), Elements(1)),
    ("activate", Plain, WIDE, WIDE),
    ("add_channels", Plain, WIDE, WIDE),
    ("scale_add", Plain, WIDE, WIDE),
    ("concat_channels", Plain, WIDE, WIDE),
    ("upsample2x", Plain, WIDE, WIDE),
    ("embedding", Plain, WIDE, WIDE),
    // Four elements of a thread on either side.
    ("cast_f32", Plain, WIDE, Elements(4)),
    ("cast", Plain, Bytes(8), Elements(4)),
];

/// The instruction by which an architecture's tensor cores multiply a type, sums in f32.
fn multiplication(dtype: &str, arch: u32) -> Option<&'static str> {
    match (dtype, arch) {
        ("f16", 70) => Some("HMMA.884.F32.F32"),
        ("f16", 75) => Some("HMMA.1688.F32"),
        ("f16", 80..) => Some("HMMA.16816.F32"),
        ("bf16", 80..) => Some("HMMA.16816.F32.BF16"),
        _ => None,
    }
}

/// Where a kernel's code is not what its row says.
pub fn objections(kernel: &str, arch: u32, code: &Instructions) -> Vec<String> {
    let Some(&(_, products, load, store)) = CLAIMS.iter().find(|(of, ..)| kernel.starts_with(of)) else {
        return vec!["no row says what it is made of".into()];
    };
    // The combining kernel of group norm has no type in its name, and computes in f32.
    let dtype = kernel.rsplit('_').next().filter(|dtype| ["f16", "bf16"].contains(dtype)).unwrap_or("f32");
    let bytes = |access| match access {
        Bytes(bytes) => bytes,
        Elements(count) => count * if dtype == "f32" { 4 } else { 2 },
    };
    let mut wrong = Vec::new();
    let mut all = |name: &str, is_right: &dyn Fn(&str) -> bool, wanted: bool, words: &str| {
        let found: Vec<_> = code.named(name).map(|(full, _)| full).collect();
        match found.iter().find(|full| !wanted || !is_right(full)) {
            Some(full) => wrong.push(format!("{full}, where {}", if wanted { words } else { "there should be none" })),
            None if wanted && found.is_empty() => wrong.push(format!("no {name}: wanted is {words}")),
            None => {}
        }
    };
    let shape = multiplication(dtype, arch).filter(|_| products != Plain);
    // Volta's takes four steps.
    all("HMMA", &|full| full.split(".STEP").next() == shape, shape.is_some(), shape.unwrap_or_default());
    all("LDSM", &|full| full.ends_with("88.4"), shape.is_some() && arch >= 75, "four matrices at once");
    let copies = products == Pipelined && shape.is_some() && arch >= 80;
    all("LDGSTS", &|full| full.contains(".BYPASS.128"), copies, "16 bytes past the first cache");
    // Memory of a thread's own, and accesses that do not know which memory they go to.
    for name in ["LDL", "STL", "LD", "ST"] {
        all(name, &|_| false, false, "");
    }
    for (names, access) in [(&["LDG", "LDGSTS"][..], load), (&["STG"], store)] {
        let (got, want) = (code.widest(names), bytes(access));
        if got != want {
            wrong.push(format!("the widest {} moves {got} bytes, not {want}", names[0]));
        }
    }
    wrong
}

#[test]
fn code_that_is_not_as_claimed_is_objected_to() {
    let good = ["HMMA.16816.F32", "LDSM.16.M88.4", "LDGSTS.E.BYPASS.128", "LDG.E.U16", "STG.E.128", "EXIT"];
    let object = |kernel, arch, code: &[&str]| objections(kernel, arch, &code.iter().copied().collect());
    assert_eq!(object("linear_large_f16", 80, &good), [""; 0]);
    for (of, bad) in [
        ("HMMA.16816.F32", "HMMA.1688.F32"),
        ("HMMA.16816.F32", "HMMA.16816.F32.BF16"),
        ("HMMA.16816.F32", "FFMA"),
        ("LDSM.16.M88.4", "LDS.128"),
        ("LDGSTS.E.BYPASS.128", "LDGSTS.E.64"),
        ("LDGSTS.E.BYPASS.128", "LDG.E.128"),
        ("STG.E.128", "STG.E"),
        ("EXIT", "STL.64"),
        ("EXIT", "LDL"),
        ("EXIT", "ST.E.128"),
    ] {
        let code = good.map(|name| if name == of { bad } else { name });
        assert!(!object("linear_large_f16", 80, &code).is_empty(), "{bad} in place of {of}");
    }
    for (kernel, arch) in [("linear_large_bf16", 80), ("linear_large_f16", 75), ("activate_f16", 80), ("new_f16", 80)] {
        assert!(!object(kernel, arch, &good).is_empty(), "{kernel} sm_{arch}");
    }
}
