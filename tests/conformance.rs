//! Every op on every device, against f64 references; and the order contract: the bits of a result depend on the layer,
//! the numerics class and the image alone.

mod common;
mod conformance {
    pub mod cases;
    pub mod check;
    pub mod reference;
    pub mod seeded;
    pub mod tolerances;
}

use std::num::NonZero;

use conformance::{
    cases::{BARE, BIAS, Case, HostWeight, Op, Tail, around_a_tile, cases, decode, encode, rounding},
    check::{Subject, close, order, plain, same_bits, watched},
    reference::reference,
    seeded::Fault,
    tolerances,
};
use sdshard::{
    backend::{
        Activation, DType, Device, DeviceId, DeviceKind, Extent, Layer, NumericsClass, Precision, Values,
        cpu::{Convolution, Cpu, Kernels, Path},
        open, visible,
    },
    tensor::{
        Fuse, Tensor,
        ops::Padding::{self, Same},
    },
};

fn paths() -> impl Iterator<Item = Path> {
    Path::ALL.into_iter().filter(|path| path.is_here())
}

fn cpu(kernels: Kernels, threads: usize, fuse: bool) -> Cpu {
    Cpu::new(kernels, NonZero::new(threads).unwrap(), Vec::new(), fuse).unwrap()
}

/// Every class of a kernel path.
fn kernels(path: Path) -> impl Iterator<Item = Kernels> {
    Convolution::NAMED.into_iter().map(move |(_, convolution)| Kernels { path, convolution })
}

/// The CPU in every form: class, threads, with and without fused epilogues; with narrower weights in two forms. Beside
/// the rig's GPUs, which are tested after the machine itself, its best path in f32.
fn cpus() -> Vec<Subject> {
    let mut devices = Vec::new();
    let beside_rig = std::env::var_os("SDSHARD_RIG").is_some();
    for kernels in paths().take(if beside_rig { 1 } else { usize::MAX }).flat_map(kernels) {
        for threads in [1, 2, 3] {
            for fuse in [true, false] {
                let name = format!("cpu {kernels}, {threads} threads, {}", if fuse { "fused" } else { "plain ops" });
                let device = cpu(kernels, threads, fuse).device(DeviceId::CPU);
                devices.push(Subject::f32(&name, device.clone()));
                if !beside_rig && [(1, false), (3, true)].contains(&(threads, fuse)) {
                    let stored = [Precision::F16, Precision::BF16, Precision::Int8];
                    devices.extend(stored.map(|precision| Subject {
                        precision,
                        ..Subject::f32(format!("{name}, {precision}"), device.clone())
                    }));
                }
            }
        }
    }
    devices
}

/// The CPU in every form, and whatever else this machine has, in every precision that it has.
/// `SDSHARD_EXPECT=cuda,wgpu` makes absence a failure.
fn devices() -> Vec<Subject> {
    let found: Vec<DeviceId> = visible().iter().map(|device| device.id).collect();
    let expected = std::env::var("SDSHARD_EXPECT").unwrap_or_default();
    for kind in [DeviceKind::Cuda, DeviceKind::Wgpu] {
        if !found.iter().any(|id| id.kind == kind) {
            println!("{}: not here", kind.name());
            assert!(!expected.split(',').any(|name| name == kind.name()), "{}: expected, but not here", kind.name());
        }
    }
    let mut subjects = cpus();
    for device in open(&found).expect("visible devices open") {
        let all = [Precision::F32, Precision::F16, Precision::BF16].into_iter();
        let subject =
            |precision| Subject { precision, ..Subject::f32(format!("{} {precision}", device.id()), device.clone()) };
        subjects.extend(all.filter(|precision| device.input_type(*precision).is_some()).map(subject));
    }
    subjects.extend(lesser());
    subjects
}

