//! Imports flow one way: a module of `src/` uses only what stands below it, and no two files use each other, not even
//! by way of others.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use syn::{
    Item, ItemMod, ItemUse, Macro, UseTree, Visibility,
    visit::{self, Visit},
};

/// Top to bottom. A module may use those behind it.
const ORDER: [&str; 15] = [
    "cli",
    "bench",
    "engine",
    "figure",
    "planner",
    "device_map",
    "world",
    "pipeline",
    "models",
    "nn",
    "prompt",
    "tokenizer",
    "weights",
    "tensor",
    "backend",
];
/// Below all of [`ORDER`], and what each of them may use.
const SIDE: [(&str, &[&str]); 7] = [
    ("scheduler", &["error", "json"]),
    ("json", &["error"]),
    ("input", &[]),
    ("output", &["error"]),
    ("sync", &[]),
    ("error", &["device_id"]),
    ("device_id", &[]),
];

/// A module as a path from the crate: `["planner", "plan"]`. The library's root is empty; the program's own modules
/// begin with `main`.
type Name = Vec<String>;

/// An import or another path: its segments, and the name that it has here.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Import {
    path: Vec<String>,
    name: String,
}

/// What stands in one file, without its tests.
#[derive(Default)]
struct Source {
    /// Modules in files of their own.
    children: BTreeSet<String>,
    imports: Vec<Import>,
    /// `pub use`: names that others may import from here although they stand elsewhere.
    exports: Vec<Import>,
    /// Paths and names in the code itself.
    paths: Vec<Vec<String>>,
    /// Names of what is defined here.
    items: BTreeSet<String>,
}

impl Source {
    fn parse(text: &str) -> Self {
        let file = syn::parse_file(text).unwrap_or_else(|error| panic!("{error}\n{text}"));
        let mut source = Self::default();
        source.visit_file(&file);
        source
    }
}

impl Visit<'_> for Source {
    fn visit_item(&mut self, item: &Item) {
        let name = match item {
            Item::Const(item) => Some(&item.ident),
            Item::Enum(item) => Some(&item.ident),
            Item::Fn(item) => Some(&item.sig.ident),
            Item::Static(item) => Some(&item.ident),
            Item::Struct(item) => Some(&item.ident),
            Item::Trait(item) => Some(&item.ident),
            Item::Type(item) => Some(&item.ident),
            _ => None,
        };
        self.items.extend(name.map(ToString::to_string));
        visit::visit_item(self, item);
    }

    fn visit_item_mod(&mut self, module: &ItemMod) {
        let is_test = module.attrs.iter().any(|attribute| match &attribute.meta {
            syn::Meta::List(list) => list.path.is_ident("cfg") && has_word(&list.tokens.to_string(), "test"),
            _ => false,
        });
        match &module.content {
            None => _ = self.children.insert(module.ident.to_string()),
            Some(_) if is_test => {}
            Some(_) => visit::visit_item_mod(self, module),
        }
    }

    fn visit_item_use(&mut self, item: &ItemUse) {
        let imports = flat(&item.tree, &[]);
        match item.vis {
            Visibility::Inherited => self.imports.extend(imports),
            _ => self.exports.extend(imports),
        }
    }

    fn visit_path(&mut self, path: &syn::Path) {
        self.paths.push(path.segments.iter().map(|segment| segment.ident.to_string()).collect());
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, call: &Macro) {
        let tokens = call.tokens.to_string().replace(" :: ", "::");
        let is_part = |c: char| c.is_alphanumeric() || matches!(c, '_' | ':');
        let words = tokens.split(|c| !is_part(c)).filter(|word| !word.is_empty());
        self.paths.extend(words.map(|word| word.split("::").map(str::to_string).collect()));
        visit::visit_macro(self, call);
    }
}

fn has_word(text: &str, word: &str) -> bool {
    text.split(|c: char| !c.is_alphanumeric() && c != '_').any(|found| found == word)
}

