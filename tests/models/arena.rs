//! Memory: what a dry run says a device will hold is what it holds, and what is refused leaves nothing behind.

use std::num::NonZero;

use sdshard::{
    backend::{
        Activation, DType, Device, DeviceId, DeviceKind, Extent, Layer, PersistentArena, Precision, Values, Weight,
        cpu::{Convolution, Cpu, Kernels, Path},
        dry::Work,
        rules::Rules,
    },
    error::{ErrorScope, Result},
    tensor::{Fuse, Shape, Tensor, ops::Padding},
};

const ROOM: usize = 1 << 20;

/// The kernels of this machine, of every path and with every algorithm.
fn kernels() -> impl Iterator<Item = Kernels> {
    let paths = Path::ALL.into_iter().filter(|path| path.is_here());
    paths.flat_map(|path| Convolution::NAMED.map(|(_, convolution)| Kernels { path, convolution }))
}

fn real(kernels: Kernels, room: usize) -> Device {
    let device = Cpu::new(kernels, NonZero::<usize>::MIN, Vec::new(), true).unwrap().device(DeviceId::CPU);
    device.reserve(room).unwrap();
    device
}

fn device() -> Device {
    real(Path::Portable.into(), ROOM)
}

/// A layer of zeros with a bias where it can have one.
fn pack(device: &Device, layer: Layer) -> Weight {
    pack_in(device, layer, Precision::F32)
}

fn pack_in(device: &Device, layer: Layer, precision: Precision) -> Weight {
    let (weight, bias) = layer.elements();
    let (weight, bias) = (vec![0; 4 * weight], vec![0; 4 * bias]);
    let values = |bytes| Values::Data { dtype: DType::F32, bytes };
    device.pack(layer, precision, values(&weight), (!bias.is_empty()).then_some(values(&bias))).unwrap()
}

fn zeros(device: &Device, shape: impl Into<Shape>) -> Result<Tensor> {
    let shape = shape.into();
    Tensor::new(device, shape, &vec![0.0; shape.elements()])
}

const BATCH: usize = 2;
const SIZE: usize = 8;
const WIDTH: usize = 40;
const HEADS: usize = 2;
const TOKENS: usize = 7;

/// A small network in the manner of a UNet's level, with every op; something of it goes to `keep`.
fn network(device: &Device, keep: &PersistentArena, precision: Precision) -> Result<Vec<f32>> {
    let pack = |layer| pack_in(device, layer, precision);
    let strided =
        |channels, out, stride| pack(Layer::Conv2d { out, channels, kernel: 3, stride, extent: Extent::Large });
    let conv = |channels, out| strided(channels, out, 1);
    let linear = |k, out| pack(Layer::Linear { out, k });
    let norm = pack(Layer::Norm { channels: WIDTH });
    let table = |rows| pack(Layer::Embedding { rows, channels: WIDTH });

    let text = Tensor::embedding(device, &vec![vec![0; TOKENS]; BATCH], &table(9), &table(TOKENS))?;
    let text = text.layer_norm(&norm, 1e-5)?.keep(keep)?;
    let time = zeros(device, [BATCH, WIDTH])?.linear(&linear(WIDTH, WIDTH), &Fuse::activation(Activation::Silu))?;
    let latent = zeros(device, [1, SIZE, SIZE, 4])?;
    let latent = Tensor::stack(&[&latent; BATCH])?;
    let skip = latent.conv2d(&conv(4, WIDTH), Padding::Same, &Fuse::default())?;
    let down = skip.conv2d(&strided(WIDTH, WIDTH, 2), Padding::Same, &Fuse::channel_add(&time))?;
    let h = down.group_norm(&norm, 8, 1e-5, Activation::Silu)?.add_channels(&time)?;
    let tokens = h.reshape([BATCH, SIZE * SIZE / 4, WIDTH])?;
    let seen = tokens.attention(&text, &text, HEADS, false)?;
    let wide = seen.linear(&pack(Layer::Geglu { out: 8 * WIDTH, k: WIDTH }), &GEGLU)?;
    let h = wide.linear(&linear(4 * WIDTH, WIDTH), &Fuse::residual(&tokens))?.activate(Activation::Gelu)?;
    let up = h.reshape(down.shape().with_channels(WIDTH))?.upsample2x(SIZE, SIZE)?.concat_channels(&skip)?;
    let up = up.conv2d(&conv(2 * WIDTH, 2 * WIDTH), Padding::Same, &Fuse::default())?;
    let out = up.conv2d(&conv(2 * WIDTH, 4), Padding::Same, &Fuse::default())?.add(&latent)?;
    let half = out.cast(DType::F16)?.keep(keep)?;
    Tensor::scale_add(latent.shape(), &[(7.5, &out, 0), (-6.5, &half.cast(DType::F32)?, 0)])?.read()
}

