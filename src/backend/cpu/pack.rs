//! Weights in panels: two vectors of output columns side by side, `[k, panel]`, padded with zeros. Packed once at load,
//! in the order in which the micro-kernel reads them.

use bytemuck::Pod;
use half::{bf16, f16, slice::HalfFloatSliceExt};
use rayon::prelude::*;

use super::{
    cost,
    element::Element,
    kernels::{Filtering, Kernels},
    memory::{Pages, Parts},
    narrow::{pack, segments},
    simd::{Kernel, Path, Simd},
    transform::{F2, F4, FILTERS, Transform, transform_filters},
};
use crate::{
    backend::{DType, Form, Layer, Values, weight::Stored},
    error::Result,
};

/// A layer's packed parameters.
pub struct CpuWeight {
    /// The weight, or the scale of a norm.
    pub weight: Elements,
    /// The bias, or the shift of a norm.
    pub bias: Option<Pages<f32>>,
}

/// The elements of a weight in the type in which they are stored.
pub enum Elements {
    F32(Pages<f32>),
    F16(Pages<f16>),
    BF16(Pages<bf16>),
    /// Panels of words of int8 or bf16, and what belongs to each column: see [`narrow`].
    Words(Pages<u32>),
}

impl Elements {
    /// The elements of a weight that is always f32.
    ///
    /// # Panics
    /// If they have another type.
    pub fn f32(&self) -> &[f32] {
        let Self::F32(elements) = self else { panic!("the scales of norms are f32") };
        elements
    }

    /// Reads elements from `start` on, as f32.
    pub fn read(&self, start: usize, to: &mut [f32]) {
        let range = start..start + to.len();
        match self {
            Self::F32(elements) => Element::widen(&elements[range], to),
            Self::F16(elements) => Element::widen(&elements[range], to),
            Self::BF16(elements) => Element::widen(&elements[range], to),
            Self::Words(_) => panic!("tables are not packed in words"),
        }
    }

    fn copy(&self) -> Result<Self> {
        Ok(match self {
            Self::F32(elements) => Self::F32(elements.copy()?),
            Self::F16(elements) => Self::F16(elements.copy()?),
            Self::BF16(elements) => Self::BF16(elements.copy()?),
            Self::Words(words) => Self::Words(words.copy()?),
        })
    }
}

impl CpuWeight {
    /// Copies the parameters to other pages.
    pub fn copy(&self) -> Result<Self> {
        Ok(Self { weight: self.weight.copy()?, bias: self.bias.as_ref().map(Pages::copy).transpose()? })
    }
}

/// Packs a layer's parameters for `kernels`, on the threads of the current pool of rayon, or in this thread outside of
/// one.
pub(in crate::backend) fn pack(
    kernels: Kernels,
    form: Form,
    weight: Values,
    bias: Option<Values>,
) -> Result<CpuWeight> {
    let (path, layer) = (kernels.path, form.layer);
    let weight = F32Reader::new(weight)?;
    let weight = match form.stored {
        _ if kernels.is_narrow(form) => Elements::Words(words(kernels, form, &weight)?),
        Stored::F32 | Stored::Int8 => Elements::F32(elements(kernels, form, &weight)?),
        Stored::F16 => Elements::F16(elements(kernels, form, &weight)?),
        Stored::BF16 => Elements::BF16(elements(kernels, form, &weight)?),
    };
    let bias = match bias {
        None => None,
        Some(values) => {
            let source = F32Reader::new(values)?;
            let mut bias = Pages::zeroed(cost::bias_elements(path, layer))?;
            let mut stored = vec![0.0; layer.elements().1];
            source.read(0, &mut stored)?;
            for (column, value) in bias.iter_mut().enumerate() {
                if let Some(row) = row_of(path, layer, column) {
                    *value = stored[row];
                }
            }
            Some(bias)
        }
    };
    Ok(CpuWeight { weight, bias })
}

