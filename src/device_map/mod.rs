//! The device map: a TOML file that says where each component may live.
//!
//! The file is read from the spanned TOML tree by hand (`grammar.rs`), so that every message has the file, the line and
//! the column, what was found and what is possible. Whatever names a device, a limit or a wish keeps its
//! [`Location`](Location), because some slips show only later: `unet = "cuda:7"` is good TOML on a machine with
//! one GPU.

pub mod catalogue;
mod check;
mod devices;
mod fields;
mod grammar;
mod load;
pub mod size;

use std::collections::BTreeMap;

use fields::nearest;
pub use fields::{Located, Location};
pub(crate) use grammar::read_devices;

use crate::backend::{DType, DeviceId};
pub use crate::weights::Reside;

/// How a map places the two branches of guidance apart.
const GUIDED_FORM: &str = "{ negative = \"cuda:0\", positive = \"cuda:1\" }";

/// The maps that come with sdshard: file name and text.
pub const SHIPPED: [(&str, &str); 11] = [
    ("balanced.toml", include_str!("../../device_maps/balanced.toml")),
    ("cpu-split.toml", include_str!("../../device_maps/cpu-split.toml")),
    ("guidance-split.toml", include_str!("../../device_maps/guidance-split.toml")),
    ("low-memory.toml", include_str!("../../device_maps/low-memory.toml")),
    ("mixed-vendors.toml", include_str!("../../device_maps/mixed-vendors.toml")),
    ("pool.toml", include_str!("../../device_maps/pool.toml")),
    ("replicas.toml", include_str!("../../device_maps/replicas.toml")),
    ("replicas-max.toml", include_str!("../../device_maps/replicas-max.toml")),
    ("sharded-unet.toml", include_str!("../../device_maps/sharded-unet.toml")),
    ("single.toml", include_str!("../../device_maps/single.toml")),
    ("two-gpus.toml", include_str!("../../device_maps/two-gpus.toml")),
];

/// Where the components may live, and how.
#[derive(Debug, Clone, PartialEq)]
pub struct DeviceMap {
    /// Places whatever `components` does not name.
    pub strategy: Located<Strategy>,
    /// The devices that may be used, the preferred one first. Empty: the machine's defaults, see [`usable`](Self::usable).
    pub devices: Vec<Located<DeviceId>>,
    /// Whole pipelines side by side, each placed by the strategy.
    pub replicas: Located<Replicas>,
    /// Requests that one replica works on at once.
    pub in_flight: Located<InFlight>,
    /// Compatible requests put through one forward pass, at most.
    pub batch: Located<usize>,
    /// Whether devices may round differently.
    pub numerics: Located<Numerics>,
    /// The most bytes that may be used on a device.
    pub max_memory: BTreeMap<DeviceId, Located<u64>>,
    /// The type of each component's weights.
    pub dtype: DTypes,
    /// What the map says about devices, on top of what they say themselves.
    pub device: BTreeMap<DeviceId, Located<DeviceFacts>>,
    /// Components with places of their own; by their names in the model. Several places are a pool: an instance on each.
    pub components: BTreeMap<String, Located<Vec<MapPlace>>>,
    /// Replicas written out one by one. Each is a whole map: this one with what its `[[replica]]` says instead, and without
    /// what this one says about devices that the replica does not list.
    pub replica: Vec<Located<DeviceMap>>,
}

impl Default for DeviceMap {
    fn default() -> Self {
        Self {
            strategy: Located::default(),
            devices: Vec::new(),
            replicas: Located::default(),
            in_flight: Located::default(),
            batch: 1.into(),
            numerics: Located::default(),
            max_memory: BTreeMap::new(),
            dtype: DTypes::default(),
            device: BTreeMap::new(),
            components: BTreeMap::new(),
            replica: Vec::new(),
        }
    }
}

/// Where one instance of a component runs and where its weights live, as a map says it. A plan has a
/// [`Place`](crate::pipeline::placement::Place) with a device for each section instead.
#[derive(Debug, Clone, PartialEq)]
pub enum MapPlace {
    /// All of it on one device.
    On {
        /// The device that runs it.
        device: Located<DeviceId>,
        /// The weights live there.
        reside: Located<Reside>,
    },
    /// Cut into pieces: the longest path that a part's name starts with has its device. The path "" is the rest.
    Cut {
        /// A device for each path, such as `down_blocks.1`.
        shards: BTreeMap<String, Located<DeviceId>>,
        /// The weights of all pieces live there.
        reside: Located<Reside>,
    },
    /// The two branches of guidance apart. What the loop keeps lives with `positive`, which is also the only one that
    /// runs without guidance. Only a denoiser has them.
    Guided {
        /// For the negative prompt; not guided again.
        negative: Box<MapPlace>,
        /// For the prompt; not guided again.
        positive: Box<MapPlace>,
    },
}