/// The first adapter with less than it has: devices of its class that can bind little at once, so that most tensors and
/// weights go in parts, or have no subgroups; and one that has none and keeps f16 in words. The tests of the class hold
/// the first two to the whole device's bits.
#[cfg(feature = "wgpu")]
fn lesser() -> Vec<Subject> {
    use sdshard::backend::wgpu::{Capabilities, open_with};
    let id = DeviceId::new(DeviceKind::Wgpu, 0);
    if !visible().iter().any(|device| device.id == id) {
        return Vec::new();
    }
    let open = |fewer: &dyn Fn(Capabilities) -> Capabilities| open_with(id, 0, fewer).unwrap().device(id);
    let narrow = open(&|had| Capabilities { binding_bytes: 150 << 10, ..had });
    let alone = open(&|had| Capabilities { subgroups: false, ..had });
    let words = open(&|had| Capabilities { f16: false, subgroups: false, ..had });
    let subject = |name: &str, device: &Device, precision| Subject {
        precision,
        ..Subject::f32(format!("{id} {name}, {precision}"), device.clone())
    };
    vec![
        subject("in parts", &narrow, Precision::F32),
        subject("in parts", &narrow, Precision::F16),
        subject("without subgroups", &alone, Precision::F32),
        subject("without both", &words, Precision::F16),
    ]
}

#[cfg(not(feature = "wgpu"))]
fn lesser() -> Vec<Subject> {
    Vec::new()
}

/// Fails with all that `check` objects to, not just the first.
fn none<T>(items: &[T], check: impl Fn(&T) -> Vec<String>) {
    let objections: Vec<String> = items.iter().flat_map(check).collect();
    assert!(objections.is_empty(), "{} objections:\n{}", objections.len(), objections.join("\n"));
}

/// What the roundings of weights add that are stored in 16 bits after Winograd's transform, which was seen to make 3.1
/// roundings of the largest element; the reference knows those of weights as they are.
fn transformed(subject: &Subject, case: &Case) -> f64 {
    let is_stored_apart = subject.precision.dtype() != Some(subject.dtype());
    let is_winograd = matches!(case.op, Op::Conv2d { kernel: 3, stride: 1, .. })
        && subject.device.class().convolution() == Convolution::Winograd;
    if is_stored_apart && is_winograd { 4.0 * rounding(subject.precision.dtype().unwrap()) } else { 0.0 }
}

#[test]
fn every_op_gives_what_its_definition_says() {
    let devices = devices();
    none(&cases(), |case| {
        let mut objections = Vec::new();
        // Weights of 16 bits with inputs of the same type, or with f32 on a CPU, which rounds those of products in bf16.
        for (precision, dtype) in [
            (Precision::F32, DType::F32),
            (Precision::F16, DType::F16),
            (Precision::BF16, DType::BF16),
            (Precision::F16, DType::F32),
            (Precision::BF16, DType::F32),
        ] {
            let subjects = || devices.iter().filter(|it| (it.precision, it.dtype()) == (precision, dtype));
            let is_product = matches!(case.op, Op::Linear { .. } | Op::Conv2d { .. });
            let rounds = precision == Precision::BF16 && is_product;
            let data = case.data().rounded(precision, if rounds { DType::BF16 } else { dtype });
            let want = if subjects().next().is_some() { reference(&case.op, &data) } else { Vec::new() };
            if !case.fits(dtype, want.iter().fold(0.0, |most, x| most.max(x.abs()))) {
                continue;
            }
            let right = |subject: &Subject| {
                let got = watched(subject, case, &data, want.len())?;
                close(&want, &got, case.tolerance_in(dtype) + transformed(subject, case))
            };
            objections.extend(subjects().filter_map(|subject| {
                right(subject).err().map(|e| format!("{}: {:?} on {:e}: {e}", subject.name, case.op, case.spread))
            }));
        }
        objections
    });
}

#[test]
fn the_page_on_accuracy_states_the_tolerance_of_every_op() {
    common::page::has_table("docs/accuracy.md", "ops", &tolerances::table(&cases()));
}

#[test]
fn bits_do_not_depend_on_batch_threads_fusion_or_place() {
    let devices = devices();
    none(&cases(), |case| order(&devices, case).err().into_iter().collect());
}

#[test]
fn bits_do_not_depend_on_where_tiles_end() {
    for kernels in paths().flat_map(kernels) {
        let devices: Vec<_> =
            cpus().into_iter().filter(|cpu| *cpu.device.class() == NumericsClass::cpu(kernels)).collect();
        none(&around_a_tile(kernels.path.rows()), |case| order(&devices, case).err().into_iter().collect());
    }
    // The other devices' tiles have 8 or 16 rows.
    let others: Vec<_> = devices().into_iter().filter(|subject| subject.device.id().kind != DeviceKind::Cpu).collect();
    none(&[around_a_tile(8), around_a_tile(16)].concat(), |case| order(&others, case).err().into_iter().collect());
}