/// Packs a layer's weight in elements of type `E`.
fn elements<E: Element>(kernels: Kernels, form: Form, source: &F32Reader) -> Result<Pages<E>> {
    let mut packed = Pages::zeroed(cost::packed_elements(kernels, form))?;
    match form.layer {
        Layer::Linear { k, .. } | Layer::Geglu { k, .. } => panels(kernels, form, k, 1, source, &mut packed)?,
        Layer::Conv2d { channels, kernel, .. } => {
            panels(kernels, form, channels, kernel * kernel, source, &mut packed)?;
        }
        Layer::Norm { .. } | Layer::Embedding { .. } => {
            let at_once = AT_ONCE / size_of::<f32>();
            let mut values = vec![0.0; at_once.min(packed.len())];
            for (i, packed) in packed.chunks_mut(at_once).enumerate() {
                let values = &mut values[..packed.len()];
                source.read(i * at_once, values)?;
                E::narrow(values, packed);
            }
        }
    }
    Ok(packed)
}

/// The output channel whose weights are in packed column `column`; `None` for padding.
fn row_of(path: Path, layer: Layer, column: usize) -> Option<usize> {
    match layer {
        Layer::Linear { out, .. } | Layer::Conv2d { out, .. } => (column < out).then_some(column),
        Layer::Geglu { out, .. } => {
            let (lanes, half) = (path.lanes(), out / 2);
            let channel = column / (2 * lanes) * lanes + column % lanes;
            let gate = column % (2 * lanes) >= lanes;
            (channel < half).then_some(if gate { half + channel } else { channel })
        }
        Layer::Norm { channels } => (column < channels).then_some(column),
        Layer::Embedding { .. } => None,
    }
}

/// The bytes of a file that one task reads at a time, unless a row is longer.
const AT_ONCE: usize = 256 << 10;

/// Packs `[out, channels, taps]`, as stored, into panels of `[taps, channels, panel]`, or for Winograd's algorithm of
/// `[planes, channels, panel]`.
fn panels<E: Element>(
    kernels: Kernels,
    form: Form,
    channels: usize,
    taps: usize,
    source: &F32Reader,
    packed: &mut [E],
) -> Result<()> {
    let filtering = kernels.filtering(form);
    let (width, k) = (kernels.path.panel(), channels * taps);
    let panel_elements = width * channels * filtering.map_or(taps, Filtering::planes);
    let count = packed.len() / panel_elements;
    let packed = Parts::new(packed);
    // Winograd's transform takes the filters of several columns together.
    let at_once = if filtering.is_some() { FILTERS } else { rows_at_once(k) };
    each_panel(count, |panel| {
        // SAFETY: each panel is one task's.
        let panel_out = unsafe { packed.part(panel * panel_elements, panel_elements) };
        let mut narrow = vec![E::zeroed(); if filtering.is_some() { 0 } else { at_once.min(width) * k }];
        each_rows(kernels.path, form.layer, panel, k, at_once, source, |first, rows| {
            if let Some(filtering) = filtering {
                kernels.path.run(Filters { filtering, rows, channels, width, first, panel: &mut *panel_out });
                return;
            }
            let narrow = &mut narrow[..rows.len()];
            E::narrow(rows, narrow);
            interleave(narrow, taps, k, &mut panel_out[first..], width);
        })
    })
}

/// Packs a layer's weight in panels of words, with what belongs to each column in int8.
fn words(kernels: Kernels, form: Form, source: &F32Reader) -> Result<Pages<u32>> {
    let (segments, width) = (segments::segments(form), kernels.path.panel());
    let columns = cost::bias_elements(kernels.path, form.layer);
    let mut packed = Pages::zeroed(pack::packed_words(form.stored, segments, columns))?;
    let k = form.layer.elements().0 / form.layer.elements().1;
    let row_words = segments.count * segments.words;
    let panel_words = row_words * width;
    let taps = if let Layer::Conv2d { kernel, .. } = form.layer { kernel * kernel } else { 1 };
    let packing = pack::Packing { path: kernels.path, stored: form.stored, segments, taps };
    let (panels, beside) = packed.split_at_mut(columns / width * panel_words);
    let (panels, beside) = (Parts::new(panels), Parts::new(beside));
    each_panel(columns / width, |panel| {
        // SAFETY: each panel, and what belongs to its columns, is one task's.
        let words = unsafe { panels.part(panel * panel_words, panel_words) };
        let at_once = rows_at_once(k);
        let mut rounded = vec![0; packing.rounded_words()];
        let mut placed = vec![0; at_once.min(width) * row_words];
        each_rows(kernels.path, form.layer, panel, k, at_once, source, |first, rows| {
            let placed = &mut placed[..rows.len() / k * row_words];
            for (i, (row, placed)) in rows.chunks_exact(k).zip(placed.chunks_exact_mut(row_words)).enumerate() {
                let column = panel * width + first + i;
                // SAFETY: as above.
                let put = |row: usize, bits: u32| unsafe { beside.part(row * columns + column, 1)[0] = bits };
                packing.row(row, &mut rounded, placed, put);
            }
            interleave(placed, 1, row_words, &mut words[first..], width);
        })
    })?;
    Ok(packed)
}