/// What a map says about one device. `None`: what the device says itself.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct DeviceFacts {
    /// The number of the wgpu adapter behind this device.
    pub adapter: Option<Located<usize>>,
    /// The cores of this share of the CPU, in ascending order.
    pub cores: Option<Located<Vec<usize>>>,
    /// Bytes left free for others.
    pub reserve: Option<Located<u64>>,
    /// Bytes of memory in all.
    pub memory: Option<Located<u64>>,
    /// A device of the catalogue whose rates this one is planned with: see [`catalogue`](catalogue::catalogue).
    pub like: Option<Located<String>>,
    /// Floating-point operations per second that long products reach.
    pub flops: Option<Located<f64>>,
    /// Bytes per second between its memory and its cores.
    pub bandwidth: Option<Located<u64>>,
    /// Bytes per second between it and the host.
    pub link: Option<Located<u64>>,
    /// So many of them, numbered on from this one; not in a map, only in a file of devices that are not here.
    pub count: Option<Located<usize>>,
}

/// How components without places of their own are placed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Strategy {
    /// Evens out the bytes on all devices; also called `auto`.
    #[default]
    Balanced,
    /// Like `balanced`, with as little as possible on the first device.
    BalancedLow0,
    /// Fills the devices in order.
    Sequential,
    /// Everything on the first device that holds it.
    Single,
    /// The placement that diffusers calls `balanced`. To it, `max_memory` is for the weights alone.
    DiffusersBalanced,
    /// The most pictures per second.
    Throughput,
    /// The shortest time for one picture.
    Latency,
}

/// How many whole pipelines stand side by side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Replicas {
    /// This number: the devices are partitioned into that many contiguous groups.
    Count(usize),
    /// As many as the devices hold.
    Max,
}

impl Default for Replicas {
    fn default() -> Self {
        Self::Count(1)
    }
}

/// How many requests one replica works on at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum InFlight {
    /// As many as keep its devices busy.
    #[default]
    Auto,
    /// This number.
    Count(usize),
}

/// Which numerics classes may meet in one plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Numerics {
    /// Any: pictures may differ in their last bits from device to device.
    #[default]
    Any,
    /// One: a plan with several is refused.
    Same,
}

/// The weight type of each component; `None` is `auto`: what suits the device.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DTypes {
    /// For every component that is not named below.
    pub default: Located<Option<DType>>,
    /// For single components, by their names in the model.
    pub components: BTreeMap<String, Located<Option<DType>>>,
}

impl DTypes {
    /// The type of one component; `None` is `auto`.
    pub fn of(&self, component: &str) -> &Located<Option<DType>> {
        self.components.get(component).unwrap_or(&self.default)
    }
}

impl Strategy {
    /// Every strategy, with its name in a map.
    const NAMED: [(&str, Self); 8] = [
        ("balanced", Self::Balanced),
        ("auto", Self::Balanced),
        ("balanced_low_0", Self::BalancedLow0),
        ("sequential", Self::Sequential),
        ("single", Self::Single),
        ("diffusers-balanced", Self::DiffusersBalanced),
        ("throughput", Self::Throughput),
        ("latency", Self::Latency),
    ];

    fn named(name: &str) -> Option<Self> {
        Self::NAMED.iter().find(|(n, _)| *n == name).map(|(_, strategy)| *strategy)
    }

    /// The name in a map.
    pub fn name(self) -> &'static str {
        Self::NAMED.iter().find(|(_, strategy)| *strategy == self).map_or("", |(name, _)| name)
    }

    /// What is possible, and what was probably meant by `word`.
    fn possible(word: &str) -> String {
        let names = Self::NAMED.map(|(name, _)| name);
        let possible = "a strategy is \"balanced\" (the same as \"auto\"), \"balanced_low_0\", \"sequential\", \
                        \"single\", \"diffusers-balanced\", \"throughput\" or \"latency\"";
        with_nearest(possible, word, &names)
    }
}

impl From<DeviceId> for MapPlace {
    fn from(device: DeviceId) -> Self {
        Self::On { device: device.into(), reside: Reside::Device.into() }
    }
}

