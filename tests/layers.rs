//! Imports flow one way: a module of `src/` uses only what stands below it.

use std::{collections::BTreeSet, fs, path::Path};

/// Top to bottom. A module may use those behind it.
const ORDER: [&str; 11] =
    ["cli", "bench", "engine", "planner", "pipeline", "models", "nn", "tokenizer", "weights", "tensor", "backend"];
/// Below all of [`ORDER`], and what each of them may use.
const SIDE: [(&str, &[&str]); 6] = [
    ("scheduler", &["error", "json"]),
    ("json", &["error"]),
    ("input", &[]),
    ("output", &["error"]),
    ("sync", &[]),
    ("error", &[]),
];
/// They name every module and belong to none.
const ROOTS: [&str; 2] = ["lib", "main"];

/// Whether `module` may use `used`; `None` if one of them has no place yet.
fn may_use(module: &str, used: &str) -> Option<bool> {
    let place = |name: &str| ORDER.iter().position(|&module| module == name);
    let side = |name: &str| SIDE.iter().find(|(module, _)| *module == name);
    Some(match (place(module), side(module), place(used), side(used)) {
        _ if module == used => true,
        (Some(above), _, Some(below), _) => above < below,
        (Some(_), _, _, Some(_)) => true,
        (_, Some((_, allowed)), Some(_), _) | (_, Some((_, allowed)), _, Some(_)) => allowed.contains(&used),
        _ => return None,
    })
}

/// What `text`, a file of `module`, uses against the order.
fn violations(module: &str, text: &str) -> Vec<String> {
    let complaint = |used: &String| match may_use(module, used) {
        Some(true) => None,
        Some(false) => Some(format!("{module} uses {used}")),
        None => Some(format!("{module} uses {used}: give both a place in this test")),
    };
    uses(module, text).iter().filter_map(complaint).collect()
}

/// The modules that stand behind `crate::` or `sdshard::`, alone or in braces, comments and strings left out.
fn uses(module: &str, text: &str) -> BTreeSet<String> {
    let code = code(text);
    let mut found = BTreeSet::new();
    for root in ["crate", "sdshard"] {
        for (at, _) in code.match_indices(root) {
            let is_word = !code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_');
            if let Some(rest) = code[at + root.len()..].trim_start().strip_prefix("::")
                && is_word
            {
                found.extend(heads(rest));
            }
        }
    }
    // The binary's own modules see each other through `crate::`, the library through `sdshard::`.
    found.retain(|name| name != module);
    found
}

/// The first names of a path: `a` of `a::b`, `a` and `c` of `{a::b, c::{d, e}}`.
fn heads(path: &str) -> Vec<String> {
    let word = |text: &str| -> String {
        text.trim_start().chars().take_while(|c| c.is_alphanumeric() || matches!(c, '_' | '*')).collect()
    };
    let Some(inside) = path.trim_start().strip_prefix('{') else { return vec![word(path)] };
    let (mut depth, mut heads, mut start) = (0, Vec::new(), 0);
    for (i, c) in inside.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth > 0 => depth -= 1,
            ',' | '}' if depth == 0 => {
                heads.push(word(&inside[start..i]));
                start = i + 1;
                if c == '}' {
                    break;
                }
            }
            _ => {}
        }
    }
    heads.retain(|head| !head.is_empty());
    heads
}

/// Without comments and without what stands in quotes, of which neither imports anything.
fn code(text: &str) -> String {
    let mut code = String::new();
    for line in text.lines() {
        let line = line.replace("\\\"", "").replace("'\"'", "");
        let mut quoted = false;
        for part in line.split('"') {
            if !quoted {
                match part.split_once("//") {
                    Some((before, _)) => {
                        code.push_str(before);
                        break;
                    }
                    None => code.push_str(part),
                }
            }
            quoted = !quoted;
        }
        code.push('\n');
    }
    code
}

/// Calls `visit` with each Rust file below `folder` and the module of the crate that it belongs to.
fn each_file(folder: &Path, module: Option<&str>, visit: &mut impl FnMut(&Path, &str)) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_string();
        let module = module.unwrap_or(&name);
        if path.is_dir() {
            each_file(&path, Some(module), visit);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            visit(&path, module);
        }
    }
}

#[test]
fn imports_flow_one_way() {
    let (mut found, mut seen) = (Vec::new(), BTreeSet::new());
    each_file(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), None, &mut |path, module| {
        seen.insert(module.to_string());
        if !ROOTS.contains(&module) {
            let text = fs::read_to_string(path).unwrap();
            found.extend(violations(module, &text).into_iter().map(|what| format!("{}: {what}", path.display())));
        }
    });
    assert!(found.is_empty(), "{}", found.join("\n"));
    for module in ["tensor", "backend", "error"] {
        assert!(seen.contains(module), "no file of {module} was looked at");
    }
}

#[test]
fn a_made_up_violation_is_found() {
    for (module, text, want) in [
        ("backend", "use crate::tensor::Tensor;", "backend uses tensor"),
        ("tensor", "fn f() -> crate::nn::Linear {}", "tensor uses nn"),
        ("nn", "use crate::{\n    backend::{Device, DType},\n    models::spec,\n};", "nn uses models"),
        ("error", "use crate::backend::DType;", "error uses backend"),
        ("error", "use crate::scheduler;", "error uses scheduler"),
        ("scheduler", "pub use crate :: tensor::Tensor;", "scheduler uses tensor"),
        ("tokenizer", "use crate::models::spec as s;", "tokenizer uses models"),
        ("planner", "mod tests {\n    use crate::engine::Engine;\n}", "planner uses engine"),
        ("bench", "use crate::{cli};", "bench uses cli"),
        ("weights", "use sdshard::pipeline;", "weights uses pipeline"),
        ("nn", "use crate::{self, novelty::New};", "nn uses novelty: give both a place in this test"),
    ] {
        let found = violations(module, text);
        assert!(found.iter().any(|found| found == want), "{text}: {found:?}");
    }
}

#[test]
fn what_is_allowed_is_not_objected_to() {
    for (module, text) in [
        ("tensor", "use crate::{\n    backend::{Buffer, Device},\n    error::{Error, Result},\n};"),
        ("cli", "use sdshard::{engine::Engine, planner, scheduler::Scheduler};"),
        ("models", "use crate::{nn, scheduler, tokenizer};"),
        ("scheduler", "use crate::error::Result;"),
        ("backend", "use super::tensor;\nuse crate::backend::cpu;"),
        ("backend", "// crate::tensor is above\nconst URL: &str = \"https://crate::nn\"; /// [`crate::nn`]"),
        ("error", "use other_crate::tensor;\nmacro_rules! m { () => { supercrate::nn } }"),
    ] {
        assert_eq!(violations(module, text), Vec::<String>::new(), "{text}");
    }
}