const GEGLU: Fuse = Fuse { channel_add: None, activation: Activation::Geglu, residual: None };

/// Two for each multiply-add of [`network`]'s products.
fn flops() -> f64 {
    let (pixels, quarter) = (BATCH * SIZE * SIZE, BATCH * SIZE * SIZE / 4);
    let time = BATCH * WIDTH * WIDTH;
    let convolutions = 9 * (pixels * 4 * WIDTH + quarter * WIDTH * WIDTH + pixels * 2 * WIDTH * (2 * WIDTH + 4));
    let attention = 2 * quarter * TOKENS * WIDTH;
    let mlp = quarter * (WIDTH * 8 * WIDTH + 4 * WIDTH * WIDTH);
    2.0 * (time + convolutions + attention + mlp) as f64
}

#[test]
fn a_dry_run_holds_what_a_real_run_holds() {
    for (kernels, precision) in kernels().flat_map(|kernels| Precision::ALL.map(|precision| (kernels, precision))) {
        let what = format!("{kernels} {precision}");
        let rules = Rules::Cpu(kernels, precision);
        let (dry, counter) = Device::dry(DeviceId::CPU, rules, sdshard::backend::cpu::info().rates);
        let dry_keep = dry.persistent_arena(ROOM).unwrap();
        network(&dry, &dry_keep, precision).unwrap();
        assert_eq!(counter.take().flops, flops(), "{what}");
        assert_eq!(counter.take(), Work::default(), "taken once");

        // In exactly the memory that was planned.
        let device = real(kernels, dry.peak_bytes());
        let keep = device.persistent_arena(dry_keep.peak_bytes()).unwrap();
        network(&device, &keep, precision).unwrap();
        assert_eq!(device.peak_bytes(), dry.peak_bytes(), "{what}");
        assert_eq!(keep.peak_bytes(), dry_keep.peak_bytes(), "{what}");
        assert_empty(&device);

        let tight = real(kernels, dry.peak_bytes() - 256);
        let error = network(&tight, &tight.persistent_arena(ROOM).unwrap(), precision).unwrap_err().to_string();
        assert!(error.contains("cpu: the transient arena is full"), "{what}: {error}");
        assert_empty(&tight);
    }
}

#[test]
fn a_dry_run_counts_the_bytes_of_real_weights() {
    for kernels in kernels() {
        let (dry, counter) =
            Device::dry(DeviceId::CPU, Rules::Cpu(kernels, Precision::F32), sdshard::backend::cpu::info().rates);
        for layer in [
            Layer::Linear { out: 37, k: 5 },
            Layer::Linear { out: 37, k: 70 },
            Layer::Geglu { out: 42, k: 5 },
            Layer::Geglu { out: 42, k: 40 },
            Layer::Conv2d { out: 37, channels: 3, kernel: 3, stride: 1, extent: Extent::Large },
            Layer::Conv2d { out: 37, channels: 33, kernel: 3, stride: 1, extent: Extent::Large },
            Layer::Conv2d { out: 37, channels: 70, kernel: 3, stride: 2, extent: Extent::Large },
            Layer::Norm { channels: 37 },
            Layer::Embedding { rows: 3, channels: 37 },
        ] {
            for precision in Precision::ALL {
                let bytes = pack_in(&real(kernels, ROOM), layer, precision).bytes();
                let bias = (layer.elements().1 > 0).then_some(Values::ShapeOnly);
                let planned = dry.pack(layer, precision, Values::ShapeOnly, bias);
                assert_eq!(planned.unwrap().bytes(), bytes, "{kernels} {precision}: {layer:?}");
                assert_eq!(counter.take().weight_bytes, bytes as u64, "{kernels} {precision}: {layer:?}");
            }
        }
    }
}

