// linear: out = activation(x w + bias + add) + residual.
// x [rows, k]; w [k, out]; bias [out]; add [rows / rows_per_add or 1, out]; residual, out [rows, out], or half of it by
// GEGLU
// One workgroup per 8 rows and 4 WIDTH columns; see product.wgsl.
// Parameters: struct Linear in src/backend/params.rs, same order; then how many rows of x have a row of `add` in
// common.

struct Linear {
    rows: u32,
    out: u32,
    k: u32,
    rows_per_add: u32,
}
var<immediate> p: Linear;

fn row_count() -> u32 {
    return p.rows;
}

fn columns_of_w() -> u32 {
    return p.out;
}

fn channel_count() -> u32 {
    return p.k;
}

fn tap_count() -> u32 {
    return 1u;
}

fn row_at(row: u32, tap: u32) -> u32 {
    return row * p.k;
}

// Whether a row begins inside the picture: there is none here.
fn is_inside(base: u32) -> bool {
    return true;
}

fn add_row(row: u32) -> u32 {
    return row / p.rows_per_add;
}
