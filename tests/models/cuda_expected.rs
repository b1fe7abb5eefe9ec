//! What the products and convolutions of one call of a UNet should take on GPUs that are not here: the table in
//! `docs/hardware.md`, from the launches that the backend would make. `SDSHARD_WRITE=1` writes it anew.

use std::fmt::Write;

use crate::common;
use sdshard::backend::{
    Activation, DType,
    cuda::launch::{self, Product},
    gpu_cost,
};

/// Dense peaks by NVIDIA's data sheets, and what the page expects of the product kernel.
struct Card {
    name: &'static str,
    arch: u32,
    /// TFLOP/s of f16 with sums in f32.
    tflops: f64,
    /// GB/s of memory.
    bandwidth: f64,
    multiprocessors: u32,
    /// Of the peak, in a multiprocessor that is full.
    share: f64,
    /// Blocks of large tiles that fill one; of small ones it takes four.
    large: u32,
}

const CARDS: [Card; 4] = [
    Card { name: "H100", arch: 90, tflops: 989.0, bandwidth: 3350.0, multiprocessors: 132, share: 0.40, large: 2 },
    Card { name: "A100", arch: 80, tflops: 312.0, bandwidth: 2039.0, multiprocessors: 108, share: 0.55, large: 2 },
    Card { name: "RTX 4090", arch: 89, tflops: 165.0, bandwidth: 1008.0, multiprocessors: 128, share: 0.70, large: 2 },
    Card { name: "T4", arch: 75, tflops: 65.0, bandwidth: 320.0, multiprocessors: 40, share: 0.40, large: 1 },
];

/// Rows of the table take at least this of the A100's time.
const SHOWN: f64 = 0.015;
/// A launch, in seconds.
const LAUNCH: f64 = 3e-6;
/// The share of the memory's bandwidth that the sum of runs can have.
const STREAMING: f64 = 0.8;

/// An op of the UNet of Stable Diffusion 1.5 at 512 x 512, two images: taps of its window, rows, columns, channels,
/// times.
struct Row {
    taps: u32,
    rows: u32,
    columns: u32,
    channels: u32,
    times: u32,
    activation: Activation,
}

const fn conv2d(taps: u32, rows: u32, columns: u32, channels: u32, times: u32) -> Row {
    Row { taps, rows, columns, channels, times, activation: Activation::None }
}

const fn linear(rows: u32, columns: u32, channels: u32, times: u32) -> Row {
    Row { taps: 0, ..conv2d(0, rows, columns, channels, times) }
}

const fn geglu(rows: u32, columns: u32, channels: u32, times: u32) -> Row {
    Row { activation: Activation::Geglu, ..linear(rows, columns, channels, times) }
}

const ROWS: [Row; 51] = [
    // 64 x 64
    conv2d(9, 8192, 320, 4, 1),
    conv2d(9, 8192, 320, 320, 7),
    conv2d(1, 8192, 320, 320, 10),
    linear(8192, 320, 320, 30),
    geglu(8192, 2560, 320, 5),
    linear(8192, 320, 1280, 5),
    conv2d(9, 8192, 640, 640, 1),
    conv2d(9, 8192, 320, 960, 1),
    conv2d(9, 8192, 320, 640, 2),
    conv2d(1, 8192, 320, 960, 1),
    conv2d(1, 8192, 320, 640, 2),
    conv2d(9, 8192, 4, 320, 1),
    // 32 x 32
    conv2d(9, 2048, 320, 320, 1),
    conv2d(9, 2048, 640, 320, 1),
    conv2d(1, 2048, 640, 320, 1),
    conv2d(9, 2048, 640, 640, 6),
    conv2d(1, 2048, 640, 640, 10),
    linear(2048, 640, 640, 30),
    geglu(2048, 5120, 640, 5),
    linear(2048, 640, 2560, 5),
    conv2d(9, 2048, 1280, 1280, 1),
    conv2d(9, 2048, 640, 1920, 1),
    conv2d(9, 2048, 640, 1280, 1),
    conv2d(9, 2048, 640, 960, 1),
    conv2d(1, 2048, 640, 1920, 1),
    conv2d(1, 2048, 640, 1280, 1),
    conv2d(1, 2048, 640, 960, 1),
    // 16 x 16
    conv2d(9, 512, 640, 640, 1),
    conv2d(9, 512, 1280, 640, 1),
    conv2d(1, 512, 1280, 640, 1),
    conv2d(9, 512, 1280, 1280, 7),
    conv2d(1, 512, 1280, 1280, 10),
    linear(512, 1280, 1280, 30),
    geglu(512, 10240, 1280, 5),
    linear(512, 1280, 5120, 5),
    conv2d(9, 512, 1280, 2560, 2),
    conv2d(9, 512, 1280, 1920, 1),
    conv2d(1, 512, 1280, 2560, 2),
    conv2d(1, 512, 1280, 1920, 1),
    // 8 x 8
    conv2d(9, 128, 1280, 1280, 12),
    conv2d(1, 128, 1280, 1280, 2),
    linear(128, 1280, 1280, 6),
    geglu(128, 10240, 1280, 1),
    linear(128, 1280, 5120, 1),
    conv2d(9, 128, 1280, 2560, 3),
    conv2d(1, 128, 1280, 2560, 3),
    // the timestep, once and for each resnet
    linear(1, 1280, 320, 1),
    linear(1, 1280, 1280, 1),
    linear(1, 320, 1280, 5),
    linear(1, 640, 1280, 5),
    linear(1, 1280, 1280, 12),
];

