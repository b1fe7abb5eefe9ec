//! Tables on a page of the documentation that follow from the code.

use std::path::Path;

/// Fails unless `page` has `table` between the lines `<!-- name -->` and `<!-- end -->`; `SDSHARD_WRITE=1` puts it
/// there.
pub fn has_table(page: &str, name: &str, table: &str) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(page);
    let text = std::fs::read_to_string(&file).unwrap_or_else(|e| panic!("{page}: {e}"));
    let first = format!("<!-- {name} -->\n");
    let (before, rest) = text.split_once(&first).unwrap_or_else(|| panic!("{page} has no line {first}"));
    let (found, after) = rest.split_once("<!-- end -->").unwrap_or_else(|| panic!("{page}: {name} has no end"));
    if found != table && std::env::var_os("SDSHARD_WRITE").is_some() {
        std::fs::write(&file, format!("{before}{first}{table}<!-- end -->{after}")).unwrap();
        return;
    }
    assert!(found == table, "{page} should say, which SDSHARD_WRITE=1 writes:\n{table}\nand says:\n{found}");
}
