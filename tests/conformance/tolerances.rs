//! The tolerances of all cases as a table.

use std::fmt::Write;

use sdshard::backend::DType;

use super::cases::{Case, Op};

/// For each op how far from its definition a result may be, of the largest element: from the strictest to the most
/// lenient of its cases, in each type; and how often a 16-bit type rounds on the way.
pub fn table(cases: &[Case]) -> String {
    let mut table = String::from("| op | f32 | roundings to 16 bits | f16 | bf16 |\n|---|---|---|---|---|\n");
    let mut names = Vec::new();
    for case in cases {
        if !names.contains(&name(&case.op)) {
            names.push(name(&case.op));
        }
    }
    for of in names {
        let cell = |dtype| {
            let fitting = cases.iter().filter(|case| name(&case.op) == of && case.fits(dtype, 0.0));
            range(fitting.map(|case| case.tolerance_in(dtype)), |tolerance| match tolerance {
                0.0 => "0".into(),
                some => format!("{some:.0e}"),
            })
        };
        let narrow = cases.iter().filter(|case| name(&case.op) == of && case.fits(DType::BF16, 0.0));
        let roundings = range(narrow.map(|case| case.roundings() as f64), |count| count.to_string());
        let (f32, f16, bf16) = (cell(DType::F32), cell(DType::F16), cell(DType::BF16));
        writeln!(table, "| `{of}` | {f32} | {roundings} | {f16} | {bf16} |").unwrap();
    }
    table
}

/// "least to most", or the one that there is, or "-".
fn range(values: impl Iterator<Item = f64>, show: impl Fn(f64) -> String) -> String {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    match (values.first(), values.last()) {
        (Some(&least), Some(&most)) if show(least) != show(most) => format!("{} to {}", show(least), show(most)),
        (Some(&one), _) => show(one),
        _ => "-".into(),
    }
}

fn name(op: &Op) -> &'static str {
    match op {
        Op::Linear { .. } => "linear",
        Op::Conv2d { .. } => "conv2d",
        Op::Attention { .. } => "attention",
        Op::GroupNorm { .. } => "group_norm",
        Op::LayerNorm { .. } => "layer_norm",
        Op::Embedding { .. } => "embedding",
        Op::Upsample2x { .. } => "upsample2x",
        Op::ConcatChannels { .. } => "concat_channels",
        Op::Activate { .. } => "activate",
        Op::Add { .. } => "add",
        Op::AddChannels { .. } => "add_channels",
        Op::ScaleAdd { .. } => "scale_add",
        Op::Stack { .. } => "stack",
    }
}