#[test]
fn an_adapter_without_f16_and_subgroups_gives_the_bits_of_one_with_them() {
    let devices: Vec<_> = devices().into_iter().filter(|subject| subject.precision == Precision::F16).collect();
    let find = |name: &str| devices.iter().find(|subject| subject.name == name);
    let (Some(with), Some(without)) = (find("wgpu:0 f16"), find("wgpu:0 without both, f16")) else { return };
    assert_ne!(with.device.class(), without.device.class());
    let cases = cases().into_iter().filter(|case| case.fits(DType::F16, 0.0));
    none(&cases.collect::<Vec<_>>(), |case| {
        let data = case.data();
        let [want, got] = [with, without].map(|subject| plain(subject, case, &data).unwrap());
        same_bits(&want, &got).err().map(|e| format!("{:?}: {e}", case.op)).into_iter().collect()
    });
}

/// The magnitudes that a float type has, from its definition, by their bits; the last stands in infinity's place.
fn magnitudes(exponent_bits: u32, fraction_bits: i32) -> Vec<f64> {
    let (bias, one) = ((1 << (exponent_bits - 1)) - 1, 1 << fraction_bits);
    let magnitude = |bits: i32| match (bits >> fraction_bits, bits % one) {
        (0, fraction) => f64::from(fraction) * 2f64.powi(1 - bias - fraction_bits),
        (exponent, fraction) => f64::from(one + fraction) * 2f64.powi(exponent - bias - fraction_bits),
    };
    (0..=((1 << exponent_bits) - 1) << fraction_bits).map(magnitude).collect()
}

/// The nearest of a type's values, ties to the one with even bits.
fn nearest(magnitudes: &[f64], x: f32) -> f32 {
    let (size, infinity) = (f64::from(x.abs()), magnitudes.len() - 1);
    let above = magnitudes.partition_point(|&m| m < size).min(infinity);
    let below = above.saturating_sub(1);
    let (up, down) = (magnitudes[above] - size, size - magnitudes[below]);
    let chosen = if up < down || (up == down && above % 2 == 0) { above } else { below };
    let size = if chosen == infinity { f32::INFINITY } else { magnitudes[chosen] as f32 };
    size.copysign(x)
}

#[test]
fn casts_round_to_the_nearest_and_keep_what_is_not_a_number() {
    let types = [(DType::F16, magnitudes(5, 10)), (DType::BF16, magnitudes(8, 7))];
    let mut values = vec![f32::NAN, -f32::NAN, f32::from_bits(0x7f80_0001), f32::INFINITY, f32::MAX, f32::from_bits(1)];
    for pair in types.iter().flat_map(|(_, magnitudes)| magnitudes.windows(2)) {
        // Each value, each tie between two, and what stands beside the tie.
        let tie = ((pair[0] + pair[1]) / 2.0) as f32;
        values.extend([pair[0] as f32, tie.next_down(), tie, tie.next_up()]);
    }
    values.extend(values.clone().iter().map(|x| -x));
    for Subject { name, device, .. } in devices().into_iter().filter(|subject| subject.precision == Precision::F32) {
        device.reserve(16 << 20).unwrap();
        let x = Tensor::new(&device, [values.len()], &values).unwrap();
        for (dtype, magnitudes) in &types {
            let got = x.cast(*dtype).unwrap().read().unwrap();
            assert_eq!(got.len(), values.len());
            for (&x, &got) in values.iter().zip(&got) {
                let right = if x.is_nan() { got.is_nan() } else { got.to_bits() == nearest(magnitudes, x).to_bits() };
                assert!(right, "{name}: {x:e} became {got:e} in {dtype}");
            }
        }
    }
}

