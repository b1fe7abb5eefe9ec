//! Seeded normal noise, generated on the host: the numbers that PyTorch draws for the same seed.

use std::{f64::consts::PI, fmt, str::FromStr};

use crate::error::{Error, Result};

/// The random generator of the noise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Rng {
    /// PyTorch's CPU generator (Mersenne Twister): what diffusers users get with `torch.Generator("cpu")`.
    #[default]
    TorchCpu,
    /// PyTorch's CUDA generator (Philox), as on a GPU large enough to draw every value in one go.
    TorchCuda,
}

impl Rng {
    /// The generator at the start of the stream of `seed`.
    pub fn generator(self, seed: u64) -> Generator {
        match self {
            Self::TorchCpu => Generator::TorchCpu(TorchCpu::new(seed)),
            Self::TorchCuda => Generator::TorchCuda(TorchCuda::new(seed)),
        }
    }
}

impl fmt::Display for Rng {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::TorchCpu => "cpu",
            Self::TorchCuda => "cuda",
        })
    }
}

impl FromStr for Rng {
    type Err = Error;

    /// Reads `cpu` or `cuda`.
    fn from_str(text: &str) -> Result<Self> {
        [Self::TorchCpu, Self::TorchCuda].into_iter().find(|rng| rng.to_string() == text).ok_or_else(|| {
            Error::input(format!("\"{text}\" is not a random generator that sdshard has")).hint("one of cpu, cuda")
        })
    }
}

/// A generator at a position of its stream.
#[derive(Debug, Clone)]
pub enum Generator {
    /// See [`TorchCpu`].
    TorchCpu(TorchCpu),
    /// See [`TorchCuda`].
    TorchCuda(TorchCuda),
}

impl Generator {
    /// The next `count` values of mean 0 and variance 1, as one `torch.randn(count)` gives them.
    pub fn normal(&mut self, count: usize) -> Vec<f32> {
        match self {
            Self::TorchCpu(generator) => generator.normal(count),
            Self::TorchCuda(generator) => generator.normal(count),
        }
    }
}

/// PyTorch's CPU generator: MT19937 (Matsumoto and Nishimura 1998) and the transform of Box and Muller.
///
/// PyTorch's vectorised logarithm, sine and cosine are approximations, so its values agree to about 1e-6.
#[derive(Debug, Clone)]
pub struct TorchCpu {
    twister: MersenneTwister,
    /// The second value of a pair, which the last short draw did not use.
    spare: Option<f64>,
}

impl TorchCpu {
    /// The length from which values are transformed in blocks; shorter draws are transformed one by one, in f64.
    const BLOCK: usize = 16;

    /// The start of the stream of `seed`, of which PyTorch uses the low 32 bits.
    pub fn new(seed: u64) -> Self {
        Self { twister: MersenneTwister::new(seed as u32), spare: None }
    }

    /// The next `count` values of mean 0 and variance 1, as one `torch.randn(count)` gives them.
    pub fn normal(&mut self, count: usize) -> Vec<f32> {
        if count < Self::BLOCK {
            return (0..count).map(|_| self.next_value() as f32).collect();
        }
        let mut values: Vec<f32> = (0..count).map(|_| self.uniform_f32()).collect();
        values.chunks_exact_mut(Self::BLOCK).for_each(transform_block);
        if !count.is_multiple_of(Self::BLOCK) {
            // The last 16 values are drawn again, although some of them are finished.
            let tail = &mut values[count - Self::BLOCK..];
            tail.iter_mut().for_each(|value| *value = self.uniform_f32());
            transform_block(tail);
        }
        values
    }

    fn next_value(&mut self) -> f64 {
        if let Some(spare) = self.spare.take() {
            return spare;
        }
        let (angle, radius) = (2.0 * PI * self.uniform_f64(), (-2.0 * (-self.uniform_f64()).ln_1p()).sqrt());
        self.spare = Some(radius * angle.sin());
        radius * angle.cos()
    }

    /// A uniform value in [0, 1) with 24 bits.
    fn uniform_f32(&mut self) -> f32 {
        (self.twister.next() & 0xff_ffff) as f32 / (1 << 24) as f32
    }

    /// A uniform value in [0, 1) with 53 bits.
    fn uniform_f64(&mut self) -> f64 {
        let (high, low) = (u64::from(self.twister.next()), u64::from(self.twister.next()));
        ((high << 32 | low) & ((1 << 53) - 1)) as f64 / (1_u64 << 53) as f64
    }
}

