//! When a result counts as right, and how an op is called so that its mistakes show.

use sdshard::{
    backend::{DType, Device, NumericsClass, Precision, arena::aligned},
    tensor::Tensor,
};

use super::{
    cases::{Case, Data, Op, decode, encode},
    seeded::Fault,
};

/// A device, and the precision of its weights.
pub struct Subject {
    pub name: String,
    pub device: Device,
    pub precision: Precision,
    /// What it does wrong.
    pub fault: Fault,
}

impl Subject {
    /// A device that computes in f32.
    pub fn f32(name: impl Into<String>, device: Device) -> Self {
        Self { name: name.into(), device, precision: Precision::F32, fault: Fault::Sound }
    }

    /// The type of its tensors.
    pub fn dtype(&self) -> DType {
        self.device.input_type(self.precision).expect("a subject has its precision")
    }
}

/// Whether `got` is `want`, each element within `tolerance` times the largest of them. NaN is never close.
pub fn close(want: &[f64], got: &[f32], tolerance: f64) -> Result<(), String> {
    if want.len() != got.len() {
        return Err(format!("{} elements in place of {}", got.len(), want.len()));
    }
    // Below the normal range f32 has fewer digits.
    let largest = want.iter().fold(f64::from(f32::MIN_POSITIVE), |most, x| most.max(x.abs()));
    let allowed = tolerance * largest;
    if !allowed.is_finite() || want.iter().any(|x| x.is_nan()) {
        return Err("the reference is not finite: nothing is close to it".into());
    }
    let error = |i: &usize| (f64::from(got[*i]) - want[*i]).abs();
    // Not `error > allowed`: a NaN is neither.
    let is_close = |i: &usize| error(i) <= allowed;
    match (0..want.len()).filter(|i| !is_close(i)).max_by(|a, b| error(a).total_cmp(&error(b))) {
        Some(i) => Err(format!("element {i} is {:e} in place of {:e}, allowed is {allowed:.1e}", got[i], want[i])),
        None => Ok(()),
    }
}

/// Whether two results are the same bits.
pub fn same_bits(want: &[f32], got: &[f32]) -> Result<(), String> {
    if want.len() != got.len() {
        return Err(format!("{} elements in place of {}", got.len(), want.len()));
    }
    match want.iter().zip(got).position(|(want, got)| want.to_bits() != got.to_bits()) {
        Some(i) => Err(format!("element {i} is {:e} in place of {:e}", got[i], want[i])),
        None => Ok(()),
    }
}

/// Large enough for every case.
const ARENA: usize = 64 << 20;
/// What free memory holds: all ones, a NaN in every float type.
const POISON: u8 = u8::MAX;
/// f32 elements of a guard, and of what is looked at beyond the last byte in use.
const GUARD: usize = 64;

/// Computes `case` in memory that is watched: inputs, a guard, the output, a guard, then what the op takes by itself.
/// Whatever is free begins as NaN, and nothing but the output may change.
pub fn watched(subject: &Subject, case: &Case, data: &Data, outputs: usize) -> Result<Vec<f32>, String> {
    let &Subject { ref device, precision, fault, .. } = subject;
    let dtype = subject.dtype();
    if matches!(case.op, Op::Add { .. } | Op::Embedding { .. }) && dtype != DType::F32 {
        // Several ops, whose f32 results and ids lie where they like.
        return plain(subject, case, data);
    }
    let fail = |e: sdshard::error::Error| e.to_string();
    let weights = data.pack(device, precision).map_err(fail)?;
    let guard: Vec<f32> = (0..GUARD).map(|i| i as f32).collect();
    let run = || {
        let x = data.upload(device, dtype)?;
        let _before = Tensor::new(device, [GUARD], &guard)?;
        let hole = Tensor::from_bytes(device, [outputs], dtype, &vec![POISON; outputs * dtype.size()])?;
        let _after = Tensor::new(device, [GUARD], &guard)?;
        drop(hole);
        fault.run(device, case, data, &x, &weights)?.read_bytes()
    };

    // Once to see how much memory it takes, once with that much filled with NaN.
    device.reserve(ARENA).map_err(fail)?;
    let clean = run().map_err(fail)?;
    let end = device.peak_bytes();
    let all = end / 4 + GUARD;
    Tensor::from_bytes(device, [all], DType::F32, &vec![POISON; 4 * all]).map_err(fail)?;
    let dirty = run().map_err(fail)?;
    let (clean, dirty) = (decode(dtype, &clean), decode(dtype, &dirty));
    same_bits(&clean, &dirty).map_err(|e| format!("the memory's old contents show: {e}"))?;

    let image = Tensor::uninitialized(device, [all]).and_then(|image| image.read_bytes()).map_err(fail)?;
    let mut at = 0;
    let mut expect = |name: String, values: Option<&[u8]>, bytes: usize| {
        let range = at..at + aligned(bytes);
        at = range.end;
        for (i, &got) in image[range].iter().enumerate() {
            let want = if i < bytes { values.map(|values| values[i]) } else { Some(POISON) };
            if want.is_some_and(|want| want != got) {
                return Err(format!("a stray write: {name} has {got:#x} at byte {i} of {bytes}"));
            }
        }
        Ok(())
    };
    for (i, x) in data.tensors.iter().enumerate() {
        let bytes = encode(dtype, &x.values);
        expect(format!("input {i}"), Some(&bytes), bytes.len())?;
    }
    let guard = encode(DType::F32, &guard);
    expect("the guard before the output".into(), Some(&guard), guard.len())?;
    expect("the output".into(), None, outputs * dtype.size())?;
    expect("the guard behind the output".into(), Some(&guard), guard.len())?;
    match image[end..].iter().position(|x| *x != POISON) {
        Some(i) => Err(format!("a stray write {i} bytes beyond the memory in use")),
        None => Ok(dirty),
    }
}

/// Computes `case` plainly.
pub fn plain(subject: &Subject, case: &Case, data: &Data) -> Result<Vec<f32>, String> {
    let &Subject { ref device, precision, fault, .. } = subject;
    let dtype = subject.dtype();
    let run = || {
        let (x, weights) = (data.upload(device, dtype)?, data.pack(device, precision)?);
        fault.run(device, case, data, &x, &weights)?.read_bytes()
    };
    device.reserve(ARENA).and_then(|()| run()).map(|bytes| decode(dtype, &bytes)).map_err(|e| e.to_string())
}

/// The order contract for one case: each image of it has the bits that it has alone, and all devices of one numerics
/// class agree.
pub fn order(subjects: &[Subject], case: &Case) -> Result<(), String> {
    let data = case.data();
    let images: Vec<Data> = (0..case.images()).map(|i| data.image(i)).collect();
    let mut classes: Vec<(NumericsClass, &str, Vec<f32>)> = Vec::new();
    for subject in subjects.iter().filter(|subject| case.fits(subject.dtype(), 0.0)) {
        let name = &subject.name;
        let whole = plain(subject, case, &data)?;
        for (i, image) in images.iter().enumerate() {
            let size = whole.len() / images.len();
            same_bits(&whole[i * size..][..size], &plain(subject, case, image)?)
                .map_err(|e| format!("{name}: {:?}: image {i} alone: {e}", case.op))?;
        }
        let class = subject.device.class().in_type(subject.precision);
        match classes.iter().find(|(known, ..)| *known == class) {
            Some((_, first, want)) => {
                same_bits(want, &whole).map_err(|e| format!("{name} and {first}: {:?}: {e}", case.op))?;
            }
            None => classes.push((class, name, whole)),
        }
    }
    Ok(())
}
