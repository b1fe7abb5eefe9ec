//! How fast a device is, as plans see it.

/// Operations and bytes per second. Predictions take the larger of an op's two times, so both are what long ops reach.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rates {
    /// Floating-point operations of matrix products per second, a multiply-add counted as two.
    pub flops: f64,
    /// Bytes per second between its memory and its cores.
    pub bandwidth: f64,
    /// Bytes per second between it and the host.
    pub link: f64,
}

impl Rates {
    /// How long an op of `flops` operations that moves `bytes` takes, in seconds: the longer of the two, as both go on at
    /// the same time. Williams et al. 2009.
    pub fn seconds(&self, flops: f64, bytes: f64) -> f64 {
        (flops / self.flops).max(bytes / self.bandwidth)
    }
}
