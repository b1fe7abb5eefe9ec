//! The noise of a model's training, and the timesteps and noise levels of one run.

use super::{
    beta,
    config::{BetaSchedule, Prediction, SchedulerConfig, Sigmas, Solver, Spacing},
};

/// ᾱ and σ of every training timestep, with PyTorch's roundings.
pub(super) struct NoiseTable {
    /// `ᾱ(t)`, the weight of the picture in the squared latents.
    alpha_bar: Vec<f32>,
    /// `σ(t) = √((1 − ᾱ) / ᾱ)`, the noise relative to a picture of unit scale.
    sigma: Vec<f32>,
    /// The value that DDIM and PNDM use for the timestep below 0.
    final_alpha_bar: f32,
}

impl NoiseTable {
    /// `alpha_bar` and `sigma` in f32, with products accumulated in f64, as in PyTorch on a CPU.
    pub(super) fn new(config: &SchedulerConfig) -> Self {
        let count = config.num_train_timesteps;
        let betas: Vec<f32> = match config.beta_schedule {
            BetaSchedule::Linear => linspace_f32(config.beta_start as f32, config.beta_end as f32, count),
            BetaSchedule::ScaledLinear => {
                let roots = linspace_f32(config.beta_start.sqrt() as f32, config.beta_end.sqrt() as f32, count);
                roots.into_iter().map(|root| root * root).collect()
            }
        };
        let mut alpha_bar = cumulative_product(betas.into_iter().map(|beta| 1.0 - beta));
        if config.zero_terminal_snr {
            alpha_bar = zero_terminal_snr(&alpha_bar);
            if !matches!(config.kind.solver(), Solver::Ddim | Solver::Lcm | Solver::Tcd) {
                // Almost pure noise, as in diffusers, so that the noise level is finite.
                *alpha_bar.last_mut().expect("there are timesteps") = 2.0_f32.powi(-24);
            }
        }
        let sigma = alpha_bar.iter().map(|alpha_bar| ((1.0 - alpha_bar) / alpha_bar).sqrt()).collect();
        let final_alpha_bar = if config.set_alpha_to_one { 1.0 } else { alpha_bar[0] };
        Self { alpha_bar, sigma, final_alpha_bar }
    }

    /// ᾱ at a training timestep; below 0, the value at the end of a run.
    pub(super) fn alpha_bar(&self, timestep: i64) -> f64 {
        usize::try_from(timestep).map_or(self.final_alpha_bar, |timestep| self.alpha_bar[timestep]).into()
    }

    /// σ at a timestep that may lie between two training timesteps.
    pub(super) fn sigma(&self, timestep: f64) -> f64 {
        let last = self.sigma.len() - 1;
        let below = (timestep.max(0.0) as usize).min(last);
        let (low, high) = (f64::from(self.sigma[below]), f64::from(self.sigma[(below + 1).min(last)]));
        low + (high - low) * (timestep - below as f64)
    }

    /// σ of timestep 0.
    pub(super) fn sigma_min(&self) -> f64 {
        self.sigma[0].into()
    }

    /// σ of the last training timestep.
    pub(super) fn sigma_max(&self) -> f64 {
        self.sigma[self.sigma.len() - 1].into()
    }

    /// The timestep whose noise level is `sigma`, by linear interpolation of log σ.
    pub(super) fn timestep(&self, sigma: f64) -> f64 {
        // In f32 as in the reference; the detour makes the result the same on every machine.
        let log_of = |level: f32| f64::from(f64::from(level).ln() as f32);
        let log = |index: usize| log_of(self.sigma[index]);
        let at_most = self.sigma.partition_point(|&level| log_of(level) <= sigma.ln());
        let below = at_most.saturating_sub(1).min(self.sigma.len() - 2);
        let weight = (log(below) - sigma.ln()) / (log(below) - log(below + 1));
        below as f64 + weight.clamp(0.0, 1.0)
    }
}

impl Prediction {
    /// The weights of the network's input and output in the clean latents, for an input of `alpha` · clean + `sigma` ·
    /// noise with α² + σ² = 1.
    pub(super) fn clean(self, alpha: f64, sigma: f64) -> (f64, f64) {
        match self {
            Self::Epsilon => (1.0 / alpha, -sigma / alpha),
            Self::Velocity => (alpha, -sigma),
            Self::Sample => (0.0, 1.0),
        }
    }
}

/// PyTorch's `cumprod` on a CPU: f32 values, accumulated in f64.
fn cumulative_product(factors: impl Iterator<Item = f32>) -> Vec<f32> {
    let mut product = 1.0_f64;
    factors
        .map(|factor| {
            product *= f64::from(factor);
            product as f32
        })
        .collect()
}

/// ᾱ shifted and scaled so that it ends at 0 and its first value stays. Lin et al. 2023, algorithm 1; the roundings are
/// those of `rescale_zero_terminal_snr` in diffusers, which computes betas.
fn zero_terminal_snr(alpha_bar: &[f32]) -> Vec<f32> {
    let roots: Vec<f32> = alpha_bar.iter().map(|alpha_bar| alpha_bar.sqrt()).collect();
    let (first, last) = (roots[0], roots[roots.len() - 1]);
    let scale = first / (first - last);
    let rescaled: Vec<f32> = roots.iter().map(|root| ((root - last) * scale).powi(2)).collect();
    let alpha = |t: usize| if t == 0 { rescaled[0] } else { rescaled[t] / rescaled[t - 1] };
    let beta = |t: usize| 1.0 - alpha(t);
    cumulative_product((0..rescaled.len()).map(|t| 1.0 - beta(t)))
}