#[test]
fn copies_keep_every_bit() {
    let values: Vec<f32> =
        [0, 1, 0x8000_0000, 0x7f80_0000, 0x7f80_0001, 0xffff_ffff, 0x3f80_0000].map(f32::from_bits).into();
    let devices = devices();
    let Subject { device: other, .. } = &cpus()[0];
    other.reserve(1 << 20).unwrap();
    for Subject { name, device, .. } in devices.iter().filter(|subject| subject.precision == Precision::F32) {
        device.reserve(1 << 20).unwrap();
        let keep = device.persistent_arena(1 << 10).unwrap();
        let x = Tensor::new(device, [1, 7], &values).unwrap();
        let far = x.to(other).unwrap();
        for (copy, place, on) in [
            (x.to(device).unwrap(), "itself", device),
            (far.clone(), "another device", other),
            (far.to(device).unwrap(), "there and back", device),
            (x.keep(&keep).unwrap(), "a keep arena", device),
            (far.keep(&keep).unwrap(), "a keep arena from afar", device),
            (x.reshape([7, 1]).unwrap().reshape([1, 7]).unwrap(), "another shape", device),
        ] {
            assert!(copy.device() == on && copy.shape() == x.shape(), "{name}: {place}");
            same_bits(&values, &copy.read().unwrap()).unwrap_or_else(|e| panic!("{name}: {place}: {e}"));
        }
        let half = x.cast(DType::F16).unwrap();
        let back = half.to(other).unwrap();
        assert_eq!(back.dtype(), DType::F16);
        same_bits(&half.read().unwrap(), &back.read().unwrap()).unwrap();
    }
}

/// Weights are rounded where they are stored and nowhere else, and a file may hold them at any address.
#[test]
fn weights_of_every_type_and_address_are_read_as_they_are() {
    const BIG: usize = 600; // more than one piece of a conversion
    let x = [1, 3, 4, 5];
    let ops = [
        Op::Linear { x: [2, 3, BIG], out: 37, tail: BIAS },
        Op::Linear { x: [2, 3, 5], out: 42, tail: Tail { activation: Activation::Geglu, ..BIAS } },
        Op::Conv2d { x, out: 9, kernel: 3, stride: 1, padding: Padding::Same, tail: BIAS },
        Op::GroupNorm { x, groups: 5, activation: Activation::None },
        Op::LayerNorm { x: [1, 2, BIG] },
        Op::Embedding { batch: 2, tokens: 3, vocab: 5, channels: BIG },
    ];
    let devices = devices();
    for op in ops {
        let case = Case { op, center: 0.0, spread: 1.0, tolerance: 0.0 };
        for file in [DType::F32, DType::F16, DType::BF16] {
            let mut data = case.data();
            for values in data.weights.iter_mut().flat_map(|w| std::iter::once(&mut w.weight).chain(&mut w.bias)) {
                *values = decode(file, &encode(file, values));
            }
            for subject @ &Subject { ref name, ref device, precision, .. } in &devices {
                let dtype = subject.dtype();
                let want = plain(subject, &case, &data).unwrap();
                for shift in 0..4 {
                    let pack = |w: &HostWeight| w.pack(device, precision, file, shift).unwrap();
                    let weights: Vec<_> = data.weights.iter().map(pack).collect();
                    let x = data.upload(device, dtype).unwrap();
                    let got = case.op.run(device, &x, &weights, &data.ids).unwrap().read_bytes().unwrap();
                    same_bits(&want, &decode(dtype, &got))
                        .unwrap_or_else(|e| panic!("{name}: {:?}: {file} at byte {shift}: {e}", case.op));
                }
            }
        }
    }
}

/// The CPU with convolutions as one sum.
fn direct(path: Path, precision: Precision) -> Subject {
    let device = cpu(Kernels { path, convolution: Convolution::Direct }, 2, true).device(DeviceId::CPU);
    Subject { precision, ..Subject::f32(format!("cpu {path} {precision}"), device) }
}

/// Widening is exact, so weights that f16 holds are the same in f32.
#[test]
fn weights_that_f16_holds_give_the_bits_of_f32_on_the_cpu() {
    for path in paths() {
        none(&cases(), |case| {
            let data = case.data().rounded(Precision::F16, DType::F32);
            let [want, got] =
                [Precision::F32, Precision::F16].map(|stored| plain(&direct(path, stored), case, &data).unwrap());
            same_bits(&want, &got).err().map(|e| format!("{path} {:?}: {e}", case.op)).into_iter().collect()
        });
    }
}

/// The products whose weights a CPU stores as int8.
fn products_in_int8() -> Vec<Case> {
    let of = |op, tolerance| Case { op, center: 0.0, spread: 1.0, tolerance };
    // More inputs than padding has zeros.
    let long = of(Op::Linear { x: [1, 2, 40000], out: 34, tail: BIAS }, 0.0);
    let is_int8 = |case: &Case| match case.op {
        Op::Linear { x: [.., k], .. } => k >= 32,
        Op::Conv2d { x: [.., channels], out, .. } => channels.min(out) >= 32,
        _ => false,
    };
    cases().into_iter().filter(is_int8).chain([long]).collect()
}