impl From<DeviceId> for Located<Vec<MapPlace>> {
    fn from(device: DeviceId) -> Self {
        vec![MapPlace::from(device)].into()
    }
}

impl MapPlace {
    /// Every device that runs some of it, as often as it is named; of a guided place the negative branch's first.
    pub fn devices(&self) -> Vec<&Located<DeviceId>> {
        match self {
            MapPlace::On { device, .. } => vec![device],
            MapPlace::Cut { shards, .. } => shards.values().collect(),
            MapPlace::Guided { negative, positive } => [negative.devices(), positive.devices()].concat(),
        }
    }

    fn devices_mut(&mut self) -> Vec<&mut Located<DeviceId>> {
        match self {
            MapPlace::On { device, .. } => vec![device],
            MapPlace::Cut { shards, .. } => shards.values_mut().collect(),
            MapPlace::Guided { negative, positive } => {
                negative.devices_mut().into_iter().chain(positive.devices_mut()).collect()
            }
        }
    }

    /// The device, if all of it runs on one and its weights live there too.
    pub fn single(&self) -> Option<&Located<DeviceId>> {
        match self {
            MapPlace::On { device, reside: Located { value: Reside::Device, .. } } => Some(device),
            _ => None,
        }
    }

    /// The device of the part with this name: the longest path's that it starts with. `None` in a guided place, which
    /// has every part twice, and in a cut without the path "" for parts that no path names.
    pub fn device_at(&self, part: &str) -> Option<&Located<DeviceId>> {
        match self {
            MapPlace::On { device, .. } => Some(device),
            MapPlace::Cut { shards, .. } => {
                let names = shards.iter().filter(|(path, _)| starts_with(part, path));
                names.max_by_key(|(path, _)| path.len()).map(|(_, device)| device)
            }
            MapPlace::Guided { .. } => None,
        }
    }

    /// Where its weights live: one answer, or one for each branch of guidance.
    pub fn resides(&self) -> Vec<&Located<Reside>> {
        match self {
            MapPlace::On { reside, .. } | MapPlace::Cut { reside, .. } => vec![reside],
            MapPlace::Guided { negative, positive } => [negative.resides(), positive.resides()].concat(),
        }
    }

    /// The cuts in it: itself, or those of the branches of guidance.
    fn cuts(&self) -> Vec<&BTreeMap<String, Located<DeviceId>>> {
        match self {
            MapPlace::On { .. } => Vec::new(),
            MapPlace::Cut { shards, .. } => vec![shards],
            MapPlace::Guided { negative, positive } => [negative.cuts(), positive.cuts()].concat(),
        }
    }
}

/// Whether `path` is the beginning of `name` in whole steps: `a.b` of `a.b.c`, but not of `a.bc`.
fn starts_with(name: &str, path: &str) -> bool {
    path.is_empty() || name.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

impl DeviceMap {
    /// A map that is nothing but a strategy.
    pub fn from_strategy(strategy: Strategy) -> Self {
        Self { strategy: strategy.into(), ..Self::default() }
    }

    /// The maps to be placed: those of the replicas that are written out, or this one if there is none.
    pub fn replica_maps(&self) -> Vec<&Self> {
        match self.replica.is_empty() {
            true => vec![self],
            false => self.replica.iter().map(|replica| &replica.value).collect(),
        }
    }

    /// This map and those of its replicas, each with what stands before its keys in messages.
    pub(crate) fn all_maps(&self) -> impl Iterator<Item = (String, &Self)> {
        let replicas = self.replica.iter().enumerate();
        let replicas = replicas.map(|(index, replica)| (format!("replica[{index}]."), &replica.value));
        std::iter::once((String::new(), self)).chain(replicas)
    }

    /// Every device that a component is placed on, with the component's key for a value made in code. The replicas' own
    /// places are in [`replica_maps`](Self::replica_maps).
    pub fn placed_devices(&self) -> impl Iterator<Item = (String, &Located<DeviceId>)> {
        self.components.iter().flat_map(|(name, pool)| {
            let devices = pool.value.iter().flat_map(MapPlace::devices);
            devices.map(move |device| (format!("components.{name}"), device))
        })
    }
}

/// `possible`, and which of `names` was probably meant.
fn with_nearest(possible: &str, word: &str, names: &[&str]) -> String {
    match nearest(word, names) {
        Some(near) => format!("{possible}; did you mean \"{near}\"?"),
        None => possible.to_string(),
    }
}