/// Transforms 16 uniform values to normal ones: value j is paired with value j + 8.
fn transform_block(block: &mut [f32]) {
    let (first, second) = block.split_at_mut(TorchCpu::BLOCK / 2);
    for (first, second) in first.iter_mut().zip(second) {
        let radius = (-2.0 * f64::from(1.0 - *first).ln()).sqrt();
        let angle = 2.0 * PI * f64::from(*second);
        (*first, *second) = ((radius * angle.cos()) as f32, (radius * angle.sin()) as f32);
    }
}

/// MT19937: 624 words of state, with outputs of 32 bits.
#[derive(Debug, Clone)]
struct MersenneTwister {
    state: Box<[u32; Self::WORDS]>,
    used: usize,
}

impl MersenneTwister {
    const WORDS: usize = 624;
    const SHIFT: usize = 397;

    fn new(seed: u32) -> Self {
        let mut state = Box::new([seed; Self::WORDS]);
        for i in 1..Self::WORDS {
            let previous = state[i - 1];
            state[i] = (previous ^ previous >> 30).wrapping_mul(1_812_433_253).wrapping_add(i as u32);
        }
        Self { state, used: Self::WORDS }
    }

    fn next(&mut self) -> u32 {
        if self.used == Self::WORDS {
            self.refill();
        }
        let mut word = self.state[self.used];
        self.used += 1;
        word ^= word >> 11;
        word ^= word << 7 & 0x9d2c_5680;
        word ^= word << 15 & 0xefc6_0000;
        word ^ word >> 18
    }

    fn refill(&mut self) {
        for i in 0..Self::WORDS {
            let next = self.state[(i + 1) % Self::WORDS];
            let joined = self.state[i] & 0x8000_0000 | next & 0x7fff_ffff;
            let twist = if joined & 1 == 0 { 0 } else { 0x9908_b0df };
            self.state[i] = self.state[(i + Self::SHIFT) % Self::WORDS] ^ joined >> 1 ^ twist;
        }
        self.used = 0;
    }
}

/// PyTorch's CUDA generator: Philox 4x32-10 (Salmon et al. 2011) and the transform of Box and Muller.
///
/// A GPU draws with as many threads as it can hold, each with its own stream; here every value has its own thread. The
/// result is that of GPUs that hold at least `count` threads: 43,008 on a small GPU, 270,336 on a large one.
#[derive(Debug, Clone)]
pub struct TorchCuda {
    seed: u64,
    /// The number of earlier draws: the first two words of the counter.
    draws: u64,
}

impl TorchCuda {
    /// The start of the stream of `seed`.
    pub fn new(seed: u64) -> Self {
        Self { seed, draws: 0 }
    }

    /// The next `count` values of mean 0 and variance 1, as one `torch.randn(count, device="cuda")` gives them.
    pub fn normal(&mut self, count: usize) -> Vec<f32> {
        let values = (0..count as u64).map(|thread| self.next_value(thread)).collect();
        if count > 0 {
            self.draws = self.draws.wrapping_add(1);
        }
        values
    }

    /// The first of a thread's four values; the other three are not used.
    fn next_value(&self, thread: u64) -> f32 {
        const TO_UNIT: f32 = 1.0 / (1_u64 << 32) as f32;
        const TO_ANGLE: f32 = TO_UNIT * std::f32::consts::TAU;
        let [x, y, ..] = philox(self.seed, self.draws, thread);
        let unit = x as f32 * TO_UNIT + TO_UNIT / 2.0;
        let angle = y as f32 * TO_ANGLE + TO_ANGLE / 2.0;
        ((-2.0 * f64::from(unit).ln()).sqrt() * f64::from(angle).sin()) as f32
    }
}