/// An arena can only be replaced while nothing is in it.
fn assert_empty(device: &Device) {
    device.reserve(ROOM).expect("nothing was left in the arena");
}

#[test]
fn an_arena_in_use_cannot_be_replaced() {
    let device = device();
    let held = zeros(&device, [3]).unwrap();
    let error = device.reserve(ROOM).unwrap_err().to_string();
    assert!(error.contains("1 tensors are in it"), "{error}");
    drop(held);
    assert_empty(&device);
}

#[test]
fn ops_refuse_what_does_not_fit_and_leave_nothing_behind() {
    type Call = fn(&Device) -> Result<Tensor>;
    #[rustfmt::skip]
    let calls: &[(Call, &str)] = &[
        // Values and sizes.
        (|d| Tensor::new(d, [2, 3], &[0.0; 5]), "a tensor [2, 3] needs 6 values, not 5"),
        (|d| zeros(d, [2, 0]), "a tensor [2, 0] has no elements"),
        (|d| zeros(d, [2, 3])?.reshape([5]), "reshape: [2, 3] cannot become [5]"),
        (|_| Tensor::stack(&[]), "stack: nothing to stack"),
        (|d| Tensor::stack(&vec![&zeros(d, [1, 1, 1 << 17])?; 1 << 14]), "2^31 elements or more"),
        (|d| zeros(d, [ROOM]), "the transient arena is full"),
        // Shapes.
        (|d| Tensor::stack(&[&zeros(d, [1, 2])?, &zeros(d, [2, 1])?]), "stack: f32 [2, 1] beside f32 [1, 2]"),
        (|d| zeros(d, [2, 6])?.linear(&linear(d), &Fuse::default()), "linear: [2, 6] into a layer of 5 channels"),
        (|d| zeros(d, [2, 5])?.linear(&conv(d), &Fuse::default()), "linear: a weight Conv2d"),
        (|d| zeros(d, [2, 5])?.linear(&linear(d), &GEGLU), "with Geglu"),
        (|d| zeros(d, [2, 5])?.linear(&linear(d), &Fuse::residual(&zeros(d, [2, 5])?)), "residual [2, 5] beside [2, 4]"),
        (|d| zeros(d, [2, 5])?.linear(&linear(d), &Fuse::channel_add(&zeros(d, [3, 4])?)), "channel sum [3, 4] beside"),
        (|d| zeros(d, [5])?.linear(&linear(d), &Fuse::channel_add(&zeros(d, [4, 4])?)), "channel sum [4, 4] beside [4]"),
        (|d| zeros(d, [2, 5])?.conv2d(&conv(d), Padding::Same, &Fuse::default()), "conv2d: [2, 5] is not [batch"),
        (|d| zeros(d, [1, 4, 4, 5])?.conv2d(&conv(d), Padding::Same, &Fuse::default()), "a layer of 3 channels"),
        (|d| zeros(d, [1, 4, 4, 3])?.conv2d(&still(d), Padding::Same, &Fuse::default()), "stride 0"),
        (|d| zeros(d, [1, 1, 4, 3])?.conv2d(&conv(d), Padding::BottomRight, &Fuse::default()), "than a 3x3 window"),
        (|d| zeros(d, [1, 4, 4, 3])?.conv2d(&even(d), Padding::Same, &Fuse::default()), "a 2x2 window has no middle"),
        (|d| zeros(d, [1, 4, 4, 3])?.conv2d(&conv(d), Padding::Same, &GEGLU), "GEGLU belongs to"),
        (|d| zeros(d, [1, 4, 6])?.attention(&zeros(d, [2, 4, 6])?, &zeros(d, [2, 4, 6])?, 2, false), "k [2, 4, 6]"),
        (|d| zeros(d, [1, 4, 6])?.attention(&zeros(d, [1, 4, 6])?, &zeros(d, [1, 5, 6])?, 2, false), "v [1, 5, 6]"),
        (|d| { let x = zeros(d, [1, 4, 6])?; x.attention(&x, &x, 4, false) }, "6 channels, 4 heads"),
        (|d| { let x = zeros(d, [1, 3, 6])?; zeros(d, [1, 4, 6])?.attention(&x, &x, 2, true) }, "causal over 4 queries"),
        (|d| zeros(d, [2, 5])?.group_norm(&norm(d), 1, 1e-5, Activation::None), "group_norm: [2, 5] with Norm"),
        (|d| zeros(d, [2, 6])?.group_norm(&norm(d), 4, 1e-5, Activation::None), "6 channels in 4 groups"),
        (|d| zeros(d, [2, 6])?.group_norm(&norm(d), 2, 1e-5, Activation::Gelu), "with Gelu"),
        (|d| zeros(d, [2, 5])?.layer_norm(&norm(d), 1e-5), "layer_norm: [2, 5] with Norm"),
        (|d| zeros(d, [1, 4, 4, 3])?.upsample2x(6, 8), "[1, 4, 4, 3] to 6x8 is not about twice the size"),
        (|d| zeros(d, [2, 5])?.concat_channels(&zeros(d, [3, 5])?), "concat_channels: [2, 5] and [3, 5]"),
        (|d| zeros(d, [2, 5])?.activate(Activation::Geglu), "GEGLU of [2, 5]"),
        (|d| zeros(d, [2, 5])?.add(&zeros(d, [5, 2])?), "add: [2, 5] and [5, 2]"),
        (|d| zeros(d, [2, 5])?.add_channels(&zeros(d, [3, 5])?), "add_channels: [2, 5] and [3, 5]"),
        (|d| zeros(d, [5])?.add_channels(&zeros(d, [5, 5])?), "add_channels: [5] and [5, 5]"),
        (|_| Tensor::scale_add([2, 5].into(), &[]), "scale_add: no terms"),
        (|d| Tensor::scale_add([2, 5].into(), &[(1.0, &zeros(d, [3, 5])?, 2)]), "[2, 5] from row 2 of [3, 5]"),
        (|d| { let x = zeros(d, [5])?; Tensor::scale_add([5].into(), &[(1.0, &x, 0); 7]) }, "7 terms, up to 6"),
        // Token ids.
        (|d| embed(d, &[vec![0, 9]]), "embedding: token 9 of a table of 9 rows"),
        (|d| embed(d, &[vec![0; 5]]), "5 tokens, 4 positions"),
        (|d| embed(d, &[vec![0, 1], vec![0]]), "texts of different lengths"),
        (|d| embed(d, &[]), "has no elements"),
        // Types.
        (|d| half(d, [2, 5])?.linear(&linear(d), &Fuse::default()), "linear: f16 in place of f32"),
        (|d| zeros(d, [2, 5])?.linear(&linear(d), &Fuse::residual(&half(d, [2, 4])?)), "linear: f16 in place of f32"),
        (|d| zeros(d, [2, 5])?.linear(&linear(d), &Fuse::channel_add(&half(d, [2, 4])?)), "linear: f16 in place of f32"),
        (|d| zeros(d, [2, 5])?.add_channels(&half(d, [2, 5])?), "add_channels: f16 in place of f32"),
        (|d| zeros(d, [2, 5])?.add(&half(d, [2, 5])?), "f16 in place of f32"),
        (|d| zeros(d, [2, 5])?.concat_channels(&half(d, [2, 5])?), "concat_channels: f16 in place of f32"),
        (|d| Tensor::ids(d, [1], &[1])?.cast(DType::F32), "cast: u32 to f32"),
        (|d| zeros(d, [1])?.cast(DType::U32), "cast: f32 to u32"),
        // Devices.
        (|d| zeros(d, [2, 5])?.add(&zeros(&device(), [2, 5])?), "tensors on cpu and cpu"),
        (|d| zeros(d, [2, 5])?.linear(&linear(d), &Fuse::residual(&zeros(&device(), [2, 4])?)), "linear: tensors on"),
        (|d| zeros(d, [2, 5])?.concat_channels(&zeros(&device(), [2, 5])?), "concat_channels: tensors on"),
    ];
    let device = device();
    for (call, message) in calls {
        match call(&device) {
            Ok(x) => panic!("{message}: gave {}", x.shape()),
            Err(e) => {
                assert!(e.to_string().contains(message), "\"{e}\" does not contain \"{message}\"");
                assert_eq!(e.scope(), &ErrorScope::Request, "{message}");
            }
        }
        assert_empty(&device);
    }
}