/// All is f32 after a product, and only some activations are computed in another way on another path.
fn is_the_same_on_every_path(case: &Case) -> bool {
    let (Op::Linear { tail, .. } | Op::Conv2d { tail, .. }) = case.op else { return false };
    [Activation::None, Activation::Relu].contains(&tail.activation)
}

#[test]
fn products_in_int8_are_near_their_definition_and_have_the_same_bits_on_every_path() {
    let rms = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>().sqrt();
    none(&products_in_int8(), |case| {
        let data = case.data();
        let want = reference(&case.op, &data);
        let all: Vec<_> =
            paths().map(|path| plain(&direct(path, Precision::Int8), case, &data).expect("a valid case")).collect();
        let mut objections = Vec::new();
        for (path, got) in paths().zip(&all) {
            let error = rms(&mut got.iter().zip(&want).map(|(got, want)| f64::from(*got) - want));
            let error = error / rms(&mut want.iter().copied());
            println!("{path} {:?}: {error:.1e}", case.op);
            if !(1e-3..2e-2).contains(&error) {
                objections.push(format!("{path} {:?}: error {error:e}", case.op));
            }
            let same = same_bits(&all[0], got).err().filter(|_| is_the_same_on_every_path(case));
            objections.extend(same.map(|e| format!("{path} {:?}: {e}", case.op)));
        }
        objections
    });
}

#[test]
fn products_in_bf16_round_their_inputs_and_have_the_same_bits_on_every_path() {
    none(&products_in_int8(), |case| {
        let data = case.data();
        let mut rounded = data.clone();
        let x = &mut rounded.tensors[0].values;
        *x = decode(DType::BF16, &encode(DType::BF16, x));
        let run = |path, data| plain(&direct(path, Precision::BF16), case, data).expect("a valid case");
        let first = run(Path::Portable, &data);
        let mut objections = Vec::new();
        for path in paths() {
            let got = run(path, &data);
            let same = [Some(run(path, &rounded)), is_the_same_on_every_path(case).then(|| first.clone())];
            let different = same.iter().flatten().filter_map(|want| same_bits(want, &got).err());
            objections.extend(different.map(|e| format!("{path} {:?}: {e}", case.op)));
        }
        objections
    });
}

const ONE_ROW: Case =
    Case { op: Op::Linear { x: [3, 1, 70], out: 37, tail: BARE }, center: 0.0, spread: 1.0, tolerance: 2e-6 };

fn seeded(fault: Fault) -> Subject {
    let device = cpu(Path::Portable.into(), 1, true).device(DeviceId::CPU);
    Subject { fault, ..Subject::f32(format!("{fault:?}"), device) }
}

#[test]
fn another_order_of_summation_is_close_and_yet_found() {
    let (sound, device) = (seeded(Fault::Sound), seeded(Fault::OneRowInHalves));
    order(&[sound], &ONE_ROW).unwrap();
    let image = ONE_ROW.data().image(0);
    close(&reference(&ONE_ROW.op, &image), &plain(&device, &ONE_ROW, &image).unwrap(), ONE_ROW.tolerance).unwrap();
    let objection = order(&[device], &ONE_ROW).unwrap_err();
    assert!(objection.contains("alone"), "{objection}");
}

#[test]
fn threads_that_disagree_are_found() {
    let one_row = Case { op: Op::Linear { x: [1, 1, 70], out: 37, tail: BARE }, ..ONE_ROW };
    let devices = [Fault::Sound, Fault::OneRowInHalves].map(seeded);
    let objection = order(&devices, &one_row).unwrap_err();
    assert!(objection.contains("OneRowInHalves and Sound"), "{objection}");
}

#[test]
fn a_missing_element_and_a_stray_one_are_found() {
    let data = ONE_ROW.data();
    let want = reference(&ONE_ROW.op, &data);
    let run = |fault| watched(&seeded(fault), &ONE_ROW, &data, want.len());
    close(&want, &run(Fault::Sound).unwrap(), ONE_ROW.tolerance).unwrap();
    let missing = run(Fault::MissingElement).unwrap();
    assert!(missing.last().unwrap().is_nan());
    close(&want, &missing, ONE_ROW.tolerance).unwrap_err();
    let stray = run(Fault::StrayElement).unwrap_err();
    assert!(stray.contains("a stray write: the output"), "{stray}");
}

