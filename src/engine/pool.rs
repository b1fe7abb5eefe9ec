//! State that the worker threads of one plan share.

use std::{collections::HashMap, sync::Arc, time::Duration};

use crate::{
    backend::{Device, NumericsClass},
    pipeline::{TextCache, gate::Gates},
};

/// State that the worker threads of one plan share.
pub(super) struct WorkerPool {
    pub devices: Vec<Device>,
    pub gates: Arc<Gates>,
    /// The caches of text features, one for each set of numerics classes of text encoders.
    pub texts: HashMap<Vec<NumericsClass>, Arc<TextCache>>,
    /// The time that a device may make no progress before it counts as lost.
    pub patience: Duration,
}
