//! Matrix products and convolutions: one dispatch for each part of the weight and of the rows.

use super::{
    gpu::{Parameters, Wgpu, number, spread},
    memory::parts,
    pack::{WgpuWeight, packed},
    pipeline::{Constants, Shader},
};
use crate::{
    backend::{
        Activation, Buffer, Epilogue, Weight,
        params::{Conv2d, Linear},
    },
    error::{Error, Result},
};

/// The rows of a product that one invocation computes, as in `product.wgsl`.
pub const ROWS: u32 = 16;
/// The invocations of a workgroup, each for four columns, as in `product.wgsl`.
pub const WIDTH: u32 = 64;
/// A part of other ops may begin at a multiple of this many rows, so that every tensor of as many rows begins at a
/// bindable offset.
pub const ROW_STEP: usize = 128;

/// Some rows of the output, and their input.
struct Rows {
    /// The first row, counted over all images.
    first: usize,
    count: usize,
    /// The first element of x that is bound, and the number of elements.
    x: (usize, usize),
    /// The window's parameters; empty for linear.
    window: Vec<u32>,
}

/// The arguments that do not depend on the part.
struct Call<'a> {
    shader: Shader,
    channels: u32,
    /// The number of output channels.
    width: u32,
    rows: u32,
    x: &'a Buffer,
    w: &'a WgpuWeight,
    e: &'a Epilogue<'a>,
    out: &'a Buffer,
}

impl Wgpu {
    pub(super) fn linear(&self, p: Linear, x: &Buffer, w: &Weight, e: &Epilogue, out: &Buffer) -> Result<()> {
        let width = if e.activation == Activation::Geglu { p.out / 2 } else { p.out };
        let call = Call { shader: Shader::Linear, channels: p.k, width, rows: p.rows, x, w: packed(w), e, out };
        let row_bytes = (p.k.max(width) as usize) * x.dtype().size();
        let most = if self.fit(&[x, out]) { p.rows as usize } else { self.rows_that_fit(row_bytes) };
        for (first, count) in parts(p.rows as usize, most, 1) {
            let k = p.k as usize;
            self.product(&call, &Rows { first, count, x: (first * k, count * k), window: Vec::new() })?;
        }
        Ok(())
    }

    pub(super) fn conv2d(&self, p: Conv2d, x: &Buffer, w: &Weight, e: &Epilogue, out: &Buffer) -> Result<()> {
        let rows = p.batch * p.out_height * p.out_width;
        let call = Call { shader: Shader::Conv2d, channels: p.channels, width: p.out, rows, x, w: packed(w), e, out };
        let window = |x_height, out_height, above| {
            vec![x_height, p.width, out_height, p.out_width, p.kernel, p.stride, above, p.padding]
        };
        if self.fit(&[x, out]) {
            let whole = Rows {
                first: 0,
                count: rows as usize,
                x: (0, x.elements()),
                window: window(p.height, p.out_height, p.padding),
            };
            return self.product(&call, &whole);
        }
        // Lines of one image, and the lines of x that their windows read.
        let size = x.dtype().size();
        let x_lines = self.rows_that_fit((p.width * p.channels) as usize * size) as u32;
        let by_x = x_lines.saturating_sub(p.kernel) / p.stride + 1;
        let by_out = self.rows_that_fit((p.out_width * p.out) as usize * size) as u32;
        if x_lines < p.kernel || by_out == 0 {
            return Err(Error::request(format!("a line of {} pixels on {}", p.width.max(p.out_width), self.class))
                .found(format!("the driver goes up to {} bytes at once", self.most()))
                .hint("a smaller width, or another device for this component"));
        }
        for image in 0..p.batch {
            for (first, count) in parts(p.out_height as usize, by_x.min(by_out) as usize, 1) {
                let (first, count) = (first as u32, count as u32);
                let begin = (first * p.stride).saturating_sub(p.padding);
                let end = ((first + count - 1) * p.stride + p.kernel).saturating_sub(p.padding).min(p.height);
                let line = (p.width * p.channels) as usize;
                let rows = Rows {
                    first: ((image * p.out_height + first) * p.out_width) as usize,
                    count: (count * p.out_width) as usize,
                    x: ((image * p.height + begin) as usize * line, (end - begin) as usize * line),
                    window: window(end - begin, count, begin + p.padding - first * p.stride),
                };
                self.product(&call, &rows)?;
            }
        }
        Ok(())
    }

    /// Computes some rows and all columns.
    fn product(&self, call: &Call, rows: &Rows) -> Result<()> {
        let &Call { shader, channels, width, x, w, e, out, .. } = call;
        let wide = width as usize;
        let geglu = e.activation == Activation::Geglu;
        let (x_bound, x_first) = self.part(x, rows.x.0, rows.x.1)?;
        let taps = rows.window.get(4).map_or(1, |kernel| u64::from(kernel * kernel));
        // A loop of its own processes rows whose length is not a multiple of four.
        let per_four = if channels.is_multiple_of(4) { 1 } else { 1 + u64::from(ROWS) };
        self.check_turns(taps * (1 + u64::from(channels.div_ceil(4)) * per_four) + 8 * u64::from(ROWS))?;
        let (out_bound, out_first) = self.part(out, rows.first * wide, rows.count * wide)?;
        let add = e.channel_add.map_or(Ok(x_bound), |(add, _)| self.whole(add))?;
        let residual = match e.residual {
            Some(residual) => self.part(residual, rows.first * wide, rows.count * wide)?.0,
            None => x_bound,
        };
        // The number of rows that share a row of the per-channel sum.
        let rows_per_add = e.channel_add.map_or(call.rows, |(_, adds)| call.rows / adds).max(1);
        // Which parts the epilogue has, with the bits of `product.wgsl`.
        let tail =
            u32::from(w.bias.is_some()) + 2 * u32::from(e.channel_add.is_some()) + 4 * u32::from(e.residual.is_some());
        for part in &w.parts {
            let mine = part.columns.len() as u32;
            let columns = if geglu { 2 * mine } else { mine };
            let column_first = part.columns.start as u32;
            let whole = [mine, width, column_first, out_first].iter().all(|n| n.is_multiple_of(4));
            let constants: Constants = vec![
                ("K4", u32::from(channels.is_multiple_of(4) && x_first.is_multiple_of(4))),
                ("N4", u32::from(whole)),
                ("GEGLU", u32::from(geglu)),
            ];
            let count = rows.count as u32;
            let parameters = Parameters::default()
                .u32s(&[count, channels, columns, width, column_first, rows_per_add, rows.first as u32])
                .u32s(&[x_first, out_first, tail, number(e.activation)])
                .u32s(&rows.window);
            let (y, z) = spread(count.div_ceil(ROWS));
            let variant = self.variant(shader, x.dtype(), "product", constants);
            let bias = w.bias.as_ref().unwrap_or(&self.nothing);
            let bound = [out_bound, out_bound, x_bound, part.memory.all(), bias.all(), add, residual];
            self.dispatch(variant, &bound, parameters, [mine.div_ceil(4 * WIDTH), y, z])?;
        }
        Ok(())
    }
}