#[test]
fn wrong_answers_are_objected_to() {
    let want = [0.5, -2.0, 1.0];
    let right = [0.5, -2.0, 1.0];
    close(&want, &right, 0.0).unwrap();
    close(&want, &[0.5, -2.0, 1.00001], 1e-5).unwrap();
    for (wrong, why) in [
        (&[0.5, -2.0, 1.00003][..], "element 2"),
        (&[0.5, 2.0, 1.0], "element 1"),
        (&[f32::NAN, -2.0, 1.0], "element 0 is NaN"),
        (&[0.5, f32::NEG_INFINITY, 1.0], "element 1 is -inf"),
        (&[0.5, -2.0], "2 elements in place of 3"),
        (&[0.5, -2.0, 1.0, 0.0], "4 elements in place of 3"),
        (&[], "0 elements"),
    ] {
        let objection = close(&want, wrong, 1e-5).unwrap_err();
        assert!(objection.contains(why), "{objection}");
    }
    for beyond in [f64::NAN, f64::INFINITY] {
        close(&[beyond, 1.0], &[beyond as f32, 1.0], 1e-5).expect_err("a reference must be finite");
    }

    same_bits(&right, &right).unwrap();
    same_bits(&[f32::NAN], &[f32::NAN]).unwrap();
    for wrong in [&[0.5, -2.0, 1.0f32.next_up()][..], &[0.5, -2.0], &[0.5, -2.0, f32::NAN]] {
        same_bits(&right, wrong).unwrap_err();
    }
    same_bits(&[0.0], &[-0.0]).expect_err("zeros of either sign are different bits");
}

/// The input channels of the layers of Stable Diffusion 1 that Winograd's algorithm computes, and the extents for which
/// it takes tiles of 4x4 and of 2x2.
const WINOGRAD_CHANNELS: [(Extent, &[usize]); 2] =
    [(Extent::Large, &[128, 256, 320, 512, 640, 960, 1280, 1920]), (Extent::Medium, &[640, 1280, 1920, 2560])];

#[test]
fn winograd_is_within_three_times_the_error_of_direct_convolution() {
    const SIZE: usize = 14;
    const OUT: usize = 32;
    for (extent, channels) in
        WINOGRAD_CHANNELS.into_iter().flat_map(|(extent, all)| all.iter().map(move |n| (extent, *n)))
    {
        let layer = Layer::Conv2d { out: OUT, channels, kernel: 3, stride: 1, extent };
        let op = Op::Conv2d { x: [1, SIZE, SIZE, channels], out: OUT, kernel: 3, stride: 1, padding: Same, tail: BARE };
        let case = Case { op, center: 0.0, spread: 2.5, tolerance: 0.0 };
        let mut data = case.data();
        // Values as after a norm and SiLU.
        data.tensors[0].values.iter_mut().for_each(|x| *x /= 1.0 + (-*x).exp());
        let want = reference(&case.op, &data);
        let rms = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>().sqrt();
        let size = rms(&mut want.iter().copied());
        for path in paths() {
            let [winograd, direct] = Convolution::NAMED.map(|(_, convolution)| {
                let device = cpu(Kernels { path, convolution }, 2, true).device(DeviceId::CPU);
                device.reserve(64 << 20).unwrap();
                let values = Values::Data { dtype: DType::F32, bytes: bytemuck::cast_slice(&data.weights[0].weight) };
                let weight = device.pack(layer, Precision::F32, values, None).unwrap();
                let x = Tensor::new(&device, [1, SIZE, SIZE, channels], &data.tensors[0].values).unwrap();
                let got = x.conv2d(&weight, Padding::Same, &Fuse::default()).unwrap().read().unwrap();
                rms(&mut got.iter().zip(&want).map(|(got, want)| f64::from(*got) - want)) / size
            });
            println!("{path}, {extent:?}, {channels} channels: direct {direct:.1e}, winograd {winograd:.1e}");
            assert!(winograd < 3.0 * direct, "{path}, {channels} channels: direct {direct:e}, winograd {winograd:e}");
            assert_ne!(winograd, direct, "{path}, {channels} channels: both were computed in the same way");
        }
    }
}
