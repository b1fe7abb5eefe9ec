// conv2d: out = activation(sum over the window of x * w + bias + add) + residual, as an implicit matrix product.
// x [images, x_height, x_width, channels]; w [kernel, kernel, channels, columns]; bias [out]; add [batch or 1, width];
// residual, out [images, out_height, out_width, width], the first two sizes in `rows`
// One workgroup per 16 pixels and 256 columns; see product.wgsl. Padding is zeros that nobody reads.
// Parameters: those of `Wgpu::product` in src/backend/wgpu/product.rs, same order, then the window.

struct Conv2d {
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
    x_height: u32,
    x_width: u32,
    out_height: u32,
    out_width: u32,
    kernel: u32,
    stride: u32,
    above: u32,
    left: u32,
}
var<immediate> p: Conv2d;

fn tap_count() -> u32 {
    return p.kernel * p.kernel;
}

fn row_at(row: u32, tap: u32) -> u32 {
    let line = row / p.out_width;
    let image = line / p.out_height;
    // Above and to the left of the picture these wrap around to large numbers.
    let y = (line % p.out_height) * p.stride + tap / p.kernel - p.above;
    let x = (row % p.out_width) * p.stride + tap % p.kernel - p.left;
    let at = p.x_first + ((image * p.x_height + y) * p.x_width + x) * p.channels;
    return select(OUTSIDE, at, y < p.x_height && x < p.x_width);
}

// Whether a row begins inside the picture.
fn is_inside(base: u32) -> bool {
    return base != OUTSIDE;
}