/// The rows that one task reads at a time.
fn rows_at_once(k: usize) -> usize {
    (AT_ONCE / (k * size_of::<f32>())).max(1)
}

/// Calls `f` with the rows of a panel's columns, of `k` elements each, and the first of these columns: at most
/// `at_once` rows, which are adjacent in the file.
fn each_rows(
    path: Path,
    layer: Layer,
    panel: usize,
    k: usize,
    at_once: usize,
    source: &F32Reader,
    mut f: impl FnMut(usize, &[f32]),
) -> Result<()> {
    let width = path.panel();
    let place = |column| Some((column, row_of(path, layer, panel * width + column)?));
    let columns: Vec<(usize, usize)> = (0..width).filter_map(place).collect();
    let mut rows = vec![0.0; at_once.min(width) * k];
    // Rows that are adjacent in the file and in the panel are read together.
    let neighbours = columns.chunk_by(|(column, row), next| (column + 1, row + 1) == *next);
    for run in neighbours.flat_map(|run| run.chunks(at_once)) {
        let rows = &mut rows[..run.len() * k];
        source.read(run[0].1 * k, rows)?;
        f(run[0].0, rows);
    }
    Ok(())
}

/// Calls `fill` for each panel, as [`pack`] says.
fn each_panel(count: usize, fill: impl Fn(usize) -> Result<()> + Send + Sync) -> Result<()> {
    match rayon::current_thread_index() {
        Some(_) => (0..count).into_par_iter().try_for_each(fill),
        None => (0..count).try_for_each(fill),
    }
}

/// Writes rows of `k` elements, `[k / taps, taps]` as stored, to adjacent columns `[taps, k / taps, width]` from the
/// start of `panel` on.
fn interleave<T: Copy>(rows: &[T], taps: usize, k: usize, panel: &mut [T], width: usize) {
    // A few elements of each row at a time, so that the lines that are written stay in the nearest cache.
    const BLOCK: usize = 16;
    for start in (0..k / taps).step_by(BLOCK) {
        for (column, row) in rows.chunks_exact(k).enumerate() {
            let row = &row[start * taps..k.min((start + BLOCK) * taps)];
            for tap in 0..taps {
                let to = panel[(tap * (k / taps) + start) * width + column..].iter_mut().step_by(width);
                for (to, &from) in to.zip(row[tap..].iter().step_by(taps)) {
                    *to = from;
                }
            }
        }
    }
}

/// The transform of up to [`FILTERS`] rows of 3x3 filters, `[channels, 9]` each, to adjacent columns of a panel
/// `[planes, channels, width]`.
struct Filters<'a, E> {
    filtering: Filtering,
    rows: &'a [f32],
    channels: usize,
    width: usize,
    /// The first of the columns, a multiple of [`FILTERS`].
    first: usize,
    panel: &'a mut [E],
}

impl<E: Element> Kernel for Filters<'_, E> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        match self.filtering {
            Filtering::F4 => self.transform::<F4, 4, 6>(),
            Filtering::F2 => self.transform::<F2, 2, 4>(),
        }
    }
}