#[test]
fn what_is_computed_has_the_type_of_its_inputs_and_of_the_weight() {
    let rates = sdshard::backend::cpu::info().rates;
    let (device, counter) = Device::dry("cuda:0".parse().unwrap(), Rules::Gpu(Precision::F16), rates);
    let x = zeros(&device, [2, 6]).unwrap();
    for (precision, size) in [(Precision::F16, 2), (Precision::BF16, 2), (Precision::F32, 4)] {
        let dtype = precision.dtype().unwrap();
        let weight =
            device.pack(Layer::Linear { out: 4, k: 6 }, precision, Values::ShapeOnly, Some(Values::ShapeOnly)).unwrap();
        let norm =
            device.pack(Layer::Norm { channels: 6 }, precision, Values::ShapeOnly, Some(Values::ShapeOnly)).unwrap();
        assert_eq!((weight.bytes(), norm.bytes()), (24 * size + 16, 48), "biases and norms are f32");
        let x = x.cast(dtype).unwrap();
        counter.take();
        let y = x.layer_norm(&norm, 1e-5).unwrap().linear(&weight, &Fuse::default()).unwrap();
        assert_eq!((y.dtype(), y.bytes()), (dtype, 8 * size));
        assert_eq!(counter.take().bytes, (2 * 12 * size + 48 + 12 * size + weight.bytes() + 8 * size) as f64);
        let all = [&x.activate(Activation::Silu), &x.add(&x), &x.concat_channels(&x), &x.reshape([1, 1, 2, 6])];
        assert!(all.iter().all(|y| y.as_ref().unwrap().dtype() == dtype));
        let table = device.pack(Layer::Embedding { rows: 3, channels: 6 }, precision, Values::ShapeOnly, None).unwrap();
        assert_eq!(Tensor::embedding(&device, &[vec![1]], &table, &table).unwrap().dtype(), dtype);
        if dtype != DType::F32 {
            let error = zeros(&device, [2, 6]).unwrap().linear(&weight, &Fuse::default()).err().unwrap().to_string();
            assert!(error.contains(&format!("linear: f32 in place of {dtype}")), "{error}");
            let error = Tensor::scale_add(x.shape(), &[(1.0, &x, 0)]).err().unwrap().to_string();
            assert!(error.contains(&format!("scale_add: {dtype} in place of f32")), "{error}");
        }
    }
    let (wgpu, _) = Device::dry("wgpu:0".parse().unwrap(), Rules::Wgpu(Precision::F16), rates);
    let error =
        wgpu.pack(Layer::Norm { channels: 6 }, Precision::BF16, Values::ShapeOnly, None).err().unwrap().to_string();
    assert!(error.contains("in bf16: wgpu:0 has no such arithmetic") && error.contains("wgpu f16"), "{error}");
}