/// All that one `use` imports.
fn flat(tree: &UseTree, before: &[String]) -> Vec<Import> {
    let with = |name: &syn::Ident| [before, &[name.to_string()]].concat();
    let import = |path: Vec<String>, name: &syn::Ident| {
        let mut path = path;
        if path.len() > 1 && path.last().is_some_and(|last| last == "self") {
            path.pop();
        }
        vec![Import { path, name: name.to_string() }]
    };
    match tree {
        UseTree::Path(path) => flat(&path.tree, &with(&path.ident)),
        UseTree::Name(name) if name.ident == "self" => {
            vec![Import { path: before.to_vec(), name: before.last().cloned().unwrap_or_default() }]
        }
        UseTree::Name(name) => import(with(&name.ident), &name.ident),
        UseTree::Rename(rename) => import(with(&rename.ident), &rename.rename),
        UseTree::Glob(_) => vec![Import { path: before.to_vec(), name: "*".into() }],
        UseTree::Group(group) => group.items.iter().flat_map(|tree| flat(tree, before)).collect(),
    }
}

/// All files of a crate.
struct Sources(BTreeMap<Name, Source>);

impl Sources {
    /// From the text of each file.
    fn of<'a>(files: impl IntoIterator<Item = (Name, &'a str)>) -> Self {
        Self(files.into_iter().map(|(name, text)| (name, Source::parse(text))).collect())
    }

    /// Those of this crate.
    fn read() -> Self {
        let mut files = Vec::new();
        read_folder(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &[], &mut files);
        Self::of(files.iter().map(|(name, text)| (name.clone(), text.as_str())))
    }

    /// The module in which a path begins, and the rest of it; `None` if it leads out of the crate or to a local name.
    fn begin<'p>(&self, here: &[String], path: &'p [String]) -> Option<(Name, &'p [String])> {
        let is_program = here.first().is_some_and(|first| first == "main");
        let (first, mut rest) = path.split_first()?;
        match first.as_str() {
            "crate" if is_program => Some((vec!["main".into()], rest)),
            "crate" | "sdshard" => Some((Vec::new(), rest)),
            "self" => Some((here.to_vec(), rest)),
            "super" => {
                let mut module = &here[..here.len().checked_sub(1)?];
                while rest.first().is_some_and(|next| next == "super") {
                    (module, rest) = (&module[..module.len().checked_sub(1)?], &rest[1..]);
                }
                Some((module.to_vec(), rest))
            }
            child => self.0[here].children.contains(child).then(|| (here.to_vec(), path)),
        }
    }

    /// The file in which what a path names stands: `pub use` is followed.
    fn resolve(&self, module: Name, path: &[String]) -> Name {
        let Some((first, rest)) = path.split_first() else { return module };
        let source = &self.0[&module];
        if source.children.contains(first) {
            return self.resolve([&module[..], std::slice::from_ref(first)].concat(), rest);
        }
        let named = source.exports.iter().find(|export| export.name == *first);
        if let Some((base, inner)) = named.and_then(|export| self.begin(&module, &export.path)) {
            return self.resolve(base, &[inner, rest].concat());
        }
        let globs = source.exports.iter().filter(|export| export.name == "*");
        let of_glob = globs.filter_map(|export| {
            let (base, inner) = self.begin(&module, &export.path)?;
            Some(self.resolve(base, inner))
        });
        let from = of_glob.into_iter().find(|from| self.0[from].items.contains(first));
        from.map_or(module, |from| self.resolve(from, path))
    }

    /// The files that a file uses. What it only exports is used by those who import it.
    fn uses(&self, here: &Name) -> BTreeSet<Name> {
        let source = &self.0[here];
        let names: BTreeSet<&String> = source.paths.iter().filter_map(|path| path.first()).collect();
        let used = source.exports.iter().filter(|export| names.contains(&export.name));
        let imports = source.imports.iter().chain(used).map(|import| &import.path);
        let paths = imports.chain(source.paths.iter().filter(|path| path.len() > 1));
        let target = |path: &Vec<String>| self.begin(here, path).map(|(base, rest)| self.resolve(base, rest));
        paths.filter_map(target).filter(|target| target != here && !is_root(target)).collect()
    }

    /// Groups of files each of which uses all others of its group, be it by way of others.
    fn circles(&self) -> Vec<Vec<String>> {
        let uses: BTreeMap<&Name, BTreeSet<Name>> =
            self.0.keys().filter(|name| !is_root(name)).map(|name| (name, self.uses(name))).collect();
        let reachable = |from: &Name| {
            let (mut seen, mut open) = (BTreeSet::new(), vec![from.clone()]);
            while let Some(next) = open.pop() {
                open.extend(uses[&next].iter().filter(|used| seen.insert((*used).clone())).cloned());
            }
            seen
        };
        let reached: BTreeMap<&Name, BTreeSet<Name>> = uses.keys().map(|name| (*name, reachable(name))).collect();
        let mut circles: BTreeSet<Vec<String>> = BTreeSet::new();
        for (name, below) in reached.iter().filter(|(name, below)| below.contains(**name)) {
            let members = below.iter().filter(|other| reached[other].contains(*name));
            circles.insert(members.map(|member| member.join("/")).collect());
        }
        circles.into_iter().collect()
    }

    /// What files use against the order of the modules.
    fn violations(&self) -> Vec<String> {
        let top = |name: &Name| name.iter().find(|part| *part != "main").cloned().unwrap_or_default();
        let mut found = Vec::new();
        for name in self.0.keys().filter(|name| !is_root(name)) {
            for used in self.uses(name) {
                match may_use(&top(name), &top(&used)) {
                    Some(true) => {}
                    Some(false) => found.push(format!("{} uses {}", name.join("/"), used.join("/"))),
                    None => found.push(format!(
                        "{} uses {}: give both a place in this test",
                        name.join("/"),
                        used.join("/")
                    )),
                }
            }
        }
        found
    }
}