impl<E: Element> Filters<'_, E> {
    #[inline(always)]
    fn transform<T: Transform<M, N>, const M: usize, const N: usize>(self) {
        for channel in 0..self.channels {
            let mut filters = [[0.0; FILTERS]; 9];
            for (i, row) in self.rows.chunks_exact(9 * self.channels).enumerate() {
                for (filters, &value) in filters.iter_mut().zip(&row[9 * channel..][..9]) {
                    filters[i] = f64::from(value);
                }
            }
            let to = self.panel[channel * self.width + self.first..].chunks_mut(self.channels * self.width);
            let planes = transform_filters::<T, M, N>(&filters);
            for (to, values) in to.zip(planes.as_flattened()) {
                E::narrow(values, &mut to[..FILTERS]);
            }
        }
    }
}

/// A weight in its file, read as f32.
struct F32Reader<'a> {
    dtype: DType,
    values: Values<'a>,
}

impl<'a> F32Reader<'a> {
    fn new(values: Values<'a>) -> Result<Self> {
        Ok(Self { dtype: values.form()?.0, values })
    }

    /// Reads elements from `start` on.
    fn read(&self, start: usize, to: &mut [f32]) -> Result<()> {
        let start = start * self.dtype.size();
        match self.dtype {
            DType::F32 | DType::U32 => self.values.read(start, bytemuck::cast_slice_mut(to)),
            DType::F16 => self.read_halves(start, to, |halves: &[f16], to| halves.convert_to_f32_slice(to)),
            DType::BF16 => self.read_halves(start, to, |halves: &[bf16], to| halves.convert_to_f32_slice(to)),
        }
    }

    fn read_halves<T: Pod>(&self, start: usize, to: &mut [f32], convert: impl Fn(&[T], &mut [f32])) -> Result<()> {
        let most = AT_ONCE / size_of::<T>();
        let mut halves = vec![T::zeroed(); to.len().min(most)];
        for (i, to) in to.chunks_mut(most).enumerate() {
            let halves = &mut halves[..to.len()];
            self.values.read(start + i * AT_ONCE, bytemuck::cast_slice_mut(halves))?;
            convert(halves, to);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use rayon::ThreadPoolBuilder;

    use super::*;
    use crate::backend::{Extent, Precision, cpu::kernels::Convolution};

    #[test]
    fn a_weight_is_the_same_whatever_the_number_of_threads() {
        let layers = [
            Layer::Linear { out: 70, k: 33 },
            Layer::Geglu { out: 140, k: 40 },
            Layer::Conv2d { out: 100, channels: 70, kernel: 3, stride: 1, extent: Extent::Large },
            Layer::Conv2d { out: 65, channels: 70, kernel: 3, stride: 2, extent: Extent::Large },
            Layer::Embedding { rows: 300, channels: 400 },
        ];
        for path in Path::ALL.into_iter().filter(|path| path.is_here()) {
            let kernels = Kernels { path, convolution: Convolution::default() };
            for (layer, precision) in layers.into_iter().flat_map(|layer| Precision::ALL.map(|p| (layer, p))) {
                let form = super::super::form(layer, precision, false);
                let values: Vec<f32> = (0..layer.elements().0).map(|i| ((i * 7919) % 2001) as f32 - 1000.0).collect();
                let packed = |threads| {
                    let weight = Values::Data { dtype: DType::F32, bytes: bytemuck::cast_slice(&values) };
                    let pack = || pack(kernels, form, weight, None).unwrap();
                    let packed = match threads {
                        0 => pack(),
                        _ => ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(pack),
                    };
                    match packed.weight {
                        Elements::F32(elements) => bytemuck::cast_slice::<_, u8>(&elements).to_vec(),
                        Elements::F16(elements) => bytemuck::cast_slice(&elements).to_vec(),
                        Elements::BF16(elements) => bytemuck::cast_slice(&elements).to_vec(),
                        Elements::Words(words) => bytemuck::cast_slice(&words).to_vec(),
                    }
                };
                let alone = packed(0);
                assert!(alone.iter().any(|byte| *byte != 0));
                for threads in [1, 4] {
                    assert!(alone == packed(threads), "{layer:?} in {precision} for {path}, {threads} threads");
                }
            }
        }
    }
}