fn linear(device: &Device) -> Weight {
    pack(device, Layer::Linear { out: 4, k: 5 })
}

fn conv(device: &Device) -> Weight {
    pack(device, Layer::Conv2d { out: 2, channels: 3, kernel: 3, stride: 1, extent: Extent::Large })
}

fn still(device: &Device) -> Weight {
    pack(device, Layer::Conv2d { out: 2, channels: 3, kernel: 3, stride: 0, extent: Extent::Large })
}

fn even(device: &Device) -> Weight {
    pack(device, Layer::Conv2d { out: 2, channels: 3, kernel: 2, stride: 1, extent: Extent::Large })
}

fn norm(device: &Device) -> Weight {
    pack(device, Layer::Norm { channels: 6 })
}

fn half(device: &Device, shape: impl Into<Shape>) -> Result<Tensor> {
    zeros(device, shape)?.cast(DType::F16)
}

fn embed(device: &Device, ids: &[Vec<u32>]) -> Result<Tensor> {
    let table = |rows| pack(device, Layer::Embedding { rows, channels: 3 });
    Tensor::embedding(device, ids, &table(9), &table(4))
}

#[test]
fn a_row_by_itself_is_one_image() {
    let device = device();
    let x = Tensor::new(&device, [4], &[1.0, 3.0, 5.0, 7.0]).unwrap();
    let ones: &[u8] = bytemuck::cast_slice(&[1f32; 4]);
    let values = Values::Data { dtype: DType::F32, bytes: ones };
    let norm = device.pack(Layer::Norm { channels: 4 }, Precision::F32, values, None).unwrap();
    assert_eq!(x.group_norm(&norm, 2, 0.0, Activation::None).unwrap().read().unwrap(), [-1.0, 1.0, -1.0, 1.0]);
    let add = Tensor::new(&device, [1, 4], &[10.0; 4]).unwrap();
    assert_eq!(x.add_channels(&add).unwrap().read().unwrap(), [11.0, 13.0, 15.0, 17.0]);
}