/// `lib.rs` and `main.rs` name every module and belong to none.
fn is_root(name: &[String]) -> bool {
    name.is_empty() || name == ["main"]
}

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

/// Adds the name and the text of each Rust file below `folder`.
fn read_folder(folder: &Path, module: &[String], files: &mut Vec<(Name, String)>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let own = path.file_stem().unwrap().to_str().unwrap().to_string();
        let name = match (module, own.as_str()) {
            ([], "lib") => Vec::new(),
            ([], "cli") => vec!["main".into(), own],
            (_, "mod") => module.to_vec(),
            _ => [module, &[own]].concat(),
        };
        if path.is_dir() {
            read_folder(&path, &name, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push((name, fs::read_to_string(path).unwrap()));
        }
    }
}

#[test]
fn modules_use_only_what_stands_below_them() {
    let sources = Sources::read();
    assert!(sources.0.len() > 100, "{} files were looked at", sources.0.len());
    let found = sources.violations();
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn no_two_files_use_each_other() {
    let circles: Vec<String> = Sources::read().circles().iter().map(|circle| circle.join(", ")).collect();
    assert!(circles.is_empty(), "{} circles:\n{}", circles.len(), circles.join("\n"));
}

/// A crate of these files: `name`, with `/` between modules, and text.
fn made_up(files: &[(&str, &str)]) -> Sources {
    let name = |name: &str| name.split('/').filter(|part| !part.is_empty()).map(str::to_string).collect();
    Sources::of(files.iter().map(|(path, text)| (name(path), *text)))
}

/// What is wrong in a crate of which `module` has this text and all others are empty; `novelty` has no place.
fn violations(module: &str, text: &str) -> Vec<String> {
    let modules = [&ORDER[..], &SIDE.map(|(name, _)| name), &["novelty"]].concat();
    let root: String = modules.iter().map(|module| format!("mod {module};")).collect();
    let others = modules.iter().filter(|other| **other != module).map(|other| (*other, ""));
    let files: Vec<(&str, &str)> = others.chain([("", root.as_str()), (module, text)]).collect();
    made_up(&files).violations()
}

#[test]
fn a_made_up_violation_is_found() {
    for (module, text, want) in [
        ("backend", "use crate::tensor::Tensor;", "backend uses tensor"),
        ("tensor", "fn f() -> crate::nn::Linear {}", "tensor uses nn"),
        ("nn", "use crate::{\n    backend::{Device, DType},\n    models::spec,\n};", "nn uses models"),
        ("error", "use crate::backend::DType;", "error uses backend"),
        ("error", "use crate::scheduler;", "error uses scheduler"),
        ("scheduler", "pub use crate :: tensor::Tensor; fn f(_: Tensor) {}", "scheduler uses tensor"),
        ("tokenizer", "use crate::models::spec as s;", "tokenizer uses models"),
        ("planner", "fn f() { println!(\"{}\", crate::engine::LIMIT) }", "planner uses engine"),
        ("bench", "use crate::{cli};", "bench uses cli"),
        ("weights", "use sdshard::pipeline;", "weights uses pipeline"),
        ("nn", "use crate::{self, novelty::New};", "nn uses novelty: give both a place in this test"),
    ] {
        assert_eq!(violations(module, text), [want], "{text}");
    }
}

#[test]
fn what_is_allowed_is_not_objected_to() {
    for (module, text) in [
        ("tensor", "use crate::{\n    backend::{Buffer, Device},\n    error::{Error, Result},\n};"),
        ("cli", "use sdshard::{engine::Engine, planner, scheduler::Scheduler};"),
        ("models", "use crate::{nn, scheduler, tokenizer};"),
        ("scheduler", "use crate::error::Result;"),
        ("backend", "// crate::tensor is above\nconst URL: &str = \"https://crate::nn\"; /// [`crate::nn`]\nstruct A;"),
        ("error", "use other_crate::tensor;\nmacro_rules! m { () => { supercrate::nn } }"),
        ("nn", "#[cfg(test)]\nmod tests { use crate::engine::Engine; }"),
    ] {
        assert_eq!(violations(module, text), Vec::<String>::new(), "{text}");
    }
}

#[test]
fn a_made_up_circle_is_found_and_nothing_else() {
    let root = ("", "mod a;");
    for (files, want) in [
        (
            &[
                ("a", "mod b; mod c;"),
                ("a/b", "use super::c::C; struct B;"),
                ("a/c", "struct C; fn f(_: super::b::B) {}"),
            ][..],
            Some("a/b, a/c"),
        ),
        // By way of a third, and of a name that the module above exports.
        (
            &[
                ("a", "mod b; mod c; mod d; pub use d::D;"),
                ("a/b", "use super::c::C;"),
                ("a/c", "use super::D; struct C;"),
                ("a/d", "use crate::a::b; struct D;"),
            ],
            Some("a/b, a/c, a/d"),
        ),
        // A module above that works with what it exports.
        (&[("a", "mod b; pub use b::B; struct A(B);"), ("a/b", "use super::A; struct B;")], Some("a, a/b")),
        // One that only exports it.
        (
            &[
                ("a", "mod b; mod c; pub use b::B; pub use c::*;"),
                ("a/b", "use super::C; struct B;"),
                ("a/c", "struct C;"),
            ],
            None,
        ),
        (
            &[
                ("a", "mod b; mod c;"),
                ("a/b", "use super::c::C; struct B; #[cfg(all(test, not(loom)))] mod tests {}"),
                ("a/c", "struct C; #[cfg(test)] mod tests { use crate::a::b::B; }"),
            ],
            None,
        ),
    ] {
        let circles = made_up(&[&[root], files].concat()).circles();
        let found: Vec<String> = circles.iter().map(|circle| circle.join(", ")).collect();
        assert_eq!(found, want.into_iter().collect::<Vec<_>>(), "{files:?}");
    }
}
