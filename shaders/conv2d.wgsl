// conv2d: out = activation(sum over the window of x * w + bias + add) + residual, as an implicit matrix product.
// x [batch, height, width, channels]; w [kernel, kernel, channels, out]; bias [out]; add [batch or 1, out];
// residual, out [batch, out_height, out_width, out]
// One workgroup per 8 pixels and 4 WIDTH columns; see product.wgsl. Padding is zeros that nobody reads.
// Parameters: struct Conv2d in src/backend/params.rs, same order; then how many pixels have a row of `add` in common.

struct Conv2d {
    batch: u32,
    height: u32,
    width: u32,
    channels: u32,
    out: u32,
    kernel: u32,
    stride: u32,
    padding: u32,
    out_height: u32,
    out_width: u32,
    rows_per_add: u32,
}
var<immediate> p: Conv2d;

fn row_count() -> u32 {
    return p.batch * p.out_height * p.out_width;
}

fn columns_of_w() -> u32 {
    return p.out;
}

fn channel_count() -> u32 {
    return p.channels;
}

fn tap_count() -> u32 {
    return p.kernel * p.kernel;
}

fn row_at(row: u32, tap: u32) -> u32 {
    let line = row / p.out_width;
    let image = line / p.out_height;
    // Above and to the left of the picture these wrap around to large numbers.
    let y = (line % p.out_height) * p.stride + tap / p.kernel - p.padding;
    let x = (row % p.out_width) * p.stride + tap % p.kernel - p.padding;
    let at = ((image * p.height + y) * p.width + x) * p.channels;
    return select(OUTSIDE, at, y < p.height && x < p.width);
}

// Whether a row begins inside the picture.
fn is_inside(base: u32) -> bool {
    return base != OUTSIDE;
}

fn add_row(row: u32) -> u32 {
    return row / p.rows_per_add;
}