#[test]
fn layers_reject_values_of_another_size_or_type() {
    let layer = Layer::Linear { out: 4, k: 5 };
    let f32s = |elements: usize| Values::Data { dtype: DType::F32, bytes: &[0; 400][..4 * elements] };
    let ids = Values::Data { dtype: DType::U32, bytes: &[0; 80] };
    for (layer, weight, bias, message) in [
        (layer, f32s(19), None, "needs a weight of 20 f32 elements\n  found: 76 bytes"),
        (layer, f32s(21), None, "needs a weight of 20 f32 elements\n  found: 84 bytes"),
        (layer, f32s(20), Some(f32s(3)), "needs a bias of 4 f32 elements"),
        (layer, ids, None, "must be of a float type, not u32"),
        (layer, Values::ShapeOnly, None, "opened for planning"),
        (Layer::Linear { out: 0, k: 5 }, f32s(0), None, "is not a layer"),
        (Layer::Geglu { out: 3, k: 1 }, f32s(3), None, "is not a layer"),
        (
            Layer::Conv2d { out: 1, channels: 1, kernel: 9, stride: 1, extent: Extent::Large },
            f32s(81),
            None,
            "up to 7x7",
        ),
    ] {
        let error = device().pack(layer, Precision::F32, weight, bias).err().unwrap().to_string();
        assert!(error.contains(message), "\"{error}\" does not contain \"{message}\"");
    }
}

#[test]
fn memory_that_cannot_be_had_is_an_error_of_the_device_that_asked() {
    let id = DeviceId::new(DeviceKind::Cpu, 1);
    let cpu = Cpu::new(Path::Portable.into(), NonZero::<usize>::MIN, Vec::new(), true).unwrap();
    let device = cpu.device(id);
    let scratch = device.request_scratch(1 << 60).err().unwrap();
    for error in [device.reserve(1 << 60).unwrap_err(), device.persistent_arena(1 << 60).err().unwrap(), scratch] {
        assert_eq!(*error.scope(), ErrorScope::Device(id), "{error}");
        assert!(error.to_string().starts_with("cpu:1: "), "{error}");
    }
}