/// Ten rounds of Philox 4x32 over the counter (`low`, `high`), 64 bits each.
fn philox(key: u64, low: u64, high: u64) -> [u32; 4] {
    let (mut key0, mut key1) = (key as u32, (key >> 32) as u32);
    let mut counter = [low as u32, (low >> 32) as u32, high as u32, (high >> 32) as u32];
    for _ in 0..10 {
        let product0 = u64::from(counter[0]) * 0xd251_1f53;
        let product1 = u64::from(counter[2]) * 0xcd9e_8d57;
        counter = [
            (product1 >> 32) as u32 ^ counter[1] ^ key0,
            product1 as u32,
            (product0 >> 32) as u32 ^ counter[3] ^ key1,
            product0 as u32,
        ];
        key0 = key0.wrapping_add(0x9e37_79b9);
        key1 = key1.wrapping_add(0xbb67_ae85);
    }
    counter
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn assert_near(found: &[f32], wanted: &[f32]) {
        assert_eq!(found.len(), wanted.len());
        for (found, wanted) in found.iter().zip(wanted) {
            assert!((found - wanted).abs() < 1.5e-6, "{found} is not {wanted}");
        }
    }

    // The expected values of TorchCpu are those of torch 2.15.0.

    #[test]
    fn cpu_draws_in_blocks_of_sixteen() {
        assert_near(
            &TorchCpu::new(0).normal(16),
            &[
                -1.12584, -1.15236, -0.250579, -0.433879, 0.84871, 0.692009, -0.316013, -2.115219, 0.322275, -1.263335,
                0.349983, 0.308134, 0.119842, 1.237658, 1.116777, -0.247278,
            ],
        );
    }

    #[test]
    fn cpu_draws_a_short_row_in_pairs() {
        assert_near(&TorchCpu::new(0).normal(3), &[1.540996, -0.293429, -2.178789]);
    }

    #[test]
    fn cpu_keeps_the_unused_half_of_a_pair_for_the_next_draw() {
        let mut split = TorchCpu::new(7);
        let values = [split.normal(3), split.normal(0), split.normal(4)].concat();
        assert_near(&values, &TorchCpu::new(7).normal(7));
        // A long draw does not change it.
        let mut around = TorchCpu::new(7);
        let (first, _, second) = (around.normal(1), around.normal(16), around.normal(1));
        assert_near(&[first, second].concat(), &TorchCpu::new(7).normal(2));
    }

    #[test]
    fn cpu_makes_the_last_sixteen_again_when_the_row_is_no_multiple() {
        assert_near(
            &TorchCpu::new(0).normal(20),
            &[
                -1.12584, -1.15236, -0.250579, -0.433879, 0.598839, -1.555095, -0.34136, 1.853006, 0.468096, -0.157712,
                1.44366, 0.266049, 1.389366, 1.586334, 0.946298, -0.843677, 0.931827, 1.259009, 2.004981, 0.053737,
            ],
        );
    }

    #[test]
    fn cpu_draws_the_latents_of_a_picture() {
        let values = TorchCpu::new(42).normal(16384);
        assert_near(
            &values[..8],
            &[1.926915, 1.487284, 0.900717, -2.105521, 0.678418, -1.234545, -0.043067, -1.604667],
        );
        assert_near(&values[16380..], &[-0.811144, -0.63575, 0.97281, -0.293406]);

        let values = TorchCpu::new(0).normal(16384);
        assert_near(&values[16380..], &[-1.040714, 0.090784, -1.36647, -1.078208]);
        let mean = values.iter().map(|&value| f64::from(value)).sum::<f64>() / 16384.0;
        let variance = values.iter().map(|&value| (f64::from(value) - mean).powi(2)).sum::<f64>() / 16383.0;
        assert!((mean + 0.007575).abs() < 1e-6 && (variance.sqrt() - 1.004208).abs() < 1e-6);
    }

    #[test]
    fn cpu_uses_the_low_half_of_a_seed() {
        assert_eq!(TorchCpu::new(5).normal(20), TorchCpu::new(5 | 1 << 32).normal(20));
    }

    #[test]
    fn cuda_draws_the_sine_of_each_threads_first_pair() {
        assert_near(
            &TorchCuda::new(0).normal(12),
            &[
                -0.924663, -0.425344, -2.643846, 0.145184, -0.120866, -0.579726, -0.622851, -0.328387, -1.074542,
                -0.363144, -1.671051, 2.265505,
            ],
        );
        assert_near(
            &TorchCuda::new(42).normal(8),
            &[0.194019, 2.161374, -0.172051, 0.84906, -1.924399, 0.652985, -0.649441, -0.817525],
        );
    }

    #[test]
    fn cuda_moves_on_with_every_draw() {
        let mut generator = Rng::TorchCuda.generator(0);
        generator.normal(1000);
        generator.normal(0);
        assert_near(&generator.normal(4), &[0.180826, -0.552263, 0.923813, -0.73497]);
    }

    #[test]
    fn philox_gives_the_known_answers_of_its_authors() {
        assert_eq!(philox(0, 0, 0), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox(u64::MAX, u64::MAX, u64::MAX), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
    }

    #[test]
    fn generators_have_names() {
        for rng in [Rng::TorchCpu, Rng::TorchCuda] {
            assert_eq!(rng.to_string().parse::<Rng>().unwrap(), rng);
        }
        assert!("numpy".parse::<Rng>().unwrap_err().to_string().contains("one of cpu, cuda"));
    }
}
