//! What all threads of one plan share.

use std::{collections::HashMap, sync::Arc, time::Duration};

use crate::{
    backend::{Device, NumericsClass},
    pipeline::{TextCache, gate::Gates},
};

/// What all threads of one plan share.
pub(super) struct WorkerPool {
    pub devices: Vec<Device>,
    pub gates: Arc<Gates>,
    /// One for each numerics class.
    pub texts: HashMap<Vec<NumericsClass>, Arc<TextCache>>,
    pub patience: Duration,
}
