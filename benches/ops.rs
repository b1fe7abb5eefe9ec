//! Single ops at the sizes of SD 1.5: `cargo bench --bench ops`. Throughput is in multiply-adds counted as two.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use sdshard::{
    backend::{Activation, DType, Device, Extent, Layer, Precision, Values, Weight},
    tensor::{Fuse, Tensor, ops::Padding},
};

fn values(count: usize) -> Vec<f32> {
    (0..count).map(|i| ((i * 7919) % 2001) as f32 / 1000.0 - 1.0).collect()
}

fn weight(device: &Device, layer: Layer, count: usize, bias: usize) -> Weight {
    let (weight, bias) = (values(count), values(bias));
    let data = |values: &'static [f32]| Values::Data { dtype: DType::F32, bytes: bytemuck::cast_slice(values) };
    device.pack(layer, Precision::F32, data(weight.leak()), Some(data(bias.leak()))).expect("a weight packs")
}

fn ops(c: &mut Criterion) {
    let device = Device::cpu(1 << 30).expect("a machine has a CPU");

    let mut group = c.benchmark_group("linear");
    for (rows, out, k) in [(1024, 1024, 1024), (2048, 320, 320), (2048, 1280, 320), (128, 1280, 1280), (2, 1280, 1280)]
    {
        let x = Tensor::new(&device, [1, rows, k], &values(rows * k)).expect("room");
        let w = weight(&device, Layer::Linear { out, k }, out * k, out);
        group.throughput(Throughput::Elements(2 * (rows * out * k) as u64));
        group.bench_function(BenchmarkId::from_parameter(format!("{rows}x{out}x{k}")), |b| {
            b.iter(|| x.linear(&w, &Fuse::default()).expect("linear"));
        });
    }
    group.finish();

    let mut group = c.benchmark_group("conv2d");
    for (size, channels, out) in
        [(32, 320, 320), (16, 640, 640), (8, 1280, 1280), (8, 2560, 1280), (128, 256, 256), (32, 4, 320)]
    {
        let x = Tensor::new(&device, [2, size, size, channels], &values(2 * size * size * channels)).expect("room");
        let w = weight(
            &device,
            Layer::Conv2d { out, channels, kernel: 3, stride: 1, extent: Extent::Large },
            out * channels * 9,
            out,
        );
        group.throughput(Throughput::Elements((4 * size * size * out * channels * 9) as u64));
        group.bench_function(BenchmarkId::from_parameter(format!("{size}x{size} {channels} to {out}")), |b| {
            b.iter(|| x.conv2d(&w, Padding::Same, &Fuse::default()).expect("conv2d"));
        });
    }
    group.finish();

    let mut group = c.benchmark_group("attention");
    for (queries, keys, heads, dim) in [(1024, 1024, 8, 40), (1024, 77, 8, 40), (256, 256, 8, 80), (1024, 1024, 1, 512)]
    {
        let q = Tensor::new(&device, [2, queries, heads * dim], &values(2 * queries * heads * dim)).expect("room");
        let k = Tensor::new(&device, [2, keys, heads * dim], &values(2 * keys * heads * dim)).expect("room");
        group.throughput(Throughput::Elements((8 * heads * queries * keys * dim) as u64));
        group.bench_function(BenchmarkId::from_parameter(format!("{queries}x{keys} {heads} heads of {dim}")), |b| {
            b.iter(|| q.attention(&k, &k, heads, false).expect("attention"));
        });
    }
    group.finish();

    let mut group = c.benchmark_group("group_norm");
    for (pixels, channels) in [(1024, 320), (1 << 16, 128)] {
        let x = Tensor::new(&device, [1, pixels, channels], &values(pixels * channels)).expect("room");
        let w = weight(&device, Layer::Norm { channels }, channels, channels);
        group.throughput(Throughput::Bytes((8 * pixels * channels) as u64));
        group.bench_function(BenchmarkId::from_parameter(format!("{pixels}x{channels}")), |b| {
            b.iter(|| x.group_norm(&w, 32, 1e-5, Activation::Silu).expect("group_norm"));
        });
    }
    group.finish();
}

criterion_group!(benches, ops);
criterion_main!(benches);