/// The kernels believe what a weight says of itself.
#[test]
fn a_weight_that_comes_as_another_layer_is_refused() {
    let device = device();
    let announced = Layer::Linear { out: 64, k: 8 };
    let offloaded = |device: &Device, came: Weight| {
        Weight::offloaded(device, announced, Precision::F32, true, came.bytes(), move || Ok(came.clone())).unwrap()
    };
    offloaded(&device, pack(&device, announced)).fetch().unwrap();
    for (came, why) in [
        (pack(&device, Layer::Linear { out: 8, k: 8 }), "another size"),
        (pack(&device, Layer::Norm { channels: 64 }), "another kind"),
        (offloaded(&device, pack(&device, announced)), "one that is itself not here"),
        (
            device
                .pack(announced, Precision::F32, Values::Data { dtype: DType::F32, bytes: &[0; 2048] }, None)
                .unwrap(),
            "no bias",
        ),
        (
            pack(
                &Device::dry(
                    DeviceId::CPU,
                    Rules::Cpu(Path::Portable.into(), Precision::F32),
                    sdshard::backend::cpu::info().rates,
                )
                .0,
                announced,
            ),
            "another device's",
        ),
    ] {
        let weight = offloaded(&device, came);
        let error = weight.fetch().expect_err(why).to_string();
        assert!(error.contains("cannot be fetched to its device"), "{why}: {error}");
        let x = zeros(&device, [1, 8]).unwrap();
        assert!(x.linear(&weight, &Fuse::default()).is_err(), "{why}");
    }
}

#[test]
fn sizes_that_overflow_are_refused() {
    let device = device();
    let x = zeros(&device, [2, 2, 2, 2]).unwrap();
    for row in [1 << 61, usize::MAX / 4, usize::MAX] {
        let error = Tensor::scale_add(x.shape().with_batch(1), &[(1.0, &x, row)]).err().unwrap().to_string();
        assert!(error.contains(&format!("from row {row} of")), "{error}");
    }
    for stride in [1 << 32, (1 << 32) + 1, usize::MAX] {
        let window = pack(&device, Layer::Conv2d { out: 2, channels: 2, kernel: 1, stride, extent: Extent::Large });
        assert!(x.conv2d(&window, Padding::Same, &Fuse::default()).is_err(), "stride {stride}");
    }
    let error = Tensor::from_bytes(&device, [64], DType::F32, &[0; 259]).err().unwrap().to_string();
    assert!(error.contains("259 bytes are no whole number of f32 elements"), "{error}");

    // Each has one element, two or four once its sizes have wrapped around.
    let half = 1 << (usize::BITS - 1);
    for layer in [
        Layer::Linear { out: half + 1, k: 2 },
        Layer::Geglu { out: half + 2, k: 2 },
        Layer::Conv2d { out: 1, channels: 1, kernel: half + 1, stride: 1, extent: Extent::Large },
        Layer::Embedding { rows: half + 1, channels: 2 },
        Layer::Linear { out: 1 << 16, k: 1 << 15 },
    ] {
        assert_eq!(device.packed_bytes(layer, Precision::F32, true), usize::MAX, "{layer:?}");
        for bytes in [&[0; 4][..], &[0; 8], &[0; 16]] {
            let error =
                device.pack(layer, Precision::F32, Values::Data { dtype: DType::F32, bytes }, None).err().unwrap();
            assert!(error.to_string().contains("kernels count fewer than 2^31"), "{error}");
        }
    }
}

#[test]
fn a_weight_that_rests_for_another_device_is_not_fetched() {
    let (dry, _) = Device::dry(
        DeviceId::CPU,
        Rules::Cpu(Path::Portable.into(), Precision::F32),
        sdshard::backend::cpu::info().rates,
    );
    let resting = pack(&dry, Layer::Norm { channels: 4 });
    assert!(device().fetch(&resting).err().unwrap().to_string().contains("was not packed in host memory for cpu"));
}

#[test]
#[should_panic(expected = "is not in the memory of")]
fn what_is_kept_on_one_device_is_not_reached_from_another() {
    let (one, other) = (device(), device());
    let _ = one.persistent_arena(1 << 10).unwrap().with_request_scratch(&other);
}