/// PyTorch's `linspace`, which counts from the nearer end.
fn linspace_f32(start: f32, end: f32, count: usize) -> Vec<f32> {
    let step = (end - start) / (count - 1) as f32;
    let value = |i: usize| if i < count / 2 { start + step * i as f32 } else { end - step * (count - 1 - i) as f32 };
    (0..count).map(value).collect()
}

/// `count` timesteps from the noisiest down, not rounded: with [`Spacing::Linspace`] they have fractions. `None` if two
/// are equal or one is beyond the training range.
pub(super) fn timesteps(config: &SchedulerConfig, count: usize) -> Option<Vec<f64>> {
    let train = config.num_train_timesteps as f64;
    let timesteps: Vec<f64> = match config.spacing {
        Spacing::Leading if count > config.num_train_timesteps => return None,
        Spacing::Leading => {
            let stride = config.num_train_timesteps / count;
            (0..count).rev().map(|i| (i * stride + config.steps_offset) as f64).collect()
        }
        Spacing::Linspace if count == 1 => vec![0.0],
        Spacing::Linspace => {
            let stride = (train - 1.0) / (count - 1) as f64;
            (0..count).rev().map(|i| if i == count - 1 { train - 1.0 } else { i as f64 * stride }).collect()
        }
        Spacing::Trailing => {
            let stride = (train - train / count as f64) - train;
            (0..count).map(|i| (train + i as f64 * stride).round_ties_even() - 1.0).collect()
        }
    };
    (timesteps[0] < train).then_some(timesteps)
}

/// `count` timesteps, rounded to training timesteps.
pub(super) fn whole_timesteps(config: &SchedulerConfig, count: usize) -> Option<Vec<i64>> {
    Some(timesteps(config, count)?.into_iter().map(|timestep| timestep.round_ties_even() as i64).collect())
}

/// Whether diffusers makes one timestep more than `count` with [`Spacing::Trailing`], the last of which is -1. numpy's
/// `arange(train, 0, -train / count)` does so for a few counts, such as 61 of 1000, because the stride is rounded.
pub(super) fn has_extra_timestep(config: &SchedulerConfig, count: usize) -> bool {
    let train = config.num_train_timesteps as f64;
    config.spacing == Spacing::Trailing && (train / (train / count as f64)).ceil() > count as f64
}

/// `count` noise levels as the scheduler's name says, from `max` down to `min` or the bounds in the config. `None` if
/// they are those of the timesteps.
pub(super) fn spaced(config: &SchedulerConfig, max: f64, min: f64, count: usize) -> Option<Vec<f64>> {
    const RHO: f64 = 7.0;
    let (max, min) = (config.sigma_max.unwrap_or(max), config.sigma_min.unwrap_or(min));
    let between = |max: f64, min: f64, share: f64| max + share * (min - max);
    let level: &dyn Fn(f64) -> f64 = match config.kind.sigmas() {
        Sigmas::Timesteps | Sigmas::Trailing => return None,
        Sigmas::Karras => &|share| between(max.powf(1.0 / RHO), min.powf(1.0 / RHO), share).powf(RHO),
        Sigmas::Exponential => &|share| between(max.ln(), min.ln(), share).exp(),
        Sigmas::Beta => &|share| min + beta::quantile(1.0 - share) * (max - min),
    };
    let share = |i: usize| if count == 1 { 0.0 } else { i as f64 / (count - 1) as f64 };
    Some((0..count).map(|i| level(share(i))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> SchedulerConfig {
        SchedulerConfig::from_json(text, "scheduler_config.json").unwrap()
    }

    #[test]
    fn alpha_bar_and_sigma_have_pytorchs_values() {
        let table = NoiseTable::new(&config(
            r#"{"_class_name": "EulerDiscreteScheduler", "beta_start": 0.00085, "beta_end": 0.012,
                "beta_schedule": "scaled_linear"}"#,
        ));
        for (timestep, want) in [(0, 0.99914998), (1, 0.99829602), (500, 0.27633247), (999, 0.00466010)] {
            assert!((table.alpha_bar(timestep) - want).abs() < 1e-8, "{timestep}: {}", table.alpha_bar(timestep));
        }
        assert!((table.sigma_min() - 0.02916753).abs() < 1e-8);
        assert!((table.sigma_max() - 14.6146469).abs() < 1e-6);
        // torch 2.15.0: torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000)**2, 0), to the last bit.
        let bits = [
            (0, 0x3f7fc84b),
            (1, 0x3f7f9054),
            (250, 0x3f2c7da7),
            (500, 0x3e8d7b73),
            (750, 0x3d66124f),
            (999, 0x3b98b3b6),
        ];
        for (timestep, bits) in bits {
            assert_eq!(table.alpha_bar[timestep].to_bits(), bits, "timestep {timestep}");
        }
    }

    #[test]
    fn a_timestep_is_found_again_from_its_noise_level() {
        let table = NoiseTable::new(&config(
            r#"{"_class_name": "EulerDiscreteScheduler", "beta_start": 0.00085, "beta_end": 0.012,
                "beta_schedule": "scaled_linear"}"#,
        ));
        for timestep in [0.0, 1.0, 77.0, 500.0, 998.0, 999.0] {
            assert!((table.timestep(table.sigma(timestep)) - timestep).abs() < 1e-3);
        }
        assert_eq!(table.timestep(1e-6), 0.0);
        assert_eq!(table.timestep(1e6), 999.0);
    }

    #[test]
    fn trailing_timesteps_never_fall_below_zero() {
        let config = config(r#"{"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "trailing"}"#);
        for count in (1..=1000).filter(|&count| !has_extra_timestep(&config, count)) {
            let timesteps = timesteps(&config, count).unwrap();
            assert_eq!((timesteps.len(), timesteps[0]), (count, 999.0));
            assert!(timesteps[count - 1] >= 0.0, "{count}");
        }
    }
}
