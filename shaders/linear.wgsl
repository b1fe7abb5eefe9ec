// linear: out = activation(x w + bias + add) + residual.
// x [rows, k]; w [k, columns]; bias [out]; add [rows / rows_per_add or 1, width]; residual, out [rows, width]
// One workgroup per 16 rows and 256 columns; see product.wgsl.
// Parameters: those of `Wgpu::product` in src/backend/wgpu/product.rs, same order.

struct Linear {
    rows: u32,
    channels: u32,
    columns: u32,
    width: u32,
    column_first: u32,
    rows_per_add: u32,
    row_first: u32,
    x_first: u32,
    out_first: u32,
    tail: u32,
    activation: u32,
}
var<immediate> p: Linear;

fn tap_count() -> u32 {
    return 1u;
}

fn row_at(row: u32, tap: u32) -> u32 {
    return p.x_first + row * p.channels;
}

// Whether a row begins inside the picture: there is none here.
fn is_inside(base: u32) -> bool {
    return true;
}
