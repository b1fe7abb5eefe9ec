//! What a program that uses the crate may rely on: the names at the top of the crate with their fields, variants and
//! methods, as `tests/public_api.txt` lists them. A change of that file is a change of the public API.
//! `SDSHARD_WRITE=1` writes it anew.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use quote::ToTokens;
use syn::{Attribute, Fields, ImplItem, Item, Type, UseTree, Visibility};

/// Names at the top of the crate: more than this is not a surface that can be kept.
const MAX_NAMES: usize = 100;

const LIST: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/public_api.txt");

/// Tokens as one would write them, nearly.
fn text(tokens: impl ToTokens) -> String {
    let text = tokens.to_token_stream().to_string();
    let tight = [" ::", ":: ", " <", "< ", " >", "& ", " ,", " ;", "( ", " )", " (", " :", "# [", "[ ", " ]"];
    tight.iter().fold(text, |text, wide| text.replace(wide, wide.trim())).replace("->", " -> ").replace("  ", " ")
}

fn is_public(visibility: &Visibility) -> bool {
    matches!(visibility, Visibility::Public(_))
}

fn is_for_tests(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| attribute.path().is_ident("cfg") && text(&attribute.meta).contains("test"))
}

/// The items of every file below a module of the library.
fn items(module: &str) -> Vec<Item> {
    fn files(path: &Path, items: &mut Vec<Item>) {
        if path.is_dir() {
            fs::read_dir(path).unwrap().for_each(|entry| files(&entry.unwrap().path(), items));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            items.extend(syn::parse_file(&fs::read_to_string(path).unwrap()).unwrap().items);
        }
    }
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut all = Vec::new();
    files(&source.join(module), &mut all);
    let file = source.join(format!("{module}.rs"));
    if file.exists() {
        files(&file, &mut all);
    }
    all
}

/// The paths of a `pub use`, each with the name that it has there.
fn exports(tree: &UseTree, path: &[String], found: &mut Vec<(Vec<String>, String)>) {
    let with = |name: &syn::Ident| [path, &[name.to_string()]].concat();
    match tree {
        UseTree::Path(inner) => exports(&inner.tree, &with(&inner.ident), found),
        UseTree::Group(group) => group.items.iter().for_each(|tree| exports(tree, path, found)),
        UseTree::Name(name) => found.push((with(&name.ident), name.ident.to_string())),
        UseTree::Rename(rename) => found.push((with(&rename.ident), rename.rename.to_string())),
        UseTree::Glob(_) => panic!("a name at the top of the crate is written out"),
    }
}

fn fields(name: &str, fields: &Fields, all: bool, lines: &mut BTreeSet<String>) {
    for (index, field) in fields.iter().enumerate().filter(|(_, field)| all || is_public(&field.vis)) {
        let field_name = field.ident.as_ref().map_or_else(|| index.to_string(), ToString::to_string);
        lines.insert(format!("{name}.{field_name}: {}", text(&field.ty)));
    }
}

/// What a program can say of the item `defined`, which it knows as `name`. Whether it was found.
fn describe(defined: &str, name: &str, items: &[Item], lines: &mut BTreeSet<String>) -> bool {
    let mut found = false;
    for item in items {
        match item {
            Item::Struct(item) if item.ident == defined && is_public(&item.vis) => {
                lines.insert(format!("struct {name}{}", text(&item.generics)));
                fields(name, &item.fields, false, lines);
                found = true;
            }
            Item::Enum(item) if item.ident == defined && is_public(&item.vis) => {
                lines.insert(format!("enum {name}{}", text(&item.generics)));
                for variant in &item.variants {
                    let variant_name = format!("{name}::{}", variant.ident);
                    lines.insert(variant_name.clone());
                    fields(&variant_name, &variant.fields, true, lines);
                }
                found = true;
            }
            Item::Fn(item) if item.sig.ident == defined && is_public(&item.vis) => {
                lines.insert(text(&item.sig).replacen(defined, name, 1));
                found = true;
            }
            Item::Type(item) if item.ident == defined && is_public(&item.vis) => {
                lines.insert(format!("type {name}{} = {}", text(&item.generics), text(&item.ty)));
                found = true;
            }
            Item::Impl(block) if block.trait_.is_none() && !is_for_tests(&block.attrs) => {
                let Type::Path(of) = &*block.self_ty else { continue };
                if of.path.segments.last().is_none_or(|segment| segment.ident != defined) {
                    continue;
                }
                for inner in &block.items {
                    match inner {
                        ImplItem::Fn(method) if is_public(&method.vis) => {
                            lines.insert(format!("{name}::{}", text(&method.sig)));
                        }
                        ImplItem::Const(constant) if is_public(&constant.vis) => {
                            lines.insert(format!("{name}::{}: {}", constant.ident, text(&constant.ty)));
                        }
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    found
}

#[test]
fn the_public_api_is_the_one_that_is_written_down() {
    let lib = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/src/lib.rs")).unwrap();
    let (mut names, mut documented_modules) = (Vec::new(), Vec::new());
    for item in syn::parse_file(&lib).unwrap().items {
        match item {
            Item::Use(item) if is_public(&item.vis) => exports(&item.tree, &[], &mut names),
            Item::Mod(item) if is_public(&item.vis) && !text(&item.attrs[0]).contains("hidden") => {
                documented_modules.push(item.ident.to_string());
            }
            _ => {}
        }
    }
    assert_eq!(documented_modules, [""; 0], "modules are hidden, and their public names stand at the top");
    assert!(names.len() <= MAX_NAMES, "{} names", names.len());
    let (mut lines, mut parsed) = (BTreeSet::new(), BTreeMap::new());
    for (path, name) in &names {
        // `DeviceId` comes by way of the backend and stands in a file below it.
        let found = [path[0].as_str(), "device_id"].into_iter().any(|module| {
            let items = parsed.entry(module).or_insert_with(|| items(module));
            describe(path.last().unwrap(), name, items, &mut lines)
        });
        assert!(found, "{path:?} is not defined in {}", path[0]);
    }
    let list = lines.into_iter().collect::<Vec<_>>().join("\n") + "\n";
    if std::env::var_os("SDSHARD_WRITE").is_some() {
        fs::write(LIST, &list).unwrap();
    }
    let known = fs::read_to_string(LIST).unwrap();
    let differences = |one: &str, other: &str| -> Vec<String> {
        let other: BTreeSet<&str> = other.lines().collect();
        one.lines().filter(|line| !other.contains(line)).map(str::to_owned).collect()
    };
    let (new, gone) = (differences(&list, &known), differences(&known, &list));
    assert!(new.is_empty() && gone.is_empty(), "new: {new:#?}\ngone: {gone:#?}\nSDSHARD_WRITE=1 writes the list anew");
}
