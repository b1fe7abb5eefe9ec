//! The worker threads of one plan share this.

use std::{collections::HashMap, sync::Arc, time::Duration};

use crate::{
    backend::{Device, NumericsClass},
    pipeline::{TextCache, gate::Gates},
};

/// What the worker threads of one plan share.
pub(super) struct WorkerPool {
    pub devices: Vec<Device>,
    pub gates: Arc<Gates>,
    /// Remembered text features: one cache for each set of numerics classes of text encoders.
    pub texts: HashMap<Vec<NumericsClass>, Arc<TextCache>>,
    /// How long a device may make no progress before it counts as lost.
    pub patience: Duration,
}