impl Row {
    fn k(&self) -> u32 {
        self.taps.max(1) * self.channels
    }

    fn flop(&self) -> f64 {
        2.0 * f64::from(self.rows) * f64::from(self.columns) * f64::from(self.k())
    }

    fn op(&self) -> String {
        let op = match (self.taps, self.activation) {
            (0, Activation::Geglu) => "linear, geglu",
            (0, _) => "linear",
            (1, _) => "conv2d 1x1",
            _ => "conv2d 3x3",
        };
        let runs = gpu_cost::runs(self.k());
        if runs > 1 { format!("{op}, {runs} runs") } else { op.into() }
    }

    /// Seconds, and the side of the tiles: blocks are dealt to the multiprocessors in waves; one that is full does its
    /// share of the peak, with fewer blocks in proportion, a lone one a quarter at least.
    fn expected(&self, card: &Card) -> (f64, u32) {
        let op = if self.taps == 0 { "linear" } else { "conv2d" };
        let (k, runs) = (self.k(), gpu_cost::runs(self.k()));
        let at_once = if runs > 1 { gpu_cost::SPLIT_ROWS } else { self.rows };
        let (mut seconds, mut side) = (0.0, 0);
        for first in (0..self.rows).step_by(at_once as usize) {
            let rows = at_once.min(self.rows - first);
            let product = Product { rows, columns: self.columns, channels: self.channels, k };
            let launch = launch::product(op, card.arch, card.multiprocessors, DType::F16, product);
            let per = if launch.kernel.contains("large") { card.large } else { 4 };
            side = if launch.kernel.contains("large") { 128 } else { 64 };
            let block = 2.0 * f64::from(side * side) * f64::from(k)
                / f64::from(runs)
                / (card.tflops * 1e12 * card.share / f64::from(card.multiprocessors));
            let blocks = launch.grid[0] * launch.grid[1];
            let (waves, left) = (blocks / (card.multiprocessors * per), blocks % (card.multiprocessors * per));
            let left = f64::from(left.div_ceil(card.multiprocessors));
            let busy = (left / f64::from(per)).max(0.25);
            seconds += LAUNCH + block * (f64::from(waves * per) + if left > 0.0 { left / busy } else { 0.0 });
            if runs > 1 {
                let results = f64::from(rows * self.columns);
                let bytes = results * f64::from(4 * runs + 4);
                seconds += LAUNCH + bytes / (card.bandwidth * 1e9 * STREAMING);
            }
        }
        (seconds, side)
    }

    /// The longer of operations at the peak and bytes at full bandwidth, in seconds.
    fn roofline(&self, card: &Card) -> f64 {
        let [rows, columns, channels, k] = [self.rows, self.columns, self.channels, self.k()].map(f64::from);
        let bytes = 2.0 * (rows * channels + columns * k + rows * columns);
        (self.flop() / (card.tflops * 1e12)).max(bytes / (card.bandwidth * 1e9))
    }
}

fn table() -> String {
    let total = |of: &dyn Fn(&Row) -> f64| ROWS.iter().map(|row| f64::from(row.times) * of(row)).sum::<f64>();
    let a100 = &CARDS[1];
    let shown = SHOWN * total(&|row| row.expected(a100).0);
    let mut text = String::from("| op | rows × columns × k | times | GFLOP |");
    for card in &CARDS {
        write!(text, " {} |", card.name).unwrap();
    }
    text += "\n|---|---|---|---|---|---|---|---|\n";
    for row in ROWS.iter().filter(|row| f64::from(row.times) * row.expected(a100).0 >= shown) {
        let (rows, columns, k) = (row.rows, row.columns, row.k());
        write!(text, "| {} | {rows} × {columns} × {k} | {} | {:.2} |", row.op(), row.times, row.flop() / 1e9).unwrap();
        for card in &CARDS {
            let (seconds, side) = row.expected(card);
            write!(text, " {:.0} / {:.0} ({side}) |", 1e6 * seconds, 1e6 * row.roofline(card)).unwrap();
        }
        text.push('\n');
    }
    text += "\nAll products and convolutions of a call, in milliseconds / their rooflines:";
    for (i, card) in CARDS.iter().enumerate() {
        let (expected, roofline) = (total(&|row| row.expected(card).0), total(&|row| row.roofline(card)));
        let comma = if i > 0 { "," } else { "" };
        write!(text, "{comma} {} {:.1} / {:.1}", card.name, 1e3 * expected, 1e3 * roofline).unwrap();
    }
    text + ".\n"
}

#[test]
fn the_page_on_hardware_has_the_times_that_the_launches_should_take() {
    // What the dry run counts, without attention: the list is whole.
    let gflop = ROWS.iter().map(|row| f64::from(row.times) * row.flop()).sum::<f64>() / 1e9;
    assert_eq!(gflop.round(), 1348.0);
    common::page::has_table("docs/hardware.md", "tests/models/cuda_expected.rs", &table());
}
